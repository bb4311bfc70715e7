"""Sums of gradients over the processes of a run, in an order that does not depend on how many there are.

Every process adds up one shard of a bucket: it gets this shard from all others, adds the parts in the order of ranks by
the same binary tree as the leaves, and gives the sum to all others. That is the traffic of an all-reduce, whose own
order of additions depends on the number of processes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from hectogpt.train.leaves import Exchange, add_in_tree
from hectogpt.train.parallel import World

AHEAD = 2  # buckets that may be under way before the first of them is waited for


@dataclass
class _Bucket:
    """A bucket under way. shards: [processes, n] of its own numbers; received: the others' parts of this process's
    shard, in the order of ranks with its own left out."""

    shards: Tensor
    received: Tensor
    works: list[dist.Work]
    is_summed: bool = False


class TreeExchange(Exchange):
    """Sums in the fixed tree, between the processes of a world."""

    def __init__(self, world: World) -> None:
        self.world, self.rank, self.size = world, world.rank, world.size
        self.others = [rank for rank in range(self.size) if rank != self.rank]
        self.under_way: list[_Bucket] = []
        self.scratch: list[Tensor] = []  # the buckets' `received`, kept from step to step

    def begin(self, step: int) -> None:
        self.world.begin(step)

    def start(self, bucket: Tensor) -> None:
        shards = bucket.view(self.size, -1)
        number = len(self.under_way)
        if number == len(self.scratch):
            self.scratch.append(torch.empty_like(shards[1:]))
        with self.world.guarded("sending gradients", mark=False):
            received = self.scratch[number]
            operations = [dist.P2POp(dist.irecv, into, rank) for into, rank in zip(received, self.others, strict=True)]
            operations += [dist.P2POp(dist.isend, shards[rank], rank) for rank in self.others]
            works = dist.batch_isend_irecv(operations)
            self.under_way.append(_Bucket(shards, received, works))
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
        self.under_way = []

    def total(self, numbers: Tensor) -> Tensor:
        every = [torch.empty_like(numbers) for _ in range(self.size)]
        with self.world.guarded("the sum of losses"):
            dist.all_gather(every, numbers)
            return add_in_tree(every)


class FastExchange(Exchange):
    """Sums by the library's own all-reduce: their last bits depend on the number of processes."""

    def __init__(self, world: World) -> None:
        self.world, self.rank, self.size = world, world.rank, world.size
        self.works: list[dist.Work] = []

    def begin(self, step: int) -> None:
        self.world.begin(step)

    def start(self, bucket: Tensor) -> None:
        with self.world.guarded("sending gradients", mark=False):
            self.works.append(dist.all_reduce(bucket, async_op=True))

    def finish(self) -> None:
        with self.world.guarded("the sum of gradients"):
            for work in self.works:
                work.wait()
        self.works = []

    def total(self, numbers: Tensor) -> Tensor:
        with self.world.guarded("the sum of losses"):
            dist.all_reduce(numbers)
        return numbers


def make_exchange(world: World | None) -> Exchange:
    """How the processes of a world add up; None stands for one process alone."""
    if world is None or world.size == 1:
        return Exchange()
    return FastExchange(world) if world.fast else TreeExchange(world)
