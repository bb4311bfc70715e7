"""The report's PNG pictures: a learning curve per rung, as the assignment asks, and the ladder with its gains.

The same standings give the same bytes: no dates, no version in the files' metadata.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import patheffects
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator

from hectogpt.lab.standings import Entry, Standing, curve_gains, gain
from hectogpt.lab.statistics import LEAST_DIFFERENCE

THIS, PREVIOUS, BASELINE, TIE = "#0b5fa5", "0.45", "0.72", "#b8860b"
# Logarithms to twelve decimals: the last bit of numpy's differs between processors, and through the layout it would
# reach the bytes of a picture.
LOG = (lambda x: np.round(np.log10(np.maximum(x, 1e-300)), 12), lambda y: 10.0**y)
ANCHOR_NAMES = {"uniform": "uniform", "unigram": "unigram", "kn2": "Kneser-Ney 2", "kn3": "Kneser-Ney 3"}


def plot_rung(path: Path, standing: Standing, place: int) -> None:
    """Training loss and gradient norm of rung `place`: mean over seeds, each seed thin; baseline and last rung grey.
    From the first rung on also the gain over the rung below, batch by batch, where the curves lie on each other."""
    rung = standing.rungs[place]
    behind = [(standing.rungs[0], BASELINE, "--", "baseline")] if place > 1 else []
    behind += [(standing.rungs[place - 1], PREVIOUS, "-", standing.rungs[place - 1].name)] if place else []
    figure, panels = plt.subplots(1, 3 if place else 2, figsize=(12.5 if place else 11, 4.0), layout="constrained")
    figure.suptitle(f"{place} {rung.label} · {standing.name} · {_seeds(rung)}", fontsize=11)
    names = (("losses", "training loss (nats per token)"), ("grad_norms", "gradient norm before clipping"))
    for axes, (field, label) in zip(panels[:2], names, strict=True):
        for entry, color, style, name in behind:
            _mean(axes, entry.curves(field), color, style, name, 1.4)
        curves = rung.curves(field)
        _each(axes, curves)
        _mean(axes, curves, THIS, "-", rung.name, 2.0)
        axes.set_ylabel(label)
    panels[1].set_yscale("function", functions=LOG)
    panels[1].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panels[1].yaxis.set_major_formatter(FormatStrFormatter("%g"))
    split = rung.split if rung.split in standing.anchors else "dev"
    for name, level in standing.anchors.get(split, {}).items():
        if name in ("unigram", "kn3"):
            _level(panels[0], f"{ANCHOR_NAMES[name]} {level:.2f}", level)
    if panels[0].get_legend_handles_labels()[0]:
        panels[0].legend(frameon=False, fontsize=9, loc="center right", bbox_to_anchor=(1.0, 0.72))
    if place:
        _gains(panels[2], rung, standing.rungs[place - 1])
    for axes in panels:
        axes.set_xlabel("step")
        _plain(axes)
    _save(figure, path)


def _gains(axes: Axes, rung: Entry, below: Entry) -> None:
    """Same seed, same batch: what is hard or easy about a batch cancels."""
    gains = curve_gains(rung, below)
    axes.axhline(0, color=PREVIOUS, linewidth=1.4)
    _each(axes, gains)
    _mean(axes, gains, THIS, "-", rung.name, 2.0)
    held_out, split = gain(rung, below)
    level = -held_out.difference if held_out else 0.0
    if held_out:
        _level(axes, f"{split}\n{level:+.3f}", level, beside=True)
    if gains.size:  # the first steps go far up and down; the scale is for the others
        steps = gains.shape[1]
        mean = np.nanmean(gains, axis=0)
        shown = np.concatenate([[0.0, level], gains[:, steps // 2 :].ravel(), mean[steps // 5 :]])
        low, high = np.nanmin(shown), np.nanmax(shown)
        axes.set_ylim(low - 0.1 * (high - low), high + 0.1 * (high - low))
    axes.set_ylabel(f"gain over {below.name} (nats per token)")


def _each(axes: Axes, curves: np.ndarray) -> None:
    for curve in curves if len(curves) > 1 else ():
        axes.plot(range(1, len(curve) + 1), curve, color=THIS, linewidth=0.5, alpha=0.3)


def _mean(axes: Axes, curves: np.ndarray, color: str, style: str, name: str, width: float) -> None:
    if len(curves):
        mean = np.nanmean(curves, axis=0)
        axes.plot(range(1, len(mean) + 1), mean, color=color, linestyle=style, linewidth=width, label=name)


def _level(axes: Axes, text: str, level: float, *, beside: bool = False) -> None:
    """A dotted line, named above its right end or, where curves are in the way, beside it."""
    axes.axhline(level, color="0.35", linewidth=0.9, linestyle=":")
    axes.annotate(
        text,
        (1, level),
        xycoords=("axes fraction", "data"),
        xytext=(3, 0) if beside else (0, 2),
        textcoords="offset points",
        ha="left" if beside else "right",
        va="center" if beside else "baseline",
        fontsize=8,
        color="0.35",
    )


def plot_ladder(path: Path, standing: Standing) -> None:
    """Left: each rung's held-out loss, 95 % intervals of the paired total gain, count models as lines. Right: what
    each rung gained over the one below, on a scale that is linear within a tie and logarithmic beyond."""
    rungs = standing.rungs
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11, 1.6 + 0.34 * len(rungs)), layout="constrained", sharey=True, width_ratios=(1.25, 1)
    )
    splits = {entry.split for entry in rungs}
    split = "test" if splits == {"test"} else "dev"
    figure.suptitle(f"The ladder · {standing.name} · {split} text", fontsize=11)
    base, previous = rungs[0], None
    for y, entry in enumerate(rungs):
        summary = entry.summary(split)
        if summary is None:
            continue
        left.plot(summary.mean, y, "o", color=THIS, markersize=5)
        _value(left, summary.mean, y, f"{summary.mean:.3f}")
        total, _ = gain(entry, base)
        if entry is not base and total and total.low is not None and total.high is not None:
            low, high = summary.mean + (total.low - total.difference), summary.mean + (total.high - total.difference)
            left.plot([low, high], [y, y], color=THIS, linewidth=1.6)
        step, _ = gain(entry, previous) if previous else (None, "")
        previous = entry
        if step:
            color = {"tie": TIE, "worse": "#b02a2a"}.get(step.verdict, THIS)
            right.plot(-step.difference, y, "o", color=color, markersize=5)
            if step.low is not None and step.high is not None:
                right.plot([-step.high, -step.low], [y, y], color=color, linewidth=1.6)
            _value(right, -step.difference, y, f"{-step.difference:+.3f}")
    for name, level in standing.anchors.get(split, {}).items():
        left.axvline(level, color="0.35", linewidth=0.9, linestyle=":")
        left.annotate(
            f"{ANCHOR_NAMES[name]} {level:.2f}",
            (level, 0.02),
            xycoords=("data", "axes fraction"),
            xytext=(2, 0),
            textcoords="offset points",
            rotation=90,
            verticalalignment="bottom",
            fontsize=8,
            color="0.35",
        )
    left.set_yticks(range(len(rungs)), [f"{i} {entry.name}" for i, entry in enumerate(rungs)])
    left.set_ylim(len(rungs) - 0.5, -0.7)
    left.set_xscale("function", functions=LOG)
    _ticks(left, [1, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 8, 10])
    left.set_xlabel("held-out loss (nats per token, log scale)")
    right.set_xscale("symlog", linthresh=LEAST_DIFFERENCE, linscale=0.6)
    right.axvspan(-LEAST_DIFFERENCE, LEAST_DIFFERENCE, color="0.92", zorder=0)
    right.axvline(0, color="0.6", linewidth=0.8)
    right.set_xlabel("gain over the rung below, 95 % interval (shaded: a tie)")
    _ticks(right, [-1, -0.1, -LEAST_DIFFERENCE, LEAST_DIFFERENCE, 0.1, 1])
    _plain(left)
    _plain(right)
    _save(figure, path)


def _value(axes: Axes, x: float, y: int, text: str) -> None:
    halo = [patheffects.withStroke(linewidth=2.5, foreground="white")]  # legible where it crosses a line
    axes.annotate(text, (x, y), (0, 6), textcoords="offset points", ha="center", fontsize=8, path_effects=halo)


def _ticks(axes: Axes, wanted: list[int | float]) -> None:
    low, high = axes.get_xlim()
    inside = [tick for tick in wanted if low <= tick <= high]
    axes.set_xticks(inside, [f"{tick:g}" for tick in inside])
    axes.minorticks_off()


def _seeds(entry: Entry) -> str:
    return f"{len(entry.rows)} seeds" if len(entry.rows) > 1 else "1 seed"


def _plain(axes: Axes) -> None:
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=130, metadata={"Software": None})
    plt.close(figure)
