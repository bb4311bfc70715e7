"""`hectogpt assignment DIR`: write the assignment as a kit, or report the progress of one."""

from __future__ import annotations

import shlex
from pathlib import Path

from hectogpt import errors
from hectogpt.assignment.kit import choose, write_kit
from hectogpt.assignment.parts import BY_NAME
from hectogpt.assignment.progress import TOGETHER, Progress, check_kit
from hectogpt.cli.options import (
    AssignmentDrillOptions,
    AssignmentExamOptions,
    AssignmentOptions,
)
from hectogpt.display import printable


def main(options: AssignmentOptions | AssignmentDrillOptions | AssignmentExamOptions) -> None:
    """Run the command."""
    if not isinstance(options, AssignmentOptions):
        from hectogpt.cli import exam

        exam.main(options)
    elif options.check:
        check(options.folder)
    else:
        write(options)


def write(options: AssignmentOptions) -> None:
    """Write a kit and print what to do next. Raises UserError."""
    parts = choose(options.parts)
    write_kit(options.folder, parts, options.solution)
    folder = printable(shlex.quote(str(options.folder)))
    points = sum(part.points for part in parts)
    print(
        f"{printable(str(options.folder))}: {len(parts)} parts to write, {points} points. Begin "
        "with README.md;\nfill in a part, and see how far along you are:\n\n"
        f"  hectogpt assignment --check {folder}\n"
        f"  hectogpt grade {folder} --hints 1    what is wrong; 2: also where; 3: the mistake"
    )
    if options.solution:
        print(
            f"\nFor teachers: {folder}/solution holds the textbook's files and the written "
            "answers."
        )


def check(folder: Path) -> None:
    """Print a line for each part. Raises UserError, and SystemExit unless every part passes."""

    def show_part(progress: Progress) -> None:
        print(
            printable(f"  {progress.part:<12}{progress.state:<13}{progress.why}").rstrip(),
            flush=True,
        )

    found = check_kit(folder, show_part)
    passed = [progress for progress in found if progress.state == "passed"]
    points, all_points = (sum(progress.points for progress in group) for group in (passed, found))
    print(
        f"{len(passed)} of {len(found)} tests passed; parts worth {points} of {all_points} points"
    )
    quoted = printable(shlex.quote(str(folder)))
    failed = next((progress.part for progress in found if progress.state == "failed"), None)
    if failed:
        print(f"the full message:   cd {quoted} && python -m pytest tests/test_{failed}.py")
        if failed in ("gelu", TOGETHER) or BY_NAME[failed].points:  # `grade` tests only these
            print(f"possible mistakes:  hectogpt grade {quoted}")
    elif len(passed) == len(found):
        print(
            f"next:  cd {quoted} && python train.py      the "
            "picture of question 3(b)iii\n"
            "next:  bash create_submission.sh      submission.zip; the other answers go on paper\n"
            "next:  hectogpt assignment drill      do you understand what you wrote?"
        )
    if len(passed) < len(found):
        raise SystemExit(errors.BUG)
