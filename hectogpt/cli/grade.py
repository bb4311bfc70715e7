"""`hectogpt grade`: report what is right and wrong in a submission, and name its mistakes.

From a file to its grade: grade/submission.py reads the files. `grade` in grade/runner.py has them
run in a child process (grade/child.py), whose answers come back as a Transcript (grade/answer.py).
`judge_part` in grade/judge_part.py compares the answers with the right results (grade/calls.py)
and with those of each known mistake (grade/mistakes.py). grade/result.py has the grade, and
formats it for a terminal and for files.
"""

from __future__ import annotations

import importlib.metadata
import io
import json
import platform
import re
import sys
import zipfile
from pathlib import Path

import torch

from hectogpt import errors, files, hardware
from hectogpt.assignment.kit import folder_of
from hectogpt.assignment.parts import SOURCES
from hectogpt.cli.console import note
from hectogpt.cli.options import GradeOptions
from hectogpt.errors import UserError
from hectogpt.grade import submission
from hectogpt.grade.result import Result, as_csv, gradescope, line, overview, pages, text
from hectogpt.grade.runner import Limits, check_reference, grade_all, sweep
from hectogpt.grade.submission import Submission
from hectogpt.web.page import fill


def main(options: GradeOptions) -> None:
    """Grade the submissions; exit with code 1 if something is wrong.

    Raises UserError for impossible options.
    """
    if options.make_autograder is not None:
        files.write_atomic(options.make_autograder, archive(options.hints))
        note(
            f"wrote {options.make_autograder}: upload it to Gradescope as the autograder",
            options.quiet,
        )
        return
    if not options.paths:
        raise UserError(
            "nothing to grade",
            fix=submission.USAGE,
        )
    if options.timeout <= 0 or options.memory <= 0 or options.jobs < 0:
        what = f"timeout {options.timeout}, memory {options.memory}, jobs {options.jobs}"
        raise UserError(what, why="timeout and memory must be positive, and jobs not negative")
    submissions = (
        [submission.find_one(options.paths)]
        if options.gradescope
        else submission.find(options.paths)
    )
    torch.set_num_threads(1)  # this process compares small tensors, several at a time
    sweep()
    check_reference(limits(options))
    found = graded(options, submissions)
    write_files(options, found)
    if options.json:
        print(json.dumps({"submissions": [result.record() for result in found]}, allow_nan=False))
    sys.stdout.flush()
    if any(result.grader_fault for result in found):
        raise SystemExit(errors.EXACTNESS)
    if not all(result.is_right(options.strict) for result in found):
        raise SystemExit(errors.BUG)


def limits(options: GradeOptions) -> Limits:
    """The limits of one submission."""
    total = max(90.0, 9 * options.timeout)
    memory = int(options.memory * 2**30)
    return Limits(seconds=options.timeout, total_seconds=total, memory=memory)


def graded(options: GradeOptions, submissions: list[Submission]) -> list[Result]:
    """Grade the submissions, and print each result as it arrives."""
    several = len(submissions) > 1
    of_class = several or any(
        path in one.path.parents for one in submissions for path in options.paths
    )
    out = options.out or (Path("grades.jsonl") if of_class and not options.gradescope else None)
    jobs = options.jobs or hardware.usable_cores()
    found = []
    kept = 0
    for result, recorded in grade_all(submissions, out, jobs, limits(options)):
        found.append(result)
        kept += recorded
        if not options.json:
            print(line(result) if several else text(result, options.hints), flush=True)
    if several and not options.json:
        print(f"\n{overview(found)}")
    if out is not None:
        earlier = (
            f" ({kept} of {len(found)} kept from an earlier grading: their files have not changed)"
        )
        note(f"records: {out}{earlier if kept else ''}", options.quiet)
    return found


def write_files(options: GradeOptions, found: list[Result]) -> None:
    """Write the files that the options ask for."""
    if options.html is not None:
        options.html.mkdir(parents=True, exist_ok=True)
        for name, content in pages(found, options.hints).items():
            files.write_atomic(options.html / name, fill("report", content))
        note(f"pages: {options.html / 'index.html'}", options.quiet)
    if options.csv is not None:
        files.write_atomic(options.csv, as_csv(found))
    if options.gradescope is not None:
        results = json.dumps(gradescope(found[0], options.hints), indent=1, allow_nan=False)
        files.write_atomic(options.gradescope, results + "\n")


# --- the autograder for Gradescope ---
#
# The archive has setup.sh, run_autograder and this package, so Gradescope runs exactly this grader
# with the same versions of its dependencies, even if this version was never published.

PACKAGE = Path(__file__).resolve().parents[1]
WHEELS = "https://download.pytorch.org/whl/cpu"  # torch for CPUs only: a tenth of the size
TEXTBOOK = "hectogpt/assignment/files/reference"
SCRIPTS = PACKAGE / "grade" / "gradescope"  # `archive` fills in PYTHON and HINTS
DATE = (2026, 1, 1, 0, 0, 0)


def archive(hints: int) -> bytes:
    """The autograder as a .zip: the package and, at the root, both scripts, executable.

    All dates are fixed, so the same arguments give the same bytes.
    """
    python = ".".join(platform.python_version_tuple()[:2])
    scripts = {}
    for path in sorted(SCRIPTS.iterdir()):
        script = re.sub(r"\bPYTHON\b", python, path.read_text(encoding="utf-8"))
        scripts[path.name] = re.sub(r"\bHINTS\b", str(hints), script).encode()
    content = scripts | {"requirements.txt": requirements().encode(), **package_files()}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in content.items():
            info = zipfile.ZipInfo(name, DATE)
            info.external_attr = (0o755 if name in scripts else 0o644) << 16
            info.create_system = 3  # POSIX, so that the permissions count
            info.compress_type = zipfile.ZIP_DEFLATED
            file.writestr(info, data)
    return out.getvalue()


def package_files() -> dict[str, bytes]:
    """The files of the package, and the solution used to check the grader.

    Returns path -> content. The paths are relative to a folder that will be on PYTHONPATH.
    """
    solution = PACKAGE / "assignment" / "files"
    found = {}
    for path in sorted(PACKAGE.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts and solution not in path.parents:
            found[path.relative_to(PACKAGE.parent).as_posix()] = path.read_bytes()
    return found | {
        f"{TEXTBOOK}/{name}": (folder_of("reference") / name).read_bytes() for name in SOURCES
    }


def requirements() -> str:
    """A requirements.txt with the package's dependencies in the installed versions.

    Extras are left out.
    """
    needed = [
        line for line in importlib.metadata.requires("hectogpt") or [] if "extra ==" not in line
    ]
    names = sorted(found[0] for line in needed if (found := re.match(r"[\w.-]+", line)))
    pinned = [f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in names]
    return "\n".join([f"--extra-index-url {WHEELS}", *pinned]) + "\n"
