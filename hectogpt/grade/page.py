"""Results as pages that work offline, as data: one for each submission, and an overview of a class.

`hectogpt/web/pages/report.js` draws them; it shows every text as text.
"""

from __future__ import annotations

import re
import zlib
from typing import Any

from hectogpt.assignment.parts import BY_NAME
from hectogpt.grade import laws
from hectogpt.grade.report import average, counts, measured, notes, one, points, said
from hectogpt.grade.result import WRONG, PartResult, Result


def pages(found: list[Result], level: int) -> dict[str, dict[str, Any]]:
    """File name -> title and blocks. index.html is the submission itself if there is one, else the overview."""
    if len(found) == 1:
        return {"index.html": submission_page(found[0], level)}
    ordered = sorted(found, key=lambda result: result.name)
    made = {file_name(result): submission_page(result, level) | {"back": "all submissions"} for result in ordered}
    return {"index.html": class_page(ordered), **made}


def file_name(result: Result) -> str:
    """Made of harmless letters; different for different names."""
    harmless = re.sub(r"[^A-Za-z0-9_-]+", "-", result.name).strip("-")[:60]
    return f"{harmless or 'submission'}-{zlib.crc32(result.name.encode()):08x}.html"


def submission_page(result: Result, level: int) -> dict[str, Any]:
    """One submission: a row a part, with its hints."""
    if result.fault:
        return {"title": one(result.name), "blocks": [{"text": f"not graded: {one(result.fault)}", "kind": "bad"}]}
    rows = [row for part in result.parts for row in part_rows(part, level)]
    beyond = [f"{part.title}: {note}" for part in result.parts for note in notes(part)]
    table = {"table": {"head": ["part", "outcome", "points", "what was seen"], "rows": rows}}
    blocks: list[dict[str, Any]] = [{"text": f"{result.points} of {result.max_points} points"}, table]
    if beyond:
        blocks += [{"heading": "Notes"}, {"text": "Beyond the tests: no points are lost."}, {"list": beyond}]
    return {"title": one(result.name), "blocks": blocks}


def part_rows(part: PartResult, level: int) -> list[list[Any]]:
    kind = "good" if part.outcome == "passed" else "bad" if part.outcome in WRONG else "other"  # its colour
    first, *others = said(part, level) or [measured(part)]
    row = [part.title, {"text": part.outcome, "kind": kind}, points(part), first]
    return [row, *(["", "", "", sentence] for sentence in others)]


def class_page(found: list[Result]) -> dict[str, Any]:
    """The overview: mistakes by frequency, what each part came out as, and every submission."""
    counted = counts(found)
    largest = counted[0][2] if counted else 1
    mistakes = [[part, one(what), str(n), {"bar": n / largest}] for part, what, n in counted]
    by_part = [part_line(name, found) for name in BY_NAME if name in laws.GRADED]
    rows = [
        [{"text": one(r.name), "href": file_name(r)}, points(r), one(r.fault or r.wrongs_in_words())] for r in found
    ]
    return {
        "title": f"{len(found)} submissions",
        "blocks": [
            {"text": f"{average(found)}."},
            {"heading": "Mistakes"},
            {"table": {"head": ["part", "mistake or outcome", "submissions", ""], "rows": mistakes}},
            {"heading": "Parts"},
            {"table": {"head": ["part", "passed", "wrong", "not started or blocked"], "rows": by_part}},
            {"heading": "Submissions"},
            {"table": {"head": ["name", "points", "wrong"], "rows": rows}},
        ],
    }


def part_line(name: str, found: list[Result]) -> list[str]:
    outcomes = [part.outcome for result in found for part in result.parts if part.part == name]
    waiting = sum(outcome in ("not started", "blocked") for outcome in outcomes)
    wrong = sum(outcome in WRONG for outcome in outcomes) - waiting
    return [BY_NAME[name].title, str(outcomes.count("passed")), str(wrong), str(waiting)]
