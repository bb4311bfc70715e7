"""Attention by hand: a few keys in the plane of two means, one query or two, what comes out, and how it scatters."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from hectogpt.explore import attention
from hectogpt.explore.pages.chart import Panel, number
from hectogpt.explore.pages.drawing import Box, Drawing, Role
from hectogpt.explore.pages.view import Note, Quantities, Quantity, View

SAMPLES = 10_000
DIMENSIONS = 128  # of normalised keys
Query = Literal["copy", "average", "heads"]
WORDS: dict[Query, str] = {
    "copy": "q = β μa: copy va",
    "average": "q = β (μa + μb): the average of va and vb, one head",
    "heads": "q₁ = β μa and q₂ = β μb: the average, two heads",
}


@dataclass(frozen=True)
class ByHand:
    """What the sliders set. alpha: variance of every key in every direction; spread: k_a's further variance along mu_a.

    sample: which of the sampled sets of keys is drawn. normalised: keys are layer-normalised.
    """

    query: Query = "average"
    beta: float = 10.0
    alpha: float = 1e-4
    spread: float = 0.5
    n: int = 8
    sample: int = 3
    normalised: bool = False


@functools.lru_cache(maxsize=16)
def projections(n: int, alpha: float, spread: float, normalised: bool) -> np.ndarray:
    """Sampled keys, seen along mu_a and mu_b; the same draw whatever the query."""
    return attention.key_projections(SAMPLES, n, alpha, spread, d=DIMENSIONS, normalise=normalised)


def weights(seen: np.ndarray, s: ByHand) -> tuple[np.ndarray, ...]:
    """[samples, n] for each head."""
    if s.query == "average":
        return (attention.single_head(seen, s.beta),)
    first, second = attention.two_heads(seen, s.beta)
    return (first,) if s.query == "copy" else (first, second)


def view(s: ByHand) -> View:
    """Everything of the page."""
    seen = projections(s.n, s.alpha, s.spread, s.normalised)
    heads = weights(seen, s)
    c = np.mean(heads, axis=0)
    goal = np.zeros(s.n)
    goal[:2] = (1, 0) if s.query == "copy" else (0.5, 0.5)
    errors = np.linalg.norm(c - goal, axis=1)
    drawings = (
        _plane(seen, s),
        _bars(heads, c[s.sample], s),
        _scatter(c, goal, errors, s),
        _histogram(c[:, 0], s),
    )
    return View("Attention by hand", (_explanation(s), *drawings, _sample(seen, c, errors, s), _overall(c, errors, s)))


def _explanation(s: ByHand) -> Note:
    return Note(
        f"{s.n} keys with orthonormal means; values are orthonormal too, so c is described by its weights. "
        f"{WORDS[s.query]}, β = {number(s.beta)}. Key a is uncertain along its own mean; c should be "
        f"{'va' if s.query == 'copy' else '(va + vb)/2'}. All statistics are over {SAMPLES:,} draws of the keys."
    )


def _plane(seen: np.ndarray, s: ByHand) -> Drawing:
    a, b = seen[s.sample, 0], seen[s.sample, 1]
    alt = (
        f"Plane of the means. Key a at ({a[0]:.2f}, {a[1]:.2f}), key b at ({b[0]:.2f}, {b[1]:.2f}), the other "
        f"{s.n - 2} keys near the origin; a band along the first axis shows where key a may lie."
    )
    panel = Panel(
        "Keys and query",
        alt,
        (-1.3, 3.1),
        (-0.9, 2.4),
        x="component along μa",
        y="component along μb",
        height=320,
        legend=[("orange", "draws of ka"), ("muted", "other keys of this draw")],
    )
    panel.dots(seen[:300, 0], "orange", 3, 0.22)
    if s.n > 2:
        panel.dots(seen[s.sample, 2:], "muted", 3.5, 0.8)
    panel.arrow((float(a[0]), float(a[1])), "blue", "ka", lift=18)
    panel.arrow((float(b[0]), float(b[1])), "green", "kb")
    directions: dict[Query, list[tuple[tuple[float, float], str]]] = {
        "copy": [((1.8, 0), "q")],
        "average": [((1.3, 1.3), "q")],
        "heads": [((1.8, 0), "q₁"), ((0, 1.8), "q₂")],
    }
    for tip, name in directions[s.query]:
        panel.arrow(tip, "pink", name, dashed=True)
    return panel.drawing


def _bars(heads: tuple[np.ndarray, ...], c: np.ndarray, s: ByHand) -> Drawing:
    parts = [f"head {i + 1}: a {w[s.sample, 0]:.3f}, b {w[s.sample, 1]:.3f}" for i, w in enumerate(heads)]
    alt = f"Weights of this draw. {'; '.join(parts)}; c: a {c[0]:.3f}, b {c[1]:.3f}, others {c[2:].sum():.3f}."
    legend: list[tuple[Role, str]] = [("blue", "head 1"), ("orange", "head 2")] if len(heads) > 1 else []
    names = ["a", "b"] + [str(i) for i in range(3, s.n + 1)]
    every = max(1, s.n // 12)
    marks = [(i + 0.5, name) for i, name in enumerate(names) if i < 2 or (i + 1) % every == 0]
    panel = Panel("Weights, this draw", alt, (0, s.n), (0, 1), x="key", y="", height=320, xticks=marks, legend=legend)
    width = 0.8 / len(heads)
    for k, w in enumerate(heads):
        for i, value in enumerate(w[s.sample]):
            x, y = panel.at(i + 0.1 + k * width, float(value))
            right = panel.at(i + 0.1 + (k + 1) * width, 0)[0]
            title = f"key {names[i]}, head {k + 1}: {value:.4f}"
            panel.drawing.add(Box(x, y, right - x, panel.bottom - y, "blue" if k == 0 else "orange", 1, title))
    return panel.drawing


def _scatter(c: np.ndarray, goal: np.ndarray, errors: np.ndarray, s: ByHand) -> Drawing:
    near = float((errors < 0.1).mean())
    alt = f"Outputs c of 400 draws by their weights on va and vb. {100 * near:.0f} percent of draws end near the goal."
    panel = Panel(
        "Output c, draw by draw (+ the goal)",
        alt,
        (-0.05, 1.05),
        (-0.05, 1.05),
        x="weight on va",
        y="weight on vb",
        height=320,
        legend=[("blue", "400 draws"), ("orange", "this draw")],
    )
    panel.dots(c[:400, :2], "blue", 3.5, 0.25)
    panel.cross(float(goal[0]), float(goal[1]))
    panel.dots([(c[s.sample, 0], c[s.sample, 1])], "orange", 6)
    return panel.drawing


def closed_form(s: ByHand, edges: np.ndarray) -> np.ndarray | None:
    """Probability of each bin of c's weight on v_a as alpha vanishes; None where k_a's length is certain."""
    if s.spread == 0 or s.beta == 0 or s.normalised:
        return None
    if s.query == "average":
        law, shift, scale = attention.single_head_limit(s.beta, n=s.n, spread=s.spread), 0.0, 1.0
    else:
        law = attention.first_head_limit(s.beta, s.n, spread=s.spread)
        heads = 2.0 if s.query == "heads" else 1.0
        # The second head sees only k_b: its weight on a is 1 / (e^beta + n - 1).
        shift, scale = (heads - 1) / (math.exp(s.beta) + s.n - 1), heads
    inner = edges * scale - shift
    below = [0.0 if w <= 0 else 1.0 if w >= 1 else law.below(float(w)) for w in inner]
    return np.diff(below)


def _histogram(weight: np.ndarray, s: ByHand) -> Drawing:
    edges = np.linspace(0, 1, 41)
    shares = np.histogram(weight, edges)[0] / len(weight)
    exact = closed_form(s, edges)
    alt = (
        f"Distribution of c's weight on va: mean {weight.mean():.3f}, standard deviation {weight.std():.3f}; "
        f"{100 * shares[0]:.0f} percent of draws below 0.025, {100 * shares[-1]:.0f} percent above 0.975."
    )
    top = 1.1 * max(float(shares.max()), 0.02 if exact is None else float(exact.max()))
    legend: list[tuple[Role, str]] = [("blue", "sampled")]
    if exact is not None:
        legend.append(("orange", "closed form, α → 0"))
    panel = Panel("Weight on va in c", alt, (0, 1), (0, top), x="weight on va", height=320, legend=legend)
    for low, share in zip(edges[:-1], shares, strict=True):
        x, y = panel.at(float(low), float(share))
        wide = panel.at(float(low) + 1 / 40, 0)[0] - x
        panel.drawing.add(Box(x, y, wide - 1, panel.bottom - y, "blue", 0.6, f"{low:.3f} and up: {share:.4f}"))
    if exact is not None:
        panel.line(np.repeat(edges, 2)[1:-1], np.repeat(exact, 2), "orange")
    return panel.drawing


def _sample(seen: np.ndarray, c: np.ndarray, errors: np.ndarray, s: ByHand) -> Quantities:
    i = s.sample
    rows = [
        Quantity("weight_a", "weight of va in c", float(c[i, 0])),
        Quantity("weight_b", "weight of vb in c", float(c[i, 1])),
        Quantity("weight_rest", "weight of the others", float(c[i, 2:].sum())),
        Quantity("error", "distance of c from the goal", float(errors[i])),
    ]
    if s.query == "copy":
        scores = s.beta * seen[i, :, 0]
        gap = float(scores[0] - scores[1:].max())
        bound = (s.n - 1) * math.exp(-gap)
        rows += [
            Quantity("gap", "gap of the scores", gap),
            Quantity("bound", "bound (n − 1) exp(−gap) on 1 − weight", bound, ".3g"),
        ]
    return Quantities("This draw of the keys", tuple(rows))


def _overall(c: np.ndarray, errors: np.ndarray, s: ByHand) -> Quantities:
    variance = attention.total_variance(c)
    taken = attention.share(c[:, :2].max(axis=1) > 0.99)
    near = attention.share(errors < 0.1)
    rows = [
        Quantity("mean_a", "mean weight of va", float(c[:, 0].mean())),
        Quantity("variance", "total variance of c", variance.value),
        Quantity("variance_low", "  its 95 % interval, from", variance.low),
        Quantity("variance_high", "  to", variance.high),
        Quantity("taken", "share of draws one value takes over (weight > 0.99)", taken.value),
        Quantity("near", "share of draws within 0.1 of the goal", near.value),
    ]
    if not s.normalised:
        if s.query == "average":
            exact = attention.single_head_variance(s.beta, s.n, spread=s.spread)
        else:
            law = attention.first_head_limit(s.beta, s.n, spread=s.spread)
            exact = law.variance() * s.n / (s.n - 1) / (4 if s.query == "heads" else 1)
        rows.append(Quantity("variance_limit", "total variance in closed form, α → 0", exact))
    if s.query == "average" and not s.normalised and s.spread > 0 and s.beta > 0:
        limit = attention.takeover(s.beta, s.n, spread=s.spread)
        rows.append(Quantity("taken_limit", "share taken over in closed form, α → 0", limit))
    return Quantities(f"{SAMPLES:,} draws", tuple(rows))
