"""What each process of a shared run takes of its machine's memory: measured for docs/scale.md.

`python -m tools.scale --measure memory` starts it under torchrun: python -m tools.scale_memory HOW. Every process
notes its peak, less what it had taken before the model was built: after building, after each of two steps, and after
the last, when rank 0 brings sharded weights and the optimizer's state together.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import torch

from hectogpt import hardware
from hectogpt.data import open_corpus
from hectogpt.lab.recipes import recipe
from hectogpt.model import ModelConfig
from hectogpt.model.lm_head import LMHeadConfig
from hectogpt.training.launch import find_launch
from hectogpt.training.parallel import World
from hectogpt.training.run import Data, Run
from hectogpt.training.session import Session
from tools.scale_model import LEAVES, MEASURED, SEQUENCES, VOCABULARY

STEPS = 3


def make_run(how: str) -> Run:
    """A run of MEASURED by AdamW on one thread; as many sequences are computed at a time, whatever shares it."""
    shape = MEASURED
    head = LMHeadConfig(tied=True)
    config = ModelConfig(shape.d, 8, shape.layers, shape.context, VOCABULARY, lm_head=head)
    data = Data(batch_size=shape.batch // shape.context, seq_len=shape.context)
    assert data.batch_size == SEQUENCES * LEAVES
    data = replace(data, micro_batch=SEQUENCES) if how == "none" else replace(data, leaves=LEAVES)
    return replace(recipe("adamw_128"), model=config, data=data, steps=STEPS, threads=1, device="cpu")


def measure(how: str) -> list[dict[str, float]]:
    """MiB of each process, in the order of ranks."""
    run, corpus, launch = make_run(how), open_corpus("sotu"), find_launch()
    world = None if launch is None or how == "none" else World(launch, 300.0, sharded=how == "fsdp")
    if how == "fsdp":
        import hectogpt.training.sharded_optimizer  # noqa: F401  takes memory of its own
    torch.ones(64, 64, requires_grad=True).matmul(torch.ones(64, 64)).sum().backward()  # loads what is loaded late
    before = hardware.resident_memory_mb()
    session = Session.open(run, corpus, world=world)
    assert sum(p.numel() for p in session.model.parameters()) == MEASURED.parameters
    peaks = [hardware.peak_memory_mb() - before, *(hardware.peak_memory_mb() - before for _ in session.steps())]
    mine = dict(zip(("built", "first", "trained", "ended"), (round(peak, 1) for peak in peaks), strict=True))
    return [mine] if world is None else world.gather_texts(mine)


if __name__ == "__main__":
    told = measure(sys.argv[1])
    if (here := find_launch()) is None or here.rank == 0:
        print(json.dumps({"how": sys.argv[1], "ranks": told}))
