"""Where the time of our training step goes, and how much of it this machine's measured peaks account for.

Peaks: matrix products in float32 and bf16, copying, exponentials. The ideal step does its products at the peak of their
format, one exponential per logit and one pass over weights, gradients and moments, nothing twice and nothing else.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

from record import record  # noqa: E402
from step import SETTINGS, batch, products  # noqa: E402

from hectogpt.model import ModelConfig, Transformer  # noqa: E402
from hectogpt.model.head import _onednn_products, fastest_precision, head_loss  # noqa: E402
from hectogpt.train.machine import physical_cores  # noqa: E402
from hectogpt.train.optim import AdamW  # noqa: E402

ROUNDS = 5


def best(work: Callable[[], object], rounds: int = 7) -> float:
    """Seconds of the quickest of several calls."""
    work()
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def peaks() -> dict[str, float]:
    """Floating point operations, bytes and exponentials per second, the best seen in several tries."""
    n = 1536
    found = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        a, b = torch.randn(n, n).to(dtype), torch.randn(n, n).to(dtype)
        out = torch.empty(n, n, dtype=dtype)
        with _onednn_products(dtype):
            found[name] = 2 * n**3 / best(lambda a=a, b=b, out=out: torch.mm(a, b, out=out))
    source = torch.zeros(64 << 20)
    target = torch.empty_like(source)
    found["copy"] = 2 * 4 * source.numel() / best(lambda: target.copy_(source))
    small = torch.randn(1 << 17)  # in cache, so that only the exponential is timed
    exps = torch.empty_like(small)
    found["exp"] = small.numel() / best(lambda: torch.exp(small, out=exps), 200)
    return found


def parts(config: ModelConfig, ids: Tensor, precision: torch.dtype) -> dict[str, float]:
    """Median seconds of a step's parts: blocks (forward and backward), head and loss, clip and optimizer."""
    model = Transformer(config)
    optimizer = AdamW(lr=1e-5).build(model)
    seconds: dict[str, list[float]] = {"blocks": [], "head": [], "update": []}
    for turn in range(ROUNDS + 1):
        start = time.perf_counter()
        hidden = model.hidden(ids[:, :-1])
        forward = time.perf_counter()
        leaf = hidden.detach().requires_grad_()
        head_loss(leaf, model.lm_head.weight, ids[:, 1:], precision=precision).backward()
        head = time.perf_counter()
        hidden.backward(leaf.grad)
        backward = time.perf_counter()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(0, 1.0)
        optimizer.zero_grad()
        end = time.perf_counter()
        if turn:
            seconds["blocks"].append(forward - start + backward - head)
            seconds["head"].append(head - forward)
            seconds["update"].append(end - backward)
    return {name: statistics.median(values) for name, values in seconds.items()}


def ideal(
    config: ModelConfig, rows: int, tokens: int, peak: dict[str, float], precision: torch.dtype
) -> dict[str, float]:
    """Seconds at the peaks."""
    n = rows * (tokens - 1)
    head_work = 6 * n * config.vocab_size * config.d_model
    n_parameters = 2 * config.vocab_size * config.d_model + config.n_layers * 12 * config.d_model**2
    return {
        "blocks": (products(config, rows, tokens) - head_work) / peak["float32"],
        "head": head_work / peak[str(precision).removeprefix("torch.")] + n * config.vocab_size / peak["exp"],
        "update": 7 * 4 * n_parameters / peak["copy"],  # read w, g, m, v; write w, m, v
    }


def main() -> None:
    """Print a table and append one line per setting to results/bench.jsonl."""
    torch.set_num_threads(physical_cores())
    peak = peaks()
    print("  ".join(f"{name} {value / 1e9:.1f} G/s" for name, value in peak.items()))
    record("peaks", [{"contender": name, "giga_per_second": round(value / 1e9, 1)} for name, value in peak.items()])
    for setting in ("assignment", "d128", "d256"):
        config, rows, tokens, _ = SETTINGS[setting]
        precision = fastest_precision(config.d_model, config.vocab_size)
        took, least = (
            parts(config, batch(config, rows, tokens), precision),
            ideal(config, rows, tokens, peak, precision),
        )
        table = [
            {
                "contender": name,
                "setting": setting,
                "seconds": round(took[name], 3),
                "ideal_seconds": round(least[name], 3),
                "share_of_roofline": round(least[name] / took[name], 2),
            }
            for name in took
        ]
        total, bound = sum(took.values()), sum(least.values())
        table.append(
            {
                "contender": "step",
                "setting": setting,
                "seconds": round(total, 3),
                "ideal_seconds": round(bound, 3),
                "share_of_roofline": round(bound / total, 2),
            }
        )
        record("roofline", list(table))
        for row in table:
            print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)


if __name__ == "__main__":
    main()
