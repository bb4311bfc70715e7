"""How a run that several processes share is started, and how it fails: the environment, the errors, the board.

The board is the store, a table of texts that torchrun keeps and that outlives a process. What a process dies of is
written there, so that rank 0 can name the first cause and not the closed connection that it sees itself.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import torch.distributed as dist

from hectogpt import errors, hardware
from hectogpt.errors import UserError
from hectogpt.serialization import diff

T = TypeVar("T")

START = 3600.0  # seconds that a process waits for what rank 0 does before training: it may build a corpus
LOOK = 3.0  # seconds in which the cause of a broken connection is looked for
VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Launch:
    """What torchrun's environment says of a process. attempt: how often all processes were started again. agent:
    whether torchrun keeps the store, and not rank 0."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    address: str
    port: int
    attempt: int
    agent: bool


def find_launch(environment: Mapping[str, str] = os.environ) -> Launch | None:
    """How this process was started; None for one alone. Raises UserError for numbers that are none."""
    if not all(name in environment for name in VARIABLES):
        return None
    try:
        rank, size, port = (int(environment[name]) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
        local_rank = int(environment.get("LOCAL_RANK", "0"))
        local_size = int(environment.get("LOCAL_WORLD_SIZE", "1"))
        attempt = int(environment.get("TORCHELASTIC_RESTART_COUNT", "0"))
    except ValueError as error:
        raise UserError(f"{', '.join(VARIABLES)}: {error}", fix="start the processes by torchrun") from None
    if not 0 <= rank < size:
        raise UserError(f"RANK = {rank} with WORLD_SIZE = {size}", fix="start the processes by torchrun")
    agent = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return Launch(rank, size, local_rank, local_size, environment["MASTER_ADDR"], port, attempt, agent)


class NotJoinedError(UserError):
    """This process has not found the others, so it cannot leave it to rank 0 to say why."""


class DisagreementError(UserError):
    """The processes of a run do not have the same run. All of them raise it."""


class PeerError(UserError):
    """Another process of the run has failed, so this one cannot go on. failure: its rank (None: not known), the cause,
    the step, and "wordless" if it could not say it itself."""

    def __init__(self, failure: dict[str, Any], size: int) -> None:
        rank, step = failure["rank"], failure["step"]
        who = "a process" if rank is None else f"rank {rank}"
        super().__init__(
            f"{who} of the run's {size} processes failed {f'in step {step}' if step else 'before the first step'}",
            why=str(failure["cause"]),
            fix="the same command, with the run's folder as resume; torchrun starts it again by itself, as often as "
            "its max-restarts says",
            code=errors.PEER,
        )
        self.failure = failure


def within(seconds: float, work: Callable[[], T]) -> T:
    """What the work returns. Raises RuntimeError if it takes longer: on a dead link the store never answers."""
    found: list[T] = []
    failed: list[Exception] = []

    def do() -> None:
        try:
            found.append(work())
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=do, daemon=True)
    thread.start()
    thread.join(seconds)
    if failed:
        raise failed[0]
    if not found:
        raise RuntimeError(f"no answer within {seconds:g} s")
    return found[0]


def describe_odd(texts: list[dict[str, Any]]) -> DisagreementError:
    """The error that names who differs in what. texts: the facts of every rank, of which two differ."""
    name = next(name for name in texts[0] if any(its.get(name) != texts[0][name] for its in texts))
    values = [its.get(name) for its in texts]
    counts = [values.count(value) for value in values]
    first = counts.index(max(counts)) if 2 * max(counts) > len(values) else 0
    odd = [rank for rank, value in enumerate(values) if value != values[first]]
    differing = [
        f"{path or name}: {_brief(one)} at rank {first}, {_brief(other)} at rank {odd[0]}"
        for path, (one, other) in diff(values[first], values[odd[0]]).items()
    ]
    more = [f"and {len(differing) - 3} more"] if len(differing) > 3 else []
    ranks = f"rank {odd[0]}" if len(odd) == 1 else f"ranks {', '.join(map(str, odd))}"
    return DisagreementError(
        f"{ranks} differ{'s' if len(odd) == 1 else ''} from rank {first} in the {name}",
        why="; ".join(differing[:3] + more),
        fix="the same installation, command, files and threads for all processes",
        kept="nothing was written",
    )


def _brief(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, allow_nan=False)
    return text[:12] if len(text) == 64 else text[:60]


class Board:
    """The texts that all processes of a run see, and this process's place among them.

    step: the one that this process is in, from 1; 0 before the first. is_gone: whether the store no longer answers.
    """

    def __init__(self, launch: Launch, store: dist.Store, timeout: float) -> None:
        self.launch, self.rank, self.size, self.timeout = launch, launch.rank, launch.size, timeout
        self.step = 0
        self.is_gone = False
        self.store = dist.PrefixStore(f"hectogpt/{launch.attempt}", store)
        self.store.set(f"process/{self.rank}", f"{socket.gethostname()} {os.getpid()}")

    def wait_for(self, key: str) -> str:
        """A text that another process writes, once it is there. Raises PeerError."""
        deadline, pause = time.monotonic() + START, 0.01
        try:
            while (text := self.read(key, self.timeout)) is None:
                failure = self._failure()
                if failure is None and time.monotonic() > deadline:
                    failure = {"rank": 0, "cause": f"nothing came from it in {START:.0f} s", "step": 0}
                if failure is not None:
                    raise PeerError(failure, self.size)
                time.sleep(pause)
                pause = min(2 * pause, 0.2)
            return text
        except RuntimeError:
            raise PeerError(self._store_failure(), self.size) from None

    def read(self, key: str, limit: float = LOOK) -> str | None:
        """A text of the store; None if it is not there. Raises RuntimeError as `_ask`."""
        return self._ask(lambda: self.store.get(key).decode() if self.store.check([key]) else None, limit)

    def _ask(self, question: Callable[[], T], limit: float) -> T:
        """What the store answers within so many seconds. Raises RuntimeError, at once if it did not answer before."""
        if self.is_gone:
            raise RuntimeError("the store is gone")
        try:
            return within(limit, question)
        except RuntimeError:
            self.is_gone = True
            raise

    # --- failures ---

    @contextmanager
    def guarded(self, operation: str) -> Iterator[None]:
        """What goes wrong with other processes inside the context becomes PeerError, with the first cause."""
        self.mark(operation)
        try:
            yield
        except RuntimeError as error:  # torch's own errors of processes derive from it
            raise PeerError(self._find_failure(error, operation), self.size) from None

    def begin(self, step: int) -> None:
        """Note that 0-based `step` begins. Raises PeerError if whoever started the run is gone: its processes would
        train on as nobody's."""
        self.step = step + 1
        self.mark("computes")
        if self.is_gone:
            raise PeerError(self._store_failure(), self.size)

    def mark(self, doing: str) -> None:
        """Write into the store what this process does, for one that waits for it in vain."""
        text = json.dumps([self.step, doing], allow_nan=False)
        with suppress(RuntimeError):
            self._ask(lambda: self.store.set(f"at/{self.rank}", text), self.timeout)

    def publish(self, error: BaseException) -> None:
        """Write into the store what this process dies of, unless all processes end by the same error, which is no
        failure of one of them."""
        if isinstance(error, (PeerError, DisagreementError, KeyboardInterrupt, SystemExit)):
            return
        if isinstance(error, UserError):
            if error.code not in (errors.DIVERGED, errors.INTERRUPTED, errors.TERMINATED, errors.HANGUP):
                self._claim(f"{error.what}: {error.why}" if error.why else error.what)
        else:
            self._claim(f"{type(error).__name__}: {error}".partition("\n")[0][:300])

    def _claim(self, cause: str, **more: Any) -> dict[str, Any]:
        """Make this the run's failure, of this process and its step unless `more` says so, if there is none yet;
        returns the one that is."""
        failure = {"rank": self.rank, "cause": cause, "step": self.step} | more
        text = json.dumps(failure, allow_nan=False)
        with suppress(RuntimeError):
            failure = json.loads(self._ask(lambda: self.store.compare_set("failure", "", text), LOOK))
        return failure

    def _failure(self) -> dict[str, Any] | None:
        """The run's failure, if it is known; a process of this machine that is gone is one."""
        with suppress(RuntimeError):
            if (text := self.read("failure")) is not None:
                found: dict[str, Any] = json.loads(text)
                return found
            for rank in range(self.size):
                host, _, pid = (self.read(f"process/{rank}") or "").rpartition(" ")
                if rank != self.rank and host == socket.gethostname() and not hardware.is_process(int(pid)):
                    cause = "its process has ended without a word: killed, or by an exit in the middle of the run"
                    return self._claim(cause, rank=rank, wordless=True)
        return None

    def _find_failure(self, error: Exception, operation: str) -> dict[str, Any]:
        deadline = time.monotonic() + LOOK
        while time.monotonic() < deadline:
            if (failure := self._failure()) is not None:
                return failure
            if self.is_gone:
                return self._store_failure()
            if "timed out" in str(error).lower():
                return self._hanging(operation)
            time.sleep(0.02)
        return self._claim(f"{operation}: {errors.first_line(error)}", rank=None)

    def _store_failure(self) -> dict[str, Any]:
        """The failure that the store is gone: torchrun keeps it, or rank 0 does."""
        gone = f"torchrun at {self.launch.address} has ended"
        if not self.launch.agent:
            gone = "its process has ended, and the store with it"
        rank, cause = None if self.launch.agent else 0, f"{gone}, or its machine cannot be reached"
        return {"rank": rank, "cause": cause, "step": self.step, "wordless": True}

    def _hanging(self, operation: str) -> dict[str, Any]:
        """The failure that a process does not answer: one that is behind this one."""
        behind: list[tuple[int, int, str]] = []
        with suppress(RuntimeError):
            for rank in range(self.size):
                step, doing = json.loads(self.read(f"at/{rank}") or "[0, null]")
                if rank != self.rank and doing and (step, doing) != (self.step, operation):
                    behind.append((step, rank, doing))
        if not behind:
            return self._claim(f"a process stopped answering during {operation}", rank=None)
        step, rank, doing = min(behind)
        cause = f"it did not come to {operation} of step {self.step} in {self.timeout:g} s"
        return self._claim(f"{cause}; its last sign: {doing}, step {step}", rank=rank, step=step, wordless=True)
