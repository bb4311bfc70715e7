"""The sums of gradients over the processes of a run, in the tree of the leaves.

The order of additions does not depend on how many processes there are. Every process adds up one shard of a bucket: it
gets this shard from all others, adds the parts in the order of ranks by the same tree as the leaves, and gives the sum
to all others. That is the traffic of an all-reduce, whose own order depends on the number of processes. Of a lookup
table only those rows travel that any process has a gradient for.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from hectogpt.training.leaves import ALIGN, Exchange, add_in_tree
from hectogpt.training.parallel import Alone, World

AHEAD = 2  # buckets that may be under way before the first of them is waited for


@dataclass
class _Rows:
    """The rows of a lookup table's gradient that are not zero at every process, side by side. packed: [n], zeros at
    the end; n is a multiple of ALIGN times the number of processes."""

    table: Tensor
    rows: Tensor
    packed: Tensor

    def put_back(self) -> None:
        """Write the packed rows into the table."""
        width = self.table.shape[1]
        self.table[self.rows] = self.packed[: len(self.rows) * width].view(-1, width)


def _pack(table: Tensor, size: int) -> _Rows | None:
    """Agree with the other processes on the rows that travel; None if it is more than half of them."""
    mine = (table.amax(1) != 0) | (table.amin(1) != 0)
    every = [torch.empty_like(mine, dtype=torch.uint8) for _ in range(size)]
    dist.all_gather(every, mine.to(torch.uint8))
    rows = torch.stack(every).any(0).nonzero().squeeze(1)
    if 2 * len(rows) > len(table):
        return None
    width = table.shape[1]
    count, unit = len(rows) * width, ALIGN * size
    packed = table.new_zeros(max(1, -(-count // unit)) * unit)
    torch.index_select(table, 0, rows, out=packed[:count].view(-1, width))
    return _Rows(table, rows, packed)


@dataclass
class _Bucket:
    """A bucket under way. shards: [processes, n] of its own numbers; received: the others' parts of this process's
    shard, in the order of ranks with its own left out; rows: what the numbers are, if they are a table's rows."""

    shards: Tensor
    received: Tensor
    works: list[dist.Work]
    rows: _Rows | None
    is_summed: bool = False


class TreeExchange(Exchange):
    """Sums in the fixed tree, between the processes of a world."""

    def __init__(self, world: World) -> None:
        self.world, self.rank, self.size = world, world.rank, world.size
        self.others = [rank for rank in range(self.size) if rank != self.rank]
        self.under_way: list[_Bucket] = []

    def begin(self, step: int) -> None:
        self.world.begin(step)

    def start(self, bucket: Tensor, table: Tensor | None = None) -> None:
        number = len(self.under_way)
        with self.world.guarded("the sum of gradients", mark=False):
            rows = None if table is None else _pack(table, self.size)
            shards = (bucket if rows is None else rows.packed).view(self.size, -1)
            received = torch.empty_like(shards[1:])
            operations = [dist.P2POp(dist.irecv, into, rank) for into, rank in zip(received, self.others, strict=True)]
            operations += [dist.P2POp(dist.isend, shards[rank], rank) for rank in self.others]
            works = dist.batch_isend_irecv(operations)
            self.under_way.append(_Bucket(shards, received, works, rows))
            if number >= AHEAD:
                self._sum(self.under_way[number - AHEAD])

    def _sum(self, bucket: _Bucket) -> None:
        """Add up this process's shard, and begin to give it to the others."""
        for work in bucket.works:
            work.wait()
        mine = bucket.shards[self.rank]
        parts = list(bucket.received)
        parts.insert(self.rank, mine)
        if (summed := add_in_tree(parts)) is not mine:
            mine.copy_(summed)
        operations = [dist.P2POp(dist.irecv, bucket.shards[rank], rank) for rank in self.others]
        operations += [dist.P2POp(dist.isend, mine, rank) for rank in self.others]
        bucket.works, bucket.is_summed = dist.batch_isend_irecv(operations), True

    def finish(self) -> None:
        with self.world.guarded("the sum of gradients"):
            for bucket in self.under_way:
                if not bucket.is_summed:
                    self._sum(bucket)
            for bucket in self.under_way:
                for work in bucket.works:
                    work.wait()
                if bucket.rows is not None:
                    bucket.rows.put_back()
        self.under_way = []

    def total(self, numbers: Tensor) -> Tensor:
        every = [torch.empty_like(numbers) for _ in range(self.size)]
        with self.world.guarded("the sum of losses"):
            dist.all_gather(every, numbers)
            return add_in_tree(every)


def make_exchange(world: Alone | World) -> Exchange:
    """How the processes of a world add up."""
    return Exchange() if isinstance(world, Alone) or world.size == 1 else TreeExchange(world)
