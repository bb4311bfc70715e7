"""Communication as a schedule: rounds of messages over links, and what it costs in bytes, messages and seconds.

A schedule is a list of rounds; the messages of a round are under way at once, the next round waits for all of them.
`simulate` runs one on a network in which every rank sends and receives at `bandwidth`, and each round costs `latency`
once and each message that a rank sends costs `overhead`. This is the model of Hockney 1994 (alpha + n / beta), with
the ports of a rank shared by its messages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple


class Message(NamedTuple):
    """Bytes that go from one rank to another."""

    source: int
    target: int
    size: int


Round = list[Message]


@dataclass(frozen=True)
class Network:
    """Links. bandwidth: bytes per second that a rank can send, and receive at the same time. latency: seconds of a
    round. overhead: seconds that a rank spends on each message."""

    bandwidth: float
    latency: float = 0.0
    overhead: float = 0.0


@dataclass(frozen=True)
class Cost:
    """What a schedule costs. sent: bytes that each rank sends. messages: that each rank sends. rounds: their number.
    seconds: in all."""

    sent: tuple[int, ...]
    messages: tuple[int, ...]
    rounds: int
    seconds: float


def simulate(schedule: list[Round], ranks: int, network: Network) -> Cost:
    """Run a schedule, round by round."""
    sent, messages, seconds = [0] * ranks, [0] * ranks, 0.0
    for messages_now in schedule:
        out, into, count = [0] * ranks, [0] * ranks, [0] * ranks
        for message in messages_now:
            out[message.source] += message.size
            into[message.target] += message.size
            count[message.source] += 1
        busiest = max(max(out), max(into)) / network.bandwidth
        seconds += network.latency + busiest + max(count) * network.overhead
        sent = [a + b for a, b in zip(sent, out, strict=True)]
        messages = [a + b for a, b in zip(messages, count, strict=True)]
    return Cost(tuple(sent), tuple(messages), len(schedule), seconds)


def ring(ranks: int, size: int, pieces: int = 1) -> list[Round]:
    """Half of a ring: in ranks - 1 rounds each rank sends a shard (size / ranks bytes) to its neighbour, in `pieces`
    messages. With additions on the way it is a reduce-scatter, without an all-gather."""
    shard = size // ranks
    parts = [shard * (i + 1) // pieces - shard * i // pieces for i in range(pieces)]
    one = [Message(rank, (rank + 1) % ranks, part) for rank in range(ranks) for part in parts]
    return [one] * (ranks - 1)


def ring_all_reduce(ranks: int, size: int, pieces: int = 1) -> list[Round]:
    """Reduce-scatter and all-gather on a ring (Patarasuk and Yuan 2009): 2 (W - 1) / W of the size from each rank."""
    return ring(ranks, size, pieces) * 2


def direct(ranks: int, size: int) -> list[Round]:
    """One round in which every rank sends a shard to each of the others: an all-to-all, or an all-gather."""
    shard = size // ranks
    return [[Message(a, b, shard) for a in range(ranks) for b in range(ranks) if a != b]] if ranks > 1 else []


def tree_sum(ranks: int, size: int) -> list[Round]:
    """The sum in a fixed tree (`hectogpt/training/sums.py`): each rank gets the parts of one shard from all others,
    adds them in the tree's order, and sends the sum to all others."""
    return direct(ranks, size) * 2


def fsdp_step(ranks: int, blocks: int, weights: int, gradients: int) -> list[Round]:
    """A step of FSDP over so many equal blocks: for each, an all-gather of its weights before its forward pass, another
    before its backward pass, and a reduce-scatter of its gradients. weights, gradients: bytes of one block."""
    return (ring(ranks, weights) * 2 + ring(ranks, gradients)) * blocks


# The library gloo as torch 2.13 uses it on CPUs. Every message has a header. An all-reduce goes over a ring in messages
# of at most 1 MiB, at least two for each shard; an all-gather in two for each shard. Its reduce-scatter, which FSDP2
# calls, is a whole all-reduce.
GLOO_HEADER = 144
GLOO_PIECE = 1 << 20


def gloo_all_reduce(ranks: int, size: int) -> list[Round]:
    """The all-reduce of gloo."""
    return ring_all_reduce(ranks, size, max(2, -(-(size // ranks) // GLOO_PIECE)))


GLOO: dict[str, Callable[[int, int], list[Round]]] = {
    "all-reduce (ring)": gloo_all_reduce,
    "tree sum (all-to-all, all-gather)": tree_sum,
    "all-gather (of FSDP)": lambda ranks, size: ring(ranks, size, 2),
    "reduce-scatter (of FSDP)": gloo_all_reduce,
}


def gloo_bytes(cost: Cost, rank: int = 0) -> int:
    """Bytes that a rank writes to its sockets."""
    return cost.sent[rank] + GLOO_HEADER * cost.messages[rank]
