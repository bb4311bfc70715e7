"""The PNG pictures of the report: the curves of each rung and of all, the ladder with its losses and gains, and loss
against seconds.

The same leaderboard gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps, patheffects
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from hectogpt.display import NGRAMS
from hectogpt.lab.statistics import LEAST_DIFFERENCE
from hectogpt.lab.tracks import TRACKS
from hectogpt.training.plot import (
    BLUE,
    GREY,
    LABEL_SIZE,
    LIGHT_GREY,
    LOG_SCALE,
    draw_level,
    draw_levels,
    place_legend,
    plain_text,
    plot_curve,
    save_figure,
    set_log_scale,
    style_axes,
)
from tools.report.front import LOSS_TICKS, SECOND_TICKS, Front
from tools.report.leaderboard import Entry, Leaderboard, compare_curves, compare_entries, count_pairs

NEAR_LEVEL = 1.06  # a level within this factor of the one before has no room for its name
NAME_HEIGHT = 0.17  # of a level's name, as a share of the ladder picture's height
LINE = 0.045  # height of a line of text, as a share of the learning curves' picture
HALO = [patheffects.withStroke(linewidth=2.5, foreground="white")]  # legible where text crosses a line
BELOW = "0.45"  # the curve of the rung below
VERDICT_COLORS = {"tie": "#b8860b", "worse": "#b02a2a"}


def plot_first_page(path: Path, board: Leaderboard, *, dark: bool) -> None:
    """Write the picture of the README: the training losses of three rungs, and losses of counting words.

    Numbers are losses on the test text. The background is transparent, for a light page or a dark one.
    """
    text, blue, grey = ("#e6edf3", "#6cb6ff", "#9198a1") if dark else ("#1f2328", BLUE, "#59636e")
    figure = Figure(figsize=(6.4, 4.1), layout="constrained", facecolor="none")
    axes = figure.subplots(subplot_kw={"facecolor": "none"})
    for place, color, step, rise, label in (
        (0, grey, 30, -0.65, "the assignment's baseline"),
        (1, grey, 16, 0.6, "with a good learning rate"),
        (-1, blue, 57, -0.85, f"with all {len(board.rungs) - 1} changes"),
    ):
        losses = np.nanmean(board.rungs[place].curves("losses"), axis=0)
        held_out = np.mean(list(board.rungs[place].losses("test").values()))
        plot_curve(axes, losses, color, 3 if color == blue else 2)
        axes.text(step, losses[step] + rise, f"{label}: {held_out:.2f}", color=color, fontsize=11)
    levels = board.ngrams["test"]
    for name, step, label in (
        ("unigram", 43, "knowing how frequent each word is"),
        ("kn2", 21, "counting pairs of words"),
        ("best", 48, "the best counting that we found"),
    ):
        axes.axhline(levels[name], color=grey, linewidth=1, linestyle=":")
        axes.text(step, levels[name] + 0.12, f"{label}: {levels[name]:.2f}", color=grey, fontsize=10)
    axes.set(xlim=(0, 101), ylim=(1.2, 11.4), yticks=range(2, 12, 2))
    axes.set_xlabel("training step", color=text, fontsize=11)
    axes.set_title("Loss (lower is better)", color=text, fontsize=12, loc="left")
    axes.tick_params(colors=text, labelsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(grey)
    save_figure(figure, path)


def plot_rung(path: Path, board: Leaderboard, place: int) -> None:
    """Write training loss and gradient norm of rung `place`, and its gain over the rung below batch by batch.

    Thick lines are means over seeds, thin lines single seeds. The baseline and the rung below are grey. The baseline
    itself has no panel of gains.
    """
    rung = board.rungs[place]
    behind = [(board.rungs[0], LIGHT_GREY, "--")] if place > 1 else []
    behind += [(board.rungs[place - 1], BELOW, "-")] if place else []
    figure = Figure(figsize=(12.5 if place else 11, 4.1), layout="constrained")
    panels = figure.subplots(1, 3 if place else 2)
    figure.suptitle(plain_text(f"{place} {rung.label} · {board.name} · {rung.seeds}"), fontsize=11)
    fields = (("losses", "training loss (nats per token)"), ("grad_norms", "gradient norm before clipping"))
    for axes, (field, label) in zip(panels[:2], fields, strict=True):
        for entry, color, style in behind:
            _plot_mean(axes, entry.curves(field), color, 1.4, entry.name, style)
        _plot_seeds(axes, rung.curves(field))
        _plot_mean(axes, rung.curves(field), BLUE, 2.0, rung.name)
        axes.set_ylabel(label)
    set_log_scale(panels[1])
    levels = board.ngrams.get(rung.split if rung.split in board.ngrams else "dev", {})
    draw_levels(panels[0], {NGRAMS[name]: levels[name] for name in ("unigram", "kn3", "best") if name in levels})
    place_legend(figure, panels[0])
    if place:
        _plot_gains(panels[2], rung, board.rungs[place - 1])
    for axes in panels:
        axes.set_xlabel("step")
        style_axes(axes)
    save_figure(figure, path)


def _plot_gains(axes: Axes, rung: Entry, below: Entry) -> None:
    """The differences of the training losses on the same batches; the dotted line is the gain on the held-out text."""
    gains = compare_curves(rung, below)
    axes.axhline(0, color=BELOW, linewidth=1.4)
    _plot_seeds(axes, gains)
    _plot_mean(axes, gains, BLUE, 2.0, rung.name)
    held_out, split = compare_entries(rung, below)
    level = held_out.gain if held_out else 0.0
    if held_out:
        draw_level(axes, level)
        axes.annotate(
            f"{split}\n{level:+.3f}",
            (1, level),
            xycoords=("axes fraction", "data"),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=LABEL_SIZE,
            color=GREY,
        )
    if gains.size:  # the first steps go far up and down, so the limits are those of the later steps
        steps = gains.shape[1]
        mean = np.nanmean(gains, axis=0)
        shown = np.concatenate([[0.0, level], gains[:, steps // 2 :].ravel(), mean[steps // 5 :]])
        low, high = np.nanmin(shown), np.nanmax(shown)
        axes.set_ylim(low - 0.1 * (high - low), high + 0.1 * (high - low))
    axes.set_ylabel(f"gain over {below.name}\n(nats per token)")


def _plot_seeds(axes: Axes, curves: np.ndarray) -> None:
    for curve in curves if len(curves) > 1 else ():
        axes.plot(range(1, len(curve) + 1), curve, color=BLUE, linewidth=0.5, alpha=0.3)


def _plot_mean(axes: Axes, curves: np.ndarray, color: str, width: float, name: str, style: str = "-") -> None:
    if len(curves):
        plot_curve(axes, np.nanmean(curves, axis=0), color, width, name, style)


def plot_learning_curves(path: Path, board: Leaderboard) -> None:
    """Write the training losses of all rungs, means over seeds, in one picture; the baseline is dashed.

    Left: all steps. Right: from a fifth of the steps on and without the baseline, with the names of the rungs.
    """
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    figure.suptitle(plain_text(f"Training loss, mean over seeds · {board.name}"), fontsize=11)
    ends: list[tuple[float, str, str]] = []
    for place, rung in enumerate(board.rungs):
        curves = rung.curves("losses")
        if not curves.size:
            continue
        mean = np.nanmean(curves, axis=0)
        color = to_hex(colormaps["viridis"](0.9 * (1 - place / max(1, len(board.rungs) - 1))))
        if place == 0:
            plot_curve(left, mean, LIGHT_GREY, 1.6, rung.name, "--")
            continue
        plot_curve(left, mean, color, 1.2)
        start = len(mean) // 5
        right.plot(range(start + 1, len(mean) + 1), mean[start:], color=color, linewidth=1.2)
        ends.append((float(mean[-1]), f"{place} {rung.name} {mean[-1]:.3f}", color))
    right.set_yscale("function", functions=LOG_SCALE)
    _set_ticks(right, [2, 2.5, 3, 3.5, 4, 5, 6, 8, 10], vertical=True)
    _name_ends(right, ends)
    place_legend(figure, left)
    for axes in (left, right):
        axes.set_xlabel("step")
        axes.set_ylabel("training loss (nats per token)")
        style_axes(axes)
    save_figure(figure, path)


def _name_ends(axes: Axes, ends: list[tuple[float, str, str]]) -> None:
    """Write a label to the right of each curve's end, a line or more apart and as near to the ends as that allows."""
    low, high = (float(LOG_SCALE[0](np.array(end))) for end in axes.get_ylim())
    ends = sorted(ends)
    wanted = (LOG_SCALE[0](np.array([value for value, _, _ in ends])) - low) / (high - low)
    apart = LINE * np.arange(len(ends))
    heights = np.maximum.accumulate(wanted - apart) + apart
    heights -= min(float((heights - wanted).mean()), float(heights.min())) if ends else 0.0
    for (value, label, color), height in zip(ends, heights, strict=True):
        axes.annotate(
            plain_text(label),
            (1, value),
            xycoords=("axes fraction", "data"),
            xytext=(1.05, height),
            textcoords="axes fraction",
            va="center",
            fontsize=LABEL_SIZE,
            arrowprops={"arrowstyle": "-", "color": color, "relpos": (0, 0.5), "shrinkA": 0, "shrinkB": 0},
        )


def plot_ladder(path: Path, board: Leaderboard) -> None:
    """Write the ladder in two panels.

    Left: the mean held-out loss of each rung with its 95 % interval over the rung's own seeds; n-gram baselines are
    dotted lines. Right: the paired gain of each rung over the rung below, with its 95 % interval over the n seeds that
    both have, on a scale that is linear within a tie and logarithmic beyond.
    """
    rungs = board.rungs
    figure = Figure(figsize=(12.5, 1.8 + 0.36 * len(rungs)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1.2, 1))
    split = "test" if {entry.split for entry in rungs} == {"test"} else "dev"
    figure.suptitle(plain_text(f"The ladder · {board.name} · {split} text"), fontsize=11)
    previous = None
    for y, entry in enumerate(rungs):
        summary = entry.summary(split)
        if summary is None:
            continue
        _plot_interval(left, summary.mean, entry.interval(split), y, f"{summary.mean:.3f}", BLUE)
        step = compare_entries(entry, previous)[0] if previous else None
        previous = entry
        if step:
            gain = step.gain
            interval = None if step.low is None or step.high is None else (step.low, step.high)
            color = VERDICT_COLORS.get(step.verdict, BLUE)
            _plot_interval(right, gain, interval, y, f"{gain:+.3f} ({count_pairs(step.n)})", color)
    left.set_yticks(range(len(rungs)), [f"{y} {e.name} (n = {len(e.records)})" for y, e in enumerate(rungs)])
    left.set_ylim(len(rungs) - 0.5, -0.7)
    left.set_xscale("function", functions=LOG_SCALE)
    _set_ticks(left, [1, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 8, 10])
    left.set_xlabel("held-out loss (nats per token, log scale)\nbar: 95 % interval of the mean over the rung's n seeds")
    _draw_ngrams(left, board.ngrams.get(split, {}))
    right.set_xscale("symlog", linthresh=LEAST_DIFFERENCE, linscale=0.6)
    right.axvspan(-LEAST_DIFFERENCE, LEAST_DIFFERENCE, color="0.92", zorder=0)
    right.axvline(0, color="0.6", linewidth=0.8)
    right.set_xlabel(
        "gain over the rung below (nats, log scale; shaded: a tie)\n"
        "bar: 95 % interval of the paired gain; pairs: seeds of both rungs"
    )
    right.margins(x=0.12)
    _set_ticks(right, [-1, -0.1, -LEAST_DIFFERENCE, LEAST_DIFFERENCE, 0.1, 1])
    style_axes(left)
    style_axes(right)
    save_figure(figure, path)


def plot_front(path: Path, front: Front) -> None:
    """Write held-out loss against the seconds of 100 steps, both on logarithmic scales.

    Filled marks are on the front, and a line of steps goes through them. Circles with
    numbers are rungs, squares with letters are other recipes; the key is on the right. Vertical lines are the tracks'
    limits. A recipe whose loss is above the unigram baseline's is drawn at the upper edge.
    """
    figure = Figure(figsize=(10, 5.6), layout="constrained")
    axes, key = figure.subplots(1, 2, width_ratios=(3.4, 1))
    figure.suptitle(plain_text(f"Loss against seconds · {front.corpus} · {front.points[0].split} text"), fontsize=11)
    top = 1.04 * front.top
    limits = sorted({track.seconds for track in TRACKS.values() if track.seconds is not None})
    seconds = [x for _, x, _ in front.drawn]
    axes.set_xscale("function", functions=LOG_SCALE)
    axes.set_yscale("function", functions=LOG_SCALE)
    axes.set_xlim(0.8 * min([*seconds, *limits[:1]]), 1.25 * max([*seconds, *limits[-1:]]))
    axes.set_ylim(0.97 * min(loss for _, _, loss in front.drawn), top)
    if front.line:
        line = [*front.line, (axes.get_xlim()[1], front.line[-1][1])]
        axes.step(*zip(*line, strict=True), where="post", color=BLUE, linewidth=1.4, zorder=1)
    for limit in limits:
        draw_level(axes, float(limit), vertical=True)
        axes.text(limit, top, f" limit {limit} s", rotation=90, ha="right", va="top", fontsize=LABEL_SIZE, color=GREY)
    _set_ticks(axes, LOSS_TICKS, vertical=True)
    _set_ticks(axes, SECOND_TICKS)
    axes.set_xlabel(
        "seconds of 100 steps (log scale)\nfilled: on the front; circles: rungs; squares: other recipes; "
        "arrows: the loss is higher"
    )
    axes.set_ylabel("held-out loss (nats per token, log scale)")
    style_axes(axes)
    low, high = axes.get_ylim()
    draw_levels(axes, {NGRAMS[n]: y for n, y in front.yardsticks.items() if low < y < high})
    _name_recipes(key, front)
    figure.draw_without_rendering()  # places the panels, so that marks have their final places
    _draw_marks(axes, front, top)
    save_figure(figure, path)


def _name_recipes(key: Axes, front: Front) -> None:
    """Write the key: the marks and their recipes, those on the front in bold."""
    key.axis("off")
    for place, (point, _, _) in enumerate(front.drawn):
        weight, color = ("bold", BLUE) if point.best else ("normal", "0.2")
        text, height = plain_text(f"{point.mark}  {point.entry.name}"), 1 - place / max(len(front.drawn), 24)
        key.text(0, height, text, va="top", fontsize=LABEL_SIZE, weight=weight, color=color)


def _draw_marks(axes: Axes, front: Front, top: float) -> None:
    """Draw the points, each with its mark at the corner where it covers the fewest other points and marks."""
    places = axes.transData.transform([(x, min(y, top)) for _, x, y in front.drawn]) * 72 / axes.figure.dpi  # in points
    taken = [tuple(place) for place in np.round(places)]
    for (point, x, y), (left, low) in zip(front.drawn, np.round(places), strict=True):
        marker = "^" if y > top else "o" if point.is_rung else "s"
        color, order = (BLUE, 4) if point.best else ("0.45", 3)
        fill = color if point.best else "white"
        axes.plot(x, min(y, top), marker, color=color, markerfacecolor=fill, markersize=6, zorder=order, clip_on=False)
        size = 5.5 * len(point.mark)  # points
        others = [place for place in taken if place != (left, low)]
        corners = [(-5 - size, -10), (5, 3), (-size / 2, -14), (-size / 2, 7), (5, -10), (-5 - size, 3)]
        near = [
            sum(abs(a - left - dx - size / 2) < size / 2 + 6 and abs(b - low - dy - 3.5) < 9 for a, b in others)
            for dx, dy in corners
        ]
        dx, dy = corners[int(np.argmin(near))]  # the first of the best
        taken.append((left + dx + size / 2, low + dy + 3.5))
        axes.annotate(
            point.mark, (x, min(y, top)), (dx, dy), textcoords="offset points", fontsize=9, path_effects=HALO, zorder=5
        )


def _plot_interval(axes: Axes, x: float, interval: tuple[float, float] | None, y: int, text: str, color: str) -> None:
    """Draw a dot with its value above it, and a bar over the interval."""
    axes.plot(x, y, "o", color=color, markersize=4)
    if interval is not None:
        axes.errorbar(x, y, xerr=[[x - interval[0]], [interval[1] - x]], color=color, linewidth=1.4, capsize=3)
    axes.annotate(text, (x, y), (0, 6), textcoords="offset points", ha="center", fontsize=8, path_effects=HALO)


def _draw_ngrams(axes: Axes, levels: dict[str, float]) -> None:
    """Draw a line for each level, with its name to the right, higher than the name of a level close before it."""
    height, before = 0.02, 0.0
    drawn = [(name, level) for name, level in levels.items() if name not in ("kn5", "mkn5")]  # near the trigram
    for name, level in sorted(drawn, key=lambda item: item[1]):
        draw_level(axes, level, vertical=True)
        height = height + NAME_HEIGHT if level < before * NEAR_LEVEL else 0.02
        before = level
        axes.annotate(
            f"{NGRAMS[name]} {level:.2f}",
            (level, height),
            xycoords=("data", "axes fraction"),
            xytext=(2, 0),
            textcoords="offset points",
            rotation=90,
            va="bottom",
            fontsize=LABEL_SIZE,
            color=GREY,
            path_effects=HALO,
        )


def _set_ticks(axes: Axes, wanted: Sequence[int | float], *, vertical: bool = False) -> None:
    low, high = axes.get_ylim() if vertical else axes.get_xlim()
    inside = [tick for tick in wanted if low <= tick <= high]
    (axes.set_yticks if vertical else axes.set_xticks)(inside, [f"{tick:g}" for tick in inside])
    axes.minorticks_off()
