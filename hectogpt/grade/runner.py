"""Runs one submission in child processes, and collects what its code returned. A child that dies takes only its step
with it: the next child goes on with the settings after that."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hectogpt import worker
from hectogpt.grade import laws
from hectogpt.grade.answers import Answer
from hectogpt.grade.settings import home
from hectogpt.grade.submission import Submission, temporary

CHILD = "hectogpt.grade.child"
FACTS = 12  # facts of an answer that are believed
SUBMISSION = "/submission"  # where a container sees the submission's copy


@dataclass(frozen=True)
class Limits:
    """seconds: the longest silence, that is the time of one setting. start_seconds: until the child is ready, which
    includes loading torch. total_seconds: of all children of a submission. memory, output: bytes. elsewhere: from the
    folder with a submission's copy, how a child is started in a container; None starts it on this machine."""

    seconds: float = 10.0
    start_seconds: float = 60.0
    total_seconds: float = 90.0
    memory: int = 2 << 30
    output: int = 1 << 20
    elsewhere: Callable[[Path], worker.Program] | None = None


@dataclass
class Transcript:
    """All that came back.

    answers: (setting, variant, dtype) -> answers in order. files: modules that were handed in. imports: module -> why
    it cannot be imported. modules: those that could. missing: packages that stand-ins took the place of. ends:
    setting -> (outcome, words) of a child that died in it; "" for the import. empty: functions that consist of
    nothing. printed: the end of what was printed.
    """

    answers: dict[tuple[str, str, str], list[Answer]] = field(default_factory=dict)
    imports: dict[str, Answer] = field(default_factory=dict)
    modules: set[str] = field(default_factory=set)
    files: set[str] = field(default_factory=set)
    missing: set[str] = field(default_factory=set)
    ends: dict[str, tuple[str, str]] = field(default_factory=dict)
    empty: set[str] = field(default_factory=set)
    printed: str = ""
    seconds: float = 0.0
    now: str = ""  # the setting that the child is in; "" while it imports
    variant: str = ""
    ready: str = ""  # the version of the grader in the child, once it is ready

    def receive(self, header: dict[str, Any], body: bytes) -> None:
        """Take in one frame. Raises ValueError for one that cannot be understood."""
        if "ready" in header:
            self.ready = str(header["ready"])
        elif "begin" in header:
            self.now, self.variant = str(header["begin"]), str(header["variant"])
        elif "imported" in header:
            self.modules = {str(name) for name in header["imported"]}
            self.missing = {str(name)[:60] for name in header["missing"][:20]}
            self.empty = {str(name)[:100] for name in header["empty"][:50]}
        elif "import" in header:
            self.imports[str(header["import"])] = to_answer(header, body)
        else:
            key = (str(header["setting"]), str(header["variant"]), str(header["dtype"]))
            self.answers.setdefault(key, []).append(to_answer(header, body))


def to_answer(header: dict[str, Any], body: bytes) -> Answer:
    """A frame as an answer. Raises ValueError and KeyError for one that is none."""
    kind = str(header["kind"])
    tensor = None
    if kind == "tensor":
        shape = [int(n) for n in header["shape"]]
        array = np.frombuffer(body, dtype=np.dtype(str(header["dtype_of"])))
        tensor = torch.from_numpy(array.copy()).reshape(shape)
    facts = dict(list(header.get("facts", {}).items())[:FACTS])
    text, error, line = (str(header.get(name, ""))[:2000] for name in ("text", "error", "line"))
    return Answer(kind, tensor, text, error, line, facts)


class CancelledError(Exception):
    """The grading was asked to stop."""


class Spare:
    """A child that waits for a submission, in an empty folder of its own; at the end of the `with` block both go. One
    that was started early has loaded torch by the time a file is saved."""

    def __init__(self, limits: Limits) -> None:
        self._stack = ExitStack()
        self.folder = self._stack.enter_context(temporary())
        program = limits.elsewhere(self.folder) if limits.elsewhere else None
        self.elsewhere = program is not None
        try:
            variables = os.environ if program else environment(self.folder)
            self.child = worker.Child(CHILD, self.folder, variables, program)
        except BaseException:
            self._stack.close()
            raise
        self._stack.callback(self.child.end)

    def __enter__(self) -> Spare:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the child, if it has not ended yet, and remove its folder."""
        self._stack.close()


def run(
    submission: Submission, limits: Limits, cancelled: threading.Event | None = None, spare: Spare | None = None
) -> Transcript:
    """All that a submission's code returned in every setting. spare: a child to begin with. Raises CancelledError once
    `cancelled` is set."""
    transcript = Transcript()
    begun = time.monotonic()
    modules = [name for name in ("utils", "model_solution", "train") if f"{name}.py" in submission.files]
    transcript.files = set(modules)
    left = [
        s.name
        for s in laws.SETTINGS.values()
        if s.part not in ("train", "plot", "converter") or home(s.part) in modules
    ]
    while left:
        rest = limits.total_seconds - (time.monotonic() - begun)
        if rest <= 0:
            transcript.ends |= {name: ("timed out", "the time for the whole submission was over") for name in left}
            break
        with spare if spare and spare.child.is_alive() else Spare(limits) as waiting:
            submission.write(waiting.folder)
            ending = attempt(transcript, waiting, left, modules, limits, rest, cancelled)
        spare = None
        if ending.how == "cancelled":
            raise CancelledError
        transcript.printed = ending.last_words[-4000:]
        if ending.how == "done":
            break
        if transcript.now and transcript.variant == "own":
            break  # all parts have been run apart from each other by then
        outcome = outcome_of(ending, transcript)
        transcript.ends[transcript.now] = (outcome, words(ending, limits))
        if not transcript.ready or not transcript.now:
            break  # it cannot even be imported
        # What ended in one setting would end in the others of that part too.
        part = laws.SETTINGS[transcript.now].part
        done = left.index(transcript.now)
        left = [name for name in left[done + 1 :] if laws.SETTINGS[name].part != part]
    transcript.seconds = time.monotonic() - begun
    return transcript


def attempt(
    transcript: Transcript,
    waiting: Spare,
    left: list[str],
    modules: list[str],
    limits: Limits,
    rest: float,
    cancelled: threading.Event | None = None,
) -> worker.Ending:
    """One child."""
    transcript.now, transcript.variant, transcript.ready = "", "", ""
    copy = SUBMISSION if waiting.elsewhere else ""
    request = {"settings": left, "modules": modules, "memory": limits.memory, "copy": copy}

    def receive(header: dict[str, Any], body: bytes) -> None:
        try:
            transcript.receive(header, body)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RubbishError(str(error)) from None

    try:
        return waiting.child.listen(
            request,
            receive,
            first_seconds=min(limits.start_seconds, rest),
            seconds=limits.seconds,
            total_seconds=rest,
            output_bytes=limits.output,
            cancelled=cancelled,
        )
    except RubbishError as error:
        return worker.Ending("broken", None, str(error))


def try_out(limits: Limits) -> tuple[str, worker.Ending]:
    """Start a child that gets no submission; returns the version of its grader ("": none was ready) and how it ended.
    Raises OSError for a program that is not there."""
    transcript = Transcript()
    with Spare(limits) as waiting:
        ending = attempt(transcript, waiting, [], [], limits, limits.total_seconds)
    return transcript.ready, ending


class RubbishError(Exception):
    """A frame that cannot be understood: the submission has written to the private channel."""


def environment(folder: Path) -> dict[str, str]:
    """The child's variables: nothing of the user's but where programs and libraries are."""
    kept = {
        name: os.environ[name]
        for name in ("PATH", "SYSTEMROOT", "LD_LIBRARY_PATH", "LANG", "LC_ALL")
        if name in os.environ
    }
    return kept | own_variables(str(folder)) | {"MPLCONFIGDIR": matplotlib_folder()}


def own_variables(folder: str) -> dict[str, str]:
    """Those that every child gets, also in a container. folder: its working folder, the only one that it writes to."""
    return dict.fromkeys(("HOME", "USERPROFILE", "TMPDIR", "TEMP", "TMP"), folder) | {
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


def matplotlib_folder() -> str:
    """Where matplotlib keeps its list of fonts, which takes a second to make: the user's own if there is one. The
    child may read it and write nothing there."""
    import matplotlib

    return matplotlib.get_cachedir()


def outcome_of(ending: worker.Ending, transcript: Transcript) -> str:
    """The outcome of the setting that a child ended in."""
    if not transcript.ready and ending.how in ("ended", "broken"):
        return "grader fault"  # the submission had not been touched yet
    if ending.how == "late":
        return "timed out" if transcript.ready else "grader fault"
    if ending.how == "flood":
        return "output flood"
    if ending.code == -9:
        return "out of memory"  # killed, and not by us
    return "crashed"


def words(ending: worker.Ending, limits: Limits) -> str:
    """How the child ended, in a few words."""
    if ending.how == "late":
        return f"nothing came back within {limits.seconds:g} s"
    if ending.how == "flood":
        return f"more than {limits.output:,} bytes were printed"
    if ending.how == "broken":
        return "the grader's private channel was written to"
    if ending.code is None or ending.code >= 0:
        return f"the process ended before its work was done (exit code {ending.code})"
    return f"the process was ended by signal {-ending.code}"
