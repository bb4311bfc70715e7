"""A result in words: for a terminal, a table, Gradescope, other programs. All foreign text is made harmless."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from hectogpt.assignment.parts import BY_NAME
from hectogpt.display import printable
from hectogpt.grade import laws
from hectogpt.grade.result import WRONG, PartResult, Result

LOUD = {*WRONG, "grader fault"} - {"not started"}  # outcomes whose reason is told also if many parts share it
LEVELS = {1: "symptom", 2: "where", 3: "what"}


def one(said: str) -> str:
    """A foreign text on one line, without control characters."""
    return printable(" ".join(said.split()))


def hints(part: PartResult, level: int) -> Iterator[tuple[str, str]]:
    """(kind, sentence) of a part that is not right, up to a level: 1 the symptom, 2 where, 3 what."""
    if part.reason:
        yield "reason", one(part.reason)
    for finding in part.broken[:1]:  # the others say the same of other inputs
        yield "symptom", one(finding.symptom)
    found = part.diagnosis
    if found is None:
        if level >= 2 and part.broken:
            yield "asked for", part.broken[0].says
        return
    if level >= 2 and found.where:
        yield "where", one(found.where)
    if level >= 3:
        yield "what", found.what
        for sentence in found.alternatives:
            yield "or", sentence + " (It gives the same results.)"
        if more := found.equivalent[len(found.alternatives) :]:
            yield "or", "; ".join(more[:3]) + " (the same results)"


def said(part: PartResult, level: int) -> list[str]:
    """The hints of a part, a line each; none for one that passed."""
    return [] if part.outcome == "passed" else [f"{kind}: {sentence}" for kind, sentence in hints(part, level)]


def measured(part: PartResult) -> str:
    """How near the numbers of a part that passed are."""
    if part.outcome != "passed" or not part.error or part.tolerance is None:
        return ""
    return f"largest relative error {part.error:.0e}, allowed {part.tolerance:.0e}"


def points(result: Result | PartResult) -> str:
    return f"{result.points}/{result.max_points}" if result.max_points else ""


def notes(part: PartResult) -> list[str]:
    return [f"{note.law}: {one(note.symptom)}" for note in part.notes]


def text(result: Result, level: int = 3) -> str:
    """The result of one submission, a line a part and its hints below it."""
    if result.fault:
        return f"{one(result.name)}: not graded: {one(result.fault)}"
    lines = [f"{one(result.name)}: {result.points} of {result.max_points} points"]
    reasons = Counter(part.reason for part in result.parts)
    often = {reason for reason in reasons if reasons[reason] > 1}
    told = [part.reason for part in result.parts if part.reason in often and part.outcome in LOUD]
    lines += [f"  {one(reason)}" for reason in dict.fromkeys(told) if reason]
    for part in result.parts:
        beside = measured(part) or ("" if part.broken or part.reason in often else one(part.reason))
        lines.append(f"  {part.outcome:<14} {part.title:<30} {points(part):>5}  {beside}".rstrip())
        if part.outcome != "passed":
            below = [(kind, words) for kind, words in hints(part, level) if kind != "reason" or part.broken]
            lines += [f"      {kind + ':':<10} {words}" for kind, words in below]
    beyond = [f"      {part.title}: {note}" for part in result.parts for note in notes(part)]
    lines += ["  notes (beyond the tests: no points are lost)", *beyond] if beyond else []
    if result.missing:
        lines.append(f"  not installed here, replaced by stand-ins: {one(', '.join(result.missing))}")
    lines += [f"  for the teacher: looks beyond its own code: {one(line)}" for line in result.looks]
    return "\n".join(lines)


def line(result: Result) -> str:
    """A submission of a class on one line."""
    if result.fault:
        return text(result)
    words = f"{one(result.name)}: {result.points}/{result.max_points}  {one(result.wrongs_in_words())}".rstrip()
    fault = next((f" ({one(part.reason)})" for part in result.parts if part.outcome == "grader fault"), "")
    return words + fault + "  (looks beyond its own code, see the records)" * bool(result.looks)


def counts(found: list[Result]) -> list[tuple[str, str, int]]:
    """(part, mistake or outcome, how many submissions), the most frequent first."""
    counted = Counter((title, what) for result in found for _, title, what in result.wrongs())
    return sorted(((part, what, n) for (part, what), n in counted.items()), key=lambda row: (-row[2], row[0], row[1]))


def average(found: list[Result]) -> str:
    """Of a class, in a few words."""
    graded = [result for result in found if not result.fault]
    mean = sum(result.points for result in graded) / max(1, len(graded))
    full = sum(result.points == result.max_points for result in graded)
    return f"{len(graded)} graded, {full} with full points, {mean:.1f} points on average"


def overview(found: list[Result]) -> str:
    """A class in a few lines: points, and what went wrong how often."""
    lines = [f"  {n:>4}  {part}: {one(what)}" for part, what, n in counts(found)[:20]]
    return "\n".join([f"{len(found)} submissions, {average(found)}", *lines])


def as_text(value: dict[str, Any]) -> str:
    """JSON with a line end, without numbers that JSON does not have."""
    return json.dumps(value, indent=1, allow_nan=False) + "\n"


def as_csv(found: list[Result]) -> str:
    """A line a submission: points and mistake of each part. No cell starts a formula in a spreadsheet."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = [part for part in BY_NAME if part in laws.GRADED]
    writer.writerow(["name", "points", "max_points", *names, *(f"{part} mistake" for part in names), "fault"])
    for result in sorted(found, key=lambda r: r.name):
        parts = {part.part: part for part in result.parts}
        of_each = [parts[name].points if name in parts else "" for name in names]
        mistakes = [parts[name].mistake() if name in parts else "" for name in names]
        row = (result.name, result.points, result.max_points, *of_each, *mistakes, result.fault)
        writer.writerow([cell(value) for value in row])
    return out.getvalue()


def cell(value: str | int) -> str | int:
    told = one(value) if isinstance(value, str) else value
    return "'" + told if isinstance(told, str) and told[:1] in ("=", "+", "-", "@") else told


def gradescope(result: Result, level: int = 3, visibility: str = "visible") -> dict[str, Any]:
    """The content of results.json: a test a part, numbered as in the assignment."""
    tests = [
        {
            "name": part.title,
            "number": BY_NAME[part.part].question or "-",
            "score": part.points,
            "max_score": part.max_points,
            "status": "passed" if part.outcome == "passed" else "failed",
            "output": "\n".join([part.outcome, *said(part, level), *(f"note: {note}" for note in notes(part))]),
            "output_format": "text",
            "visibility": visibility,
            "tags": [part.outcome],
            "extra_data": {"diagnosis": part.diagnosis.id if part.diagnosis else None, "outcome": part.outcome},
        }
        for part in result.parts
        if part.outcome != "not handed in" or part.max_points
    ]
    output = f"not graded: {one(result.fault)}" if result.fault else f"{result.points} of {result.max_points} points"
    return {
        "score": result.points,
        "execution_time": round(result.seconds),
        "output": output,
        "output_format": "text",
        "test_output_format": "text",
        "visibility": "visible" if result.fault and visibility != "hidden" else visibility,  # hand it in again
        "stdout_visibility": "hidden",
        "extra_data": {"key": result.key, "looks": result.looks},
        "tests": tests,
    }
