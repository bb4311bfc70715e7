"""What the processes of a run settle before the first step, and how they share its work: rank 0 decides, all check."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from hectogpt import hardware
from hectogpt.data import Batches
from hectogpt.errors import UserError
from hectogpt.model import Transformer
from hectogpt.training import precision, setup
from hectogpt.training.checkpoint import Checkpoint
from hectogpt.training.leaves import LeafGradients
from hectogpt.training.loop import Gradients
from hectogpt.training.parallel import Alone, World
from hectogpt.training.precision import Machine
from hectogpt.training.run import Run
from hectogpt.training.state import State
from hectogpt.training.sums import make_exchange


def share_checkpoint(world: Alone | World, at: Checkpoint | None) -> Checkpoint | None:
    """The checkpoint that rank 0 has read, at all ranks: only its machine needs the file."""
    facts: dict[str, Any] | None = world.share(
        lambda: None if at is None else {"step": at.step, "values": at.state.values, "facts": at.facts}
    )
    if facts is None:
        return None
    tensors = world.send({} if at is None else at.state.tensors | {"history": at.history})
    history = tensors.pop("history")
    return Checkpoint(facts["step"], State(tensors, facts["values"]), history, facts["facts"])


def choose_machine(world: Alone | World, run: Run, chosen: Mapping[str, Any]) -> Machine:
    """The same dtypes and threads for all processes, as rank 0 finds them; each has a GPU of its own.

    chosen: the machine that a checkpoint names, {} without one. Raises UserError for more processes than GPUs.
    """
    if isinstance(world, Alone):
        return precision.choose_again(run, chosen)
    local = world.launch
    if torch.cuda.is_available() and run.device in ("auto", "cuda"):
        if local.local_size > torch.cuda.device_count():
            raise UserError(
                f"{local.local_size} processes on a machine with {torch.cuda.device_count()} GPUs",
                fix="a process for each GPU, or set device to cpu",
            )
        torch.cuda.set_device(local.local_rank)
        run = replace(run, device=f"cuda:{local.local_rank}")
    usual = {"threads": max(1, hardware.physical_cores() // local.local_size)} | dict(chosen)
    return precision.choose_again(run, world.share(lambda: precision.choose_again(run, usual).describe()))


def choose_head(world: Alone | World, run: Run, model: Transformer, machine: Machine, chosen: str | None) -> str:
    """How the head's softmax is computed, at all ranks as at rank 0. chosen: what was chosen when the run began, None
    for a new run."""
    first: str = world.share(lambda: setup.choose_head(run, model, machine, chosen))
    return setup.choose_head(run, model, machine, first)


def check_equal(world: Alone | World, model: Transformer, facts: Mapping[str, Any]) -> None:
    """See that all processes have the same kind of machine and the same weights. Raises DisagreementError."""
    if isinstance(world, Alone):
        return
    weights = hashlib.sha256()
    for tensor in model.state_dict().values():
        weights.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    machine = {name: value for name, value in facts.items() if name != "device"}
    world.agree({"machine": machine, "weights": weights.hexdigest()})


def make_gradients(
    world: Alone | World, run: Run, model: Transformer, batches: Batches, machine: Machine, signals: Sequence[int]
) -> Gradients:
    """How this process computes its share of a batch's gradients."""
    if run.data.leaves is None:
        return Gradients(run, model, batches, machine, signals)
    return LeafGradients(run, model, batches, machine, signals, make_exchange(world))
