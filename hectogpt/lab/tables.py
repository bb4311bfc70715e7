"""Standings as tables of plain cells, and cells as Markdown or HTML. Numbers come from the records, never by hand."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hectogpt.lab.standings import ANCHORS, Entry, Standing, gain, kind
from hectogpt.lab.statistics import Paired, Summary, selection_bias

ANCHOR_TEXT = {
    "uniform": "every id alike",
    "unigram": "counts of single ids",
    "kn2": "Kneser-Ney bigram",
    "kn3": "Kneser-Ney trigram",
}
NOTHING = ""


@dataclass(frozen=True)
class Table:
    """Cells as text; the first `left` columns hold words, the others numbers."""

    header: list[str]
    rows: list[list[str]]
    left: int = 1

    def markdown(self) -> str:
        """A pipe table with its line end."""
        rule = [":--"] * self.left + ["--:"] * (len(self.header) - self.left)
        lines = [self.header, rule, *self.rows]
        return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)

    def html(self) -> str:
        """A table element."""

        def line(cells: Sequence[str], tag: str) -> str:
            marked = [
                f"<{tag}{' class=w' if i < self.left else ''}>{html.escape(cell)}</{tag}>"
                for i, cell in enumerate(cells)
            ]
            return f"<tr>{''.join(marked)}</tr>\n"

        body = "".join(line(row, "td") for row in self.rows)
        return f"<table>\n<thead>{line(self.header, 'th')}</thead>\n<tbody>\n{body}</tbody></table>\n"


def first_line(description: str) -> str:
    """The sentence or paragraph that says what a recipe changes, on one line."""
    return " ".join(description.partition("\n\n")[0].split())


def loss(summary: Summary | None) -> str:
    """Mean and spread, "3.154 ± 0.012"."""
    if summary is None:
        return NOTHING
    return f"{summary.mean:.3f}" + (f" ± {summary.sd:.3f}" if summary.sd is not None else NOTHING)


def difference(pair: Paired | None, sign: int = 1) -> str:
    """A paired difference times `sign` with its 95 % interval, "+0.306 [+0.291, +0.320]"."""
    if pair is None:
        return NOTHING
    text = f"{sign * pair.difference:+.3f}"
    if pair.low is None or pair.high is None:
        return text
    low, high = sorted((sign * pair.low, sign * pair.high))
    return f"{text} [{low:+.3f}, {high:+.3f}]"


def p_value(pair: Paired | None) -> str:
    """One significant digit."""
    return NOTHING if pair is None or pair.p is None else f"{pair.p:.1g}"


def number(value: float | None, digits: int = 0) -> str:
    """A number with thousands separators, nothing for None."""
    return NOTHING if value is None else f"{value:,.{digits}f}"


def ladder_table(standing: Standing, descriptions: Mapping[str, str]) -> Table:
    """A rung a row, the count models below."""
    header = ["#", "rung", "what changed", "kind", "parameters", "dev", "test", "n", "bits/byte"]
    header += ["gain over the rung below [95 %]", "p", "", "s", "MiB", "batch 100", "last 10"]
    rows = []
    below: Entry | None = None
    for place, entry in enumerate(standing.rungs):
        pair, split = gain(entry, below) if below else (None, "")
        rows.append(
            [
                str(place),
                entry.name,
                first_line(descriptions.get(entry.name, NOTHING)),
                kind(entry, below) if below else NOTHING,
                number(entry.mean("params")),
                loss(entry.summary("dev")),
                loss(entry.summary("test")),
                str(len(entry.rows)),
                number(entry.mean(f"{entry.split}_bpb"), 3),
                difference(pair, -1) + (" dev" if pair and split == "dev" and entry.split == "test" else NOTHING),
                p_value(pair),
                pair.verdict if pair else NOTHING,
                number(entry.mean("seconds")),
                number(entry.mean("peak_mb")),
                number(entry.mean("train_loss_last"), 3),
                number(entry.mean("train_loss_last10"), 3),
            ]
        )
        below = entry
    for name in ANCHORS:
        levels = [number(standing.anchors.get(split, {}).get(name), 3) for split in ("dev", "test")]
        if any(levels):
            rows.append(["", name, ANCHOR_TEXT[name], "counting", "", *levels, *[""] * (len(header) - 7)])
    return Table(header, rows, left=4)


def others_table(entries: Sequence[Entry], reference: Entry | None, descriptions: Mapping[str, str]) -> Table:
    """Entries compared with `reference` by seed: negative is lower than it."""
    to = f"difference to {reference.label} [95 %]" if reference else "difference"
    header = ["recipe", "what it is", "steps", "parameters", "dev", "test", "n", to, "p", "", "s", "MiB"]
    rows = []
    for entry in entries:
        pair = gain(entry, reference)[0] if reference and reference is not entry else None
        rows.append(
            [
                entry.label,
                first_line(descriptions.get(entry.name, NOTHING)),
                str(entry.steps),
                number(entry.mean("params")),
                loss(entry.summary("dev")),
                loss(entry.summary("test")),
                str(len(entry.rows)),
                difference(pair),
                p_value(pair),
                pair.verdict if pair else NOTHING,
                number(entry.mean("seconds")),
                number(entry.mean("peak_mb")),
            ]
        )
    return Table(header, rows, left=2)


def without_table(entries: Sequence[Entry], whole: Entry) -> Table:
    """What a rung loses when one part is left out."""
    rows = []
    for entry in entries:
        pair = gain(entry, whole)[0]
        word = {"worse": "helps", "tie": "tie", "better": "hurts", "unproven": "hurts, unproven"}
        rows.append(
            [
                entry.name.removeprefix("without-"),
                loss(entry.summary("dev")),
                loss(entry.summary("test")),
                str(len(entry.rows)),
                difference(pair),
                word[pair.verdict] if pair else NOTHING,
            ]
        )
    return Table(["left out", "dev", "test", "n", "loss without it [95 %]", "the part"], rows)


def luck(entries: Sequence[Entry]) -> str:
    """What must be said of the best of several settings."""
    spreads = [s.sd for e in entries if (s := e.summary(e.split)) is not None and s.sd is not None]
    if not spreads:
        return f"The best of {len(entries)} settings flatters itself; one seed each does not tell by how much."
    sd = (sum(x * x for x in spreads) / len(spreads)) ** 0.5 / min(len(e.rows) for e in entries) ** 0.5
    return (
        f"The best of {len(entries)} equal settings would lie about {selection_bias(sd, len(entries)):.3f} below its "
        "true mean by luck alone; figures of the ladder come from fresh seeds."
    )
