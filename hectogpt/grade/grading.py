"""One submission from its files to its result. The grader's own errors are told as such, and never as a student's."""

from __future__ import annotations

import threading
import traceback

from hectogpt.grade import laws
from hectogpt.grade.judge import judge
from hectogpt.grade.result import PartResult, Result
from hectogpt.grade.runner import CancelledError, Limits, Spare, run
from hectogpt.grade.submission import SOLUTION, Submission


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
        )
    except CancelledError:
        raise
    except Exception as error:  # the class goes on
        last = traceback.extract_tb(error.__traceback__)[-1]
        words = f"{type(error).__name__}: {error} ({last.filename.rpartition('/')[2]}:{last.lineno})"
        parts = [PartResult(part, "grader fault", words) for part in laws.GRADED]
        return Result(submission.name, submission.key, parts)
