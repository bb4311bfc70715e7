"""The vocabulary head, forward and backward: ours against F.cross_entropy and F.linear_cross_entropy.

Contenders take turns round by round in one process, ratios are taken within a round and their median is told.
Memory is the peak of a fresh process per contender above what it held before its first call.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

from record import record  # noqa: E402

from hectogpt.model.head import head_loss  # noqa: E402

VOCAB = 50257
ROWS = {33: 8192, 128: 8192, 256: 8192, 768: 2048}
TIMED_ROWS = {33: 8192, 128: 8192, 256: 4096, 768: 2048}  # all are linear in rows; this keeps it to minutes
ROUNDS = 5
Contender = Callable[[Tensor, Tensor, Tensor], Tensor]


def chunked(rows: int) -> Contender:
    """PyTorch's own fused head, chunked over rows only."""
    options = torch.nn.LinearCrossEntropyOptions(chunking_method=None, batch_chunk_size=rows)
    return lambda x, weight, targets: F.linear_cross_entropy(x, weight, targets, options=options)


CONTENDERS: dict[str, Contender] = {
    "ours bf16": lambda x, weight, targets: head_loss(x, weight, targets, precision=torch.bfloat16),
    "ours fp32": lambda x, weight, targets: head_loss(x, weight, targets),
    "plain": lambda x, weight, targets: F.cross_entropy(F.linear(x, weight), targets),
    "linear_cross_entropy 128": chunked(128),
    "linear_cross_entropy 256": chunked(256),
    "linear_cross_entropy 512": chunked(512),
}


def problem(d: int, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states of unit scale, a head whose logits have a deviation near 1, random targets."""
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(VOCAB, d, generator=g).mul_(d**-0.5)
    x = torch.randn(rows, d, generator=g)
    return x.requires_grad_(), weight.requires_grad_(), torch.randint(VOCAB, (rows,), generator=g)


def once(contender: Contender, x: Tensor, weight: Tensor, targets: Tensor) -> float:
    """Seconds of one forward and backward pass."""
    x.grad = weight.grad = None
    start = time.perf_counter()
    contender(x, weight, targets).backward()
    return time.perf_counter() - start


def status(field: str) -> int:
    """VmHWM (peak) or VmRSS of this process, in bytes."""
    text = Path("/proc/self/status").read_text()
    return int(text.split(f"{field}:")[1].split()[0]) * 1024


def peak(name: str, d: int) -> int:
    """Bytes above the imported baseline and the inputs, in a fresh process; the weight's gradient counts."""
    command = [sys.executable, __file__, "--memory-of", name, "--d", str(d)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(json.loads(run.stdout)["bytes"])


def measure(d: int) -> list[dict[str, float | str]]:
    """Medians over the rounds, ratios to plain within a round, peak memory.

    Of linear_cross_entropy only the chunk that is quickest on 512 rows takes part in the rounds.
    """
    x, weight, targets = problem(d, TIMED_ROWS[d])
    few = (x[:512].detach().requires_grad_(), weight, targets[:512])
    warm = {name: min(once(CONTENDERS[name], *few) for _ in range(2)) for name in CONTENDERS}
    rivals = [name for name in CONTENDERS if name.startswith("linear_cross_entropy")]
    names = [n for n in CONTENDERS if n not in rivals or n == min(rivals, key=lambda r: warm[r])]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(ROUNDS):
        for name in names:
            seconds[name].append(once(CONTENDERS[name], x, weight, targets))
    memory = {name: peak(name, d) for name in names}
    return [
        {
            "contender": name,
            "d": d,
            "rows": TIMED_ROWS[d],
            "rounds": ROUNDS,
            "seconds": round(statistics.median(seconds[name]), 3),
            "plain_over_this": round(
                statistics.median(p / s for p, s in zip(seconds["plain"], seconds[name], strict=True)), 2
            ),
            "memory_rows": ROWS[d],
            "peak_mb": round(memory[name] / 1e6, 1),
            "plain_memory_over_this": round(memory["plain"] / memory[name], 1),
        }
        for name in names
    ]


def main() -> None:
    """Every width, or one; prints a table and appends one line per width to results/bench.jsonl."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--d", type=int, choices=sorted(ROWS))
    parser.add_argument("--memory-of", choices=list(CONTENDERS))
    args = parser.parse_args()
    if args.memory_of:
        inputs = problem(args.d, ROWS[args.d])
        (torch.ones(64, 64, requires_grad=True) @ torch.ones(64, 64)).sum().backward()
        before = status("VmRSS")
        once(CONTENDERS[args.memory_of], *inputs)
        print(json.dumps({"bytes": status("VmHWM") - before}))
        return
    for d in [args.d] if args.d else ROWS:
        rows = measure(d)
        record("head: forward and backward", list(rows))
        for row in rows:
            print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)


if __name__ == "__main__":
    main()
