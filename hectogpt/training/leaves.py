"""A batch in leaves: equal parts whose gradients are computed one after the other and added in a
fixed binary tree.

With eight leaves a gradient is ((0+1)+(2+3))+((4+5)+(6+7)), whoever computes the leaves. A process
that owns a whole subtree adds it up alone, and the sums of all processes are the upper part of the
same tree: one, two, four and eight processes give the same bits. loop.py computes the leaves; of
several processes parallel.py has the World."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from torch import Tensor

from hectogpt.errors import UserError, set_to
from hectogpt.training.run import Data

T = TypeVar("T")

USUAL = 8  # leaves of a run that does not name a number, if that divides its batch


def process_counts(leaves: int) -> list[int]:
    """The numbers of processes among which leaves can be divided such that each owns a whole
    subtree.
    """
    return [
        n
        for n in range(1, leaves + 1)
        if n == 1 or (leaves % n == 0 and (leaves // n).bit_count() == 1)
    ]


def choose_leaves(data: Data, processes: int) -> Data:
    """The data with a number of leaves that so many processes can share; as it is, if it names one
    that they can.

    Without a number: the largest power of two up to 8 that divides the batch, or what the
    processes need. Raises UserError that lists the numbers of processes that would do."""
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
    # Of one process powers of two, so that others may share the run later.
    by_choice = [n for n in fitting if processes > 1 or n.bit_count() == 1]
    return replace(data, leaves=max(n for n in by_choice if n <= max(USUAL, processes)))


def add_in_tree(parts: list[Tensor]) -> Tensor:
    """((0 + 1) + (2 + 3)) + ...; one that has no neighbour waits for the next level. Overwrites
    the parts."""
    while len(parts) > 1:
        paired = len(parts) // 2 * 2
        parts = [
            a.add_(b) for a, b in zip(parts[:paired:2], parts[1:paired:2], strict=True)
        ] + parts[paired:]
    return parts[0]


class World:
    """The processes that share a run, as one of them sees them: here the one process of a run that
    no other shares.

    All of them call the same methods in the same order. local: rank and size on this machine, if
    torchrun started them."""

    rank = 0
    size = 1
    local: tuple[int, int] | None = None

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which prints and owns the run's folder."""
        return self.rank == 0

    def share(self, point: str, find: Callable[[], T]) -> T:
        """Return at all ranks what `find` returns at rank 0.

        point: the name of this place in the program. All processes must come to it next.
        find: returns a plain value, one that JSON can hold. Only rank 0 calls it.

        Raises PeerError, and DisagreementError where rank 0 is at another point.
        """
        return find()

    def meet(self, point: str, step: int) -> None:
        """Wait at this point of the run until rank 0 has come to it, however long it takes."""
        self.share(f"{point}, step {step}", lambda: None)

    def send(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of rank 0 at all ranks, on the CPU. What others pass is not looked at."""
        return tensors

    def agree(self, facts: dict[str, Any]) -> None:
        """Compare what every process has. Raises DisagreementError, at all of them, which names
        the odd ones out."""

    def begin(self, step: int) -> None:
        """Note that 0-based `step` begins. Raises PeerError if whoever started the run is gone:
        its processes would train on as nobody's."""

    def sum(self, gradients: list[Tensor], tables: list[Tensor]) -> None:
        """Add up gradients in place, in the fixed tree. tables: of lookup tables, of which most
        rows may be zero.
        """

    def total(self, numbers: Tensor) -> Tensor:
        """The sum of a few numbers, float64 [n], in the same tree."""
        return numbers


ALONE = World()
