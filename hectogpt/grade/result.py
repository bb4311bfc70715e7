"""What a grading says: of a law, of a part, of a submission; and its record, a JSON object."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from hectogpt.assignment.parts import BY_NAME

# The outcomes of a part. Only the first earns points; the next are nobody's fault; the rest are wrong.
OUTCOMES = (
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
)
WRONG = OUTCOMES[4:]


@dataclass(frozen=True)
class Diagnosis:
    """names: the mistake, or both of a pair. equivalent: other names that explain the same results. where, what: the
    second and the third hint. alternatives: what else explains the same results, the first few as sentences. effect:
    what else the mistake does, in training say."""

    names: tuple[str, ...]
    where: str
    what: str
    equivalent: tuple[str, ...] = ()
    alternatives: tuple[str, ...] = ()
    effect: str = ""

    @property
    def id(self) -> str:
        """For tables and counts."""
        return " + ".join(self.names)


@dataclass(frozen=True)
class Finding:
    """A law that was broken. symptom: what was seen, with numbers. says: the sentence that it rests on. counts: False
    for a note."""

    law: str
    symptom: str
    says: str
    counts: bool


@dataclass
class PartResult:
    """error, tolerance: the largest relative error where values count, and what is allowed; None if nothing was
    compared."""

    part: str
    outcome: str
    reason: str = ""
    findings: list[Finding] = field(default_factory=list)
    diagnosis: Diagnosis | None = None
    error: float | None = None
    tolerance: float | None = None

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
        return self.reason or next((finding.symptom for finding in self.broken), "no reason is known")

    def mistake(self) -> str:
        """A short name for tables and counts: the diagnosis, else the outcome."""
        if self.outcome == "passed":
            return ""
        return self.diagnosis.id if self.diagnosis else self.outcome


@dataclass
class Result:
    """The grading of one submission. looks: lines for the teacher, see Submission.looks; no points depend on them."""

    name: str
    key: str
    parts: list[PartResult]
    seconds: float = 0.0
    missing: list[str] = field(default_factory=list)
    fault: str = ""  # why nothing could be graded
    looks: list[str] = field(default_factory=list)

    @property
    def points(self) -> int:
        return sum(part.points for part in self.parts)

    @property
    def max_points(self) -> int:
        """Of what was handed in."""
        return sum(part.max_points for part in self.parts if part.outcome != "not handed in")

    def wrongs(self) -> list[tuple[str, str, str]]:
        """(name, title, mistake or outcome) of each part that is not passed; parts with one reason, a file that cannot
        be imported say, are one entry without a name."""
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

    def wrongs_in_words(self) -> str:
        """On one line."""
        return "; ".join(f"{name}: {what}" if name else what for name, _, what in self.wrongs())

    @property
    def grader_fault(self) -> bool:
        return any(part.outcome == "grader fault" for part in self.parts)

    def is_right(self, strict: bool = False) -> bool:
        """Whether nothing is wrong; strict: nor any note."""
        wrong = bool(self.fault) or self.grader_fault or any(part.outcome in WRONG for part in self.parts)
        return not wrong and not (strict and any(part.notes or part.outcome == "changed" for part in self.parts))

    def part(self, name: str) -> PartResult:
        return next(part for part in self.parts if part.part == name)

    def record(self) -> dict[str, Any]:
        """As a JSON object. Numbers that are not finite become null."""
        told = asdict(self) | {"points": self.points, "max_points": self.max_points}
        told |= {"seconds": round(self.seconds, 2), "missing_packages": told.pop("missing")}
        for part, row in zip(self.parts, told["parts"], strict=True):
            row |= {"title": part.title, "points": part.points, "max_points": part.max_points}
            if part.error is not None and not math.isfinite(part.error):
                row["error"] = None
        return told


def read(record: dict[str, Any]) -> Result:
    """A record as a Result. Raises KeyError, TypeError and ValueError for one that is none."""
    parts = []
    for told in record["parts"]:
        if told["outcome"] not in OUTCOMES or told["part"] not in BY_NAME:
            raise ValueError("unknown outcome or part")
        row = {name: told[name] for name in ("part", "outcome", "reason", "error", "tolerance")}
        findings = [Finding(**finding) for finding in told["findings"]]
        found = told["diagnosis"] and {k: tuple(v) if isinstance(v, list) else v for k, v in told["diagnosis"].items()}
        parts.append(PartResult(**row, findings=findings, diagnosis=Diagnosis(**found) if found else None))
    rest = {name: record[name] for name in ("name", "key", "seconds", "fault", "looks")}
    return Result(**rest, parts=parts, missing=record["missing_packages"])
