"""`python -m bench.picture`: docs/pictures/race.png, how many times as long as ours each library's training step takes.

Drawn from the newest records of `python -m bench peers`, which `python -m bench --page` does too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bench.peers import BF16, OURS, SETTINGS, THEIRS
from bench.record import RESULTS, ROOT
from hectogpt.training.plot import BLUE, GREY, save_figure, style_axes

PICTURE = ROOT / "docs" / "pictures" / "race.png"
TITLES = {
    "assignment": "the assignment's model:\n3 layers, d_model 33",
    "d256": "4 layers, d_model 256",
    "gpt2": "GPT-2 small:\n12 layers, d_model 768",
}
ROOM = 1.15  # the end of an axis, times the longest


def read_races(path: Path = RESULTS) -> dict[str, Sequence[dict[str, Any]]]:
    """Setting -> the rows of its newest record, in the order of the settings."""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    newest = {record["setting"]: record["rows"] for record in records if record.get("bench") == "peers"}
    return {setting: newest[setting] for setting in SETTINGS if setting in newest}


def draw(races: dict[str, Sequence[dict[str, Any]]], path: Path = PICTURE) -> None:
    """Write the picture, a panel for each setting. A library's quicker dtype is a filled dot with its ratio."""
    libraries = [name for name in THEIRS if not name.endswith(BF16)]
    figure = Figure(figsize=(3.2 * len(races) + 1.2, 3.6), layout="constrained")
    panels = figure.subplots(1, len(races), sharey=True, squeeze=False)[0]
    for axes, (setting, rows) in zip(panels, races.items(), strict=True):
        ratios = {row["contender"]: row["this_over_our_best"] for row in rows if "this_over_our_best" in row}
        seconds = min(row["seconds"] for row in rows if row["contender"] in OURS and "seconds" in row)
        highest = max(ratios.values(), default=1)
        for place, library in enumerate(libraries):
            found = sorted((ratios[name], name) for name in (library, library + BF16) if name in ratios)
            for ratio, name in found:
                color = BLUE if name.endswith(BF16) else GREY
                axes.plot(ratio, place, "o", color=color, fillstyle="full" if ratio == found[0][0] else "none")
            at, text = (found[0][0], f"{found[0][0]:.3g}") if found else (highest, "not measured")
            axes.annotate(
                text, (at, place), (-7, 0), textcoords="offset points", ha="right", va="center", fontsize=8, color=GREY
            )
        axes.axvline(1, color=BLUE, linewidth=1.2)
        axes.set_xscale("log", subs=())
        ticks = [tick for tick in (1, 2, 5, 10, 20, 50, 100, 200) if tick <= highest * ROOM]
        axes.set_xticks(ticks, [str(tick) for tick in ticks], fontsize=8)
        axes.set_xlim(min([0.8, *ratios.values()]) * 0.95, highest * ROOM)
        axes.set_ylim(len(libraries) - 0.5, -0.5)
        axes.set_yticks(range(len(libraries)), libraries, fontsize=8)
        axes.set_title(f"{TITLES[setting]}\nours: {seconds:.2g} s a step", fontsize=8)
        axes.set_xlabel("times as long as ours", fontsize=8)
        style_axes(axes)
    dots = [Line2D([], [], marker="o", linestyle="", color=color) for color in (GREY, BLUE)]
    figure.legend(dots, ["float32", "bf16"], fontsize=8, loc="outside lower center", ncols=2, frameon=False)
    save_figure(figure, path)


if __name__ == "__main__":
    draw(read_races())
