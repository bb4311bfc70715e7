"""`hectogpt grade`: what is right in a submission of the assignment, what is wrong, and the mistake's name."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from hectogpt import errors, files, hardware
from hectogpt.cli.console import note
from hectogpt.cli.help import read_options
from hectogpt.errors import UserError
from hectogpt.grade import submission
from hectogpt.grade.result import Result
from hectogpt.grade.submission import Limits, Submission
from hectogpt.signals import Stopped, stop_on_signal


@dataclass(frozen=True)
class GradeArguments:
    """Grade submissions of the assignment: files, folders or .zip archives with model_solution.py, or folders of these;
    utils.py and train.py beside it too. Each runs in processes of its own, in a copy. Exit codes: 0 all right, 1
    something is wrong, 2 usage, 5 the grader itself does not work.

    Examples
      hectogpt grade model_solution.py
      hectogpt grade my_folder --hints 1 --watch
      hectogpt grade submissions/ --html grades/ --csv grades.csv
    """

    paths: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """What to grade."""
    hints: Literal[1, 2, 3] | None = None
    """1: the symptom; 2: also where; 3: also the mistake (default 3; with watch, deeper as it is needed)."""
    strict: bool = False
    """Notes count, such as more tokens than the context holds."""
    watch: bool = False
    """Grade again at each save."""
    csv: Path | None = None
    """A line for each submission."""
    html: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """A page for each submission, and an overview; they work offline."""
    out: Path | None = None
    """The records (default grades.jsonl for several submissions); what is recorded there is not graded again."""
    jobs: int = 0
    """Submissions at the same time (0: one on each core)."""
    timeout: float = 10.0
    """Seconds for one step of a submission."""
    memory: float = 2.0
    """GiB for a submission, beside torch."""
    make_autograder: Annotated[Path | None, tyro.conf.arg(metavar="ZIP")] = None
    """Write the autograder for Gradescope, and do nothing else."""
    gradescope: Path | None = None
    """Write Gradescope's results.json, for one submission."""
    visibility: Literal["visible", "hidden", "after_due_date", "after_published"] = "visible"
    """When students see the tests in Gradescope."""
    json: bool = False
    """Print one JSON object."""
    quiet: bool = False
    """Print results and errors only."""


def main(argv: list[str]) -> None:
    """Run the command."""
    run(read_options(GradeArguments, argv, "grade"))


def run(arguments: GradeArguments) -> None:
    """Grade; leaves with code 1 if something is wrong. Raises UserError for a usage that makes no sense."""
    if arguments.make_autograder is not None:
        from hectogpt.cli.grade_autograder import archive

        files.write_atomic(arguments.make_autograder, archive(arguments.visibility, arguments.hints or 3))
        note(f"wrote {arguments.make_autograder}: upload it to Gradescope as the autograder", arguments.quiet)
        return
    if not arguments.paths:
        raise UserError("nothing to grade", fix="hectogpt grade FOLDER, with the folder that holds model_solution.py")
    if arguments.timeout <= 0 or arguments.memory <= 0 or arguments.jobs < 0:
        what = f"timeout {arguments.timeout}, memory {arguments.memory}, jobs {arguments.jobs}"
        raise UserError(what, why="timeout and memory have to be positive, jobs not negative")
    submissions = [submission.find_one(arguments.paths)] if arguments.gradescope else submission.find(arguments.paths)

    import torch

    from hectogpt.grade.runner import check_reference

    torch.set_num_threads(1)  # the parent compares small tensors, several at a time
    submission.remove_leftovers()
    check_reference(limits(arguments))
    if arguments.watch:
        # Collected: one that is raised while Python frees an object would be lost.
        with stop_on_signal(quiet=True) as received:
            watch(arguments, received)
    found = graded(arguments, submissions)
    write_files(arguments, found)
    if arguments.json:
        print(json.dumps({"submissions": [result.record() for result in found]}, allow_nan=False))
    sys.stdout.flush()
    if any(result.grader_fault for result in found):
        raise SystemExit(errors.EXACTNESS)
    if not all(result.is_right(arguments.strict) for result in found):
        raise SystemExit(errors.BUG)


def limits(arguments: GradeArguments) -> Limits:
    """The limits of one submission."""
    total, memory = max(90.0, 9 * arguments.timeout), int(arguments.memory * 2**30)
    return Limits(seconds=arguments.timeout, total_seconds=total, memory=memory)


def graded(arguments: GradeArguments, submissions: list[Submission]) -> list[Result]:
    """The results, shown as they come."""
    from hectogpt.grade import report
    from hectogpt.grade.runner import grade_all

    several = len(submissions) > 1
    out = arguments.out or (Path("grades.jsonl") if several else None)
    jobs = arguments.jobs or hardware.usable_cores()
    found, kept = [], 0
    for result, recorded in grade_all(submissions, out, jobs, limits(arguments)):
        found.append(result)
        kept += recorded
        if not arguments.json:
            print(report.line(result) if several else report.text(result, arguments.hints or 3), flush=True)
    if several and not arguments.json:
        print()
        print(report.overview(found))
    if out is not None:
        words = f", {kept} of {len(found)} kept from an earlier grading: nothing in them has changed" * bool(kept)
        note(f"records: {out}{words}", arguments.quiet)
    return found


def write_files(arguments: GradeArguments, found: list[Result]) -> None:
    """The files that were asked for."""
    from hectogpt.grade import report

    level = arguments.hints or 3
    if arguments.html is not None:
        from hectogpt.web.page import fill

        try:
            arguments.html.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            why = error.strerror or str(error)
            raise UserError(f"cannot make the folder {arguments.html}", why=why, code=errors.STORAGE) from None
        for name, content in report.pages(found, level).items():
            files.write_atomic(arguments.html / name, fill("report", content))
        note(f"pages: {arguments.html / 'index.html'}", arguments.quiet)
    if arguments.csv is not None:
        files.write_atomic(arguments.csv, report.as_csv(found))
    if arguments.gradescope is not None:
        told = report.gradescope(found[0], level, arguments.visibility)
        files.write_atomic(arguments.gradescope, json.dumps(told, indent=1, allow_nan=False) + "\n")


# --- watching -------------------------------------------------------------------------------------------------------


def watch(arguments: GradeArguments, received: list[int]) -> None:
    """Grade after every change, until a signal is received."""
    from hectogpt.grade.runner import Spare, grade

    allowed = limits(arguments)
    told = Telling(arguments.hints, arguments.strict)
    note(
        f"watching {', '.join(map(str, arguments.paths))}: graded now and after every save; Ctrl-C ends",
        arguments.quiet,
    )
    spare = Spare()
    try:
        for found in changes(arguments.paths, received):
            if len(found) != 1:
                names = ", ".join(one.name for one in found[:4])
                raise UserError(f"watch takes one submission, {len(found)} were found: {names}", fix="give one folder")
            began = time.perf_counter()
            result = grade(found[0], allowed, spare=spare)
            told.tell(result, time.perf_counter() - began)
            spare.close()
            spare = Spare()  # gets ready while the student reads
    finally:
        spare.close()


@dataclass
class Telling:
    """What is told of a submission that is graded again and again. hints: the level, None for one that deepens."""

    hints: int | None
    strict: bool
    level: int = 1
    before: str = ""

    def tell(self, result: Result, seconds: float) -> None:
        """Print the result, one level deeper if its symptoms are those of the last save."""
        from hectogpt.grade import report

        parts = [f"{p.part} {p.outcome} {p.reason} {[f.symptom for f in p.broken]}" for p in result.parts]
        symptoms = result.fault + "\n".join(parts)
        wrong = result.fault or any(p.broken or p.diagnosis for p in result.parts)  # and not merely not started
        same = symptoms == self.before and wrong
        self.level = self.hints or (min(3, self.level + 1) if same else 1)
        self.before = symptoms
        clock, level = time.strftime("%H:%M:%S"), report.LEVELS[self.level]
        print(f"\n{clock}  graded in {seconds:.1f} s; hints: level {self.level}, {level}")
        print(report.text(result, self.level), flush=True)
        if result.is_right(self.strict):
            print("Everything is right. Ctrl-C ends.", flush=True)


def changes(paths: tuple[Path, ...], received: list[int]) -> Iterator[list[Submission]]:
    """The submissions, at first and after each change of a file. One that an editor takes away for a moment is waited
    for. Raises Stopped once a signal has been received."""
    before: list[str] = []
    while not received:
        try:
            found = submission.find(paths)
        except UserError:
            if not before:
                raise
            found = []
        keys = [one.key for one in found]
        if found and keys != before:
            before = keys
            yield found
        time.sleep(0.3)
    raise Stopped(received[0])
