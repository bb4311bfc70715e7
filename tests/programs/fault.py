"""A user's own file whose part does what $FAULT says: the kind of fault, the rank, and the part's call in training."""

import os
import signal
import time
from dataclasses import dataclass, replace

import torch

from hectogpt import InputPart


@dataclass(frozen=True)
class Fault(InputPart):
    def build(self, d_model, vocab_size, norm):
        return FaultLayer()


class FaultLayer(torch.nn.Module):
    calls = 0

    def forward(self, x, ids, cache=None):
        kind, rank, call = os.environ.get("FAULT", "none 0 0").split()
        in_a_step = self.training and torch.is_grad_enabled()  # the layers are tried before, without gradients
        FaultLayer.calls += in_a_step
        here = in_a_step and FaultLayer.calls == int(call) and os.environ.get("RANK", "0") == rank
        if here and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
            if kind == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if kind == "raised":
                raise ValueError("the idea fell over")
            if kind == "memory":
                torch.empty(1 << 50, dtype=torch.uint8)
            if kind == "hung":
                time.sleep(1000)
            if kind == "stopped":
                os.kill(os.getppid(), signal.SIGTERM)
                time.sleep(0.5)
        return x


def faulty(run):
    return replace(run, model=replace(run.model, inputs=(Fault(),)))
