"""Where the time of our training step goes, and how much of it this machine's measured peaks account for.

The ideal step does its products at the peak of their format, one exponential per logit and one pass over weights,
gradients and moments, and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch

from bench.peaks import PEAKS
from bench.race import Lap, Race, Row
from bench.step import SETTINGS as STEPS
from bench.step import Setting
from hectogpt.model import Transformer
from hectogpt.training.optim import AdamW
from hectogpt.training.precision import fast_matmul_dtype, keep_freed_memory

PACKAGES = ()
SETTINGS = ("peaks", "assignment", "d128", "d128 bf16", "d256", "d256 bf16", "tiny")  # bf16: of the blocks too


def step_parts(setting: Setting, precision: torch.dtype, blocks: torch.dtype) -> Lap:
    """A step that returns the seconds of its parts: blocks (forward and backward), head and loss, and update (clip and
    optimizer). precision: the dtype of the head's products; blocks: of theirs."""
    ids, model = setting.batch(), Transformer(setting.config)
    model.use_kernels(True)
    optimizer = AdamW(lr=1e-5).build(model)

    def step() -> Row:
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
        model.zero_grad()
        end = time.perf_counter()
        parts = {"blocks": forward - start + backward - head, "head": head - forward, "update": end - backward}
        return {**parts, "step": end - start}

    return step


def ideal_seconds(setting: Setting, precision: torch.dtype, blocks: torch.dtype) -> Row:
    """The seconds of the same parts at the measured peaks."""
    config = setting.config
    head_peak, blocks_peak = (PEAKS[str(dtype).removeprefix("torch.")]() for dtype in (precision, blocks))
    n = setting.rows * (setting.tokens - 1)
    head_work = 6 * n * config.vocab_size * config.d_model
    n_parameters = 2 * config.vocab_size * config.d_model + config.n_layers * 12 * config.d_model**2
    parts = {
        "blocks": (setting.operations() - head_work) / blocks_peak,
        "head": head_work / head_peak + n * config.vocab_size / PEAKS["exp"](),
        "update": 7 * 4 * n_parameters / PEAKS["copy"](),  # read w, g, m, v; write w, m, v
    }
    return {**parts, "step": sum(parts.values())}


def prepare(setting: str, contender: str, folder: str) -> dict[str, Lap]:
    """A peak, or a step in its parts."""
    if contender in PEAKS:
        return {"step": lambda: {"giga": PEAKS[contender]() / 1e9}}
    name, _, bf16 = setting.partition(" ")
    keep_freed_memory()  # as a session does
    precision = fast_matmul_dtype()
    blocks = torch.bfloat16 if bf16 else torch.float32
    ideal = ideal_seconds(STEPS[name], precision, blocks)
    return {"step": step_parts(STEPS[name], precision, blocks), "ideal": lambda: ideal}


def measure(setting: str, race: Race) -> Iterator[tuple[str, list[Row]]]:
    """The peaks, or the median seconds of a step's parts next to the ideal ones."""
    if setting == "peaks":
        (laps,) = race.run(__name__, setting, tuple(PEAKS))
        yield "peaks", laps.rows(lambda name: {"giga_per_second": round(laps.median(name, "giga"), 1)})
        return
    (laps,) = race.run(__name__, setting, ["step"], warm_up=["step", "ideal"])

    def rows_of(part: str) -> list[Row]:
        def figures(name: str) -> dict[str, Any]:
            seconds, ideal = laps.median(name, part), float(laps.facts[name][part])
            share = round(ideal / seconds, 2)
            return {"seconds": round(seconds, 3), "ideal_seconds": round(ideal, 3), "share_of_roofline": share}

        return [row | {"contender": part} for row in laps.rows(figures, setting=setting)]

    yield "roofline", [row for part in ("blocks", "head", "update", "step") for row in rows_of(part)]
