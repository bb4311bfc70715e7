"""The picture of a run: training loss and gradient norm by step, with the baseline's in grey.

The helpers below `plot_run` also serve the pictures of `python -m tools.report`. Everything is
drawn on matplotlib `Figure` objects; pyplot and its global state are not used. Importing this
module imports matplotlib (0.4 s).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator

from hectogpt import errors
from hectogpt.display import printable
from hectogpt.files import replacing

BLUE = "#0b5fa5"
GREY = "0.35"
LIGHT_GREY = "0.65"
LABEL_SIZE = 8  # points

# Base-10 logarithms rounded to twelve decimals. numpy's last bit differs between CPUs, and through
# the layout it would change the bytes of a picture.
LOG_SCALE = (lambda x: np.round(np.log10(np.maximum(x, 1e-300)), 12), lambda y: 10.0**y)


def plot_run(
    path: Path,
    losses: Sequence[float],
    grad_norms: Sequence[float],
    title: str,
    behind: tuple[str, Sequence[float], Sequence[float]] | None = None,
    held_out: Sequence[tuple[int, float]] = (),
    levels: Mapping[str, float] | None = None,
) -> None:
    """Write a PNG with two panels: training loss and gradient norm.

    Args:
        path: the file to write.
        losses: the loss of every step, in nats per token.
        grad_norms: the gradient norm of every step, before clipping.
        title: the title of the figure.
        behind: name, losses and gradient norms of a second run, drawn in grey.
        held_out: (step, loss) of held-out scores; several are joined by a dotted line.
        levels: name -> loss, such as that of an n-gram model. Each is drawn as a dotted line if
            the run comes within 1 nat of it.
    """
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    figure.suptitle(plain_text(title), fontsize=11)
    panels = (
        (left, "training loss (nats per token)", losses, behind and behind[1]),
        (right, "gradient norm before clipping", grad_norms, behind and behind[2]),
    )
    for axes, label, values, others in panels:
        if behind and others:
            plot_curve(axes, others, LIGHT_GREY, 1.5, behind[0])
        plot_curve(axes, values, BLUE, 1.8, "this run")
        axes.set_xlabel("step")
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
        style_axes(axes)
    if len(held_out) > 1:
        left.plot(
            *zip(*held_out, strict=True),
            color=BLUE,
            linewidth=1.4,
            linestyle=":",
            marker=".",
            label="held-out",
        )
    set_log_scale(right)
    draw_levels(
        left, {name: level for name, level in (levels or {}).items() if min(losses) <= level + 1}
    )
    if behind or len(held_out) > 1:
        place_legend(figure, left)
    save_figure(figure, path)


def plot_curve(
    axes: Axes,
    values: Sequence[float] | np.ndarray,
    color: str,
    width: float,
    label: str = "",
    style: str = "-",
) -> None:
    """Plot one value per step, from step 1 on. A single value is drawn as a dot."""
    marker = "o" if len(values) == 1 else ""
    steps = range(1, len(values) + 1)
    axes.plot(
        steps,
        values,
        color=color,
        linewidth=width,
        linestyle=style,
        marker=marker,
        label=label or "_",
    )


def style_axes(axes: Axes) -> None:
    """Add a light grid and remove the frame at the top and on the right."""
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def set_log_scale(axes: Axes) -> None:
    """Make a panel's y axis logarithmic, with plain numbers at its ticks.

    A panel without a positive number is left as it is.
    """
    low, high = axes.dataLim.intervaly
    if not 0 < high < float("inf"):
        return
    axes.set_yscale("function", functions=LOG_SCALE)
    axes.yaxis.set_major_locator(MaxNLocator(6) if high < 4 * low else LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))


def place_legend(figure: Figure, axes: Axes) -> None:
    """Place the legend of one panel in a row at the top of the figure, clear of all curves."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(
            handles,
            labels,
            loc="outside upper left",
            ncols=4,
            frameon=False,
            fontsize=9,
            handlelength=1.6,
        )


def draw_levels(axes: Axes, levels: Mapping[str, float]) -> None:
    """Draw a dotted horizontal line per level, with its name and value.

    The label is at the end of the line. Only the lowest of several levels has its label at the
    beginning, where falling curves leave room.
    """
    # The halo keeps a label legible where it crosses a curve.
    halo = [patheffects.withStroke(linewidth=2.5, foreground="white")]
    for name, level in levels.items():
        at_end = len(levels) == 1 or level > min(levels.values())
        draw_level(axes, level)
        axes.annotate(
            f"{name} {level:.2f}",
            (1 if at_end else 0, level),
            xycoords=("axes fraction", "data"),
            xytext=(-2, 2) if at_end else (4, -2),
            textcoords="offset points",
            ha="right" if at_end else "left",
            va="bottom" if at_end else "top",
            fontsize=LABEL_SIZE,
            color=GREY,
            path_effects=halo,
        )


def draw_level(axes: Axes, level: float, *, vertical: bool = False) -> None:
    """Draw a dotted line across the panel."""
    draw = axes.axvline if vertical else axes.axhline
    draw(level, color=GREY, linewidth=0.9, linestyle=":")


def plain_text(text: str) -> str:
    """The text, escaped so that matplotlib typesets none of it as mathematics."""
    return printable(text).replace("$", r"\$")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG atomically, without a date or a version in it.

    The same figure always gives the same bytes. Raises UserError (STORAGE).
    """
    with errors.writing(path), replacing(path) as temporary, warnings.catch_warnings():
        # No warnings about characters that the font lacks: they are drawn as boxes.
        warnings.filterwarnings("ignore", "Glyph")
        figure.savefig(temporary, format="png", dpi=130, metadata={"Software": None})
