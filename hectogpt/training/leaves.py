"""A batch in leaves: equal parts whose gradients are computed one after the other and added in a fixed binary tree.

With eight leaves a gradient is ((0+1)+(2+3))+((4+5)+(6+7)), whoever computes the leaves. A process that owns a whole
subtree adds it up alone, and the sums of all processes are the upper part of the same tree: one, two, four and eight
processes give the same bits. Of several processes parallel.py has the World.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hectogpt.data import Batches
from hectogpt.errors import UserError, set_to
from hectogpt.kernels.dtypes import widest_dtype
from hectogpt.model import Transformer
from hectogpt.model.fused_ce import unchanging_weights
from hectogpt.training.loop import Gradients
from hectogpt.training.precision import Machine
from hectogpt.training.run import Data, Run

T = TypeVar("T")

USUAL = 8  # leaves of a run that does not name a number, if that divides its batch


def process_counts(leaves: int) -> list[int]:
    """The numbers of processes among which leaves can be divided such that each owns a whole subtree."""
    return [n for n in range(1, leaves + 1) if n == 1 or (leaves % n == 0 and (leaves // n).bit_count() == 1)]


def choose_leaves(data: Data, processes: int) -> Data:
    """The data with a number of leaves that so many processes can share; as it is, if it names one that they can.

    Without a number: the largest power of two up to 8 that divides the batch, or what the processes need. A micro-batch
    gives way to leaves that are no larger. Raises UserError that lists the numbers of processes that would do.
    """
    parts, what = [data.leaves or 1], f"data.leaves = {data.leaves}"
    if data.leaves is None:
        parts = [n for n in range(1, data.batch_size + 1) if data.batch_size % n == 0]
        what = f"a batch of data.batch_size = {data.batch_size} rows"
        if data.micro_batch is not None:
            parts = [n for n in parts if data.batch_size // n <= data.micro_batch]
            what += f" in parts of at most data.micro_batch = {data.micro_batch}"
    fitting = [n for n in parts if processes in process_counts(n)]
    if not fitting:
        *counts, most = map(str, sorted({count for n in parts for count in process_counts(n)}))
        field, more = ("data.batch_size", "") if data.leaves is None else ("data.leaves", " that divides the batch")
        raise UserError(
            f"{processes} processes cannot share {what}",
            why=f"all take equal parts, so there may be {', '.join(counts)}{' or ' * bool(counts)}{most}",
            fix="another number of processes, or " + set_to(field, f"a power of two times {processes}{more}"),
        )
    if data.leaves is not None:
        return data
    # Of one process powers of two first, so that others may share the run later.
    by_choice = [n for n in fitting if processes > 1 or n.bit_count() == 1] or fitting
    return replace(data, leaves=max([n for n in by_choice if n <= USUAL], default=by_choice[0]), micro_batch=None)


def add_in_tree(parts: list[Tensor]) -> Tensor:
    """((0 + 1) + (2 + 3)) + ...; one that has no neighbour waits for the next level. Overwrites the parts."""
    while len(parts) > 1:
        paired = len(parts) // 2 * 2
        parts = [a.add_(b) for a, b in zip(parts[:paired:2], parts[1:paired:2], strict=True)] + parts[paired:]
    return parts[0]


class World:
    """The processes that share a run, as one of them sees them: here the one process of a run that no other shares.

    local: rank and size among those on this machine, if torchrun started them. in_words, record: how many there are,
    for people and for run.json.
    """

    rank, size = 0, 1
    local: tuple[int, int] | None = None
    in_words = ""

    def __init__(self) -> None:
        self.record: dict[str, Any] = {}

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which prints and owns the run's folder."""
        return self.rank == 0

    def share(self, find: Callable[[], T]) -> T:
        """What `find` returns at rank 0, a plain value (what JSON can hold), at all ranks. Raises PeerError."""
        return find()

    def send(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of rank 0 at all ranks, on the CPU. What others pass is not looked at."""
        return tensors

    def agree(self, facts: dict[str, Any]) -> None:
        """Compare what every process has. Raises DisagreementError, at all of them, which names the odd ones out."""

    def begin(self, step: int) -> None:
        """Note that 0-based `step` begins. Raises PeerError if whoever started the run is gone: its processes would
        train on as nobody's."""

    def sum(self, gradients: list[Tensor], tables: list[Tensor]) -> None:
        """Add up gradients in place, in the fixed tree. tables: of lookup tables, of which most rows may be zero."""

    def total(self, numbers: Tensor) -> Tensor:
        """The sum of a few numbers, float64 [n], in the same tree."""
        return numbers


ALONE = World()


class LeafGradients(Gradients):
    """Gradients of the leaves that this process owns, added up over all processes."""

    def __init__(
        self,
        run: Run,
        model: Transformer,
        batches: Batches,
        machine: Machine,
        signals: Sequence[int],
        world: World,
    ) -> None:
        super().__init__(run, model, batches, machine, signals)
        self.world = world
        self._agreed_to_stop = False
        self.tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}

    @property
    def stopping(self) -> bool:
        """Whether a signal had come to any process of the run when the last step's losses were added up."""
        return self._agreed_to_stop

    def compute(self, step: int) -> Tensor:
        world, leaves = self.world, self.run.data.leaves or 1
        world.begin(step)
        batch, own = self.batches.at(step), leaves // world.size
        first, n_targets = world.rank * own, batch.shape[0] * (batch.shape[1] - 1)
        # Where a data order has cut the batch, leaves may have one row more or less, and none.
        bounds = [leaf * len(batch) // leaves for leaf in range(first, first + own + 1)]
        ids = torch.from_numpy(batch[bounds[0] : bounds[-1]]).to(self.machine.device, non_blocking=True)
        parts = ids.split([end - begin for begin, end in pairwise(bounds)])

        def subtree(begin: int, end: int) -> list[Tensor | None]:
            """The sums of loss and gradients of some of the parts."""
            if end - begin == 1:
                return self._leaf(parts[begin], step, first + begin, n_targets)
            middle = begin + (1 << (end - begin - 1).bit_length() - 1)
            return [_sum_of(a, b) for a, b in zip(subtree(begin, middle), subtree(middle, end), strict=True)]

        with unchanging_weights():
            loss, *gradients = subtree(0, own)
        assert loss is not None
        return self._share(loss, gradients)

    def _leaf(self, rows: Tensor, step: int, number: int, n_targets: int) -> list[Tensor | None]:
        """Loss and gradients of one leaf; None for a parameter that gets no gradient."""
        loss = torch.zeros((), dtype=widest_dtype(rows.device), device=rows.device)
        if len(rows):
            loss += self.backward(rows, step, number, n_targets)
        gradients = [p.grad for p in self.parameters]
        for p in self.parameters:
            p.grad = None
        return [loss, *gradients]

    @torch.no_grad()
    def _share(self, loss: Tensor, gradients: list[Tensor | None]) -> Tensor:
        """Agree on the loss, on stopping, and on which parameters have a gradient; set the gradients."""
        mine = torch.tensor([bool(self.signals), *(g is not None for g in gradients)], dtype=loss.dtype)
        total = self.world.total(torch.cat((loss[None], mine.to(loss.device))))
        self._agreed_to_stop, *counts = (total[1:] > 0).tolist()
        sums: list[Tensor] = []
        tables: list[Tensor] = []
        for p, gradient, any_has in zip(self.parameters, gradients, counts, strict=True):
            p.grad = None
            if any_has:
                p.grad = torch.zeros_like(p) if gradient is None else gradient
                (tables if id(p) in self.tables else sums).append(p.grad)
        self.world.sum(sums, tables)
        return total[0]


def _sum_of(left: Tensor | None, right: Tensor | None) -> Tensor | None:
    """The sum, in the left one's place; None has nothing to add."""
    return right if left is None else left if right is None else left.add_(right)
