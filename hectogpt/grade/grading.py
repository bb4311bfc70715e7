"""One submission from its files to its result; and whether the grader works on this machine at all."""

from __future__ import annotations

import hashlib
import platform
import threading
import traceback
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

import torch

from hectogpt import errors, files
from hectogpt.assignment import materials
from hectogpt.errors import UserError
from hectogpt.grade import laws, settings
from hectogpt.grade.judge import judge
from hectogpt.grade.result import PartResult, Result
from hectogpt.grade.runner import CancelledError, Limits, Spare, run
from hectogpt.grade.submission import SOLUTION, Submission, of_folder


def grade(
    submission: Submission,
    limits: Limits | None = None,
    cancelled: threading.Event | None = None,
    spare: Spare | None = None,
) -> Result:
    """Run and judge a submission. spare: a child to begin with. Does not raise for anything that a submission does;
    raises CancelledError."""
    if submission.fault or SOLUTION not in submission.files:
        return Result(submission.name, submission.key, [], fault=submission.fault or f"there is no {SOLUTION}")
    try:
        transcript = run(submission, limits or Limits(), cancelled, spare)
        return Result(
            submission.name,
            submission.key,
            judge(transcript),
            transcript.seconds,
            sorted(transcript.missing),
            printed=transcript.printed,
            looks=submission.looks(),
        )
    except CancelledError:
        raise
    except Exception as error:  # the class goes on
        last = traceback.extract_tb(error.__traceback__)[-1]
        words = f"{type(error).__name__}: {error} ({last.filename.rpartition('/')[2]}:{last.lineno})"
        return Result(submission.name, submission.key, [PartResult(p, "grader fault", words) for p in laws.GRADED])


def check_reference(limits: Limits | None = None) -> None:
    """Grade the textbook's solution, once for each set of versions; the cache folder remembers that it got full points.

    Raises UserError (EXACTNESS) with the reason if it did not: then no submission can be graded here.
    """
    try:
        installed = version("hectogpt")
    except PackageNotFoundError:
        installed = "a checkout"
    versions = f"hectogpt {installed}, torch {torch.__version__}, Python {platform.python_version()}"
    key = hashlib.sha256(f"{settings.version()} {versions} {platform.platform()}".encode()).hexdigest()[:16]
    mark = files.cache_dir() / "grader" / f"{key}.txt"
    with suppress(OSError):
        if mark.is_file():
            return
    folder = materials.find("reference")
    result = grade(of_folder(folder, folder), limits)
    wrong = [part for part in result.parts if part.outcome != "passed"]
    if wrong or result.fault:
        why = result.fault or f"{wrong[0].title}: {wrong[0].outcome}: {wrong[0].why()}"
        needed = "pip install a version of torch that hectogpt names in its requirements, or report this"
        raise UserError(
            "the grader does not work here: its own solution does not get full points",
            why=f"{why} ({versions})",
            fix=needed,
            kept="nobody's points: nothing was graded",
            code=errors.EXACTNESS,
        )
    with suppress(OSError, UserError):  # it is tried again next time
        mark.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomic(mark, f"the reference solution got full points with {versions}\n")
