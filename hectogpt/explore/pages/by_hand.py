"""The page "Attention by hand": a few keys in a plane, one query or two, and how the output varies with the keys."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from hectogpt.errors import UserError
from hectogpt.explore import attention, estimates
from hectogpt.explore.pages.chart import Panel, format_number
from hectogpt.explore.pages.drawing import Box, Drawing, Role
from hectogpt.explore.pages.view import Charts, Note, Quantities, Quantity, View

SAMPLES = 10_000
DIMENSIONS = 128  # of layer-normalised keys
MOST_KEYS = 512  # of SAMPLES draws each: 160 MB
LARGEST = 500.0  # of beta, alpha and spread: far beyond, exp(beta) overflows
WIDTH, HEIGHT = 280, 270  # of a chart: four stand side by side on a page 1,078 pixels wide
Query = Literal["copy", "average", "heads"]
DESCRIPTIONS: dict[Query, str] = {
    "copy": "q = β μa: copy va",
    "average": "q = β (μa + μb): the average of va and vb, one head",
    "heads": "q₁ = β μa and q₂ = β μb: the average, two heads",
}


@dataclass(frozen=True)
class ByHand:
    """Settings of the page.

    alpha: variance of every key in every direction. spread: variance that k_a has along mu_a in addition. n: number of
    keys. sample: index of the sampled set of keys that is drawn. normalised: the keys are layer-normalised.
    """

    query: Query = "average"
    beta: float = 10.0
    alpha: float = 1e-4
    spread: float = 0.5
    n: int = 8
    sample: int = 3
    normalised: bool = False


@functools.lru_cache(maxsize=16)
def sample_projections(n: int, alpha: float, spread: float, normalised: bool) -> np.ndarray:
    """Projections of sampled keys on mu_a and mu_b, [samples, n, 2]; the same whatever the query."""
    return attention.sample_projections(SAMPLES, n, alpha, spread, d=DIMENSIONS, normalise=normalised)


def attend(projections: np.ndarray, settings: ByHand) -> tuple[np.ndarray, ...]:
    """Attention weights [samples, n] of each head."""
    if settings.query == "average":
        return (attention.attend_one_head(projections, settings.beta),)
    first, second = attention.attend_two_heads(projections, settings.beta)
    return (first,) if settings.query == "copy" else (first, second)


def view(settings: ByHand) -> View:
    """The page's contents. Raises UserError for settings without a meaning or beyond the ceilings above."""
    if settings.n > MOST_KEYS:
        raise UserError(
            f"n = {settings.n} keys",
            why=f"{SAMPLES:,} draws of all keys are kept in memory, so at most {MOST_KEYS} keys are drawn",
            fix=f"set n to {MOST_KEYS} or less",
        )
    for name in ("beta", "alpha", "spread"):
        value = getattr(settings, name)
        if math.isfinite(value) and abs(value) > LARGEST:
            raise UserError(
                f"{name} = {value:g}",
                why=f"the page draws up to {LARGEST:,.0f}",
                fix=f"set {name} to {LARGEST:g} or less",
            )
    projections = sample_projections(settings.n, settings.alpha, settings.spread, settings.normalised)
    heads = attend(projections, settings)
    outputs = np.mean(heads, axis=0)  # c by its weights on the values, [samples, n]
    goal = np.zeros(settings.n)
    goal[:2] = (1, 0) if settings.query == "copy" else (0.5, 0.5)
    errors = np.linalg.norm(outputs - goal, axis=1)
    charts = Charts(
        (
            _draw_plane(projections, settings),
            _draw_weights(heads, outputs, settings),
            _draw_outputs(outputs, goal, errors, settings),
            _draw_histogram(outputs[:, 0], settings),
        )
    )
    this_draw = _list_sample(projections, outputs, errors, settings)
    return View(
        "Attention by hand", (_explain(settings), charts, this_draw, _list_statistics(outputs, errors, settings))
    )


def _explain(settings: ByHand) -> Note:
    return Note(
        f"{settings.n} keys with orthonormal means; values are orthonormal too, so c is described by its weights. "
        f"{DESCRIPTIONS[settings.query]}, β = {format_number(settings.beta)}. Key a is uncertain along its own mean; "
        f"c should be {'va' if settings.query == 'copy' else '(va + vb)/2'}. All statistics are over {SAMPLES:,} draws "
        "of the keys."
    )


def _draw_plane(projections: np.ndarray, settings: ByHand) -> Drawing:
    a, b = projections[settings.sample, 0], projections[settings.sample, 1]
    alt = (
        f"Plane of the means. Key a at ({a[0]:.2f}, {a[1]:.2f}), key b at ({b[0]:.2f}, {b[1]:.2f}), the other "
        f"{settings.n - 2} keys near the origin; a band along the first axis shows where key a may lie."
    )
    panel = Panel(
        "Keys and query",
        alt,
        (-1.3, 3.1),
        (-0.9, 2.4),
        x="component along μa",
        y="component along μb",
        width=WIDTH,
        height=HEIGHT,
        legend=[("orange", "draws of ka"), ("muted", "other keys of this draw")],
    )
    panel.dots(projections[:300, 0], "orange", 3, 0.22)
    if settings.n > 2:
        panel.dots(projections[settings.sample, 2:], "muted", 3.5, 0.8)
    panel.arrow((float(a[0]), float(a[1])), "blue", "ka", lift=18)
    panel.arrow((float(b[0]), float(b[1])), "green", "kb")
    directions: dict[Query, list[tuple[tuple[float, float], str]]] = {
        "copy": [((1.8, 0), "q")],
        "average": [((1.3, 1.3), "q")],
        "heads": [((1.8, 0), "q₁"), ((0, 1.8), "q₂")],
    }
    for tip, name in directions[settings.query]:
        panel.arrow(tip, "pink", name, dashed=True)
    return panel.drawing


def _draw_weights(heads: tuple[np.ndarray, ...], outputs: np.ndarray, settings: ByHand) -> Drawing:
    sample, n = settings.sample, settings.n
    c = outputs[sample]
    parts = [f"head {i + 1}: a {weights[sample, 0]:.3f}, b {weights[sample, 1]:.3f}" for i, weights in enumerate(heads)]
    alt = f"Weights of this draw. {'; '.join(parts)}; c: a {c[0]:.3f}, b {c[1]:.3f}, others {c[2:].sum():.3f}."
    legend: list[tuple[Role, str]] = [("blue", "head 1"), ("orange", "head 2")] if len(heads) > 1 else []
    names = ["a", "b"] + [str(i) for i in range(3, n + 1)]
    every = max(1, n // 12)
    marks = [(i + 0.5, name) for i, name in enumerate(names) if i < 2 or (i + 1) % every == 0]
    panel = Panel(
        "Weights, this draw", alt, (0, n), (0, 1), x="key", width=WIDTH, height=HEIGHT, xticks=marks, legend=legend
    )
    width = 0.8 / len(heads)
    for k, weights in enumerate(heads):
        for i, weight in enumerate(weights[sample]):
            x, y = panel.to_sheet(i + 0.1 + k * width, float(weight))
            right = panel.to_sheet(i + 0.1 + (k + 1) * width, 0)[0]
            title = f"key {names[i]}, head {k + 1}: {weight:.4f}"
            panel.drawing.add(Box(x, y, right - x, panel.bottom - y, "blue" if k == 0 else "orange", 1, title))
    return panel.drawing


def _draw_outputs(outputs: np.ndarray, goal: np.ndarray, errors: np.ndarray, settings: ByHand) -> Drawing:
    near = float((errors < 0.1).mean())
    alt = f"Outputs c of 400 draws by their weights on va and vb. {100 * near:.0f} percent of draws end near the goal."
    panel = Panel(
        "Output c of each draw (+ goal)",
        alt,
        (-0.05, 1.05),
        (-0.05, 1.05),
        x="weight on va",
        y="weight on vb",
        width=WIDTH,
        height=HEIGHT,
        legend=[("blue", "400 draws"), ("orange", "this draw")],
    )
    panel.dots(outputs[:400, :2], "blue", 3.5, 0.25)
    panel.cross(float(goal[0]), float(goal[1]))
    panel.dots([(outputs[settings.sample, 0], outputs[settings.sample, 1])], "orange", 6)
    return panel.drawing


def closed_form(settings: ByHand, edges: np.ndarray) -> np.ndarray | None:
    """Probability of each bin of c's weight on v_a as alpha -> 0; None if k_a's length is certain or not normal."""
    if settings.spread == 0 or settings.beta == 0 or settings.normalised:
        return None
    if settings.query == "average":
        law, shift, scale = attention.single_head_limit(settings.beta, n=settings.n, spread=settings.spread), 0.0, 1.0
    else:
        law = attention.first_head_limit(settings.beta, settings.n, spread=settings.spread)
        heads = 2.0 if settings.query == "heads" else 1.0
        # The second head depends on k_b alone: its weight on a is 1 / (e^beta + n - 1).
        shift, scale = (heads - 1) / (math.exp(settings.beta) + settings.n - 1), heads
    inner = edges * scale - shift
    below = [0.0 if w <= 0 else 1.0 if w >= 1 else law.below(float(w)) for w in inner]
    return np.diff(below)


def _draw_histogram(weight: np.ndarray, settings: ByHand) -> Drawing:
    edges = np.linspace(0, 1, 41)
    shares = np.histogram(weight, edges)[0] / len(weight)
    exact = closed_form(settings, edges)
    alt = (
        f"Distribution of c's weight on va: mean {weight.mean():.3f}, standard deviation {weight.std():.3f}; "
        f"{100 * shares[0]:.0f} percent of draws below 0.025, {100 * shares[-1]:.0f} percent above 0.975."
    )
    top = 1.1 * max(float(shares.max()), 0.02 if exact is None else float(exact.max()))
    legend: list[tuple[Role, str]] = [("blue", "sampled")]
    if exact is not None:
        legend.append(("orange", "closed form, α → 0"))
    panel = Panel(
        "Weight on va in c", alt, (0, 1), (0, top), x="weight on va", width=WIDTH, height=HEIGHT, legend=legend
    )
    for low, share in zip(edges[:-1], shares, strict=True):
        x, y = panel.to_sheet(float(low), float(share))
        width = panel.to_sheet(float(low) + 1 / 40, 0)[0] - x
        panel.drawing.add(Box(x, y, width - 1, panel.bottom - y, "blue", 0.6, f"{low:.3f} and up: {share:.4f}"))
    if exact is not None:
        panel.line(np.repeat(edges, 2)[1:-1], np.repeat(exact, 2), "orange")
    return panel.drawing


def _list_sample(projections: np.ndarray, outputs: np.ndarray, errors: np.ndarray, settings: ByHand) -> Quantities:
    c = outputs[settings.sample]
    rows = [
        Quantity("weight_a", "weight of va in c", float(c[0])),
        Quantity("weight_b", "weight of vb in c", float(c[1])),
        Quantity("weight_rest", "weight of the others", float(c[2:].sum())),
        Quantity("error", "distance of c from the goal", float(errors[settings.sample])),
    ]
    if settings.query == "copy":
        scores = settings.beta * projections[settings.sample, :, 0]
        gap = float(scores[0] - scores[1:].max())
        bound = (settings.n - 1) * math.exp(min(-gap, 700.0))  # beyond, it would overflow; it says nothing from 1 on
        rows += [
            Quantity("gap", "gap of the scores", gap),
            Quantity("bound", "bound (n − 1) exp(−gap) on 1 − weight", bound, ".3g"),
        ]
    return Quantities("This draw of the keys", tuple(rows))


def _list_statistics(outputs: np.ndarray, errors: np.ndarray, settings: ByHand) -> Quantities:
    variance = estimates.estimate_total_variance(outputs)
    taken = estimates.estimate_share(outputs[:, :2].max(axis=1) > 0.99)
    near = estimates.estimate_share(errors < 0.1)
    beta, n, spread = settings.beta, settings.n, settings.spread
    rows = [
        Quantity("mean_a", "mean weight of va", float(outputs[:, 0].mean())),
        Quantity("variance", "total variance of c", variance.value),
        Quantity("variance_low", "  its 95 % interval, from", variance.low),
        Quantity("variance_high", "  to", variance.high),
        Quantity("taken", "share of draws one value takes over (weight > 0.99)", taken.value),
        Quantity("near", "share of draws within 0.1 of the goal", near.value),
    ]
    if not settings.normalised:
        if settings.query == "average":
            exact = attention.single_head_variance(beta, n, spread=spread)
        else:
            law = attention.first_head_limit(beta, n, spread=spread)
            exact = law.variance() * n / (n - 1) / (4 if settings.query == "heads" else 1)
        rows.append(Quantity("variance_limit", "total variance in closed form, α → 0", exact))
    if settings.query == "average" and not settings.normalised and spread > 0 and beta > 0:
        limit = attention.takeover_probability(beta, n, spread=spread)
        rows.append(Quantity("taken_limit", "share taken over in closed form, α → 0", limit))
    return Quantities(f"{SAMPLES:,} draws", tuple(rows))
