"""The figures of the written answers: those about positions, one function each, and the list of all."""

from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from hectogpt.explore import attention_figures, positions
from hectogpt.explore.figure_style import BLUE, GREEN, GREY, ORANGE, PINK, STYLE, make_panels


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
    "copying": attention_figures.draw_copying,
    "copy_error": attention_figures.draw_copy_error,
    "average": attention_figures.draw_average,
    "small_noise": attention_figures.draw_small_noise,
    "two_heads": attention_figures.draw_two_heads,
    "single_head": attention_figures.draw_single_head,
    "variance": attention_figures.draw_variance,
    "losing_a_key": attention_figures.draw_losing_a_key,
    "layer_norm": attention_figures.draw_layer_norm,
    "why_heads": attention_figures.draw_why_heads,
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
