"""docs/performance.md: its tables and numbers, filled in from results/bench.jsonl.

The page marks their places, and what stands between a mark and the next `<!-- end -->` is replaced:

    <!-- bench: where -->                                    when, on what and with what the figures were measured
    <!-- bench: tables PATTERN, PATTERN -->                  a table for each question whose name fits a pattern (a*b)
    <!-- bench: value QUESTION | SETTING | CONTENDER | KEY -->    one figure, in a sentence; SETTING may be empty

The figures are of one machine and number of threads: those that answer most questions, the newest if several do. Of
each setting of each module the newest run counts. A setting that its module no longer has is not shown, nor a question
that is no longer asked. README.md may have the same marks.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from bench.record import RESULTS, ROOT
from hectogpt.files import write_atomic

PAGES = (ROOT / "docs" / "performance.md", ROOT / "README.md")
UNMEASURED = "(not measured)"
MARK = re.compile(r"(<!-- bench: (\w+) ?([^\n]*?) ?-->)(.*?)(<!-- end -->)", re.DOTALL)
SAME_FOR_ALL = ("rounds",)  # left out of a table and said below it, where all rows agree
HEADINGS = {
    "peak_mb": "peak MB",
    "tokens_per_s": "tokens/s",
    "gb_per_s": "GB/s",
    "gflop_per_second": "GFLOP/s",
    "giga_per_second": "10^9 per second",
    "cpu_seconds": "CPU seconds",
    "ideal_seconds": "at the peaks",
    "share_of_roofline": "share",
}

Record = dict[str, Any]


def write_pages() -> list[Path]:
    """Fill in the pages that have marks and return them. Raises ValueError for a mark that is none."""
    texts = {page: page.read_text(encoding="utf-8") for page in PAGES}
    marked = [page for page, text in texts.items() if MARK.search(text)]
    for page in marked:
        write_atomic(page, render(texts[page], RESULTS.read_text(encoding="utf-8")))
    return marked


def render(page: str, results: str) -> str:
    """The page with its marked places filled in from lines of records."""
    records = choose([json.loads(line) for line in results.splitlines()])
    write: dict[str, Callable[[str], str]] = {
        "where": lambda _: f"\n{where(records)}\n",
        "tables": lambda patterns: f"\n{tables(records, patterns.split(', '))}\n",
        "value": lambda path: value(records, [part.strip() for part in path.split("|")]),
    }

    def fill(match: re.Match[str]) -> str:
        begin, kind, argument, _, end = match.groups()
        if kind not in write:
            raise ValueError(f"{begin}: a mark is one of {', '.join(write)}")
        return begin + write[kind](argument) + end

    return MARK.sub(fill, page)


def choose(records: Sequence[Record]) -> list[Record]:
    """The records that stand: of one machine and number of threads the newest run of each setting that its module has,
    in the order of the module's settings."""
    machines: dict[tuple[str, int], list[Record]] = {}
    for record in records:
        if "bench" in record:  # older ones do not say what they are a setting of
            machines.setdefault((record["machine"], record["threads"]), []).append(record)
    found = max(machines.values(), key=lambda own: (len({r["question"] for r in own}), own[-1]["date"]), default=[])
    settings = {r["bench"]: r["settings"] for r in found}
    begun = {(r["bench"], r["setting"]): r["begun"] for r in found}
    kept = [r for r in found if r["setting"] in settings[r["bench"]] and r["begun"] == begun[r["bench"], r["setting"]]]
    return sorted(kept, key=lambda r: settings[r["bench"]].index(r["setting"]))


def where(records: Sequence[Record]) -> str:
    """When, on what and with what the records were measured, as a sentence."""
    if not records:
        return UNMEASURED
    dates = sorted({record["date"][:10] for record in records})
    commits = dict.fromkeys(record["commit"] + "+" * record["dirty"] for record in records)
    versions: dict[str, str] = {}
    for record in records:
        versions |= record["versions"]
    loads, threads = [record["load"] for record in records], records[0]["threads"]
    words = [
        f"Measured on {' and '.join(dates) if len(dates) < 3 else f'{dates[0]} to {dates[-1]}'}",
        f"{records[0]['machine']}, with {threads} thread{'s' * (threads != 1)}",
        f"load {min(loads):g} to {max(loads):g}",
        ", ".join(f"{name} {version}" for name, version in versions.items()),
        f"commit{'s' if len(commits) > 1 else ''} {', '.join(commits)}"
        + (" (+: with changes)" * any(record["dirty"] for record in records)),
    ]
    return textwrap.fill("; ".join(words) + ".", 120, break_on_hyphens=False)


def tables(records: Sequence[Record], patterns: Sequence[str]) -> str:
    """A table for each question that fits one of the patterns, with its name above if there are several."""
    questions = dict.fromkeys(
        record["question"] for pattern in patterns for record in records if fnmatchcase(record["question"], pattern)
    )
    found = {q: [row for record in records if record["question"] == q for row in record["rows"]] for q in questions}
    if not found:
        return UNMEASURED
    headed = len(found) > 1 or any("*" in pattern for pattern in patterns)
    return "\n\n".join((f"**{q.replace('_', ' ')}**\n\n" if headed else "") + table(rows) for q, rows in found.items())


def table(rows: Sequence[Record]) -> str:
    """Rows as a Markdown table; what comes before the contender is its setting."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    same = [key for key in SAME_FOR_ALL if key in columns and len({row.get(key) for row in rows}) == 1]
    columns = [key for key in columns if key not in same]
    columns.sort(key=lambda key: {"setting": 0, "d": 0, "contender": 1}.get(key, 2))
    lines = [[HEADINGS.get(key, key.replace("_", " ")) for key in columns]]
    lines.append(["---" if key in ("setting", "contender") else "--:" for key in columns])
    lines += [[format_value(row.get(key)) for key in columns] for row in rows]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    said = [f"{key.replace('_', ' ').capitalize()}: {format_value(rows[0][key])}." for key in same]
    return "\n\n".join([text, *said])


def format_value(value: Any) -> str:
    """A cell: numbers with five digits, and with separators from a thousand on."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return " ".join(str(value).replace("|", "\\|").split())
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.5g}"


def value(records: Sequence[Record], path: Sequence[str]) -> str:
    """The figure at (question, setting, contender, key); UNMEASURED if there is none."""
    question, setting, contender, key = path
    for record in records:
        for row in record["rows"]:
            place = str(row.get("setting", row.get("d", "")))
            if (record["question"], place, row.get("contender")) == (question, setting, contender) and key in row:
                return format_value(row[key])
    return UNMEASURED
