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
from hectogpt.train import precision, setup
from hectogpt.train.checkpoint import Checkpoint
from hectogpt.train.leaves import LeafGradients
from hectogpt.train.loop import Gradients
from hectogpt.train.parallel import World, send_all
from hectogpt.train.precision import Machine
from hectogpt.train.run import Run
from hectogpt.train.state import State
from hectogpt.train.sums import make_exchange


def share_checkpoint(world: World, at: Checkpoint | None) -> Checkpoint | None:
    """The checkpoint that rank 0 has read, at all ranks: only its machine need have the file.

    Where weights are sharded, others get its floating-point tensors later, each the parts that it holds; until then
    their weights are forms on the meta device.
    """
    facts = None if at is None else {"step": at.step, "values": at.state.values, "facts": at.facts}
    told: dict[str, Any] | None = world.share(lambda: facts)
    if told is None:
        return None
    whole = {} if at is None else at.state.tensors
    forms: dict[str, list[int]] = world.share(
        lambda: {n: list(t.shape) for n, t in whole.items() if world.sharded and t.is_floating_point()}
    )
    now = None if at is None else {n: t for n, t in whole.items() if n not in forms} | {"history": at.history}
    tensors = send_all(world, now)
    if at is not None:
        return at
    history = tensors.pop("history")
    tensors |= {name: torch.empty(shape, device="meta") for name, shape in forms.items()}
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


def compile_head(world: World | None, run: Run, model: Transformer, machine: Machine, chosen: str | None) -> str:
    """Compile the model's head if that is worth it, at all ranks as at rank 0; returns in words what was done. chosen:
    what rank 0 knows was done when the run began."""
    if world is not None and not world.is_first:
        chosen = world.hear()
    head = setup.compile_head(run, model, machine, chosen)
    if world is not None and world.is_first:
        world.tell(head)
    return head


def check_equal(world: World, model: Transformer, facts: Mapping[str, Any]) -> None:
    """See that all processes have the same kind of machine, and the same weights unless these come from rank 0. Raises
    DisagreementError."""
    weights = hashlib.sha256()
    for tensor in () if world.sharded else model.state_dict().values():
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
    """The model that trains while its weights are sharded, and its optimizer; rank 0's session keeps a whole one. step:
    the one whose state the whole one has."""

    model: Transformer
    optimizer: Any
    step: int


def make_sharded(
    world: World, run: Run, machine: Machine, form: Transformer, whole: tuple[Transformer, Any] | None, step: int
) -> Sharded:
    """Shard `form`, the run's model without its numbers, and give every process its part of rank 0's. whole: rank 0's
    model and optimizer, which have the run's state after `step` steps; None at other ranks."""
    from hectogpt.train.sharded import fill_shards, shard_model
    from hectogpt.train.sharded_optimizer import ShardedOptimizer

    model = shard_model(form, world, machine, world.recompute)
    fill_shards(model, world, None if whole is None else whole[0])
    optimizer = ShardedOptimizer(model, world, setup.build_optimizer(run, model))
    optimizer.take_over(whole, step > 0)
    return Sharded(model, optimizer, step)
