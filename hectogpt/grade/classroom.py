"""From submissions to results: one, or many on all cores; and whether the grader works on this machine at all.

Each record is written as it ends, and no submission is graded twice that has not changed.
"""

from __future__ import annotations

import hashlib
import json
import platform
import threading
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from hectogpt import errors, files
from hectogpt.assignment import kit
from hectogpt.errors import UserError
from hectogpt.grade import laws, result
from hectogpt.grade.judge import judge
from hectogpt.grade.result import PartResult, Result
from hectogpt.grade.runner import CancelledError, Spare, run
from hectogpt.grade.submission import SOLUTION, Limits, Submission, of_folder


def grade(
    submission: Submission,
    limits: Limits | None = None,
    cancelled: threading.Event | None = None,
    spare: Spare | None = None,
) -> Result:
    """Run and judge a submission. spare: a child to begin with. Does not raise for anything that a submission does;
    raises CancelledError."""
    name, key = submission.name, submission.key
    if submission.fault or SOLUTION not in submission.files:
        return Result(name, key, [], fault=submission.fault or f"there is no {SOLUTION}")
    try:
        told = run(submission, limits or Limits(), cancelled, spare)
        return Result(name, key, judge(told), told.seconds, sorted(told.missing), looks=submission.looks())
    except CancelledError:
        raise
    except Exception as error:  # the class goes on
        last = traceback.extract_tb(error.__traceback__)[-1]
        words = f"{type(error).__name__}: {error} ({last.filename.rpartition('/')[2]}:{last.lineno})"
        return Result(name, key, [PartResult(part, "grader fault", words) for part in laws.GRADED])


def check_reference(limits: Limits | None = None) -> None:
    """Grade the textbook's solution, once for each set of versions; the cache folder remembers that it got full points.

    Raises UserError (EXACTNESS) with the reason if it did not: then no submission can be graded here.
    """
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    key = hashlib.sha256(f"{laws.version()} {versions} {platform.platform()}".encode()).hexdigest()[:16]
    mark = files.cache_dir() / "grader" / f"{key}.txt"
    if mark.is_file():
        return
    found = grade(of_folder(kit.find("reference"), "reference"), limits)
    wrong = [part for part in found.parts if part.outcome != "passed"]
    if wrong or found.fault:
        why = found.fault or f"{wrong[0].title}: {wrong[0].outcome}: {wrong[0].why()}"
        raise UserError(
            "the grader does not work here: its own solution does not get full points",
            why=f"{why} ({versions})",
            fix="pip install a version of torch that hectogpt names in its requirements, or report this",
            kept="nobody's points: nothing was graded",
            code=errors.EXACTNESS,
        )
    with suppress(OSError, UserError):  # it is tried again next time
        mark.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomic(mark, f"the reference solution got full points with {versions}\n")


def recorded(path: Path) -> dict[str, Result]:
    """Key -> result, from the records of this version in a file; those that were the grader's fault are left out.

    A line that is no record, the last one of a killed process say, is passed over. Raises UserError (DATA).
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"cannot read {path}", why=error.strerror or str(error), code=errors.DATA) from None
    found, version = {}, laws.version()
    for line in lines:
        with suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
            if (record := json.loads(line))["grader"] == version:
                found[record["key"]] = result.read(record)
    return {key: one for key, one in found.items() if not one.grader_fault}


def write(path: Path, one: Result) -> None:
    """Append a record. Raises UserError (STORAGE)."""
    try:
        files.append_line(path, json.dumps(one.record() | {"grader": laws.version()}, allow_nan=False))
    except OSError as error:
        raise UserError(
            f"cannot write {path}",
            why=error.strerror or str(error),
            kept="the records of the submissions graded before",
            code=errors.STORAGE,
        ) from None


def grade_all(
    submissions: list[Submission], out: Path | None, jobs: int, limits: Limits | None = None
) -> Iterator[Result]:
    """The results as they come, those that are recorded already first. Equal submissions are graded once."""
    known = recorded(out) if out else {}
    waiting: dict[str, list[Submission]] = {}
    for submission in submissions:
        if submission.key in known and not submission.fault:
            yield replace(known[submission.key], name=submission.name)
        else:
            waiting.setdefault(submission.name if submission.fault else submission.key, []).append(submission)
    cancelled = threading.Event()
    pool = ThreadPoolExecutor(max(1, min(jobs, len(waiting))))
    try:
        groups = {pool.submit(grade, group[0], limits, cancelled): group for group in waiting.values()}
        for future in as_completed(groups):
            one = future.result()
            if out and not one.fault:
                write(out, one)
            for submission in groups[future]:
                yield replace(one, name=submission.name)
    finally:
        cancelled.set()
        pool.shutdown(cancel_futures=True)
