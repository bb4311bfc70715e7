"""The processes of one run: start, exchange of data, sums of gradients, and failures.

A batch is cut into equal parts, the leaves, and their gradients are added in a fixed binary tree.
With eight leaves a gradient is ((0+1)+(2+3))+((4+5)+(6+7)), regardless of which process computes
which leaf. A process that owns a whole subtree adds it up by itself, and the sums of all processes
are added in the upper part of the same tree. So one, two, four and eight processes give the same
bits. loop.py computes the leaves.

Small values are sent as strings through a store. Tensors are sent directly between the processes.
No Python object is sent.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from hectogpt import errors
from hectogpt.errors import Setting, SetTo, UserError
from hectogpt.serialization import diff
from hectogpt.training.run import Data

T = TypeVar("T")

USUAL = 8  # leaves by default, if they divide the batch
VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
SUM = "the sum of gradients"
TIMEOUT = 120.0  # seconds that one process waits for another


def process_counts(leaves: int) -> list[int]:
    """The numbers of processes that can divide the leaves so that each owns a whole subtree."""
    return [
        n
        for n in range(1, leaves + 1)
        if n == 1 or (leaves % n == 0 and (leaves // n).bit_count() == 1)
    ]


def choose_leaves(data: Data, processes: int) -> Data:
    """Return the data with a number of leaves that this many processes can share.

    If the data already has a number, it is kept. Otherwise, one process gets the largest power of
    two up to 8 that divides the batch. Several processes get the largest suitable number up to 8,
    or up to the number of processes if that is larger.

    Raises UserError if no number fits. The error lists the possible numbers of processes.
    """
    rows = data.batch_size
    named = data.leaves
    possible = [n for n in range(1, rows + 1) if rows % n == 0] if named is None else [named]
    fitting = [n for n in possible if processes in process_counts(n)]
    if not fitting:
        *counts, most = map(str, sorted({count for n in possible for count in process_counts(n)}))
        field = "data.batch_size" if named is None else "data.leaves"
        raise UserError(
            (f"{processes} processes cannot share ", Setting(field, named or rows)),
            why="all take equal parts, so their number must be "
            f"{', '.join(counts)}{' or ' * bool(counts)}{most}",
            fix=(
                "a different number of processes, or ",
                SetTo(field, f"a power of two times {processes}"),
            ),
        )
    if named is not None:
        return data
    # One process takes a power of two, so that more processes may share the run later.
    by_choice = [n for n in fitting if processes > 1 or n.bit_count() == 1]
    return replace(data, leaves=max(n for n in by_choice if n <= max(USUAL, processes)))


def add_in_tree(parts: list[Tensor]) -> Tensor:
    """Compute ((0 + 1) + (2 + 3)) + ... in place, which overwrites the parts.

    A part without a neighbour is carried to the next level.
    """
    while len(parts) > 1:
        paired = len(parts) // 2 * 2
        parts = [
            a.add_(b) for a, b in zip(parts[:paired:2], parts[1:paired:2], strict=True)
        ] + parts[paired:]
    return parts[0]


def in_rows(shape: torch.Size, rows: Tensor, values: Tensor) -> Tensor:
    """Return a table's gradient, which is zero except in some rows, as a coalesced sparse tensor.

    Args:
        shape: the shape of the table.
        rows: the indices of these rows, ascending.
        values: the gradients of these rows.
    """
    return torch.sparse_coo_tensor(
        rows[None], values, shape, is_coalesced=True, check_invariants=False
    )


class World:
    """The processes that share a run, seen from one of them. This base class is for one process.

    All processes call the same methods in the same order.

    Attributes:
        rank: the number of this process, from 0.
        size: how many processes there are.
        local: rank and size on this machine. None if torchrun did not start the process.
    """

    rank = 0
    size = 1
    local: tuple[int, int] | None = None

    @property
    def is_first(self) -> bool:
        """True for rank 0, which prints and owns the run's folder."""
        return self.rank == 0

    def share(self, point: str, find: Callable[[], T]) -> T:
        """Call `find` at rank 0, and return its value at all ranks.

        Args:
            point: a name for this place in the program. All processes must call `share` here next.
            find: returns a plain value, one that JSON can hold. Only rank 0 calls it.

        Raises PeerError, and DisagreementError if rank 0 is at a different point.
        """
        return find()

    def meet(self, point: str, step: int) -> None:
        """Wait at this point of the run until rank 0 has reached it, however long it takes."""
        self.share(f"{point}, step {step}", lambda: None)

    def send(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return rank 0's tensors at all ranks, on the CPU; those of other ranks are ignored."""
        return tensors

    def agree(self, facts: dict[str, Any]) -> None:
        """Check that all processes have the same facts.

        Raises DisagreementError in every process if they do not. The error says how they differ.
        """

    def start_step(self, step: int) -> None:
        """Record that 0-based `step` begins.

        Raises PeerError if the launcher of the run has ended: otherwise the processes would keep
        training unattended.
        """

    def sum(self, gradients: list[Tensor], tables: list[Tensor]) -> None:
        """Add up gradients over all processes in place, in the fixed tree.

        Args:
            gradients: gradients of dense parameters.
            tables: gradients of lookup tables, sparse or dense with rows of zeros.
        """

    def total(self, numbers: Tensor) -> Tensor:
        """Add up a few numbers, float64 [n], over all processes, in the same tree."""
        return numbers


ALONE = World()


# --- several processes ---


@dataclass(frozen=True)
class Launch:
    """A process as torchrun's environment variables describe it.

    Attributes:
        rank: its number among all processes, from 0.
        size: how many processes there are.
        local_rank: its number on this machine.
        local_size: how many processes this machine has.
        address: the host of the store.
        port: the port of the store.
        attempt: how often all processes have been restarted.
        agent: True if torchrun keeps the store; otherwise rank 0 does.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    address: str
    port: int
    attempt: int
    agent: bool


def find_launch(environment: Mapping[str, str] = os.environ) -> Launch | None:
    """Return how torchrun started this process, or None if torchrun did not start it.

    Raises UserError if the environment has invalid numbers.
    """
    if not all(name in environment for name in VARIABLES):
        return None

    def number(name: str, usual: str = "0") -> int:
        return int(environment.get(name, usual))

    try:
        launch = Launch(
            rank=number("RANK"),
            size=number("WORLD_SIZE"),
            local_rank=number("LOCAL_RANK"),
            local_size=number("LOCAL_WORLD_SIZE", "1"),
            address=environment["MASTER_ADDR"],
            port=number("MASTER_PORT"),
            attempt=number("TORCHELASTIC_RESTART_COUNT"),
            agent=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        )
        if not 0 <= launch.rank < launch.size:
            raise ValueError(f"rank {launch.rank} of {launch.size}")
    except ValueError as error:
        what = f"{', '.join(VARIABLES)}: {error}"
        raise UserError(what, fix="start the processes with torchrun") from None
    return launch


class DisagreementError(UserError):
    """The processes of a run disagree about the run. All of them raise this error."""


class PeerError(UserError):
    """Another process of the run has failed, so this one cannot continue.

    Args:
        cause: the reason, as this process sees it.
        step: the step of this process, from 1; 0 before the first.
        size: how many processes the run has.
    """

    def __init__(self, cause: str, step: int, size: int) -> None:
        super().__init__(
            f"another of the run's {size} processes failed "
            f"{f'in step {step}' if step else 'before the first step'}",
            why=f"{cause}; see that process's output, or torchrun's report",
            fix=("run the same command with ", SetTo("resume", "auto")),
            code=errors.PEER,
        )


def recorded(work: Callable[[], None]) -> Callable[[], None]:
    """Wrap the work so that torchrun's own report names the exception that ended it."""
    from torch.distributed.elastic.multiprocessing.errors import record

    wrapped: Callable[[], None] = record(work)
    return wrapped


class SharedWorld(World):
    """This process as one of several that torchrun has started. Use as a context manager.

    Small values go through the store, a table of strings that torchrun or rank 0 keeps.

    Attributes:
        launch: how this process was started.
        timeout: seconds to wait for other processes.
        step: the current step of this process, from 1; 0 before the first.
    """

    def __init__(self, launch: Launch, timeout: float = TIMEOUT) -> None:
        """Join the other processes.

        Raises UserError (PEER) if they do not all arrive within the timeout, or if the port is in
        use.
        """
        self.launch = launch
        self.rank = launch.rank
        self.size = launch.size
        self.timeout = timeout
        self.local = launch.local_rank, launch.local_size
        self.step = 0
        self._shared = 0  # how many values `share` has sent so far
        limit = timedelta(seconds=timeout)
        owns = not launch.agent and launch.rank == 0
        try:
            # Another program on the port may never answer, and torch's own timeout does not cover
            # that case.
            base = within(
                timeout + 3,
                lambda: dist.TCPStore(
                    launch.address, launch.port, None, owns, limit, wait_for_workers=False
                ),
            )
            self.store = dist.PrefixStore(f"hectogpt/{launch.attempt}", base)
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(
                backend, store=self.store, rank=self.rank, world_size=self.size, timeout=limit
            )
        except (RuntimeError, ValueError) as error:
            where = f"{launch.address}:{launch.port}"
            raise UserError(
                f"the {self.size} processes of the run did not find each other at {where}",
                why=errors.first_line(error),
                fix="check that all are started, that no other program uses the port, and that "
                "their machines can reach each other (set GLOO_SOCKET_IFNAME or "
                "NCCL_SOCKET_IFNAME, e.g. to eth0)",
                code=errors.PEER,
            ) from None

    def __enter__(self) -> SharedWorld:
        return self

    def __exit__(self, _: object, error: BaseException | None, *__: object) -> None:
        if error is None and dist.is_initialized():
            dist.destroy_process_group()

    # --- strings and tensors ---

    @contextmanager
    def guarded(self, doing: str) -> Iterator[None]:
        """Context manager: turn errors from other processes into PeerError.

        Args:
            doing: the operation, for the message.
        """
        try:
            yield
        except RuntimeError as error:  # the base class of torch's errors about processes
            raise PeerError(f"{doing}: {errors.first_line(error)}", self.step, self.size) from None

    def start_step(self, step: int) -> None:
        self.step = step + 1
        self._read("nothing")  # a key that is never set: only checks that the store still answers

    def _read(self, key: str) -> str | None:
        """Return a string from the store, or None if the key is not set.

        Raises PeerError if the store does not answer.
        """
        with self.guarded(
            f"torchrun or rank 0 at {self.launch.address} has ended or cannot be reached"
        ):
            return within(
                self.timeout,
                lambda: self.store.get(key).decode() if self.store.check([key]) else None,
            )

    def share(self, point: str, find: Callable[[], T]) -> T:
        self._shared += 1
        key = f"shared/{self._shared}"
        if self.is_first:
            value = find()
            self.store.set(key, json.dumps([point, value], allow_nan=False))
            return value
        text = self._read(key)
        # No time limit while the store answers: rank 0 may be building a corpus.
        while text is None:
            time.sleep(0.05)
            text = self._read(key)
        place, found = json.loads(text)
        if place != point:
            what = f"rank {self.rank} is at {point!r}, rank 0 at {place!r}"
            raise DisagreementError(what, why="their programs differ")
        value = found
        return value

    def send(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        kinds: list[Any] = self.share(
            "the tensors", lambda: [[n, str(t.dtype), list(t.shape)] for n, t in tensors.items()]
        )
        found = tensors if self.is_first else {}
        with self.guarded("sending the checkpoint"):
            for name, dtype, shape in kinds:
                if not self.is_first:
                    found[name] = torch.empty(
                        shape, dtype=getattr(torch, dtype.removeprefix("torch."))
                    )
                flat = found[name].contiguous().view(-1)
                dist.broadcast(flat.view(torch.uint8) if flat.dtype == torch.bool else flat, 0)
        return found

    def wait_for_all(self, operation: str) -> None:
        """Wait until all processes have reached this point.

        A process that ended before the others had read its string would seem to have failed.
        Raises PeerError.
        """
        with self.guarded(operation):
            dist.all_reduce(torch.zeros(1))

    def agree(self, facts: dict[str, Any]) -> None:
        self.store.set(f"facts/{self.rank}", json.dumps(facts, allow_nan=False))
        with self.guarded("the comparison of runs"):
            self.wait_for_all("the comparison of runs")
            texts = [json.loads(self.store.get(f"facts/{rank}")) for rank in range(self.size)]
            # After this the store may end or be overwritten.
            self.wait_for_all("the end of the comparison")
        if any(its != texts[0] for its in texts):
            raise describe_odd(texts)

    # --- the sums of gradients, in the tree of the leaves ---
    #
    # The order of additions does not depend on the number of processes. Every process adds up one
    # shard of the values: it receives this shard from all others, adds the parts in the order of
    # ranks in the same tree as the leaves, and sends the sum to all others. The traffic is that of
    # an all-reduce, but in an all-reduce the order does depend on the number of processes.

    def sum(self, gradients: list[Tensor], tables: list[Tensor]) -> None:
        with self.guarded(SUM):
            for table in tables:  # only rows for which any process has a gradient are sent
                rows = self._rows_in_use(table)
                values = self._sum(table.index_select(0, rows).to_dense())
                if table.is_sparse:
                    table.copy_(in_rows(table.shape, rows, values))
                else:
                    table[rows] = values
            if gradients:
                summed = self._sum(torch.cat([gradient.flatten() for gradient in gradients]))
                for gradient, part in zip(
                    gradients, summed.split([g.numel() for g in gradients]), strict=True
                ):
                    gradient.copy_(part.view_as(gradient))

    def _rows_in_use(self, table: Tensor) -> Tensor:
        if table.is_sparse:
            mine = torch.zeros(len(table), dtype=torch.uint8)
            mine[table.indices()] = 1
        else:
            mine = table.any(1).to(torch.uint8)
        every = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(every, mine)
        return torch.stack(every).any(0).nonzero().squeeze(1)

    def _sum(self, numbers: Tensor) -> Tensor:
        flat = numbers.flatten()
        flat = torch.nn.functional.pad(flat, (0, -len(flat) % self.size))
        received = torch.empty_like(flat)
        dist.all_to_all_single(received, flat)
        mine = add_in_tree(list(received.view(self.size, -1)))
        dist.all_gather(list(flat.view(self.size, -1)), mine)
        return flat[: numbers.numel()].view_as(numbers)

    def total(self, numbers: Tensor) -> Tensor:
        every = [torch.empty_like(numbers) for _ in range(self.size)]
        with self.guarded(SUM):
            dist.all_gather(every, numbers)
            return add_in_tree(every)


def within(seconds: float, work: Callable[[], T]) -> T:
    """Return the result of `work`, or raise RuntimeError if it takes more than `seconds`.

    If the network is down, the store never answers, so a limit is needed here.
    """
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
    """The error that says which process differs from rank 0, and how.

    Args:
        texts: the facts of every rank; at least one differs from rank 0's.
    """
    rank, its = next((rank, its) for rank, its in enumerate(texts) if its != texts[0])
    name = next(name for name in texts[0] if its.get(name) != texts[0][name])
    differing = [
        f"{path or name}: {str(one)[:40]} at rank 0, {str(other)[:40]} at rank {rank}"
        for path, (one, other) in diff(texts[0][name], its.get(name)).items()
    ]
    more = [f"and {len(differing) - 3} more"] if len(differing) > 3 else []
    return DisagreementError(
        f"rank {rank} differs from rank 0 in the {name}",
        why="; ".join(differing[:3] + more),
        fix="use the same installation, command, files and threads for all processes",
        kept="nothing was written",
    )
