"""Runs one submission in child processes, and collects what its code returned. A child that dies takes only its step
with it: the next child goes on with the settings after that."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hectogpt import hardware, process
from hectogpt.assignment.parts import BY_NAME
from hectogpt.grade import laws
from hectogpt.grade.answer import Answer, of_frame
from hectogpt.grade.submission import Limits, Submission, temporary

CHILD = "hectogpt.grade.child"
ALL_BYTES, ALL_ANSWERS = 32 << 20, 4000  # of the answers of one child; a right submission sends 2 MB
ALL_FILES = 512 << 20  # bytes that a submission may write


class RubbishError(Exception):
    """A frame that cannot be understood: the submission has written to the private channel."""


class CancelledError(Exception):
    """The grading was asked to stop."""


@dataclass
class Transcript:
    """All that came back.

    answers: (setting, variant, dtype) -> answers in order. files: modules that were handed in. imports: module -> why
    it cannot be imported. missing: packages that stand-ins took the place of. ends: setting -> (outcome, words) of a
    child that died in it; "" for the import. empty: functions that consist of nothing. keywords: part -> arguments that
    it has no name for.
    """

    answers: dict[tuple[str, str, str], list[Answer]] = field(default_factory=dict)
    imports: dict[str, Answer] = field(default_factory=dict)
    files: set[str] = field(default_factory=set)
    missing: set[str] = field(default_factory=set)
    ends: dict[str, tuple[str, str]] = field(default_factory=dict)
    empty: set[str] = field(default_factory=set)
    keywords: dict[str, list[str]] = field(default_factory=dict)
    seconds: float = 0.0
    now: str = ""  # the setting that the child is in; "" while it imports
    variant: str = ""
    ready: bool = False  # whether the child has begun with the submission
    size: int = 0  # of all frames, in bytes
    count: int = 0

    def begin(self) -> None:
        """A new child."""
        self.now, self.variant, self.ready, self.size, self.count = "", "", False, 0, 0

    def receive(self, header: dict[str, Any], body: bytes, asked: set[str]) -> None:
        """Take in one frame. asked: the settings that the child was given. Raises RubbishError for one that cannot be
        understood, or is more than answers to these can be."""
        self.size, self.count = self.size + len(body) + len(str(header)), self.count + 1
        try:
            if self.size > ALL_BYTES or self.count > ALL_ANSWERS:
                raise ValueError("more answers than there are questions")
            self._take(header, body, asked)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
            raise RubbishError(str(error)[:200]) from None

    def _take(self, header: dict[str, Any], body: bytes, asked: set[str]) -> None:
        if "ready" in header:
            self.ready = True
        elif "begin" in header:
            self.now, self.variant = one_of(asked, header["begin"]), one_of({"patched", "own"}, header["variant"])
        elif "failed" in header:
            self.imports = {one_of(self.files, n): of_frame(answer, b"") for n, answer in header["failed"].items()}
            self.missing = {str(name)[:60] for name in header["missing"][:20]}
            self.empty = {str(name)[:100] for name in header["empty"][:50]}
            self.keywords = {one_of(set(BY_NAME), p): [str(n)[:60] for n in ns] for p, ns in header["keywords"].items()}
        else:
            setting, dtype = one_of(asked, header["setting"]), one_of(set(laws.TOLERANCE), header["dtype"])
            key = (setting, one_of({"patched", "own"}, header["variant"]), dtype)
            self.answers.setdefault(key, []).append(of_frame(header, body))


def one_of(known: set[str], name: Any) -> str:
    """The name, if it is one of the known ones. Raises ValueError."""
    if not isinstance(name, str) or name not in known:
        raise ValueError("an unknown name")
    return name


class Spare:
    """A child that waits for a submission, in an empty folder of its own; `close` ends both. One
    that was started early has loaded torch by the time a file is saved."""

    def __init__(self) -> None:
        with ExitStack() as stack:
            self.folder = stack.enter_context(temporary())
            self.child = process.Child(CHILD, self.folder, environment(self.folder))
            stack.callback(end_daemons, self.folder)
            stack.callback(self.child.end)
            self._stack = stack.pop_all()

    def close(self) -> None:
        """End the child, if it has not ended yet, with all that it has started, and remove its folder."""
        self._stack.close()


def end_daemons(folder: Path) -> None:
    """End the processes that a submission has started in sessions of their own: all that have the folder's name in
    their variables."""
    for _ in range(20):  # one that starts others while this looks
        found = hardware.processes_with("HOME", str(folder))
        for number in found:
            with suppress(OSError):
                os.kill(number, signal.SIGKILL)
        if not found:
            return
        time.sleep(0.02)


def environment(folder: Path) -> dict[str, str]:
    """The child's variables: nothing of the user's but where programs and libraries are."""
    import matplotlib

    kept = ("PATH", "SYSTEMROOT", "LD_LIBRARY_PATH", "LANG", "LC_ALL")
    folders = dict.fromkeys(("HOME", "USERPROFILE", "TMPDIR", "TEMP", "TMP"), str(folder))
    own = {
        "MPLCONFIGDIR": matplotlib.get_cachedir(),  # a list of fonts takes a second to make; it is read there only
        "MPLBACKEND": "Agg",
        "CUDA_VISIBLE_DEVICES": "",
        "TORCHDYNAMO_DISABLE": "1",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONIOENCODING": "utf-8:replace",
        "PYTHONHASHSEED": "0",
        "PYTHONSAFEPATH": "1",  # a file of the submission's never stands in for a library's that the grader imports
    }
    return {name: os.environ[name] for name in kept if name in os.environ} | folders | own


def run(
    submission: Submission, limits: Limits, cancelled: threading.Event | None = None, spare: Spare | None = None
) -> Transcript:
    """All that a submission's code returned in every setting. spare: a child to begin with. Raises CancelledError once
    `cancelled` is set."""
    transcript = Transcript()
    begun = time.monotonic()
    modules = [name for name in ("model_solution", "train") if f"{name}.py" in submission.files]
    transcript.files = set(modules)
    left = [s.name for s in laws.SETTINGS.values() if BY_NAME[s.part].module in modules]
    while left:
        rest = limits.total_seconds - (time.monotonic() - begun)
        if rest <= 0:
            transcript.ends |= {name: ("timed out", "the time for the whole submission was over") for name in left}
            break
        with closing(spare if spare and spare.child.is_alive() else Spare()) as waiting:
            submission.write(waiting.folder)
            request = {"settings": left, "modules": modules, "memory": limits.memory}
            ending = attempt(transcript, waiting, request, limits, rest, cancelled)
        spare = None
        if cancelled is not None and cancelled.is_set():
            raise CancelledError
        if ending.how == "done" or (transcript.now and transcript.variant == "own"):
            break  # all parts have been run apart from each other by then
        transcript.ends[transcript.now] = outcome_of(ending, transcript, limits)
        if not transcript.now:
            break  # it cannot even be imported
        # What ended in one setting would end in the others of that part too.
        part = laws.SETTINGS[transcript.now].part
        left = [name for name in left[left.index(transcript.now) + 1 :] if laws.SETTINGS[name].part != part]
    transcript.seconds = time.monotonic() - begun
    return transcript


def attempt(
    transcript: Transcript,
    waiting: Spare,
    request: dict[str, Any],
    limits: Limits,
    rest: float,
    cancelled: threading.Event | None,
) -> process.Ending:
    """One child. rest: seconds for it."""
    transcript.begin()
    asked = set(request["settings"])
    with stopping(waiting.folder, cancelled) as stopped:
        try:
            return waiting.child.listen(
                request,
                lambda header, body: transcript.receive(header, body, asked),
                first_seconds=min(limits.start_seconds, rest),
                seconds=limits.seconds,
                total_seconds=rest,
                output_bytes=limits.output,
                cancelled=stopped,
            )
        except (RubbishError, RecursionError) as error:
            return process.Ending("broken", None, str(error))


@contextmanager
def stopping(folder: Path, cancelled: threading.Event | None) -> Iterator[threading.Event]:
    """An event that is set when the grading is cancelled, or more was written into the folder than may be."""
    stopped, over = threading.Event(), threading.Event()

    def look() -> None:
        while not over.wait(0.2):
            if (cancelled is not None and cancelled.is_set()) or size_of(folder) > ALL_FILES:
                stopped.set()
                return

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield stopped
    finally:
        over.set()
        thread.join()


def size_of(folder: Path) -> int:
    """Bytes of the files below a folder; a file counts at least 4 kB."""
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += max(4096, os.lstat(os.path.join(where, name)).st_size)
        if total > ALL_FILES:
            break
    return total


def outcome_of(ending: process.Ending, transcript: Transcript, limits: Limits) -> tuple[str, str]:
    """The outcome of the setting that a child ended in, and how it ended in a few words."""
    words = f"the process ended before its work was done (exit code {ending.code})"
    if ending.how == "cancelled":
        return "output flood", f"more than {ALL_FILES >> 20} MB of files were written"
    if ending.how == "flood":
        return "output flood", f"more than {limits.output:,} bytes were printed"
    if ending.how == "late":
        words = f"nothing came back within {limits.seconds:g} s"
    elif ending.how == "broken":
        words = "the grader's private channel was written to"
    elif ending.code is not None and ending.code < 0:
        words = f"the process was ended by signal {-ending.code}"
    if not transcript.ready:  # the submission had not been touched yet
        last = ending.last_words.strip().splitlines()[-1:]
        return "grader fault", ": ".join([words, *last])
    if ending.how == "late":
        return "timed out", words
    return ("out of memory" if ending.code == -9 else "crashed"), words  # 9: killed, and not by us
