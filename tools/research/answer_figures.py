"""The figures of the written answers, one function each; they use the same functions as the numbers.

The same code writes the same bytes: SVG without a date, with a fixed salt for identifiers and text as outlines. The
colours are Okabe and Ito's, which colour-blind readers can tell apart.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.special import ndtr

from tools.research import attention, positions
from tools.research.numbers import SAMPLES, VANISHING, N

BLUE, ORANGE, GREEN, PINK, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#666666"
STYLE: Any = {  # names that matplotlib knows, values of many types
    "svg.hashsalt": "hectogpt",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "mathtext.fontset": "dejavusans",
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.wspace": 0.06,
}


def make_panels(columns: int, height: float = 3.0) -> tuple[Figure, list[Axes]]:
    """A figure 7.4 inches wide with one row of axes."""
    figure = Figure(figsize=(7.4, height))
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


# --- attention ---

NOISES = (1e-2, 1e-4, 1e-6)  # alpha in the figures of small isotropic noise


def draw_copying() -> Figure:
    """Weight not on j with its bound against the gap, and the gap needed against the number of keys."""
    figure, (left, right) = make_panels(2, 2.7)
    gaps = np.linspace(0.0, 20.0, 81)
    for n, colour in ((2, GREEN), (64, BLUE), (4096, ORANGE)):
        result = attention.measure_copy(gaps, n)
        left.semilogy(gaps, result.missing, color=colour, label=f"n = {n}")
        left.semilogy(gaps, result.bound, color=colour, linestyle=":", linewidth=1.3)
    left.set(title="Weight not on j", xlabel="gap", ylabel=r"$1-\alpha_j$", ylim=(1e-9, 3))
    left.plot([], [], color=GREY, linestyle=":", linewidth=1.3, label="bound")
    left.legend()
    sizes = np.unique(np.logspace(np.log10(2), 5, 60).astype(int))
    for weight, colour in ((0.9, GREEN), (0.99, BLUE), (0.999, ORANGE)):
        needed = [attention.gap_for_weight(weight, int(n)) for n in sizes]
        right.semilogx(sizes, needed, color=colour, label=f"weight {weight:g}")
    right.set(title="Gap that guarantees a weight", xlabel="number of keys n", ylabel="gap")
    right.legend()
    return figure


def draw_copy_error() -> Figure:
    """Error of the copy with its bound, and the largest difference of an entry in float32."""
    figure, (left, right) = make_panels(2)
    gaps = np.linspace(0.0, 20.0, 81)
    for n, colour in ((2, GREEN), (64, BLUE), (4096, ORANGE)):
        result = attention.measure_copy(gaps, n)
        left.semilogy(gaps, result.error, color=colour, label=f"n = {n}")
        left.semilogy(gaps, result.error_bound, color=colour, linestyle=":", linewidth=1.3)
    left.set(title="Error of the copy", xlabel="gap", ylabel=r"$\Vert c-v_j\Vert$", ylim=(1e-9, 3))
    left.plot([], [], color=GREY, linestyle=":", linewidth=1.3, label="bound")
    left.legend()
    wide = np.linspace(0.0, 110.0, 441)
    rounded = [attention.copy_in_float32(gap, 1000) for gap in wide]
    weight = np.array([1 - r.weight for r in rounded])
    largest = np.array([r.largest for r in rounded])
    right.semilogy(wide[largest > 0], largest[largest > 0], color=ORANGE, label="largest difference of an entry")
    right.semilogy(wide[weight > 0], weight[weight > 0], color=BLUE, linestyle="--", label=r"$1-\alpha_j$")
    right.set(title="In float32, n = 1000", xlabel="gap", ylim=(1e-48, 1e10))
    right.legend(loc="upper right")
    return figure


def draw_average() -> Figure:
    """Error of the average against beta, and the beta needed against the number of keys."""
    figure, (left, right) = make_panels(2)
    betas = np.linspace(0.0, 20.0, 81)
    for n, colour in ((10, GREEN), (100, BLUE), (1000, ORANGE), (4096, PINK)):
        left.semilogy(betas, [attention.average_two(float(b), n).error for b in betas], color=colour, label=f"n = {n}")
    left.set(title="Error of the average", xlabel=r"$\beta$", ylabel=r"$\Vert c-\frac{1}{2}(v_a+v_b)\Vert$")
    left.legend()
    sizes = np.unique(np.logspace(np.log10(3), 5, 60).astype(int))
    for error, colour in ((0.1, GREEN), (0.01, BLUE), (0.001, ORANGE)):
        needed = [attention.beta_for_error(error, int(n)) for n in sizes]
        right.semilogx(sizes, needed, color=colour, label=f"error {error:g}")
    right.set(title=r"$\beta$ needed", xlabel="number of keys n", ylabel=r"$\beta$")
    right.legend()
    return figure


def draw_small_noise() -> Figure:
    """RMS error of one head against beta for three sizes of small isotropic noise, with the two parts of the error."""
    figure, (ax,) = make_panels(1, 2.6)
    betas = np.logspace(0, 3.5, 36)
    for alpha, colour in zip(NOISES, (ORANGE, BLUE, GREEN), strict=True):
        projections = attention.sample_projections(20_000, N, alpha, 0, seed=5)
        errors = [_rms_error(attention.attend_one_head(projections, float(b))) for b in betas]
        ax.loglog(betas, errors, "o", color=colour, markersize=3.5, label=rf"$\alpha$ = {alpha:g}")
        ax.loglog(betas, betas * math.sqrt(alpha / 2), color=colour, linestyle=":", linewidth=1.3)
    ax.loglog(betas, [attention.average_two(float(b), N).error for b in betas], color=GREY, label="without noise")
    ax.plot([], [], color=GREY, linestyle=":", linewidth=1.3, label=r"$\beta\,\sqrt{\alpha/2}$")
    ax.set(title="One head: RMS error of c", xlabel=r"$\beta$", ylim=(1e-3, 2), xlim=(1, 10**3.5))
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def draw_two_heads() -> Figure:
    """RMS error of one head and of two against beta, for two sizes of small isotropic noise."""
    figure, axes = make_panels(2)
    betas = np.logspace(0, 2.5, 31)
    for ax, alpha in zip(axes, NOISES, strict=False):
        projections = attention.sample_projections(20_000, N, alpha, 0, seed=5)
        one = [_rms_error(attention.attend_one_head(projections, float(b))) for b in betas]
        pairs = [attention.attend_two_heads(projections, float(b)) for b in betas]
        ax.loglog(betas, one, "o-", color=BLUE, markersize=3, linewidth=1.2, label="one head")
        two = [_rms_error((first + second) / 2) for first, second in pairs]
        ax.loglog(betas, two, "o-", color=ORANGE, markersize=3, linewidth=1.2, label="two heads")
        ax.set(title=rf"RMS error of c, $\alpha$ = {alpha:g}", xlabel=r"$\beta$", ylim=(1e-8, 2))
        ax.legend(loc="lower left")
    return figure


def _rms_error(weights: np.ndarray) -> float:
    """The root mean square of |c - (v_a + v_b)/2| for orthonormal values."""
    target = np.zeros(weights.shape[1])
    target[:2] = 0.5
    return attention.estimate_root(np.square(weights - target).sum(axis=1)).value


def draw_single_head() -> Figure:
    """The distribution of alpha_a for three values of beta, simulated and in closed form."""
    figure, axes = make_panels(3, 2.7)
    projections = attention.sample_projections(SAMPLES, N, VANISHING, 0.5)
    edges = np.linspace(0, 1, 41)
    middle, width = (edges[1:] + edges[:-1]) / 2, edges[1]
    for ax, beta in zip(axes, (1.5, 5.0, 20.0), strict=True):
        weights = attention.attend_one_head(projections, beta)
        inside = weights[:, 0] / weights[:, :2].sum(axis=1)
        shares = np.histogram(inside, edges)[0] / SAMPLES
        half = 1.96 * np.sqrt(shares * (1 - shares) / SAMPLES)
        ax.bar(middle, shares / width, width * 0.9, color="#A6CBE3", label="simulated")
        ax.errorbar(middle, shares / width, half / width, fmt="none", ecolor=BLUE, elinewidth=1)
        limit = attention.single_head_limit(beta)
        below = np.array([0.0] + [limit.below(float(e)) for e in edges[1:-1]] + [1.0])
        ax.step(middle, np.diff(below) / width, where="mid", color=ORANGE, linewidth=1.3, label="closed form")
        ax.set(title=rf"$\beta$ = {beta:g}", xlabel="share of $v_a$ in $c$", ylim=(0, None))
    axes[0].set_ylabel("density")
    axes[0].legend(loc="lower center")
    return figure


def draw_variance() -> Figure:
    """Total variance of c for one head and for two, and the share of samples that lose v_a or v_b."""
    figure, (left, right) = make_panels(2, 3.3)
    betas = np.linspace(0.25, 60, 120)
    marks = np.array([2.0, 5.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0])
    projections = attention.sample_projections(SAMPLES, N, VANISHING, 0.5)
    one = [attention.estimate_total_variance(attention.attend_one_head(projections, float(b))) for b in marks]
    heads = [attention.attend_two_heads(projections, float(b)) for b in marks]
    two = [attention.estimate_total_variance((first + second) / 2) for first, second in heads]
    whole = [attention.estimate_total_variance(first) for first, _ in heads]
    curve = np.array([attention.single_head_variance(float(b), N) for b in betas])
    curve_1 = np.array([attention.first_head_limit(float(b), N).variance() * N / (N - 1) for b in betas])
    for line, points, colour, label in (
        (curve, one, BLUE, "one head, c"),
        (curve_1, whole, GREEN, "two heads, $c_1$"),
        (curve_1 / 4, two, ORANGE, "two heads, c"),
    ):
        left.plot(betas, line, color=colour, label=label)
        left.errorbar(marks, [p.value for p in points], _error_bars(points), fmt="o", color=colour, markersize=3.5)
    left.axhline(0.5, color=GREY, linewidth=0.8, linestyle=":")
    left.set(title="Total variance", xlabel=r"$\beta$", ylabel=r"$E\Vert c-E\,c\Vert^2$", ylim=(0, 0.55))
    left.legend(loc="center right")
    taken = [
        attention.estimate_share(attention.attend_one_head(projections, float(b))[:, :2].max(axis=1) > 0.99)
        for b in marks
    ]
    right.plot(
        betas,
        [attention.takeover_probability(float(b), N) for b in betas],
        color=BLUE,
        label="one head: a value above 0.99",
    )
    right.errorbar(marks, [t.value for t in taken], _error_bars(taken), fmt="o", color=BLUE, markersize=3.5)
    fails = [attention.estimate_share(first[:, 0] < 0.5) for first, _ in heads]
    right.plot(betas, [attention.first_head_limit(float(b), N).below(0.5) for b in betas], color=GREEN)
    right.errorbar(marks, [f.value for f in fails], _error_bars(fails), fmt="o", color=GREEN, markersize=3.5)
    right.plot([], [], color=GREEN, label="two heads: $c_1$ loses $v_a$")
    right.axhline(float(ndtr(-math.sqrt(2))), color=GREY, linewidth=0.8, linestyle=":")
    right.set(title="Share of samples", xlabel=r"$\beta$", ylim=(0, 1.25), yticks=np.linspace(0, 1, 6))
    right.legend(loc="upper left")
    return figure


def _error_bars(points: list[attention.Estimate]) -> np.ndarray:
    """Lengths of the error bars, below and above."""
    return np.array([[p.value - p.low for p in points], [p.high - p.value for p in points]])


def draw_losing_a_key() -> Figure:
    """Weight of head 1 on a against eps_a, and its weights on all keys if eps_a is negative."""
    figure, (left, right) = make_panels(2)
    eps = np.linspace(-1.5, 3.0, 400)
    for beta, colour in ((5, GREEN), (10, BLUE), (50, ORANGE)):
        left.plot(eps, 1 / (1 + np.exp(-(beta * eps - math.log(N - 1)))), color=colour, label=rf"$\beta$ = {beta}")
    bell = np.exp(-((eps - 1) ** 2))
    left.fill_between(eps, 0, bell * 0.5, color="#CCCCCC", label=r"density of $\varepsilon_a$", linewidth=0)
    left.set(title="Weight of head 1 on a", xlabel=r"$\varepsilon_a$ (length of $k_a$)", ylabel=r"$\alpha_a^{(1)}$")
    left.legend(loc="upper left", fontsize=8)
    for alpha, colour, label in ((1e-6, BLUE, r"$\alpha=10^{-6}$"), (1e-2, ORANGE, r"$\alpha=10^{-2}$")):
        projections = attention.sample_projections(20_000, N, alpha, 0.5, seed=2)
        first, _ = attention.attend_two_heads(projections[projections[:, 0, 0] < 0], 50.0)
        ranked = -np.sort(-first, axis=1).mean(axis=0)
        right.plot(np.arange(1, N + 1), ranked, "o-", color=colour, markersize=4, label=label)
    right.set(
        title=r"Head 1 when $\varepsilon_a<0$",
        xlabel="key, by weight",
        ylabel="mean weight",
        ylim=(0, 1),
        xticks=[1, 5, 10, 15],
    )
    right.legend()
    return figure


def draw_layer_norm() -> Figure:
    """A key's component before and after normalisation, and the total variance of c with and without it."""
    figure, (left, right) = make_panels(2)
    eps = np.linspace(-1.0, 3.0, 401)
    left.plot(eps, eps, color=GREY, linestyle=":", label="not normalised")
    for rest, colour in ((0.0, GREEN), (0.5, BLUE), (1.0, ORANGE), (2.0, PINK)):
        usable = eps[np.abs(eps) > 1e-9] if rest == 0 else eps
        left.plot(usable, attention.normalise_component(usable, rest), color=colour, label=f"rest r = {rest:g}")
    left.set(title=r"Component along $\mu_a$", xlabel=r"$\varepsilon_a$ before", ylabel="after", ylim=(-1.6, 3))
    left.legend(fontsize=8)
    betas = np.array([1.0, 2.0, 5.0, 10.0, 20.0, 35.0, 50.0])
    raw = attention.sample_projections(SAMPLES // 2, N, VANISHING, 0.5)
    normed = attention.sample_projections(SAMPLES // 2, N, VANISHING, 0.5, d=64, normalise=True)
    for projections, line in ((raw, "-"), (normed, "--")):
        one = [attention.estimate_total_variance(attention.attend_one_head(projections, float(b))).value for b in betas]
        pairs = [attention.attend_two_heads(projections, float(b)) for b in betas]
        two = [attention.estimate_total_variance((first + second) / 2).value for first, second in pairs]
        right.semilogy(betas, one, line, color=BLUE)
        right.semilogy(betas, two, line, color=ORANGE)
    for colour, line, label in (
        (BLUE, "-", "one head"),
        (ORANGE, "-", "two heads"),
        (GREY, "--", "normalised keys"),
    ):
        right.plot([], [], line, color=colour, label=label)
    right.set(title="Total variance of c", xlabel=r"$\beta$", ylim=(3e-4, 1))
    right.legend()
    return figure


def draw_why_heads() -> Figure:
    """c in the plane of v_a and v_b, for one head and for two, on the same keys."""
    figure, axes = make_panels(2, 3.6)
    projections = attention.sample_projections(2000, N, 1e-4, 0.5, seed=4)
    first, second = attention.attend_two_heads(projections, 20.0)
    for ax, c, title, colour in (
        (axes[0], attention.attend_one_head(projections, 20.0), "One head", BLUE),
        (axes[1], (first + second) / 2, "Two heads", ORANGE),
    ):
        ax.plot(c[:, 0], c[:, 1], "o", color=colour, markersize=4, alpha=0.12, markeredgewidth=0, rasterized=True)
        ax.plot(0.5, 0.5, "k+", markersize=14, markeredgewidth=1.6)
        near = np.hypot(c[:, 0] - 0.5, c[:, 1] - 0.5) < 0.1
        ax.set(title=f"{title}: {100 * near.mean():.0f} % near the goal", aspect="equal")
        ax.set(xlim=(-0.05, 1.05), ylim=(-0.05, 1.05), xlabel="weight on $v_a$", ylabel="weight on $v_b$")
    return figure


# --- positions ---


def draw_order() -> Figure:
    """Positions predicted from the hidden states of an untrained model without positions, for both masks."""
    figure, axes = make_panels(2, 3.2)
    for ax, causal, colour in ((axes[0], False, BLUE), (axes[1], True, ORANGE)):
        probe = positions.probe_positions(causal=causal)
        t = np.rint(np.expm1(probe.target)).astype(int)
        rows = np.arange(t.max() + 1)
        by_position = [probe.prediction[t == p] for p in rows]
        middle = np.array([values.mean() for values in by_position])
        spread = np.array([values.std() for values in by_position])
        ax.plot(rows, np.log1p(rows), color=GREY, linestyle=":", label="truth")
        ax.plot(rows, middle, color=colour, label="read, mean and SD")
        ax.fill_between(rows, middle - spread, middle + spread, color=colour, alpha=0.2, linewidth=0)
        kind = "Causal mask" if causal else "Full mask"
        ax.set(title=f"{kind}: $R^2$ = {max(probe.r2, -0.0):.2f}".replace("-0.00", "0.00"), xlabel="position t")
        ax.set(ylim=(-0.2, 5), ylabel="ln(1 + t)")
        ax.legend(loc="upper left")
    return figure


def draw_sinusoids() -> Figure:
    """The sinusoids as an image, and their dot product against the distance."""
    figure, (left, right) = make_panels(2, 3.3)
    phi = positions.sinusoids(128, 64)
    left.imshow(phi.T, aspect="auto", cmap="PuOr", vmin=-1, vmax=1, interpolation="nearest")
    left.grid(visible=False)
    left.set(title=r"$\Phi$, T = 128, d = 64", xlabel="position t", ylabel="dimension")
    apart = np.unique(np.logspace(0, 4, 400).astype(int))
    for d, colour in ((64, GREEN), (512, BLUE)):
        right.semilogx(apart, positions.similarity(apart, d) / (d / 2), color=colour, linewidth=1.2, label=f"d = {d}")
    right.semilogx(apart, positions.similarity_limit(apart.astype(float)), "k--", linewidth=1.2, label="d to infinity")
    right.set(title="Dot product, relative", xlabel="distance t - s", ylabel=r"$\Phi(s)\cdot\Phi(t)\;/\;(d/2)$")
    right.legend()
    return figure


def draw_nearest() -> Figure:
    """The smallest distance between two rows against the number of positions."""
    figure, (ax,) = make_panels(1, 3.2)
    for d, colour in ((2, ORANGE), (4, PINK), (8, GREEN), (16, BLUE), (64, GREY)):
        running = np.minimum.accumulate(positions.embedding_distance(np.arange(1, 1_000_000), d))
        steps = np.append(np.flatnonzero(np.diff(running, prepend=np.inf)), len(running) - 1)
        ax.loglog(steps + 2, running[steps], drawstyle="steps-post", color=colour, label=f"d = {d}")
    ax.set(xlabel="number of positions T", ylabel="nearest pair", ylim=(1e-7, 4), title="Smallest distance of two rows")
    ax.legend(ncols=5, loc="lower left")
    return figure


FIGURES: dict[str, Callable[[], Figure]] = {
    "copying": draw_copying,
    "copy_error": draw_copy_error,
    "average": draw_average,
    "small_noise": draw_small_noise,
    "two_heads": draw_two_heads,
    "single_head": draw_single_head,
    "variance": draw_variance,
    "losing_a_key": draw_losing_a_key,
    "layer_norm": draw_layer_norm,
    "why_heads": draw_why_heads,
    "order": draw_order,
    "sinusoids": draw_sinusoids,
    "nearest": draw_nearest,
}


def draw(folder: Path) -> list[Path]:
    """Write every figure as SVG and return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with mpl.rc_context(STYLE):
        for name, make in FIGURES.items():
            paths.append(folder / f"{name}.svg")
            make().savefig(paths[-1], metadata={"Date": None, "Creator": None}, dpi=200)
    return paths
