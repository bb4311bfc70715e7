"""What processes on this machine measure of the schedules in tools/schedules.py, with torch's gloo.

`python -m tools.scale --measure` starts it under torchrun. Each rank counts the bytes that it hands to the kernel for
its sockets (wchar of /proc/self/io), around one call and after a pause, and times several calls.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

ROUNDS = 60
SIZES = (1 << 20, 16 << 20)  # bytes
SMALL = 1 << 10


def bytes_written() -> int:
    """Bytes that this process has written so far, to files and sockets."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text(encoding="utf-8").splitlines())
    return int(fields["wchar"])


def tree_sum(x: Tensor) -> None:
    """As hectogpt/training/sums.py: shards to their owners, sums, sums to all."""
    shards, rank = x.view(dist.get_world_size(), -1), dist.get_rank()
    others = [r for r in range(len(shards)) if r != rank]
    received = torch.empty_like(shards[1:])
    exchange([(received[i], r) for i, r in enumerate(others)], [(shards[r], r) for r in others])
    shards[rank] += received.sum(0)
    exchange([(shards[r], r) for r in others], [(shards[rank], r) for r in others])


def exchange(into: list[tuple[Tensor, int]], out: list[tuple[Tensor, int]]) -> None:
    """Receive and send at once."""
    operations = [dist.P2POp(dist.irecv, tensor, rank) for tensor, rank in into]
    operations += [dist.P2POp(dist.isend, tensor, rank) for tensor, rank in out]
    for work in dist.batch_isend_irecv(operations) if operations else []:
        work.wait()


def shift(x: Tensor) -> None:
    """Each rank sends to the next and receives from the one before: what the bandwidth is measured with."""
    rank, size = dist.get_rank(), dist.get_world_size()
    exchange([(torch.empty_like(x), (rank - 1) % size)], [(x, (rank + 1) % size)])


def all_gather(x: Tensor) -> None:
    """Each rank's shard to all, as FSDP2 asks for it."""
    dist.all_gather_into_tensor(x, x.view(dist.get_world_size(), -1)[dist.get_rank()].clone())


def reduce_scatter(x: Tensor) -> None:
    """The sum of each shard to its rank, as FSDP2 asks for it."""
    dist.reduce_scatter_tensor(torch.empty(x.numel() // dist.get_world_size()), x)


CALLS: dict[str, Callable[[Tensor], object]] = {
    "all-reduce (ring)": dist.all_reduce,
    "tree sum (all-to-all, all-gather)": tree_sum,
    "all-gather (of FSDP)": all_gather,
    "reduce-scatter (of FSDP)": reduce_scatter,
}


def seconds_of(call: Callable[[Tensor], object], x: Tensor) -> float:
    """Seconds of the slowest rank in the quickest of ROUNDS calls: what else the machine does only adds."""
    found = []
    for _ in range(ROUNDS):
        dist.barrier()
        begun = time.perf_counter()
        call(x)
        taken = torch.tensor(time.perf_counter() - begun, dtype=torch.float64)
        dist.all_reduce(taken, dist.ReduceOp.MAX)
        found.append(float(taken))
    return min(found)


def bytes_of(call: Callable[[Tensor], object], x: Tensor) -> int:
    """Bytes that this rank writes in one call."""
    dist.barrier()
    time.sleep(0.1)
    before = bytes_written()
    call(x)
    time.sleep(0.1)  # gloo's own thread may still be sending
    counted = bytes_written() - before
    dist.barrier()
    return counted


def main() -> None:
    """Print one JSON object at rank 0."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    size = dist.get_world_size()
    found: dict[str, object] = {"processes": size, "torch": torch.__version__}
    if size > 1:
        found |= {"latency": seconds_of(shift, torch.ones(SMALL // 4))}
        found |= {"bandwidth": SIZES[-1] / size / seconds_of(shift, torch.ones(SIZES[-1] // 4 // size))}
    rows = []
    for name, call in CALLS.items():
        for nbytes in SIZES:
            x = torch.ones(nbytes // 4)
            call(x)
            rows.append({"call": name, "size": nbytes, "bytes": bytes_of(call, x), "seconds": seconds_of(call, x)})
    if dist.get_rank() == 0:
        print(json.dumps(found | {"rows": rows}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
