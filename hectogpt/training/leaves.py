"""A batch in leaves: equal parts whose gradients are computed one after the other and added in a fixed binary tree.

With eight leaves a gradient is ((0+1)+(2+3))+((4+5)+(6+7)), whoever computes the leaves. A process that owns a whole
subtree adds it up alone, and the sums of all processes are the upper part of the same tree: one, two, four and eight
processes give the same bits. Knows nothing of how processes speak to each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise

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

USUAL = 8  # leaves of a run that does not name a number, if that divides its batch
BUCKET = 4 << 20  # bytes of gradients that are sent together
ALIGN = 16  # numbers: every parameter's part of a bucket begins at a multiple of 64 bytes


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
            fix="another number of processes, or " + set_to(field, words=f"a power of two times {processes}{more}"),
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


class Exchange:
    """Adds up what all processes of a run have, in the fixed tree; here of one process alone, which has it all."""

    rank, size = 0, 1

    def begin(self, step: int) -> None:
        """Note that this process begins 0-based `step`."""

    def start(self, bucket: Tensor, table: Tensor | None = None) -> None:
        """Begin to add up a bucket of gradients in place, [n] with n a multiple of ALIGN times `size`. All processes
        start the same buckets in the same order. table: the bucket as [rows, d], if it holds the gradient of a lookup
        table, of which most rows may be zero."""

    def finish(self) -> None:
        """Wait until all buckets are added up."""

    def total(self, numbers: Tensor) -> Tensor:
        """The sum of a few numbers, float64 [n]."""
        return numbers


@dataclass
class _Part:
    """One parameter's way into its bucket. place: its part of the bucket. waiting: sums of subtrees that wait for their
    neighbours, the largest first; None for a subtree that gave the parameter no gradient."""

    parameter: nn.Parameter
    place: Tensor
    waiting: list[Tensor | None] = field(default_factory=list)
    leaves: int = 0  # so many have been added


@dataclass
class _Bucket:
    """Gradients that are sent together. table: the gradient of a lookup table, if that is all it holds."""

    numbers: Tensor
    parts: list[_Part]
    table: Tensor | None


class LeafGradients(Gradients):
    """Gradients of the leaves that this process owns, added up over all processes.

    A parameter's gradient is added to its neighbour's as soon as the backward pass has it; a bucket is sent while the
    last leaf's backward pass goes on.
    """

    def __init__(
        self,
        run: Run,
        model: Transformer,
        batches: Batches,
        machine: Machine,
        signals: Sequence[int],
        exchange: Exchange,
    ) -> None:
        super().__init__(run, model, batches, machine, signals)
        self.exchange = exchange
        self._agreed_to_stop = False
        leaves = run.data.leaves or 1
        self.leaves, self.own = leaves, leaves // exchange.size
        tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
        self.buckets = _lay_out(self.parameters, tables, exchange.size)
        self.parts = [part for bucket in self.buckets for part in bucket.parts]
        self.sent = 0  # buckets
        self.hooks = [p.parameter.register_post_accumulate_grad_hook(partial(self._take, p)) for p in self.parts]

    @property
    def stopping(self) -> bool:
        """Whether a signal had come to any process of the run when the last step's losses were added up."""
        return self._agreed_to_stop

    def compute(self, step: int) -> Tensor:
        exchange = self.exchange
        exchange.begin(step)
        for part in self.parts:
            part.waiting, part.leaves = [], 0
        self.sent = 0
        batch, first = self.batches.at(step), exchange.rank * self.own
        n_targets = batch.shape[0] * (batch.shape[1] - 1)
        # Where a data order has cut the batch, leaves may have one row more or less, and none.
        bounds = [leaf * len(batch) // self.leaves for leaf in range(first, first + self.own + 1)]
        ids = torch.from_numpy(batch[bounds[0] : bounds[-1]]).to(self.machine.device, non_blocking=True)
        sizes = [end - begin for begin, end in pairwise(bounds)]
        losses = [torch.zeros((), dtype=widest_dtype(self.machine.device), device=self.machine.device) for _ in sizes]
        with unchanging_weights():
            for number, rows in enumerate(ids.split(sizes)):
                if len(rows):
                    losses[number] += self.backward(rows, step, first + number, n_targets)
                for part in self.parts:
                    if part.leaves == number:  # nothing has come
                        self._add(part, None)
        exchange.finish()
        return self._close_step(add_in_tree(losses))

    def _close_step(self, loss: Tensor) -> Tensor:
        """Agree on the loss, on stopping, and on which parameters have a gradient; set the gradients."""
        had = [float(part.waiting[0] is not None) for part in self.parts]
        mine = torch.tensor([float(bool(self.signals)), *had], dtype=loss.dtype, device=loss.device)
        total = self.exchange.total(torch.cat((loss[None], mine)))
        self._agreed_to_stop, *counts = (total[1:] > 0).tolist()
        for part, any_has in zip(self.parts, counts, strict=True):
            part.waiting = []
            part.parameter.grad = part.place if any_has else None
        return total[0]

    @torch.no_grad()
    def _take(self, part: _Part, parameter: nn.Parameter) -> None:
        """What a parameter does when the backward pass has its gradient."""
        gradient, parameter.grad = parameter.grad, None
        self._add(part, gradient)

    def _add(self, part: _Part, gradient: Tensor | None) -> None:
        """Add one leaf's gradient to its neighbours', as far as these are there."""
        part.leaves += 1
        number, last = part.leaves, part.leaves == self.own
        merges = (number & -number).bit_length() - 1  # levels of the tree that are complete now
        if last:
            merges = len(part.waiting)
        for level in range(merges):
            left = part.waiting.pop()
            if left is None or gradient is None:
                gradient = left if gradient is None else gradient
            elif last and level == merges - 1:
                gradient = torch.add(left, gradient, out=part.place)
            else:
                gradient = left.add_(gradient)
        part.waiting.append(gradient)
        if last:
            if gradient is None:
                part.place.zero_()
            elif gradient is not part.place:
                part.place.copy_(gradient)
            while self.sent < len(self.buckets) and self._is_full(self.buckets[self.sent]):
                self.exchange.start(self.buckets[self.sent].numbers, self.buckets[self.sent].table)
                self.sent += 1

    def _is_full(self, bucket: _Bucket) -> bool:
        return all(part.leaves == self.own for part in bucket.parts)

    def close(self) -> None:
        for hook in self.hooks:
            hook.remove()


def _lay_out(parameters: list[nn.Parameter], tables: set[int], processes: int) -> list[_Bucket]:
    """Buckets of gradients, in the order in which a backward pass fills them. What is larger than a bucket has one to
    itself. tables: the ids of the parameters that are lookup tables."""
    groups: list[list[nn.Parameter]] = []
    for p in reversed(parameters):
        full = not groups or sum(other.nbytes for other in groups[-1]) + p.nbytes > BUCKET
        if full or groups[-1][0].dtype != p.dtype:
            groups.append([])
        groups[-1].append(p)
    buckets = []
    for group in groups:
        sizes = [-(-p.numel() // ALIGN) * ALIGN for p in group]
        numbers = group[0].new_zeros(-(-sum(sizes) // (ALIGN * processes)) * ALIGN * processes)
        places = numbers[: sum(sizes)].split(sizes)
        parts = [_Part(p, place[: p.numel()].view_as(p)) for p, place in zip(group, places, strict=True)]
        is_table = len(group) == 1 and id(group[0]) in tables
        buckets.append(_Bucket(numbers, parts, parts[0].place if is_table else None))
    return buckets
