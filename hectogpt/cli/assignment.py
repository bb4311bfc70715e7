"""`hectogpt assignment DIR`: write the assignment as a kit, or report how far one is; `drill`
asks about it."""

from __future__ import annotations

import shlex
from pathlib import Path

from hectogpt import errors
from hectogpt.assignment.kit import choose, write_kit
from hectogpt.assignment.parts import BY_NAME
from hectogpt.assignment.progress import TOGETHER, Progress, check_kit
from hectogpt.cli.options import AssignmentDrillOptions, AssignmentOptions
from hectogpt.display import printable


def main(options: AssignmentOptions | AssignmentDrillOptions) -> None:
    """Run the command."""
    if isinstance(options, AssignmentDrillOptions):
        from hectogpt.cli import drill

        drill.main(options)
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
        "with README.md; then"
    )
    print("fill in a part, and see how far you are:\n")
    print(f"  hectogpt assignment --check {folder}")
    print(
        f"  cd {folder} && python -m pytest      the same tests, without hectogpt; needs pip "
        "install pytest"
    )
    print(
        f"  hectogpt grade {folder} --hints 1    what is wrong; 2: also where; 3: also which "
        "mistake"
    )
    if options.solution:
        print(
            f"\nFor teachers: {folder}/solution holds the textbook's files and the written "
            "answers."
        )


def check(folder: Path) -> None:
    """Print a line for each part. Raises UserError, and SystemExit unless all parts pass."""

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
    failed = next((progress.part for progress in found if progress.state == "failed"), None)
    if failed:
        quoted = printable(shlex.quote(str(folder)))
        print(f"the whole message:  cd {quoted} && python -m pytest tests/test_{failed}.py")
        if failed in ("gelu", TOGETHER) or BY_NAME[failed].points:  # `grade` tests only these
            print(f"what it may be:     hectogpt grade {quoted}")
    elif len(passed) == len(found):
        print(
            f"next:  cd {printable(shlex.quote(str(folder)))} && python train.py      the "
            "picture of question 3(b)iii"
        )
        print(
            "next:  bash create_submission.sh      submission.zip; answers to 1, 2, 3(b) and (c) "
            "go on paper"
        )
        print("next:  hectogpt assignment drill      do you understand what you wrote?")
    if len(passed) < len(found):
        raise SystemExit(errors.BUG)
