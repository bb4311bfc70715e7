"""What the processes of a run settle before the first step, and how their work is shared: rank 0 decides, all check."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from hectogpt import hardware
from hectogpt.data import Batches
from hectogpt.errors import UserError
from hectogpt.model import Transformer
from hectogpt.train import precision
from hectogpt.train.checkpoint import Checkpoint
from hectogpt.train.leaves import LeafGradients
from hectogpt.train.loop import Gradients
from hectogpt.train.parallel import World, send_all
from hectogpt.train.precision import Machine
from hectogpt.train.run import Run
from hectogpt.train.state import State
from hectogpt.train.sums import make_exchange


def share_checkpoint(world: World, at: Checkpoint | None) -> Checkpoint | None:
    """The checkpoint that rank 0 has read, at all ranks: only its machine need have the file."""
    facts = None if at is None else {"step": at.step, "values": at.state.values, "facts": at.facts}
    told: dict[str, Any] | None = world.share(lambda: facts)
    if told is None:
        return None
    tensors = send_all(world, None if at is None else at.state.tensors | {"history": at.history})
    if at is not None:
        return at
    history = tensors.pop("history")
    return Checkpoint(told["step"], State(tensors, told["values"]), history, told["facts"])


def choose_machine(world: World, run: Run, chosen: Mapping[str, Any]) -> Machine:
    """The same dtypes and threads for all processes, as rank 0 finds them; each has a GPU of its own.

    chosen: what a checkpoint tells of the machine, {} without one. Raises UserError for more processes than GPUs.
    """
    local = world.launch
    if torch.cuda.is_available() and run.device in ("auto", "cuda"):
        if local.local_size > torch.cuda.device_count():
            raise UserError(
                f"{local.local_size} processes on a machine with {torch.cuda.device_count()} GPUs",
                fix="a process for each GPU, or set device to cpu",
            )
        torch.cuda.set_device(local.local_rank)
        run = replace(run, device=f"cuda:{local.local_rank}")
    usual = {"threads": max(1, hardware.physical_cores() // local.local_size)}
    if not world.is_first:
        return precision.choose_again(run, world.hear())
    machine = precision.choose_again(run, usual | dict(chosen))
    world.tell(machine.describe())
    return machine


def check_equal(world: World, model: Transformer, facts: Mapping[str, Any]) -> None:
    """See that all processes have the same weights and the same kind of machine. Raises DisagreementError."""
    weights = hashlib.sha256()
    for tensor in model.state_dict().values():
        weights.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    machine = {name: value for name, value in facts.items() if name != "device"}
    world.agree({"machine": machine, "weights": weights.hexdigest()})


def make_gradients(world: World | None, run: Run, model: Transformer, batches: Batches, machine: Machine) -> Gradients:
    """How this process computes its share of a batch's gradients."""
    if run.data.leaves is None and world is None:
        return Gradients(run, model, batches, machine)
    if world is not None and world.sharded:
        from hectogpt.train.sharded import ShardedGradients  # loads FSDP2, half a second

        return ShardedGradients(run, model, batches, machine, world)
    return LeafGradients(run, model, batches, machine, make_exchange(world))


@dataclass
class Sharded:
    """The model that trains while its weights are sharded, and its optimizer; the session keeps a whole one. step: the
    one whose state the whole one has."""

    model: Transformer
    optimizer: Any
    step: int


def make_sharded(
    world: World, machine: Machine, model: Transformer, plain: Transformer, built: Any, step: int
) -> Sharded:
    """Shard `model`, another one like the plain one, which has the run's state after `step` steps."""
    from hectogpt.train.sharded import ShardedOptimizer, shard_model

    model.load_state_dict(plain.state_dict())
    shard_model(model, world, machine, world.recompute)
    return Sharded(model, ShardedOptimizer(model, world, plain, built), step)
