"""Results of grading: of a law, a part and a submission.

They are saved as records and shown in a terminal, as a table, on Gradescope, and as pages. Control
characters in the submission's texts are escaped.
"""

from __future__ import annotations

import csv
import io
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from hectogpt.assignment.parts import BY_NAME
from hectogpt.display import printable
from hectogpt.grade import laws
from hectogpt.serialization import dump, load

# The outcomes of a part. Only the first earns points. The next three are not the student's fault;
# the others are.
Outcome = Literal[
    "passed",
    "not handed in",  # the file is missing, which is allowed
    "changed",  # an architecture that is not the assignment's: to be judged by hand
    "grader fault",  # an error in the grader itself
    "failed",
    "not started",
    "blocked",  # a part that it needs is missing, or its file cannot be imported
    "timed out",
    "out of memory",
    "crashed",
    "output flood",
]
OUTCOMES: tuple[str, ...] = get_args(Outcome)
WRONG = OUTCOMES[4:]
# Keys of a record that are computed for its readers; they are not fields.
COMPUTED = {"title", "points", "max_points"}


@dataclass(frozen=True)
class Diagnosis:
    """The explanation of a wrong part.

    names: the mistake, or both mistakes of a pair.
    where: the second hint, the place of the mistake.
    what: the third hint, the mistake itself.
    equivalent: other mistakes that explain the same results.
    effect: another effect of the mistake, for example on training.
    """

    names: tuple[str, ...]
    where: str
    what: str
    equivalent: tuple[str, ...] = ()
    effect: str = ""

    @property
    def id(self) -> str:
        """The names as one string, for tables and counts."""
        return " + ".join(self.names)


@dataclass(frozen=True)
class Finding:
    """A broken law.

    law: its name.
    symptom: the observation, with numbers.
    says: the sentence that the law is based on.
    counts: False for a note.
    brief: the law, or where it is broken, in a few words for tables.
    """

    law: str
    symptom: str
    says: str
    counts: bool = False
    brief: str = ""


@dataclass(frozen=True)
class PartResult:
    """The result of a part.

    reason: the reason for the outcome, unless a finding gives it.
    """

    part: str
    outcome: Outcome
    reason: str = ""
    findings: tuple[Finding, ...] = ()
    diagnosis: Diagnosis | None = None

    @property
    def title(self) -> str:
        return BY_NAME[self.part].title

    @property
    def max_points(self) -> int:
        return BY_NAME[self.part].points

    @property
    def points(self) -> int:
        return self.max_points if self.outcome == "passed" else 0

    @property
    def notes(self) -> list[Finding]:
        return [finding for finding in self.findings if not finding.counts]

    @property
    def broken(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.counts]

    def why(self) -> str:
        """Return the reason for the outcome, on one line."""
        return self.reason or next(
            (finding.symptom for finding in self.broken), "no reason is known"
        )

    def mistake(self) -> str:
        """Return a short name for tables: the diagnosis, the broken law, or the outcome."""
        if self.outcome == "passed":
            return ""
        if self.diagnosis or self.outcome != "failed" or not self.broken:
            return self.diagnosis.id if self.diagnosis else self.outcome
        return f"{self.outcome}: {self.broken[0].brief or self.broken[0].law}"


@dataclass(frozen=True)
class Result:
    """The result of one submission.

    name: the name of the submission.
    key: the hash of its files.
    parts: the results of its parts.
    seconds: the time that grading took.
    missing_packages: packages that are not installed here; stand-ins replaced them.
    fault: the reason why nothing could be graded.
    looks: lines for the teacher, see Submission.looks; no points depend on them.
    """

    name: str
    key: str
    parts: tuple[PartResult, ...] = ()
    seconds: float = 0.0
    missing_packages: tuple[str, ...] = ()
    fault: str = ""
    looks: tuple[str, ...] = ()

    @property
    def points(self) -> int:
        return sum(part.points for part in self.parts)

    @property
    def max_points(self) -> int:
        """The most points that the submitted parts could earn."""
        return sum(part.max_points for part in self.parts if part.outcome != "not handed in")

    @property
    def note_count(self) -> int:
        return sum(len(part.notes) for part in self.parts)

    def wrongs(self) -> list[tuple[str, str, str]]:
        """Return (name, title, mistake or outcome) of each part that has not passed.

        Parts that share a reason, such as a file that cannot be imported, are one entry without a
        name.
        """
        parts = [part for part in self.parts if part.outcome not in ("passed", "not handed in")]
        reasons = [part.reason for part in parts]
        found = []
        for part in parts:
            if part.reason and reasons.count(part.reason) > 1:
                words = f"{part.outcome}: {part.reason.partition(': ')[0]}"
                found.append(("", "several parts", words))
            else:
                found.append((part.part, part.title, part.mistake()))
        return list(dict.fromkeys(found))

    @property
    def grader_fault(self) -> bool:
        return any(part.outcome == "grader fault" for part in self.parts)

    def is_right(self, strict: bool = False) -> bool:
        """True if no part is wrong.

        strict: also require that there is no note and no outcome "changed".
        """
        wrong = (*WRONG, "grader fault", *(["changed"] if strict else []))
        return not self.fault and not any(
            part.outcome in wrong or (strict and part.notes) for part in self.parts
        )

    def record(self) -> dict[str, Any]:
        """Return this as a JSON object."""
        made: dict[str, Any] = dump(self) | {"points": self.points, "max_points": self.max_points}
        for part, row in zip(self.parts, made["parts"], strict=True):
            row |= {"title": part.title, "points": part.points, "max_points": part.max_points}
        return made


def result_of(record: dict[str, Any]) -> Result:
    """Read a result from a record. Raises UserError if the record does not fit."""
    parts = [_fields_only(part) for part in record["parts"]]
    result: Result = load(Result, _fields_only(record) | {"parts": parts})
    return result


def _fields_only(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in COMPUTED}


# --- as text


def one_line(said: str) -> str:
    """Return a submission's text on one line, without control characters."""
    return printable(" ".join(said.split()))


def hints(part: PartResult, level: int) -> list[tuple[str, str]]:
    """Return (kind, sentence) of each hint for a part that is not right.

    level: 1: the symptom; 2: also the place; 3: also the mistake.
    """
    if part.outcome == "passed":
        return []
    found = part.diagnosis
    first = part.broken[:1]  # the other findings repeat it for other inputs
    sentences = [("reason", part.reason), *(("symptom", finding.symptom) for finding in first)]
    if level >= 2:
        sentences.append(
            ("where", found.where) if found else ("asked for", first[0].says if first else "")
        )
    if level >= 3 and found:
        others = "; ".join(found.equivalent)
        sentences += [
            ("what", found.what),
            ("effect", found.effect),
            ("or", others and f"{others} (the same results)"),
        ]
    return [(kind, one_line(words)) for kind, words in sentences if words]


def said(part: PartResult, level: int) -> list[str]:
    """Return the hints of a part as lines; [] for a part that passed."""
    return [f"{kind}: {sentence}" for kind, sentence in hints(part, level)]


def points(result: Result | PartResult) -> str:
    return f"{result.points}/{result.max_points}" if result.max_points else ""


def notes(part: PartResult) -> list[str]:
    return [f"{note.law}: {one_line(note.symptom)}" for note in part.notes]


def text(result: Result, level: int = 3) -> str:
    """Return the result of one submission: a line for each part, with its hints below it."""
    if result.fault:
        return f"{one_line(result.name)}: not graded: {one_line(result.fault)}"
    lines = [f"{one_line(result.name)}: {result.points} of {result.max_points} points"]
    told = {""}  # a reason that several parts share is given only at the first
    for part in result.parts:
        beside = (
            ""
            if part.broken or part.reason in told or part.outcome == "not started"
            else one_line(part.reason)
        )
        told.add(part.reason)
        lines.append(f"  {part.outcome:<14} {part.title:<30} {points(part):>5}  {beside}".rstrip())
        below = [
            (kind, words) for kind, words in hints(part, level) if kind != "reason" or part.broken
        ]
        lines += [f"      {kind + ':':<10} {words}" for kind, words in below]
    beyond = [f"      {part.title}: {note}" for part in result.parts for note in notes(part)]
    lines += ["  notes (beyond the tests; they cost no points)", *beyond] if beyond else []
    if result.missing_packages:
        lines.append(
            "  not installed here, replaced by stand-ins: "
            f"{one_line(', '.join(result.missing_packages))}"
        )
    lines += [
        f"  for the teacher (may inspect the grader): {one_line(line)}" for line in result.looks
    ]
    if any(part.broken for part in result.parts):
        lines.append(
            "  how to read a difference, and get its input: docs/assignment-student.md of "
            "hectoGPT, section 3"
        )
    return "\n".join(lines)


def wrongs(result: Result) -> str:
    """Return the mistakes of a submission, on one line."""
    return one_line(
        "; ".join(f"{name}: {what}" if name else what for name, _, what in result.wrongs())
    )


def line(result: Result) -> str:
    """Return the result of one of many submissions, on one line."""
    if result.fault:
        return text(result)
    words = (
        f"{one_line(result.name)}: {result.points}/{result.max_points}  {wrongs(result)}".rstrip()
    )
    fault = next(
        (f" ({one_line(part.reason)})" for part in result.parts if part.outcome == "grader fault"),
        "",
    )
    if count := result.note_count:
        words += f"  ({count} note{'s' if count > 1 else ''})"
    looks = "  (may inspect the grader, see the records)" if result.looks else ""
    return words + fault + looks


def counts(found: list[Result]) -> list[tuple[str, str, int]]:
    """Return (part, mistake or outcome, number of submissions), the most frequent first."""
    counted = Counter((title, what) for result in found for _, title, what in result.wrongs())
    ordered = sorted(counted.items(), key=lambda item: (-item[1], item[0]))
    return [(part, what, n) for (part, what), n in ordered]


def average(found: list[Result]) -> str:
    """Summarize a class in a few words."""
    graded = [result for result in found if not result.fault]
    mean = sum(result.points for result in graded) / max(1, len(graded))
    full = sum(result.points == result.max_points for result in graded)
    return f"{len(graded)} graded, {full} with full points, {mean:.1f} points on average"


def overview(found: list[Result]) -> str:
    """Summarize a class in a few lines: its points, and its mistakes by frequency."""
    lines = [f"  {n:>4}  {part}: {one_line(what)}" for part, what, n in counts(found)[:20]]
    return "\n".join([f"{len(found)} submissions, {average(found)}", *lines])


def as_csv(found: list[Result]) -> str:
    """Return a CSV file with a line for each submission.

    A line has the points and the mistake of each part, or the reason why the submission was not
    graded. No cell starts a formula in a spreadsheet.
    """
    parts = laws.GRADED
    mistakes = (f"{part} mistake" for part in parts)
    columns = ["name", "points", "max_points", *parts, *mistakes, "notes", "not graded"]
    rows = []
    most = max((result.max_points for result in found), default=0)
    for result in sorted(found, key=lambda r: r.name):
        row = dict.fromkeys(columns, "") | {"name": result.name, "not graded": result.fault}
        row["max_points"] = str(result.max_points or most)
        if not result.fault:
            row |= {"points": str(result.points), "notes": str(result.note_count)}
        for part in result.parts:
            row |= {part.part: str(part.points), f"{part.part} mistake": part.mistake()}
        rows.append(row)
    return csv_of(rows)


def csv_of(rows: list[dict[str, str]]) -> str:
    """Return rows with equal columns as CSV. No cell starts a formula in a spreadsheet."""
    out = io.StringIO()
    writer = csv.DictWriter(out, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: cell(value) for name, value in row.items()} for row in rows)
    return out.getvalue()


def cell(value: str) -> str:
    told = one_line(value)
    return "'" + told if told[:1] in ("=", "+", "-", "@") else told


def gradescope(result: Result, level: int = 3) -> dict[str, Any]:
    """Return the content of results.json: a test for each part, numbered as in the assignment."""
    tests = [
        {
            "name": part.title,
            "number": BY_NAME[part.part].question or "-",
            "score": part.points,
            "max_score": part.max_points,
            "status": "passed" if part.outcome == "passed" else "failed",
            "output": "\n".join(
                [part.outcome, *said(part, level), *(f"note: {note}" for note in notes(part))]
            ),
            "extra_data": {
                "diagnosis": part.diagnosis.id if part.diagnosis else None,
                "outcome": part.outcome,
            },
        }
        for part in result.parts
        if part.outcome != "not handed in" or part.max_points
    ]
    output = (
        f"not graded: {one_line(result.fault)}"
        if result.fault
        else f"{result.points} of {result.max_points} points"
    )
    return {
        "score": result.points,
        "execution_time": round(result.seconds),
        "output": output,
        "stdout_visibility": "hidden",
        "tests": tests,
    }


# --- pages that work offline, as data: hectogpt/web/pages/report.js draws them


def pages(found: list[Result], level: int) -> dict[str, dict[str, Any]]:
    """Return file name -> title and blocks of a page.

    With one submission, index.html is its page. With several, index.html is the overview and
    links to a page for each. Those pages do not link back, so each can be given to its student.
    """
    if len(found) == 1:
        return {"index.html": submission_page(found[0], level)}
    ordered = sorted(found, key=lambda result: result.name)
    made = {file_name(result): submission_page(result, level) for result in ordered}
    return {"index.html": class_page(ordered), **made}


def file_name(result: Result) -> str:
    """Return a file name of harmless characters; different names get different file names."""
    harmless = re.sub(r"[^A-Za-z0-9_-]+", "-", result.name).strip("-")[:60]
    return f"{harmless or 'submission'}-{zlib.crc32(result.name.encode()):08x}.html"


def submission_page(result: Result, level: int) -> dict[str, Any]:
    """Return the page of one submission: a row for each part, with its hints."""
    if result.fault:
        return {
            "title": one_line(result.name),
            "blocks": [{"text": f"not graded: {one_line(result.fault)}", "kind": "bad"}],
        }
    rows = [row for part in result.parts for row in part_rows(part, level)]
    beyond = [f"{part.title}: {note}" for part in result.parts for note in notes(part)]
    blocks: list[dict[str, Any]] = [
        {"text": f"{result.points} of {result.max_points} points"},
        table(rows, "part", "outcome", "points", "what was seen"),
    ]
    if beyond:
        blocks += [
            {"heading": "Notes"},
            {"text": "Beyond the tests; they cost no points."},
            {"list": beyond},
        ]
    return {"title": one_line(result.name), "blocks": blocks}


def table(rows: Sequence[Any], *head: str) -> dict[str, Any]:
    return {"table": {"head": head, "rows": rows}}


def part_rows(part: PartResult, level: int) -> list[list[Any]]:
    kind = (
        "good" if part.outcome == "passed" else "bad" if part.outcome in WRONG else "other"
    )  # its colour
    first, *others = said(part, level) or [""]
    row = [part.title, {"text": part.outcome, "kind": kind}, points(part), first]
    return [row, *(["", "", "", sentence] for sentence in others)]


def class_page(found: list[Result]) -> dict[str, Any]:
    """Return the overview: mistakes by frequency, outcomes by part, and every submission."""
    counted = counts(found)
    largest = counted[0][2] if counted else 1
    mistakes = [[part, one_line(what), str(n), {"bar": n / largest}] for part, what, n in counted]
    by_part = [part_line(name, found) for name in laws.GRADED]
    rows = [
        [
            {"text": one_line(r.name), "href": file_name(r)},
            points(r),
            str(r.note_count or ""),
            one_line(r.fault) or wrongs(r),
        ]
        for r in found
    ]
    return {
        "title": f"{len(found)} submissions",
        "blocks": [
            {"text": f"{average(found)}."},
            {"heading": "Mistakes"},
            table(mistakes, "part", "mistake or outcome", "submissions", ""),
            {"heading": "Parts"},
            table(by_part, "part", "passed", "wrong", "not started or blocked"),
            {"heading": "Submissions"},
            table(rows, "name", "points", "notes", "wrong"),
        ],
    }


def part_line(name: str, found: list[Result]) -> list[str]:
    outcomes = [part.outcome for result in found for part in result.parts if part.part == name]
    waiting = sum(outcome in ("not started", "blocked") for outcome in outcomes)
    wrong = sum(outcome in WRONG for outcome in outcomes) - waiting
    return [BY_NAME[name].title, str(outcomes.count("passed")), str(wrong), str(waiting)]
