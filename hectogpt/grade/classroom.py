"""Many submissions: on all cores, each record written as it ends, and none graded twice that has not changed."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from hectogpt import files
from hectogpt.errors import DATA, STORAGE, UserError
from hectogpt.grade import result as results
from hectogpt.grade.grading import grade
from hectogpt.grade.result import Result
from hectogpt.grade.runner import CancelledError, Limits
from hectogpt.grade.settings import version
from hectogpt.grade.submission import Submission

LARGEST_RECORDS = 1 << 30


def recorded(path: Path) -> dict[str, Result]:
    """Key -> result, from the records of this version in a file; those that were the grader's fault are left out.

    A line that is no record, the last one of a killed process say, is passed over. Raises UserError (DATA).
    """
    if not path.exists():
        return {}
    try:
        if not path.is_file() or path.stat().st_size > LARGEST_RECORDS:
            raise UserError(f"{path} is not a file of records", fix="choose another file", code=DATA)
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise UserError(f"cannot read {path}", why=error.strerror or str(error), code=DATA) from None
    found = {}
    for line in lines:
        try:
            record = json.loads(line)
            if record["grader"] == version():
                result = results.read(record)
                found[result.key] = result
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
    return {key: result for key, result in found.items() if not result.grader_fault}


def write(path: Path, result: Result) -> None:
    """Append a record. Raises UserError (STORAGE)."""
    record: dict[str, Any] = result.record() | {"grader": version()}
    try:
        files.append_line(path, json.dumps(record, allow_nan=False))
    except OSError as error:
        raise UserError(
            f"cannot write {path}",
            why=error.strerror or str(error),
            kept="the records of the submissions graded before",
            code=STORAGE,
        ) from None


def grade_all(
    submissions: list[Submission], out: Path | None, jobs: int, limits: Limits | None = None
) -> Iterator[Result]:
    """The results as they come, those that are recorded already first. Equal submissions are graded once."""
    known = recorded(out) if out else {}
    waiting: dict[str, list[Submission]] = {}
    for submission in submissions:
        if submission.key in known and not submission.fault:
            yield renamed(known[submission.key], submission.name)
        else:
            key = submission.key if not submission.fault else submission.name
            waiting.setdefault(key, []).append(submission)
    todo: SimpleQueue[list[Submission] | None] = SimpleQueue()
    done: SimpleQueue[tuple[list[Submission], Result | None]] = SimpleQueue()
    for group in waiting.values():
        todo.put(group)
    cancelled = threading.Event()

    def work() -> None:
        while (group := todo.get()) is not None and not cancelled.is_set():
            try:
                done.put((group, grade(group[0], limits, cancelled)))
            except CancelledError:
                done.put((group, None))

    threads = [threading.Thread(target=work, daemon=True) for _ in range(max(1, min(jobs, len(waiting))))]
    for thread in threads:
        todo.put(None)
        thread.start()
    try:
        for _ in range(len(waiting)):
            group, result = done.get()
            if result is None:
                continue
            if out and not result.fault:
                write(out, result)
            for submission in group:
                yield renamed(result, submission.name)
    finally:
        cancelled.set()
        for thread in threads:
            thread.join(timeout=10)


def renamed(result: Result, name: str) -> Result:
    """The result under another name: of an equal submission, or of one that has been moved."""
    return replace(result, name=name)


def counts(found: list[Result]) -> list[tuple[str, str, int]]:
    """(part, mistake or outcome, how many submissions), the most frequent first."""
    counted: dict[tuple[str, str], int] = {}
    for result in found:
        for _, title, what in result.wrongs():
            counted[title, what] = counted.get((title, what), 0) + 1
    return sorted(((part, what, n) for (part, what), n in counted.items()), key=lambda row: (-row[2], row[0], row[1]))
