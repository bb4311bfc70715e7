"""The processes of one run, as torchrun starts them: who is who, what they send each other, and which of them failed.

Small things go through the store, a table of texts that torchrun keeps and that outlives a process; tensors go from
process to process. No Python object travels. What a process dies of is written into the store, so that rank 0 can name
the first cause and not the closed connection that it sees itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, ClassVar, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from hectogpt import errors, hardware
from hectogpt.errors import UserError
from hectogpt.training.launch import DisagreementError, Launch, NotJoinedError, PeerError, describe_odd, within

T = TypeVar("T")

TIMEOUT = 120.0  # seconds that one process waits for another
START = 3600.0  # seconds that a process waits for what rank 0 does before training: it may build a corpus
LOOK = 3.0  # seconds in which the cause of a broken connection is looked for


def recorded(work: Callable[[], None]) -> Callable[[], None]:
    """The work, such that torchrun's own report names the exception that ended it."""
    from torch.distributed.elastic.multiprocessing.errors import record

    wrapped: Callable[[], None] = record(work)
    return wrapped


class Alone:
    """The one process of a run that no other shares; has what World has, without anything to send."""

    is_first = True
    in_words = ""
    record: ClassVar[dict[str, Any]] = {}

    def share(self, find: Callable[[], T]) -> T:
        """What `find` returns."""
        return find()

    def keep(self, name: str, value: str) -> None:
        """Nothing: there is no later attempt."""


ALONE = Alone()


class World:
    """This process among those of the run. Use as a context manager."""

    def __init__(self, launch: Launch, timeout: float = TIMEOUT) -> None:
        """Join the others. Raises NotJoinedError if they do not all come within the timeout, or for a port in use."""
        self.launch, self.rank, self.size, self.timeout = launch, launch.rank, launch.size, timeout
        self.step = 0  # that this process is in, from 1; 0 before the first
        self._shared = 0  # texts so far
        self._store_is_gone = False
        limit = timedelta(seconds=timeout)
        owns = not launch.agent and launch.rank == 0
        try:
            # A stranger that listens on the port may never answer, and torch's own limit is not for that.
            base = within(
                timeout + LOOK,
                lambda: dist.TCPStore(launch.address, launch.port, None, owns, limit, wait_for_workers=False),
            )
            self._kept = dist.PrefixStore("hectogpt", base)  # over restarts
            self._store = dist.PrefixStore(f"hectogpt/{launch.attempt}", base)
            self._store.set(f"process/{self.rank}", f"{socket.gethostname()} {os.getpid()}")
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend, store=self._store, rank=self.rank, world_size=self.size, timeout=limit)
        except (RuntimeError, ValueError) as error:
            raise self._not_joined(error, owns) from None
        self.mark("has joined")

    def _not_joined(self, error: Exception, owns: bool) -> NotJoinedError:
        if owns and ("EADDRINUSE" in str(error) or "in use" in str(error)):
            return NotJoinedError(
                f"port {self.launch.port} is in use",
                why="rank 0 listens there for the other processes",
                fix="another MASTER_PORT, or torchrun's standalone mode, which finds a free one",
            )
        return NotJoinedError(
            f"the {self.size} processes of the run did not find each other at {self.launch.address}:{self.launch.port}",
            why=_first_line(error),
            fix="see that all are started, that no other program has the port, and that their machines reach each "
            "other; where a machine's name stands for 127.0.0.1 there, set GLOO_SOCKET_IFNAME (NCCL_SOCKET_IFNAME for "
            "GPUs) to the network interface, such as eth0",
            code=errors.PEER,
        )

    def __enter__(self) -> World:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        if error is not None:
            self._publish(error)
        elif dist.is_initialized():
            dist.destroy_process_group()

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which prints and owns the run's folder."""
        return self.rank == 0

    @property
    def in_words(self) -> str:
        """How many processes share the run."""
        return f"{self.size} process{'' if self.size == 1 else 'es'}"

    @property
    def record(self) -> dict[str, Any]:
        """How the run is shared, for run.json."""
        return {"sharing": {"processes": self.size}}

    # --- texts and tensors ---

    def share(self, find: Callable[[], T]) -> T:
        """What `find` returns at rank 0, a plain value (what JSON can hold), at all ranks. Raises PeerError."""
        self._shared += 1
        key = f"shared/{self._shared}"
        if self.is_first:
            value = find()
            self._store.set(key, json.dumps(value, allow_nan=False))
        else:
            value = json.loads(self._wait_for(key))
        return value

    def send(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of rank 0 at all ranks, on the CPU. What others pass is not looked at."""
        kinds: list[Any] = self.share(lambda: [[n, str(t.dtype), list(t.shape)] for n, t in tensors.items()])
        found = tensors if self.is_first else {}
        with self.guarded("sending the checkpoint"):
            for name, dtype, shape in kinds:
                if not self.is_first:
                    found[name] = torch.empty(shape, dtype=getattr(torch, dtype.removeprefix("torch.")))
                flat = found[name].contiguous().view(-1)
                dist.broadcast(flat.view(torch.uint8) if flat.dtype == torch.bool else flat, 0)
        return found

    def wait_for_all(self, operation: str) -> None:
        """Wait until all processes have come here: one that ends before others have read its text seems to have failed.
        Raises PeerError."""
        with self.guarded(operation):
            dist.all_reduce(torch.zeros(1))

    def _wait_for(self, key: str) -> str:
        deadline, pause = time.monotonic() + START, 0.01
        try:
            while (text := self._read(key, self.timeout)) is None:
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

    def _read(self, key: str, limit: float = LOOK, store: dist.Store | None = None) -> str | None:
        """A text of the store; None if it is not there. Raises RuntimeError as `_ask`."""
        place = store or self._store
        return self._ask(lambda: place.get(key).decode() if place.check([key]) else None, limit)

    def _ask(self, question: Callable[[], T], limit: float) -> T:
        """What the store answers within so many seconds. Raises RuntimeError, at once if it did not answer before."""
        if self._store_is_gone:
            raise RuntimeError("the store is gone")
        try:
            return within(limit, question)
        except RuntimeError:
            self._store_is_gone = True
            raise

    def keep(self, name: str, value: str) -> None:
        """Keep a text for later attempts of the same launch."""
        self._kept.set(name, value)

    def kept(self, name: str) -> str | None:
        """A text that this attempt or an earlier one has kept."""
        with suppress(RuntimeError):
            return self._read(name, self.timeout, self._kept)
        return None

    def agree(self, facts: dict[str, Any]) -> None:
        """Compare what every process has. Raises DisagreementError, at all of them, which names the odd ones out."""
        whole = json.dumps(facts, sort_keys=True, allow_nan=False)
        mine = torch.frombuffer(bytearray(hashlib.sha256(whole.encode()).digest()), dtype=torch.uint8)
        every = [torch.empty_like(mine) for _ in range(self.size)]
        self._store.set(f"facts/{self.rank}", whole)
        with self.guarded("the comparison of runs"):
            dist.all_gather(every, mine)
        if all(torch.equal(mine, other) for other in every):
            return
        texts = [json.loads(self._store.get(f"facts/{rank}")) for rank in range(self.size)]
        with suppress(RuntimeError):
            dist.barrier()  # all have read before the one that keeps the store ends
        raise describe_odd(texts)

    # --- failures ---

    @contextmanager
    def guarded(self, operation: str, mark: bool = True) -> Iterator[None]:
        """What goes wrong with other processes inside the context becomes PeerError, with the first cause. mark:
        whether to write into the store that this process is there, for a process that waits for it in vain."""
        if mark:
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
        if self._store_is_gone:
            raise PeerError(self._store_failure(), self.size)

    def mark(self, doing: str) -> None:
        """Write into the store what this process does, for one that waits for it in vain."""
        text = json.dumps([self.step, doing], allow_nan=False)
        with suppress(RuntimeError):
            self._ask(lambda: self._store.set(f"at/{self.rank}", text), self.timeout)

    def _publish(self, error: BaseException) -> None:
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
            failure = json.loads(self._ask(lambda: self._store.compare_set("failure", "", text), LOOK))
        return failure

    def _failure(self) -> dict[str, Any] | None:
        """The run's failure, if it is known; a process of this machine that is gone is one."""
        with suppress(RuntimeError):
            if (text := self._read("failure")) is not None:
                found: dict[str, Any] = json.loads(text)
                return found
            for rank in range(self.size):
                host, _, pid = (self._read(f"process/{rank}") or "").rpartition(" ")
                if rank != self.rank and host == socket.gethostname() and not hardware.is_process(int(pid)):
                    cause = "its process has ended without a word: killed, or by an exit in the middle of the run"
                    return self._claim(cause, rank=rank, wordless=True)
        return None

    def _find_failure(self, error: Exception, operation: str) -> dict[str, Any]:
        deadline = time.monotonic() + LOOK
        while time.monotonic() < deadline:
            if (failure := self._failure()) is not None:
                return failure
            if self._store_is_gone:
                return self._store_failure()
            if "timed out" in str(error).lower():
                return self._hanging(operation)
            time.sleep(0.02)
        return self._claim(f"{operation}: {_first_line(error)}", rank=None)

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
                step, doing = json.loads(self._read(f"at/{rank}") or "[0, null]")
                if rank != self.rank and doing and (step, doing) != (self.step, operation):
                    behind.append((step, rank, doing))
        if not behind:
            return self._claim(f"a process stopped answering during {operation}", rank=None)
        step, rank, doing = min(behind)
        cause = f"it did not come to {operation} of step {self.step} in {self.timeout:g} s"
        return self._claim(f"{cause}; its last sign: {doing}, step {step}", rank=rank, step=step, wordless=True)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300]
