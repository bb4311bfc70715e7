"""What a grading says: of a law, of a part, of a submission; and its record, a JSON object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from hectogpt.assignment.parts import BY_NAME
from hectogpt.serialization import dump, load

# The outcomes of a part. Only the first earns points; the next are nobody's fault; the rest are
# wrong.
Outcome = Literal[
    "passed",
    "not handed in",  # the file is not there, and does not have to be
    "changed",  # another architecture than the assignment's: to be judged by hand
    "grader fault",  # the grader's own error
    "failed",
    "not started",
    "blocked",  # a part that it rests on is missing, or its file cannot be imported
    "timed out",
    "out of memory",
    "crashed",
    "output flood",
]
OUTCOMES: tuple[str, ...] = get_args(Outcome)
WRONG = OUTCOMES[4:]
COMPUTED = {"title", "points", "max_points"}  # in a record for its readers; not fields


@dataclass(frozen=True)
class Diagnosis:
    """names: the mistake, or both of a pair. equivalent: other names that explain the same
    results. where, what: the second and the third hint. effect: what else the mistake does, in
    training say."""

    names: tuple[str, ...]
    where: str
    what: str
    equivalent: tuple[str, ...] = ()
    effect: str = ""

    @property
    def id(self) -> str:
        """For tables and counts."""
        return " + ".join(self.names)


@dataclass(frozen=True)
class Finding:
    """A law that was broken. symptom: what was seen, with numbers. says: the sentence that it
    rests on. counts: False for a note. brief: the law, or where it is broken, in a few words for
    tables."""

    law: str
    symptom: str
    says: str
    counts: bool = False
    brief: str = ""


@dataclass(frozen=True)
class PartResult:
    """What became of a part. reason: in words, if it is not one of the findings."""

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
        """What is wrong with it, on one line."""
        return self.reason or next(
            (finding.symptom for finding in self.broken), "no reason is known"
        )

    def mistake(self) -> str:
        """A short name for tables and counts: the diagnosis, else what was seen, else the
        outcome.
        """
        if self.outcome == "passed":
            return ""
        if self.diagnosis or self.outcome != "failed" or not self.broken:
            return self.diagnosis.id if self.diagnosis else self.outcome
        return f"{self.outcome}: {self.broken[0].brief or self.broken[0].law}"


@dataclass(frozen=True)
class Result:
    """The grading of one submission. missing_packages: those that stand-ins took the place of.
    fault: why nothing could be graded. looks: lines for the teacher, see Submission.looks; no
    points depend on them."""

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
        """Of what was handed in."""
        return sum(part.max_points for part in self.parts if part.outcome != "not handed in")

    @property
    def note_count(self) -> int:
        return sum(len(part.notes) for part in self.parts)

    def wrongs(self) -> list[tuple[str, str, str]]:
        """(name, title, mistake or outcome) of each part that is not passed; parts with one
        reason, a file that cannot be imported say, are one entry without a name."""
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
        """Whether nothing is wrong; strict: nor any note."""
        wrong = (
            bool(self.fault)
            or self.grader_fault
            or any(part.outcome in WRONG for part in self.parts)
        )
        return not wrong and not (
            strict and any(part.notes or part.outcome == "changed" for part in self.parts)
        )

    def record(self) -> dict[str, Any]:
        """As a JSON object."""
        made: dict[str, Any] = dump(self) | {"points": self.points, "max_points": self.max_points}
        for part, row in zip(self.parts, made["parts"], strict=True):
            row |= {"title": part.title, "points": part.points, "max_points": part.max_points}
        return made


def result_of(record: dict[str, Any]) -> Result:
    """The result in a record. Raises UserError if it does not fit."""
    parts = [_fields_only(part) for part in record["parts"]]
    result: Result = load(Result, _fields_only(record) | {"parts": parts})
    return result


def _fields_only(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in COMPUTED}
