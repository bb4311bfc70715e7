"""The report of this repository: LADDER.md, pictures, and learning.md with its numbers filled in.

Everything is made from the records: the same file gives the same bytes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.files import write_atomic
from hectogpt.lab import recipes
from hectogpt.lab.record import read_records
from tools.report.front import Front, build_fronts
from tools.report.ladder_page import ladder_page
from tools.report.leaderboard import Leaderboard, build_leaderboards
from tools.report.ngram_file import NgramFile
from tools.report.plots import plot_front, plot_ladder, plot_learning_curves, plot_rung
from tools.report.seconds import read_seconds
from tools.report.template import Filler, picture_name

TEMPLATE = "learning.template.md"


def write_report(
    records: Path,
    out: Path,
    answers: Path,
    ladder: Sequence[str] | None = None,
    descriptions: Mapping[str, str] | None = None,
    timings: Path | None = None,
    ngrams: Path | None = None,
) -> list[Path]:
    """Write everything and return the paths.

    records: the JSONL file of `hectogpt compare`. out: the folder for LADDER.md and pictures/. answers:
    the folder with learning.template.md; without that file no answer is written. ladder, descriptions: names of the
    rungs and name -> description; those of `hectogpt.lab.recipes` unless given. timings: the JSONL file with the
    seconds of `python -m bench recipes`; without it loss is not drawn against seconds. ngrams: the JSONL file of
    `python -m tools.ngrams`, with baselines that records of earlier versions lack.
    Raises UserError (DATA) if there are no records or one is damaged, (STORAGE) if a file cannot be written.
    """
    found = read_records(records)
    if not found:
        raise UserError(
            f"no records in {records}",
            why="it has no whole line" if records.exists() else "there is no such file",
            fix="record trials there first with `hectogpt compare`",
            code=errors.DATA,
        )
    found = NgramFile.read(ngrams).complete(found)
    ladder = ladder_names() if ladder is None else ladder
    descriptions = recipe_descriptions() if descriptions is None else descriptions
    boards = build_leaderboards(found, ladder)
    seconds = read_seconds(timings)
    fronts = build_fronts(boards, seconds, ladder)
    pictures = out / "pictures"
    texts = {out / "LADDER.md": ladder_page(boards, descriptions, fronts, seconds)}
    try:
        template = answers / TEMPLATE
        if template.exists():
            filler = Filler(boards, ladder, descriptions, Path(os.path.relpath(pictures, answers)).as_posix())
            answer = filler.fill(template.read_text(encoding="utf-8"), template)
            texts[answers / TEMPLATE.replace(".template", "")] = answer
        pictures.mkdir(parents=True, exist_ok=True)
        written = _draw(boards, fronts, pictures)
        for path, text in texts.items():
            write_atomic(path, text)
    except OSError as error:
        raise UserError(f"cannot write to {out}", why=error.strerror or str(error), code=errors.STORAGE) from None
    return [*written, *texts]


def ladder_names() -> list[str]:
    """The baseline and the ladder's rungs in order."""
    return ["baseline", *(step.__name__ for step in recipes.LADDER)]


def recipe_descriptions() -> dict[str, str]:
    """Name -> docstring of every recipe: what it does, and why in further paragraphs."""
    return {name: f"{recipes.describe(name)}\n\n{recipes.explain(name)}".strip() for name in recipes.names()}


def _draw(boards: Sequence[Leaderboard], fronts: Sequence[Front], folder: Path) -> list[Path]:
    """Draw every picture, and remove those of rungs that no longer exist."""
    written = []
    for board in boards:
        for place in range(len(board.rungs)):
            written.append(folder / picture_name(board, place))
            plot_rung(written[-1], board, place)
        if board.rungs:
            written.append(folder / f"{board.slug}-ladder.png")
            plot_ladder(written[-1], board)
            written.append(folder / f"{board.slug}-curves.png")
            plot_learning_curves(written[-1], board)
    for front in fronts:
        if front.drawn:
            written.append(folder / f"{front.slug}.png")
            plot_front(written[-1], front)
    for old in folder.glob("*.png"):
        if old not in written and re.search(r"-(curves|front|ladder|\d\d-\w+)\.png$", old.name):
            old.unlink()
    return written
