"""Fills learning.template.md: every {{...}} becomes a number, a table, a picture or a rung's section."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hectogpt.display import NGRAMS
from hectogpt.errors import UserError
from hectogpt.lab.statistics import Paired
from tools.report.front import format_steps_to_trigram, mean_code_length
from tools.report.leaderboard import Entry, Leaderboard, compare_entries, count_pairs
from tools.report.tables import (
    Table,
    format_gain,
    format_loss,
    format_number,
    format_p,
    markdown_text,
)

UNMEASURED = "(not measured yet)"
FIELDS: tuple[str, ...] = (
    *("loss", "dev", "test", "bpb", "gain", "total", "total_pairs", "p", "verdict", "n", "params", "seconds", "memory"),
    *("train", "train10", "steps", "below_kn3", "below_best", "steps_to_kn3", "code_length", *NGRAMS),
)


def picture_name(board: Leaderboard, place: int) -> str:
    """The file name of a rung's curves."""
    return f"{board.slug}-{place:02}-{board.rungs[place].name}.png"


def format_field(board: Leaderboard, entry: Entry, field: str) -> str:
    """A field of an entry as text; UNMEASURED where there is no value. `field` is one of FIELDS.

    loss: on test if every seed was scored on it, else on dev. gain, p, verdict: against the rung below. total: the
    paired gain over the baseline, total_pairs: its number of seeds. below_kn3, below_best: the loss of the trigram, of
    the best counting, minus that of the entry. train: the training loss of the last batch, train10: the mean of the
    last ten. steps_to_kn3, code_length: as front.py defines them.
    """
    place = board.rungs.index(entry) if entry in board.rungs else 0
    below: Paired | None = compare_entries(entry, board.rungs[place - 1])[0] if place else None
    total: Paired | None = compare_entries(entry, board.rungs[0])[0] if place else None
    levels = board.ngrams.get(entry.split, {})
    summary = entry.summary(entry.split)
    if field in ("dev", "test"):
        text = format_loss(entry.summary(field))
    elif field in ("gain", "total"):
        text = format_gain(below if field == "gain" else total, plain=True)
    elif field in ("below_kn3", "below_best"):
        level = levels.get(field.removeprefix("below_"))
        text = format_number(level - summary.mean, 3) if summary and level is not None else ""
    elif field in NGRAMS:
        text = format_number(levels.get(field), 3)
    else:
        text = {
            "loss": f"{summary.mean:.3f}" if summary else "",
            "bpb": format_number(entry.mean(f"{entry.split}_bpb"), 3),
            "total_pairs": str(total.n) if total else "",
            "p": format_p(below),
            "verdict": below.verdict if below else "",
            "n": str(len(entry.records)),
            "params": format_number(entry.mean("params")),
            "seconds": format_number(entry.mean("seconds")),
            "memory": format_number(entry.mean("peak_mb")),
            "train": format_number(entry.mean("train_loss_last"), 3),
            "train10": format_number(entry.mean("train_loss_last10"), 3),
            "steps": str(entry.steps),
            "steps_to_kn3": format_steps_to_trigram(entry),
            "code_length": format_number(mean_code_length(entry), 3),
        }[field]
    return text or UNMEASURED


@dataclass(frozen=True)
class Filler:
    """What a template can name.

    ladder: names of the rungs, the baseline first. descriptions: name -> what a recipe does, then why. pictures: the
    path from the written answer to the folder of the pictures.
    """

    boards: Sequence[Leaderboard]
    ladder: Sequence[str]
    descriptions: Mapping[str, str]
    pictures: str

    def fill(self, template: str, path: Path) -> str:
        """The template with every {{...}} replaced; `path` is named in errors.

        {{CORPUS/TRACK/RECIPE/FIELD}} is a number (RECIPE may be `top`). {{table/CORPUS/TRACK}} is a short ladder,
        {{picture/CORPUS/TRACK}} its picture, {{curves/CORPUS/TRACK}} the learning curves of its rungs. {{what/NAME}} is
        what a recipe does. {{rung/NAME}} is a rung's section: description, gains, picture. {{rungs}} stands for the
        sections of all rungs that have no {{rung/NAME}}. Raises UserError naming file and line of anything else.
        """
        placed = set(re.findall(r"\{\{rung/([^}]+)\}\}", template))

        def replacement(match: re.Match[str]) -> str:
            if match[1] == "rungs":
                return "\n\n".join(self.rung_section(name) for name in self.ladder if name not in placed)
            text = self._value(match[1])
            if text is None:
                line = template.count("\n", 0, match.start()) + 1
                raise UserError(
                    f"{path}, line {line}: {{{{{match[1]}}}}} names nothing",
                    why=f"it is CORPUS/TRACK/RECIPE/FIELD with a field among {', '.join(FIELDS)}, or "
                    "table/CORPUS/TRACK, picture/CORPUS/TRACK, curves/CORPUS/TRACK, what/NAME, rung/NAME, rungs",
                )
            return text

        note = "<!-- generated by `python -m tools.report` from learning.template.md; edit that file -->\n\n"
        return note + re.sub(r"\{\{([^{}\s]+)\}\}", replacement, template)

    def _value(self, key: str) -> str | None:
        """The text of one {{key}}; None if it names nothing that can exist."""
        match key.split("/"):
            case ["rung", name] if name in self.ladder:
                return self.rung_section(name)
            case ["what", name] if name in self.descriptions:
                return self.descriptions[name].partition("\n\n")[0]
            case ["table", corpus, track]:
                board = self._board(corpus, track)
                return short_table(board).markdown().rstrip() if board and board.rungs else UNMEASURED
            case ["picture" | "curves" as kind, corpus, track]:
                board = self._board(corpus, track)
                if board is None or not board.rungs:
                    return UNMEASURED
                name, text = (
                    ("ladder", "The ladder") if kind == "picture" else ("curves", "Learning curves of all rungs")
                )
                return f"![{text} on {corpus}, {track}]({self.pictures}/{board.slug}-{name}.png)"
            case [corpus, track, name, field] if field in FIELDS and (name in self.descriptions or name == "top"):
                board = self._board(corpus, track)
                entry = (board.top if name == "top" else board.find(name)) if board else None
                return format_field(board, entry, field) if board and entry else UNMEASURED
        return None

    def _board(self, corpus: str, track: str) -> Leaderboard | None:
        return next((board for board in self.boards if (board.corpus, board.track) == (corpus, track)), None)

    def rung_section(self, name: str) -> str:
        """A rung's heading, description, gains on every leaderboard that has it, and its curves on the first."""
        parts = [f"### {list(self.ladder).index(name)} {name}", self.descriptions.get(name, "")]
        measured, picture = [], ""
        for board in self.boards:
            entry = board.find(name)
            if entry is None or entry not in board.rungs:
                continue
            place = board.rungs.index(entry)
            loss = format_field(board, entry, "loss")
            text = f"*{markdown_text(board.name)}*: {loss} nats per token ({entry.split}, {entry.seeds})"
            if place:
                below = board.rungs[place - 1]
                pair, split = compare_entries(entry, below)
                if pair:
                    facts = [split, count_pairs(pair.n)]
                    facts += [f"p {format_p(pair)}"] if pair.p is not None else []
                    facts += [pair.verdict] if pair.verdict != "better" else []
                    text += f"; gained {format_gain(pair)} over {below.name} ({', '.join(facts)})"
            measured.append(f"* {text}.")
            picture = picture or f"![{name}]({self.pictures}/{picture_name(board, place)})"
        parts += ["\n".join(measured) or UNMEASURED, picture]
        return "\n\n".join(part for part in parts if part)


def short_table(board: Leaderboard) -> Table:
    """The ladder with loss and gain only, the n-gram baselines below."""
    split = board.rungs[-1].split
    rows = []
    for place, entry in enumerate(board.rungs):
        below = compare_entries(entry, board.rungs[place - 1])[0] if place else None
        loss = format_loss(entry.summary(entry.split))
        verdict = f" ({below.verdict})" if below and below.p is not None and below.verdict != "better" else ""
        rows.append([str(place), entry.name, loss, format_gain(below), format_p(below) + verdict])
    for name, level in board.ngrams.get(split, {}).items():
        rows.append(["", f"*{name}*", format_number(level, 3), "", ""])
    return Table(["#", "rung", f"loss ({split})", "gain [95 %]", "p"], rows, left=2)
