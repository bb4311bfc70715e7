"""A result in words, for a terminal, a table, Gradescope and other programs. All foreign text is made harmless."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

from hectogpt.assignment.parts import BY_NAME
from hectogpt.display import printable
from hectogpt.grade import laws
from hectogpt.grade.classroom import counts
from hectogpt.grade.result import WRONG, PartResult, Result

LOUD = {*WRONG, "grader fault"} - {"not started"}  # outcomes whose reason is told also if many parts share it
LEVELS = {1: "symptom", 2: "where", 3: "what"}


def hints(part: PartResult, level: int) -> Iterator[tuple[str, str]]:
    """(kind, sentence) of a part that is not right, up to a level: 1 the symptom, 2 where, 3 what."""
    if part.reason:
        yield "reason", part.reason
    for finding in part.broken[:1]:  # the others say the same of other inputs
        yield "symptom", finding.symptom
    if part.hint:
        yield "symptom", part.hint
    if part.diagnosis is None:
        if level >= 2 and part.broken:
            yield "asked for", part.broken[0].says
        return
    if level >= 2 and part.diagnosis.where:
        yield "where", part.diagnosis.where
    if level >= 3:
        yield "what", part.diagnosis.what
        for sentence in part.diagnosis.alternatives:
            yield "or", sentence + " (It gives the same results.)"
        told = len(part.diagnosis.alternatives)
        if part.diagnosis.equivalent[told:]:
            yield "or", "; ".join(part.diagnosis.equivalent[told:][:3]) + " (the same results)"


def deepest(part: PartResult) -> int:
    """How many levels of hints a part has."""
    return 3 if part.diagnosis else 2 if part.broken else 1


def text(result: Result, level: int = 3) -> str:
    """The result of one submission, a line a part and its hints below it."""
    if result.fault:
        return printable(f"{one(result.name)}: not graded: {one(result.fault)}")
    lines = [f"{one(result.name)}: {result.points} of {result.max_points} points"]
    reasons = [part.reason for part in result.parts if part.reason]
    often = {reason for reason in reasons if reasons.count(reason) > 1}
    lines += [f"  {one(p.reason)}" for p in first_of_each(result.parts) if p.reason in often and p.outcome in LOUD]
    for part in result.parts:
        points = f"{part.points}/{part.max_points}" if part.max_points else ""
        beside = one(part.reason) if not part.broken and part.reason not in often else ""
        if part.outcome == "passed" and part.error is not None and part.tolerance is not None and part.error > 0:
            beside = f"largest relative error {part.error:.0e}, allowed {part.tolerance:.0e}"
        lines.append(f"  {part.outcome:<14} {part.title:<30} {points:>5}  {beside}".rstrip())
        if part.outcome != "passed":
            said = [(k, sentence) for k, sentence in hints(part, level) if k != "reason" or part.broken]
            lines += [f"      {kind + ':':<10} {one(sentence)}" for kind, sentence in said]
    notes = [(part.title, note) for part in result.parts for note in part.notes]
    if notes:
        lines.append("  notes (beyond the tests: no points are lost)")
        lines += [f"      {title}: {note.law}: {one(note.symptom)}" for title, note in notes]
    if result.missing:
        lines.append(f"  not installed here, replaced by stand-ins: {one(', '.join(result.missing))}")
    lines += [f"  for the teacher: looks beyond its own code: {one(said)}" for said in result.looks]
    return printable("\n".join(lines))


def first_of_each(parts: list[PartResult]) -> list[PartResult]:
    """The first part with each reason."""
    return list({part.reason: part for part in reversed(parts)}.values())[::-1]


def one(said: str) -> str:
    """A foreign text on one line."""
    return " ".join(said.split())


def line(result: Result) -> str:
    """A submission of a class on one line."""
    if result.fault:
        return printable(f"{one(result.name)}: not graded: {one(result.fault)}")
    looks = "  (looks beyond its own code, see the records)" if result.looks else ""
    words = f"{one(result.name)}: {result.points}/{result.max_points}  {one(result.wrongs_in_words())}"
    fault = next((part.reason for part in result.parts if part.outcome == "grader fault"), "")
    return printable(words.rstrip() + (f" ({one(fault)})" if fault else "") + looks)


def overview(found: list[Result]) -> str:
    """A class in a few lines: points, and what went wrong how often."""
    graded = [result for result in found if not result.fault]
    mean = sum(result.points for result in graded) / max(1, len(graded))
    full = sum(result.points == result.max_points for result in graded)
    lines = [f"{len(found)} submissions, {len(graded)} graded, {full} with full points, {mean:.1f} points on average"]
    lines += [f"  {n:>4}  {part}: {what}" for part, what, n in counts(found)[:20]]
    return printable("\n".join(lines))


def as_json(found: list[Result]) -> dict[str, Any]:
    """All results as one JSON object."""
    return {"submissions": [result.record() for result in found]}


def as_csv(found: list[Result]) -> str:
    """A line a submission: points and mistake of each part. No cell starts a formula in a spreadsheet."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    titles = [part for part in BY_NAME if part in laws.GRADED]
    writer.writerow(["name", "points", "max_points", *titles, *(f"{part} mistake" for part in titles), "fault"])
    for result in sorted(found, key=lambda r: r.name):
        by_name = {part.part: part for part in result.parts}
        points = [by_name[t].points if t in by_name else "" for t in titles]
        mistakes = [by_name[t].mistake() if t in by_name else "" for t in titles]
        writer.writerow(
            [cell(v) for v in (result.name, result.points, result.max_points, *points, *mistakes, result.fault)]
        )
    return out.getvalue()


def cell(value: Any) -> Any:
    told = printable(one(value)) if isinstance(value, str) else value
    return "'" + told if isinstance(told, str) and told[:1] in ("=", "+", "-", "@") else told


# --- Gradescope -----------------------------------------------------------------------------------------------------


def gradescope(result: Result, level: int = 3, visibility: str = "visible") -> dict[str, Any]:
    """The content of results.json: a test a part, numbered as in the assignment."""
    tests = []
    for part in result.parts:
        if part.outcome == "not handed in" and not part.max_points:
            continue
        passed = part.outcome == "passed"
        said = [] if passed else [f"{kind}: {one(sentence)}" for kind, sentence in hints(part, level)]
        said += [f"note: {note.law}: {one(note.symptom)}" for note in part.notes]
        tests.append(
            {
                "name": part.title,
                "number": BY_NAME[part.part].question or "-",
                "score": part.points,
                "max_score": part.max_points,
                "status": "passed" if passed else "failed",
                "output": printable("\n".join([part.outcome, *said])),
                "output_format": "text",
                "visibility": visibility,
                "tags": [part.outcome],
                "extra_data": {"diagnosis": part.diagnosis.id if part.diagnosis else None, "outcome": part.outcome},
            }
        )
    output = f"not graded: {one(result.fault)}" if result.fault else f"{result.points} of {result.max_points} points"
    return {
        "score": result.points,
        "execution_time": round(result.seconds),
        "output": printable(output),
        "output_format": "text",
        "test_output_format": "text",
        "visibility": "visible" if result.fault and visibility != "hidden" else visibility,  # hand it in again
        "stdout_visibility": "hidden",
        "extra_data": {"key": result.key, "looks": result.looks},
        "tests": tests,
    }


def as_text(value: dict[str, Any]) -> str:
    """JSON with a line end, without numbers that JSON does not have."""
    return json.dumps(value, indent=1, allow_nan=False) + "\n"
