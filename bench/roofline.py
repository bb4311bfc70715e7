"""Where the time of our training step goes, and how much of it this machine's measured peaks account for.

The ideal step does its products at the peak of their format, one exponential per logit and one pass over weights,
gradients and moments, nothing twice and nothing else.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

import torch

from bench.peaks import peaks
from bench.record import Row
from bench.step import SETTINGS as STEPS
from bench.step import Setting
from hectogpt.kernels import native
from hectogpt.model import Transformer
from hectogpt.training.optim import AdamW
from hectogpt.training.precision import fast_matmul_dtype, keep_freed_memory

PACKAGES = ()
SETTINGS = ("peaks", "assignment", "d128", "d128 bf16", "d256", "d256 bf16", "tiny")  # bf16: of the blocks too


def step_parts(setting: Setting, precision: torch.dtype, blocks: torch.dtype) -> Callable[[], dict[str, float]]:
    """A function that takes one step and returns the seconds of its parts: blocks (forward and backward), head and
    loss, and update (clip and optimizer). precision: the dtype of the head's products; blocks: of theirs."""
    ids, model = setting.batch(), Transformer(setting.config)
    optimizer = AdamW(lr=1e-5).build(model)

    def step() -> dict[str, float]:
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=blocks == torch.bfloat16):
            hidden = model.hidden(ids[:, :-1])
        forward = time.perf_counter()
        leaf = hidden.detach().requires_grad_()
        model.lm_head.losses(leaf, ids[:, 1:], model.embeddings.weight, precision=precision)[0].backward()
        head = time.perf_counter()
        hidden.backward(leaf.grad)
        backward = time.perf_counter()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(0, 1.0)
        optimizer.zero_grad()
        end = time.perf_counter()
        return {"blocks": forward - start + backward - head, "head": head - forward, "update": end - backward}

    return step


def ideal_seconds(setting: Setting, precision: torch.dtype, blocks: torch.dtype) -> dict[str, float]:
    """The same parts at the peaks."""
    config, peak = setting.config, peaks()
    head_peak, blocks_peak = (peak[str(dtype).removeprefix("torch.")] for dtype in (precision, blocks))
    n = setting.rows * (setting.tokens - 1)
    head_work = 6 * n * config.vocab_size * config.d_model
    n_parameters = 2 * config.vocab_size * config.d_model + config.n_layers * 12 * config.d_model**2
    return {
        "blocks": (setting.operations() - head_work) / blocks_peak,
        "head": head_work / head_peak + n * config.vocab_size / peak["exp"],
        "update": 7 * 4 * n_parameters / peak["copy"],  # read w, g, m, v; write w, m, v
    }


def measure(setting: str, rounds: int) -> Iterator[tuple[str, list[Row]]]:
    """The peaks, or the median seconds of a step's parts beside the ideal ones."""
    if setting == "peaks":
        yield "peaks", [{"contender": n, "giga_per_second": round(value / 1e9, 1)} for n, value in peaks().items()]
        return
    name, _, bf16 = setting.partition(" ")
    chosen = STEPS[name]
    native.use(True)
    keep_freed_memory()  # as a session does
    precision = fast_matmul_dtype()
    blocks = torch.bfloat16 if bf16 else torch.float32
    step, least = step_parts(chosen, precision, blocks), ideal_seconds(chosen, precision, blocks)
    step()
    steps = [step() for _ in range(rounds)]
    took = {name: statistics.median(parts[name] for parts in steps) for name in least}
    took["step"], least["step"] = sum(took.values()), sum(least.values())
    yield (
        "roofline",
        [
            {
                "contender": name,
                "setting": setting,
                "seconds": round(took[name], 3),
                "ideal_seconds": round(least[name], 3),
                "share_of_roofline": round(least[name] / took[name], 2),
            }
            for name in took
        ],
    )
