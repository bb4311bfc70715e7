"""Leaves: equal parts of a batch whose gradients are added in a fixed binary tree.

With eight leaves a gradient is ((0+1)+(2+3))+((4+5)+(6+7)), regardless of which process computes
which leaf. A process that owns a whole subtree adds it up by itself, and the sums of all processes
are the upper part of the same tree. So one, two, four and eight processes give the same bits.
loop.py computes the leaves; parallel.py has the World of several processes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from torch import Tensor

from hectogpt.errors import UserError, set_to
from hectogpt.training.run import Data

T = TypeVar("T")

USUAL = 8  # leaves of a run that names no number, if its batch can be divided by 8


def process_counts(leaves: int) -> list[int]:
    """The numbers of processes that can divide the leaves so that each owns a whole subtree."""
    return [
        n
        for n in range(1, leaves + 1)
        if n == 1 or (leaves % n == 0 and (leaves // n).bit_count() == 1)
    ]


def choose_leaves(data: Data, processes: int) -> Data:
    """Return the data with a number of leaves that this many processes can share.

    A number that the data already has is kept. Without one, it is the largest power of two up to 8
    that divides the batch, or the number that the processes need.

    Raises UserError, which lists the possible numbers of processes, if there is none.
    """
    rows = data.batch_size
    named = data.leaves
    possible = [n for n in range(1, rows + 1) if rows % n == 0] if named is None else [named]
    fitting = [n for n in possible if processes in process_counts(n)]
    if not fitting:
        *counts, most = map(str, sorted({count for n in possible for count in process_counts(n)}))
        field = "data.batch_size" if named is None else "data.leaves"
        raise UserError(
            f"{processes} processes cannot share {field} = {named or rows}",
            why="all take equal parts, so there may be "
            f"{', '.join(counts)}{' or ' * bool(counts)}{most}",
            fix="another number of processes, or "
            + set_to(field, f"a power of two times {processes}"),
        )
    if named is not None:
        return data
    # For one process, a power of two, so that more processes may share the run later.
    by_choice = [n for n in fitting if processes > 1 or n.bit_count() == 1]
    return replace(data, leaves=max(n for n in by_choice if n <= max(USUAL, processes)))


def add_in_tree(parts: list[Tensor]) -> Tensor:
    """Compute ((0 + 1) + (2 + 3)) + ... in place of the parts.

    A part without a neighbour waits for the next level. Overwrites the parts.
    """
    while len(parts) > 1:
        paired = len(parts) // 2 * 2
        parts = [
            a.add_(b) for a, b in zip(parts[:paired:2], parts[1:paired:2], strict=True)
        ] + parts[paired:]
    return parts[0]


class World:
    """The processes that share a run, as one of them sees them; here, one process by itself.

    All processes call the same methods in the same order.

    Attributes:
        rank: the number of this process, from 0.
        size: how many processes there are.
        local: rank and size on this machine; None if torchrun did not start them.
    """

    rank = 0
    size = 1
    local: tuple[int, int] | None = None

    @property
    def is_first(self) -> bool:
        """True for rank 0, which prints and owns the run's folder."""
        return self.rank == 0

    def share(self, point: str, find: Callable[[], T]) -> T:
        """Return at all ranks what `find` returns at rank 0.

        Args:
            point: the name of this place in the program. All processes must reach it next.
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

        Raises DisagreementError at all of them, naming those that differ.
        """

    def begin(self, step: int) -> None:
        """Note that 0-based `step` begins.

        Raises PeerError if the launcher of the run is gone: its processes would otherwise train on
        unattended.
        """

    def sum(self, gradients: list[Tensor], tables: list[Tensor]) -> None:
        """Add up gradients over all processes in place, in the fixed tree.

        Args:
            gradients: gradients of dense parameters.
            tables: gradients of lookup tables, in which most rows may be zero.
        """

    def total(self, numbers: Tensor) -> Tensor:
        """The sum of a few numbers over all processes, float64 [n], in the same tree."""
        return numbers


ALONE = World()
