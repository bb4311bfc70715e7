"""Grade submissions in child processes, several submissions at a time.

The grader's own solution is graded first, to check that the grader works here. If a child dies,
the next one continues with the other parts. Each record is written at once, and a submission that
has not changed is not graded again.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError

from hectogpt import errors, files, hardware, process
from hectogpt.assignment import kit
from hectogpt.assignment.parts import BY_NAME
from hectogpt.errors import UserError
from hectogpt.grade import laws
from hectogpt.grade.answer import IMPORT, Transcript
from hectogpt.grade.judge_part import judge_part
from hectogpt.grade.result import Outcome, PartResult, Result, result_of
from hectogpt.grade.submission import Submission, read_submission
from hectogpt.process import CancelledError

PREFIX = "hectogpt-grade-"  # how the names of the grader's temporary folders begin
OWNER = "owner"  # a file in each such folder, locked by the grader that made it
ALL_FILES = 512 << 20  # bytes that a submission may write
# Errors from a frame that cannot be parsed: the submission has written to the private channel.
RUBBISH = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    RecursionError,
    OverflowError,
    SafetensorError,
    UserError,
)


# --- one submission in child processes


@dataclass(frozen=True)
class Limits:
    """The limits of a submission.

    seconds: the time for one setting, after which a silent child is killed.
    start_seconds: the time until the child is ready, which includes loading torch.
    total_seconds: the time for all children of a submission.
    memory: bytes that the child may use beyond those of its libraries.
    output: bytes that it may print.
    """

    seconds: float = 10.0
    start_seconds: float = 60.0
    total_seconds: float = 90.0
    memory: int = 2 << 30
    output: int = 1 << 20


@contextmanager
def private_folder(submission: Submission) -> Iterator[Path]:
    """Context manager: a folder that only this user may enter, with the files of a submission.

    On exit, the folder is removed and processes that the submission left running are killed. If
    the grader itself is killed, `sweep` does both later.
    """
    with tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as outer:
        folder = Path(outer, "submission")
        for name, content in submission.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        with files.lock(Path(outer, OWNER), folder, "grading in it"):
            try:
                yield folder
            finally:
                end_daemons(folder)


def sweep() -> None:
    """Remove the folders of killed graders, and kill the processes that their submissions left.

    A running grader is recognized by the lock that it holds in its folder.
    """
    for outer in Path(tempfile.gettempdir()).glob(f"{PREFIX}*") if os.name == "posix" else ():
        owner = outer / OWNER
        if not outer.is_symlink() and os.path.exists(owner) and not files.is_locked(owner):
            end_daemons(outer / "submission")
            shutil.rmtree(outer, ignore_errors=True)


def end_daemons(folder: Path) -> None:
    """Kill the processes that a submission has started in other sessions.

    They are recognized by the folder's name in their environment.
    """
    for _ in range(20):  # a process may start others during the search
        found = hardware.processes_with("HOME", str(folder))
        for number in found:
            with suppress(OSError):
                os.kill(number, signal.SIGKILL)
        if not found:
            return
        time.sleep(0.02)


def start(module: str, folder: Path) -> process.Child:
    """Start a module as a child process in a folder.

    From the user's environment, the child gets only the language and the paths of programs and
    libraries.
    """
    import matplotlib

    kept = ("PATH", "SYSTEMROOT", "LD_LIBRARY_PATH", "LANG", "LC_ALL")
    folders = dict.fromkeys(("HOME", "USERPROFILE", "TMPDIR", "TEMP", "TMP"), str(folder))
    own = {
        # matplotlib's list of fonts is read from here, because making one takes a second.
        "MPLCONFIGDIR": matplotlib.get_cachedir(),
        "MPLBACKEND": "Agg",
        "CUDA_VISIBLE_DEVICES": "",
        "TORCHDYNAMO_DISABLE": "1",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONIOENCODING": "utf-8:replace",
        "PYTHONHASHSEED": "0",
        # A file of the submission must not shadow a library that the grader imports.
        "PYTHONSAFEPATH": "1",
    }
    known = {name: os.environ[name] for name in kept if name in os.environ}
    return process.Child(module, folder, known | folders | own)


def run(submission: Submission, limits: Limits, cancelled: threading.Event) -> Transcript:
    """Run a submission's code in every setting and return its answers.

    The code runs in a child process: `main` in grade/child.py sends a frame for each setting.

    Raises CancelledError once `cancelled` is set.
    """
    modules = [name for name in ("model_solution", "train") if f"{name}.py" in submission.files]
    transcript = Transcript(set(modules))
    begun = time.monotonic()
    asked = [one for one in laws.SETTINGS.values() if BY_NAME[one.part].module in modules]
    # First every part runs on our own lower parts, so a crash is that part's fault. A crash in the
    # later pass, on the submission's own lower parts, costs no points.
    left = [(one.name, "patched") for one in asked] + [
        (one.name, "own") for one in asked if one.part != "train"
    ]
    while left:
        rest = limits.total_seconds - (time.monotonic() - begun)
        if rest <= 0:
            words = "the time for the whole submission ran out"
            lost = {laws.SETTINGS[name].part for name, variant in left if variant == "patched"}
            transcript.ends |= dict.fromkeys(lost, ("timed out", words))
            break
        with private_folder(submission) as folder:
            transcript.begin(left)
            try:
                ending = start("hectogpt.grade.child", folder).listen(
                    {"asked": left, "modules": modules, "memory": limits.memory},
                    transcript.receive,
                    first_seconds=min(limits.start_seconds, rest),
                    seconds=limits.seconds,
                    total_seconds=rest,
                    output_bytes=limits.output,
                    cancelled=lambda: cancelled.is_set() or bytes_below(folder) > ALL_FILES,
                )
            except RUBBISH as error:
                ending = process.Ending("broken", None, str(error)[:200])
        if cancelled.is_set():
            raise CancelledError
        if not transcript.left or transcript.left[0][1] == "own":
            break  # every part has already run on our own lower parts
        (now, _), *left = transcript.left
        outcome, words = describe_ending(ending, transcript, limits)
        if now == IMPORT:  # the last module may be the cause: leave it out
            words = f"while {modules.pop()}.py was imported: {words}"
            lost = {part for part in laws.GRADED if BY_NAME[part].module not in modules}
        else:  # a part that ended the process in one setting would do so in its other settings too
            lost = {laws.SETTINGS[now].part}
        transcript.ends |= dict.fromkeys(lost, (outcome, words))
        left = [one for one in left if laws.SETTINGS[one[0]].part not in lost]
    transcript.seconds = time.monotonic() - begun
    return transcript


def bytes_below(folder: Path) -> int:
    """Return the size of the files below a folder; each counts as at least 4 kB.

    Stops counting above ALL_FILES.
    """
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += max(4096, os.lstat(os.path.join(where, name)).st_size)
        if total > ALL_FILES:
            break
    return total


def describe_ending(
    ending: process.Ending, transcript: Transcript, limits: Limits
) -> tuple[Outcome, str]:
    """Return the outcome of the setting in which a child ended, and a description of the end."""
    outcome: Outcome = "out of memory" if ending.code == -9 else "crashed"  # -9: not killed by us
    words = f"the process ended before its work was done (exit code {ending.code})"
    if ending.how == "cancelled":
        outcome = "output flood"
        words = f"more than {ALL_FILES >> 20} MB of files were written"
    elif ending.how == "flood":
        outcome = "output flood"
        words = f"more than {limits.output:,} bytes were printed"
    elif ending.how == "late":
        outcome = "timed out"
        words = f"nothing came back within {limits.seconds:g} s"
    elif ending.how == "broken":
        words = "the submission wrote to the grader's private channel"
    elif ending.code is not None and ending.code < 0:
        words = f"the process was ended by signal {-ending.code}"
    if transcript.ready:
        return outcome, words
    # The submission's code had not run yet.
    return "grader fault", ": ".join([words, *ending.last_words.strip().splitlines()[-1:]])


# --- results


def grade(
    submission: Submission, limits: Limits, cancelled: threading.Event | None = None
) -> Result:
    """Run and judge a submission.

    Nothing that a submission does makes this raise an error. Raises CancelledError once
    `cancelled` is set.
    """
    name = submission.name
    key = submission.key
    if submission.fault:
        return Result(name, key, fault=submission.fault)
    try:
        found = run(submission, limits, cancelled or threading.Event())
        return Result(
            name,
            key,
            tuple(judge_part(part, found) for part in laws.GRADED),
            found.seconds,
            tuple(sorted(found.missing)),
            looks=submission.looks(),
        )
    except CancelledError:
        raise
    except Exception as error:  # the rest of the class must still be graded
        last = traceback.extract_tb(error.__traceback__)[-1]
        words = (
            f"{type(error).__name__}: {error} ({last.filename.rpartition('/')[2]}:{last.lineno})"
        )
        return Result(
            name, key, tuple(PartResult(part, "grader fault", words) for part in laws.GRADED)
        )


def check_reference(limits: Limits) -> None:
    """Check that the textbook's solution gets full points here.

    A file in the cache folder records success, so this runs once for each set of versions.

    Raises UserError (EXACTNESS) with the reason if it does not: no submission can be graded then.
    """
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    key = hashlib.sha256(f"{version()} {versions} {platform.machine()}".encode()).hexdigest()[:16]
    mark = files.cache_dir() / "grader" / f"{key}.txt"
    if mark.is_file():
        return
    found = grade(read_submission(kit.folder_of("reference"), "reference"), limits)
    wrong = [part for part in found.parts if part.outcome != "passed"]
    if wrong or found.fault:
        why = found.fault or f"{wrong[0].title}: {wrong[0].outcome}: {wrong[0].why()}"
        raise UserError(
            "the grader does not work here: its own solution does not get full points",
            why=f"{why} ({versions})",
            fix="pip install a version of torch that hectogpt names in its requirements, or "
            "report this",
            kept="everyone's points: nothing was graded",
            code=errors.EXACTNESS,
        )
    with suppress(OSError, UserError):  # without the file, the check is repeated next time
        mark.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomic(mark, f"the reference solution got full points with {versions}\n")


def version() -> str:
    """Return a short hash of the grader's code. Records of a different version are not reused."""
    return files.code_hash([Path(__file__).parent])


def recorded(path: Path) -> dict[str, Result]:
    """Return key -> result from a file's records of this grader version.

    Leaves out results with a grader fault, and with a part that needed too much time or memory. A
    line that is not a record, such as the last one of a killed process, is skipped.

    Raises UserError (DATA) if the file cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise errors.unreadable(path, error) from None
    found = {}
    here = version()
    for line in lines:
        with suppress(*RUBBISH):
            if (record := json.loads(line)).pop("grader") == here:
                found[record["key"]] = result_of(record)
    again = {"grader fault", "timed out", "out of memory"}  # may change with the limits
    return {k: one for k, one in found.items() if not again & {p.outcome for p in one.parts}}


def write(path: Path, one: Result) -> None:
    """Append a record. Raises UserError (STORAGE)."""
    with errors.writing(path, kept="the records of the submissions graded before"):
        files.append_line(path, json.dumps(one.record() | {"grader": version()}, allow_nan=False))


def grade_all(
    submissions: list[Submission], out: Path | None, jobs: int, limits: Limits
) -> Iterator[tuple[Result, bool]]:
    """Yield (result, True if it was already recorded) for each submission.

    Recorded results come first, the others as they are ready. Equal submissions are graded once.
    """
    known = recorded(out) if out else {}
    waiting: dict[str, list[Submission]] = {}
    for submission in submissions:
        if submission.key in known and not submission.fault:
            yield replace(known[submission.key], name=submission.name), True
        else:
            waiting.setdefault(submission.name if submission.fault else submission.key, []).append(
                submission
            )
    cancelled = threading.Event()
    pool = ThreadPoolExecutor(max(1, min(jobs, len(waiting))))
    try:
        groups = {
            pool.submit(grade, group[0], limits, cancelled): group for group in waiting.values()
        }
        for future in as_completed(groups):
            one = future.result()
            if out and not one.fault:
                write(out, one)
            for submission in groups[future]:
                yield replace(one, name=submission.name), False
    finally:
        cancelled.set()
        pool.shutdown(cancel_futures=True)
