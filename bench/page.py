"""docs/performance.md: its tables and numbers, made from results/bench.jsonl.

The page marks their places, and the text between a mark and the next `<!-- end -->` is replaced:

    <!-- bench: processors CHANGES -->                          what the columns are, and the last changes of the code
    <!-- bench: table QUESTION; KEY, KEY -->                    a row for each setting and contender
    <!-- bench: times QUESTION; SETTING; A / B; KEY -->         A's figure divided by B's: the range

A column has the figures of one processor, number of threads and commit. The newest run of each setting on a processor
counts. The rows are those of the newest record of each setting, so what is no longer measured is not shown.

A column is marked if its figures are older than the last change of what they depend on (`bench.DEPENDS`, by the dates
of git's commits). `python -m bench --page` asks git and writes these dates into the first mark; so the page
depends only on the records and itself.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import textwrap
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from bench import DEPENDS
from bench.picture import draw, read_races
from bench.record import RESULTS, ROOT, now
from hectogpt.files import write_atomic

PAGE = ROOT / "docs" / "performance.md"
MARK = re.compile(r"(<!-- bench: (\w+) ?(.*?) ?-->)(.*?)(<!-- end -->)", re.DOTALL)
OLDER = "†"
# Names of processors: by vendor, family and model; and of records that have only a name, by machine and first day. The
# latter follow the table of machines in results/LOG.md (fdb0aa9, d92c1e7; b3e7f17).
KNOWN = {
    "AuthenticAMD 25 17": "EPYC, Zen 4",
    "AuthenticAMD 26 2": "EPYC, Zen 5",
    "GenuineIntel 6 143": "Xeon, Sapphire Rapids",
    "AMD EPYC, 2 cores, avx2, avx512f, avx512_bf16 2026-11-27": "EPYC, Zen 5",
    "Intel(R) Xeon(R) Processor, 2 cores, avx2, avx512f, avx512_bf16 2026-11-28": "Xeon, Sapphire Rapids",
    "Intel(R) Xeon(R) Processor, 2 cores, avx2 2026-11-28": "Xeon, limited to AVX2",
}
CHUNK = re.compile(r"(?<=linear_cross_entropy) \d+$")  # it takes part with the chunk that is quickest on a processor

Record = dict[str, Any]


def write_page() -> None:
    """Fill in the page and draw its picture. Raises ValueError for an unknown mark."""
    changes = ", ".join(f"{question} {last_change(question)}" for question in DEPENDS)
    mark = textwrap.fill(f"<!-- bench: processors {changes} -->", 120, break_on_hyphens=False)
    page = re.sub(r"<!-- bench: processors.*?-->", mark, PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    write_atomic(PAGE, render(page, RESULTS.read_text(encoding="utf-8")))
    draw(read_races())


def last_change(question: str) -> str:
    """The time in UTC of the last change to the code that a question measures; now, if changes are not committed."""
    paths = [*DEPENDS[question], f"bench/{question}.py", "bench/race.py"]
    git, utc = ["git", "-C", str(ROOT)], os.environ | {"TZ": "UTC"}
    if subprocess.check_output([*git, "status", "--porcelain", "--", *paths]):
        return now()
    log = [*git, "log", "-1", "--format=%cd", "--date=format-local:%Y-%m-%dT%H:%M:%S+00:00", "--", *paths]
    return subprocess.check_output(log, text=True, env=utc).strip()


def render(page: str, results: str) -> str:
    """The page with its marked places filled in from lines of records."""
    records = choose([json.loads(line) for line in results.splitlines()])
    changes: dict[str, str] = {}
    for _, kind, argument, *_ in MARK.findall(page):
        if kind == "processors":
            changes = dict(part.split() for part in argument.split(",") if part)
    write: dict[str, Callable[[str], str]] = {
        "processors": lambda _: f"\n{processors(records, changes)}\n",
        "table": lambda argument: f"\n{table(records, changes, *argument.split('; '))}\n",
        "times": lambda argument: times(records, *argument.split("; ")),
    }

    def fill(match: re.Match[str]) -> str:
        begin, kind, argument, _, end = match.groups()
        if kind not in write:
            raise ValueError(f"{begin}: a mark is one of {', '.join(write)}")
        return begin + write[kind](argument) + end

    return MARK.sub(fill, page)


# --- which records, and where they are from ---------------------------------------------------------------------------


def name_of(record: Record) -> str:
    """The processor's name: as it is known, or all that the record says."""
    found = record.get("processor", {})
    if found:
        key = " ".join(str(found.get(part, "")) for part in ("vendor_id", "cpu family", "model"))
        return KNOWN.get(key, f"{found['name']} ({key})")
    return KNOWN.get(f"{record['machine']} {record['date'][:10]}", f"{record['machine']} (model not recorded)")


def commit_of(record: Record) -> str:
    return str(record["commit"]) + "+" * bool(record["dirty"])


def choose(records: Sequence[Record]) -> list[Record]:
    """The records to show: for each processor and number of threads, the newest run of each setting that its question
    still has, in the order of the settings."""
    dated = [record for record in records if record.get("bench") in DEPENDS]  # the oldest ones do not say their setting
    settings = {r["bench"]: r["settings"] for r in dated}
    newest = {(name_of(r), r["threads"], r["bench"], r["setting"]): r["begun"] for r in dated}
    kept = [r for r in dated if newest[name_of(r), r["threads"], r["bench"], r["setting"]] == r["begun"]]
    kept = [r for r in kept if r["setting"] in settings[r["bench"]]]
    return sorted(kept, key=lambda r: settings[r["bench"]].index(r["setting"]))


def columns(records: Iterable[Record]) -> dict[tuple[str, int, str], list[Record]]:
    """Records by processor, threads and commit; the newest column first."""
    found: dict[tuple[str, int, str], list[Record]] = {}
    for record in sorted(records, key=lambda r: str(r["begun"]), reverse=True):
        found.setdefault((name_of(record), record["threads"], commit_of(record)), []).append(record)
    return found


def processors(records: Sequence[Record], changes: dict[str, str]) -> str:
    """A paragraph for each processor, and one on the last changes."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(name_of(record), []).append(record)
    lines = []
    for name, own in found.items():
        versions: dict[str, str] = {}
        for record in sorted(own, key=lambda r: str(r["begun"])):
            versions |= record["versions"]
        facts = own[-1].get("processor", {})
        model = ", ".join(f"{part} {facts[part]}" for part in ("cpu family", "model", "stepping") if part in facts)
        loads, threads = [record["load"] for record in own], sorted({record["threads"] for record in own})
        words = [
            f"* **{name}**: {own[-1]['machine']}{f' ({model})' * bool(model)}",
            f"{' or '.join(map(str, threads))} threads",
            f"load {min(loads):g} to {max(loads):g}",
            ", ".join(f"{package} {version}" for package, version in versions.items()),
        ]
        lines += textwrap.wrap("; ".join(words) + ".", 120, subsequent_indent="  ", break_on_hyphens=False)
    dates = ", ".join(f"{question} {changed[:10]}" for question, changed in changes.items())
    words = [f"Last change of the measured code: {dates}.", f"A column with {OLDER} was measured before that."]
    return "\n".join([*lines, "", *textwrap.wrap(" ".join(words), 120)])


# --- tables -----------------------------------------------------------------------------------------------------------


def cells(records: Iterable[Record]) -> dict[tuple[str, str], Record]:
    """Rows by setting and contender."""
    return {
        (str(row.get("setting", row.get("d", ""))), CHUNK.sub("", str(row["contender"]))): row
        for record in records
        for row in record["rows"]
    }


def table(records: Sequence[Record], changes: dict[str, str], question: str, keys: str) -> str:
    """A row for each setting and contender, a column for each processor; in a cell the first figure, and any other in
    brackets."""
    asked = [record for record in records if record["question"] == question]
    if not asked:
        return "(not measured)"
    newest = {record["setting"]: record for record in sorted(asked, key=lambda r: str(r["begun"]))}
    rows = list(cells(newest[setting] for setting in dict.fromkeys(record["setting"] for record in asked)))
    found = columns(asked)
    heads = []
    for (name, threads, commit), own in found.items():
        begun = min(str(record["begun"]) for record in own)
        old = OLDER * (begun < changes.get(own[0]["bench"], ""))
        heads.append(f"{name}{f', {threads} threads' * (threads != 2)}; {begun[:10]}, {commit}{old}")
    columns_cells = [cells(own) for own in found.values()]
    with_setting = any(setting for setting, _ in rows)
    lines = [["setting"] * with_setting + ["contender", *heads]]
    lines.append(["---"] * (with_setting + 1) + ["--:"] * len(heads))
    for place in rows:
        figures = [figure(own.get(place, {}), keys.split(", ")) for own in columns_cells]
        if any(figures):
            lines.append([place[0]] * with_setting + [place[1], *figures])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def figure(row: Record, keys: Sequence[str]) -> str:
    """The first of the figures, and any other in brackets; or why there is none."""
    if "failed" in row:
        return "failed: " + " ".join(str(row["failed"]).replace("|", "/").split())[:80]
    first, *others = [number(row[key]) for key in keys if key in row] or [""]
    return f"{first} ({', '.join(others)})" if others else first


def number(value: float) -> str:
    """A number with three digits, or with all digits before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def times(records: Sequence[Record], question: str, setting: str, pair: str, key: str) -> str:
    """One contender's figure divided by another's: the smallest and the largest ratio of the columns. If several
    contenders fit a pattern, the smallest figure counts."""
    found = []
    for own in columns(record for record in records if record["question"] == question).values():
        rows = {contender: row for (place, contender), row in cells(own).items() if place == setting}
        sides = [[row[key] for c, row in rows.items() if key in row and fnmatchcase(c, s)] for s in pair.split(" / ")]
        if all(sides):
            found.append(min(sides[0]) / min(sides[1]))
    texts = dict.fromkeys(f"{ratio:.2g}" for ratio in (min(found), max(found))) if found else ["(not measured)"]
    return " to ".join(texts)
