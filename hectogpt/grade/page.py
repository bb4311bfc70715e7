"""Results as pages that work offline, as data: one for each submission, and an overview of a class.

`hectogpt/web/pages/report.js` draws them; it shows every text as text.
"""

from __future__ import annotations

import re
from typing import Any

from hectogpt.assignment.parts import BY_NAME
from hectogpt.display import printable
from hectogpt.grade import laws
from hectogpt.grade.classroom import counts
from hectogpt.grade.report import hints, one
from hectogpt.grade.result import PartResult, Result


def pages(found: list[Result], level: int) -> dict[str, dict[str, Any]]:
    """File name -> title and blocks. index.html is the submission itself if there is one, else the overview."""
    if len(found) == 1:
        return {"index.html": submission_page(found[0], level)}
    ordered = sorted(found, key=lambda result: result.name)
    names = file_names(ordered)
    back = {"back": "all submissions"}
    made = {name: submission_page(result, level) | back for name, result in zip(names, ordered, strict=True)}
    return {"index.html": class_page(ordered, names), **made}


def file_names(found: list[Result]) -> list[str]:
    """A name for each, made of harmless letters, all different."""
    taken: set[str] = {"index"}
    names = []
    for result in found:
        base = re.sub(r"[^A-Za-z0-9_-]+", "-", result.name).strip("-")[:60] or "submission"
        name, count = base, 1
        while name.lower() in taken:
            count += 1
            name = f"{base}-{count}"
        taken.add(name.lower())
        names.append(f"{name}.html")
    return names


def text(said: str) -> str:
    return printable(one(said))


def kind(outcome: str) -> str:
    """How an outcome is coloured."""
    if outcome == "passed":
        return "good"
    return "other" if outcome in ("not handed in", "changed", "grader fault") else "bad"


def submission_page(result: Result, level: int) -> dict[str, Any]:
    """One submission: a row a part, with its hints."""
    if result.fault:
        return {"title": text(result.name), "blocks": [{"text": f"not graded: {text(result.fault)}", "kind": "bad"}]}
    rows = [row for part in result.parts for row in part_rows(part, level)]
    notes = [f"{text(p.title)}: {text(n.law)}: {text(n.symptom)}" for p in result.parts for n in p.notes]
    beyond = [{"heading": "Notes"}, {"text": "Beyond the tests: no points are lost."}, {"list": notes}] if notes else []
    table = {"table": {"head": ["part", "outcome", "points", "what was seen"], "rows": rows}}
    points = {"text": f"{result.points} of {result.max_points} points"}
    return {"title": text(result.name), "blocks": [points, table, *beyond]}


def part_rows(part: PartResult, level: int) -> list[list[Any]]:
    said = [] if part.outcome == "passed" else [f"{word}: {sentence}" for word, sentence in hints(part, level)]
    if not said and part.error:
        said = [f"largest relative error {part.error:.0e}, allowed {part.tolerance or 0:.0e}"]
    points = f"{part.points}/{part.max_points}" if part.max_points else ""
    first, *others = [*map(text, said)] or [""]
    row = [text(part.title), {"text": text(part.outcome), "kind": kind(part.outcome)}, points, first]
    return [row, *(["", "", "", sentence] for sentence in others)]


def class_page(found: list[Result], names: list[str]) -> dict[str, Any]:
    """The overview: mistakes by frequency, what each part came out as, and every submission."""
    graded = [result for result in found if not result.fault]
    mean = sum(result.points for result in graded) / max(1, len(graded))
    full = sum(result.points == result.max_points for result in graded)
    largest = max((n for *_, n in counts(found)), default=1)
    mistakes = [[text(part), text(what), str(n), {"bar": n / largest}] for part, what, n in counts(found)]
    by_part = [part_line(name, graded) for name in BY_NAME if name in laws.GRADED]
    rows = [student_row(result, name) for result, name in zip(found, names, strict=True)]
    return {
        "title": f"{len(found)} submissions",
        "blocks": [
            {"text": f"{len(graded)} graded, {full} with full points, {mean:.1f} points on average."},
            {"heading": "Mistakes"},
            {"table": {"head": ["part", "mistake or outcome", "submissions", ""], "rows": mistakes}},
            {"heading": "Parts"},
            {"table": {"head": ["part", "passed", "wrong", "not started or blocked"], "rows": by_part}},
            {"heading": "Submissions"},
            {"table": {"head": ["name", "points", "wrong"], "rows": rows}},
        ],
    }


def part_line(name: str, graded: list[Result]) -> list[str]:
    outcomes = [part.outcome for result in graded for part in result.parts if part.part == name]
    passed = sum(outcome == "passed" for outcome in outcomes)
    waiting = sum(outcome in ("not started", "blocked") for outcome in outcomes)
    wrong = sum(kind(outcome) == "bad" for outcome in outcomes) - waiting
    return [text(BY_NAME[name].title), str(passed), str(wrong), str(waiting)]


def student_row(result: Result, name: str) -> list[Any]:
    points = "" if result.fault else f"{result.points}/{result.max_points}"
    return [{"text": text(result.name), "href": name}, points, text(result.fault or result.wrongs_in_words())]
