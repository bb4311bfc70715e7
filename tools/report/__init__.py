"""The report of this repository: LADDER.md, pictures, and learning.md with its numbers filled in.

Everything is made from the records, so the same file gives the same bytes.
"""

from __future__ import annotations

import json
import os
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.files import write_atomic
from hectogpt.lab import full_run, recipes
from hectogpt.lab.ladder import LADDER
from hectogpt.lab.record import read_records
from results import recipes as results_recipes
from tools import ROOT
from tools.report.front import Front, build_fronts
from tools.report.ladder_page import ladder_page
from tools.report.leaderboard import Leaderboard, build_leaderboards
from tools.report.plots import plot_first_page, plot_front, plot_ladder, plot_learning_curves, plot_rung
from tools.report.seconds import Seconds, read_seconds
from tools.report.template import THREE, Filler, picture_name

TEMPLATE = "learning.template.md"
BANDS = Path(full_run.__file__).parent / "baselines" / "bands.json"  # `hectogpt.lab.full_run` reads it


@dataclass(frozen=True)
class Found:
    """The contents of the report."""

    boards: list[Leaderboard]
    fronts: list[Front]
    seconds: Seconds


def read_all(records: Path) -> Found:
    """Read the JSONL file of `hectogpt compare`, and seconds.jsonl of `python -m bench recipes` next to it.
    Without the latter, loss is not drawn against seconds. Raises UserError (DATA) for no records or a damaged one."""
    found = read_records(records)
    if not found:
        raise UserError(f"no records in {records}", fix="record trials with `hectogpt compare`", code=errors.DATA)
    boards = build_leaderboards(found, ladder_names())
    seconds = read_seconds(records.with_name("seconds.jsonl"))
    return Found(boards, build_fronts(boards, seconds, ladder_names()), seconds)


def write_texts(found: Found, out: Path, answers: Path) -> list[Path]:
    """Write LADDER.md in `out`, and learning.md in `answers` if learning.template.md is there; returns the paths."""
    page = ladder_page(found.boards, recipe_descriptions(), found.fronts, found.seconds)
    texts = {out / "LADDER.md": page}
    template = answers / TEMPLATE
    if template.exists():
        pictures = Path(os.path.relpath(out / "pictures", answers)).as_posix()
        filler = Filler(found.boards, ladder_names(), recipe_descriptions(), pictures, found.seconds)
        answer = filler.fill(template.read_text(encoding="utf-8"), template)
        texts[answers / TEMPLATE.replace(".template", "")] = answer
    out.mkdir(parents=True, exist_ok=True)
    for path, text in texts.items():
        write_atomic(path, text)
    return list(texts)


def write_report(records: Path, out: Path, answers: Path, usual_losses: Path) -> list[Path]:
    """Write the texts, the pictures that some page shows (in out/pictures), and the file of `bands`.

    Returns the paths.
    """
    found = read_all(records)
    write_atomic(usual_losses, json.dumps(bands(found.boards), indent=0) + "\n")
    texts = write_texts(found, out, answers)
    return [*draw(found, out / "pictures", shown_pictures()), *texts, usual_losses]


def shown_pictures() -> set[str]:
    """The names of all PNG files that a page of the repository shows."""
    pages = [page for folder in (".", "answers", "docs", "results") for page in (ROOT / folder).glob("*.md")]
    return {name for page in pages for name in re.findall(r"([\w-]+\.png)", page.read_text(encoding="utf-8"))}


def bands(boards: Sequence[Leaderboard]) -> dict[str, list[float | int]]:
    """ "recipe corpus steps" -> mean, SD and number of the dev losses of every recipe with at least two runs."""
    found: dict[str, list[float | int]] = {}
    for board in (board for board in boards if board.alone):
        for entry in board.entries():
            losses = [record.dev_loss for record in entry.records if record.dev_loss is not None]
            if not entry.overrides and len(losses) > 1:
                band = [round(statistics.mean(losses), 4), round(statistics.stdev(losses), 4), len(losses)]
                found[f"{entry.name} {board.corpus} {entry.steps}"] = band
    return dict(sorted(found.items()))


def ladder_names() -> list[str]:
    """The baseline and the ladder's rungs in order."""
    return ["baseline", *(step.__name__ for step in LADDER)]


def recipe_descriptions() -> dict[str, str]:
    """Name -> docstring of every recipe: what it does, and why in further paragraphs."""
    found = {function.__name__: recipes.paragraphs_of(function) for function in results_recipes.RECIPES}
    found |= {name: recipes.paragraphs(name) for name in recipes.RECIPES}
    return results_recipes.INEXPRESSIBLE | {name: "\n\n".join(texts) for name, texts in found.items()}


def draw(found: Found, folder: Path, shown: set[str]) -> list[Path]:
    """Draw the pictures whose names are in `shown`, and remove all others from the folder. Returns the paths."""
    plots: dict[str, Callable[[Path], None]] = {}
    for board in (board for board in found.boards if board.alone and board.rungs):
        for place in range(len(board.rungs)):
            plots[picture_name(board, place)] = partial(plot_rung, board=board, place=place)
        plots[f"{board.slug}-ladder.png"] = partial(plot_ladder, board=board)
        plots[f"{board.slug}-curves.png"] = partial(plot_learning_curves, board=board)
        plots[f"{board.slug}-three.png"] = partial(plot_learning_curves, board=board.part(THREE))
    for name, dark in (("hundred-steps.png", False), ("hundred-steps-dark.png", True)):
        plots[name] = partial(plot_first_page, board=found.boards[0], dark=dark)
    for front in (front for front in found.fronts if front.drawn):
        plots[f"{front.slug}.png"] = partial(plot_front, front=front)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    written = [folder / name for name in plots if name in shown]
    for path in written:
        plots[path.name](path)
    return written
