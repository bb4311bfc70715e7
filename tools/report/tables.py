"""Leaderboards as tables of text cells, and the tables as Markdown."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hectogpt.display import NGRAMS, printable
from hectogpt.lab.recipes import WITHOUT
from hectogpt.lab.statistics import LEAST_DIFFERENCE, Paired, Summary
from tools.report.leaderboard import Entry, Leaderboard, changed_sections, compare_entries
from tools.report.seconds import NO_SECONDS, Seconds

EMPTY = ""
ONE_MACHINE = "s, one machine"  # the seconds of `python -m bench recipes`


@dataclass(frozen=True)
class Table:
    """Cells as text. The first `left` columns hold words, the others numbers."""

    header: list[str]
    rows: list[list[str]]
    left: int = 1

    def markdown(self) -> str:
        """A pipe table that ends with a line break."""
        rule = [":--"] * self.left + ["--:"] * (len(self.header) - self.left)
        lines = [self.header, rule, *self.rows]
        return "".join("| " + " | ".join(map(markdown_text, line)) + " |\n" for line in lines)


def markdown_text(text: str) -> str:
    """Text from elsewhere on one line of Markdown, escaped so that it has no HTML, links or ends of table cells."""
    text = printable(" ".join(text.splitlines()))
    return re.sub(r"\](?=[\[(:])", r"\\]", text.replace("<", "&lt;").replace("|", "\\|"))


def first_paragraph(description: str) -> str:
    """The first paragraph of a recipe's description, which says what the recipe changes, on one line."""
    return " ".join(description.partition("\n\n")[0].split())


def format_loss(summary: Summary | None) -> str:
    """Mean and standard deviation, "3.154 ± 0.012"."""
    if summary is None:
        return EMPTY
    return f"{summary.mean:.3f}" + (f" ± {summary.sd:.3f}" if summary.sd is not None else EMPTY)


def format_gain(pair: Paired | None) -> str:
    """A gain with its 95 % interval, "+0.306 [+0.291, +0.320]"."""
    if pair is None:
        return EMPTY
    return f"{pair.gain:+z.3f}" + ("" if pair.low is None else f" [{pair.low:+z.3f}, {pair.high:+z.3f}]")


def format_p(pair: Paired | None) -> str:
    """The p-value with one significant digit."""
    return EMPTY if pair is None or pair.p is None else f"{pair.p:.1g}"


def format_number(value: float | None, digits: int = 0) -> str:
    """A number with thousands separators; nothing for None."""
    return EMPTY if value is None else f"{value:,.{digits}f}"


def ladder_table(board: Leaderboard, descriptions: Mapping[str, str], seconds: Seconds = NO_SECONDS) -> Table:
    """One row per rung, then one per n-gram baseline. seconds: those of one machine, shown next to the trials'."""
    header = ["#", "rung", "what changed", "section", "parameters", "dev", "test", "n", "bits/byte"]
    header += ["gain over the rung below [95 %]", "pairs", "p", "", ONE_MACHINE, "s", "MiB", "batch 100", "last 10"]
    rows = []
    below: Entry | None = None
    for place, entry in enumerate(board.rungs):
        pair, split = compare_entries(entry, below) if below else (None, "")
        rows.append(
            [
                str(place) if board.rungs[0].name == "baseline" else EMPTY,
                entry.name,
                first_paragraph(descriptions.get(entry.name, EMPTY)),
                changed_sections(entry, below) if below else EMPTY,
                format_number(entry.mean("params")),
                format_loss(entry.summary("dev")),
                format_loss(entry.summary("test")),
                str(len(entry.records)),
                format_number(entry.mean(f"{entry.split}_bpb"), 3),
                format_gain(pair) + (" dev" if pair and split == "dev" and entry.split == "test" else EMPTY),
                str(pair.n) if pair else EMPTY,
                format_p(pair),
                pair.verdict if pair else EMPTY,
                format_number(seconds.of.get((board.corpus, entry.name))),
                format_number(entry.mean("seconds")),
                format_number(entry.mean("peak_mb")),
                format_number(entry.mean("train_loss_last"), 3),
                format_number(entry.mean("train_loss_last10"), 3),
            ]
        )
        below = entry
    for name in NGRAMS:
        levels = [format_number(board.ngrams.get(split, {}).get(name), 3) for split in ("dev", "test")]
        if any(levels):
            rows.append(["", name, NGRAMS[name], "counting", "", *levels, *[""] * (len(header) - 7)])
    return Table(header, rows, left=4)


def comparison_table(
    entries: Sequence[Entry],
    reference: Entry | None,
    descriptions: Mapping[str, str],
    seconds: Seconds = NO_SECONDS,
) -> Table:
    """One row per entry with its paired gain over `reference`.

    seconds: those of one machine, for recipes without overrides, shown next to the trials'."""
    over = f"gain over {reference.label} [95 %]" if reference else "gain"
    header = ["recipe", "what it is", "steps", "parameters", "dev", "test", "n", over, "pairs", "p", ""]
    header += [ONE_MACHINE, "s", "MiB"]
    rows = []
    for entry in entries:
        pair = compare_entries(entry, reference)[0] if reference and reference is not entry else None
        rows.append(
            [
                entry.label,
                first_paragraph(descriptions.get(entry.name, "not a recipe of this version")),
                str(entry.steps),
                format_number(entry.mean("params")),
                format_loss(entry.summary("dev")),
                format_loss(entry.summary("test")),
                str(len(entry.records)),
                format_gain(pair),
                str(pair.n) if pair else EMPTY,
                format_p(pair),
                pair.verdict if pair else EMPTY,
                format_number(None if entry.overrides else seconds.of.get((entry.records[0].corpus, entry.name))),
                format_number(entry.mean("seconds")),
                format_number(entry.mean("peak_mb")),
            ]
        )
    return Table(header, rows, left=2)


def ablation_table(entries: Sequence[Entry], whole: Entry) -> Table:
    """One row per part of `whole` that was left out, with the gain without it."""
    rows = []
    for entry in entries:
        pair = compare_entries(entry, whole)[0]
        rows.append(
            [
                entry.name.removeprefix(WITHOUT),
                format_loss(entry.summary("dev")),
                format_loss(entry.summary("test")),
                str(len(entry.records)),
                format_gain(pair),
                _part(entry, whole, pair) if pair else EMPTY,
            ]
        )
    return Table(["left out", "dev", "test", "n", "gain without it [95 %]", "the part"], rows)


def _part(entry: Entry, whole: Entry, pair: Paired) -> str:
    """The effect of a part, judged by the gain without it."""
    if entry.losses(entry.split).items() <= whole.losses(entry.split).items():
        return "set again by a later rung: the same run"
    if pair.verdict == "tie" or abs(pair.gain) <= LEAST_DIFFERENCE:
        return "tie"
    return ("helps" if pair.gain < 0 else "hurts") + (", unproven" if pair.verdict == "unproven" else "")


def selection_bias_note(entries: Sequence[Entry]) -> str:
    """By how much the best of K equally good settings is expected to look better than it is: sd sqrt(2 ln K)."""
    spreads = [s.sd for e in entries if (s := e.summary(e.split)) is not None and s.sd is not None]
    if not spreads:
        best = f"The loss of the best of these {len(entries)} settings is biased low"
        return f"{best}; with one seed per setting, the bias cannot be estimated."
    variance = sum(x * x for x in spreads) / len(spreads) / min(len(e.records) for e in entries)
    bias = math.sqrt(variance * 2 * math.log(len(entries)))
    return (
        f"The best of {len(entries)} equally good settings is expected to lie {bias:.3f} below "
        " its true mean by chance. The figures of the ladder come from fresh seeds."
    )
