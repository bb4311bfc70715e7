"""What the processes of a run settle before the first step, and how their work is shared: rank 0 decides, all check."""

from __future__ import annotations

import hashlib
import math
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from hectogpt import errors, hardware
from hectogpt.data import Batches
from hectogpt.errors import UserError
from hectogpt.files import sha256_of
from hectogpt.manifest import MANIFEST, read_manifest
from hectogpt.model import Transformer
from hectogpt.model.weights import Places, places_in_parameters
from hectogpt.training import precision, setup
from hectogpt.training.checkpoint import Checkpoint
from hectogpt.training.checkpoint_parts import PartFiles
from hectogpt.training.leaves import LeafGradients
from hectogpt.training.loop import Gradients
from hectogpt.training.parallel import World, send_all
from hectogpt.training.precision import Machine
from hectogpt.training.run import Run
from hectogpt.training.state import State
from hectogpt.training.sums import make_exchange


def share_checkpoint(world: World, at: Checkpoint | None) -> Checkpoint | None:
    """The checkpoint that rank 0 has read, at all ranks: only its machine need have the file.

    Where weights are sharded, others get its floating-point tensors later, each the parts that it holds; until then
    their weights are forms on the meta device.
    """
    facts = None if at is None else {"step": at.step, "values": at.state.values, "facts": at.facts}
    told: dict[str, Any] | None = world.share(lambda: facts)
    if told is None:
        return None
    parts = _share_parts(world, None if at is None else at.parts)
    if at is not None and at.parts is not None and parts is None:
        read = {name: at.parts.read(name) for name in at.state.tensors}
        at = replace(at, state=State(read, at.state.values), parts=None)
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
    return Checkpoint(told["step"], State(tensors, told["values"]), history, told["facts"], parts=parts)


def _share_parts(world: World, parts: PartFiles | None) -> PartFiles | None:
    """The files of rank 0's checkpoint at all ranks, if all see the same; None if they do not, or rank 0 has none."""
    told = world.share(
        lambda: None if parts is None else [str(parts.folder.resolve()), sha256_of(parts.folder / MANIFEST)]
    )
    if told is None:
        return None
    folder, manifest = Path(told[0]), told[1]
    with suppress(UserError, OSError, ValueError):
        if parts is None and sha256_of(folder / MANIFEST) == manifest:
            parts = PartFiles(folder, read_manifest(folder), sound=False)
    return parts if all(world.gather_texts(parts is not None)) else None


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


def choose_head(world: World | None, run: Run, model: Transformer, machine: Machine, chosen: str | None) -> str:
    """How the head's softmax is computed, at all ranks as at rank 0. chosen: what rank 0 knows was chosen when the run
    began."""
    if world is not None and not world.is_first:
        chosen = world.hear()
    head = setup.choose_head(run, model, machine, chosen)
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
        from hectogpt.training.sharded import ShardedGradients  # loads FSDP2, half a second

        return ShardedGradients(run, model, batches, machine, world)
    return LeafGradients(run, model, batches, machine, make_exchange(world))


@dataclass
class Sharded:
    """The model that trains while its weights are sharded, and its optimizer.

    whole: rank 0's model and optimizer, on the CPU, which its session keeps; None at other ranks. step: the one after
    which the state was last brought together, or made ready to be saved in parts; -1 once it was saved so. described:
    what each process has of it, if it is to be saved in parts. places: of weights in parameters; None for a model whose
    weights cannot be saved in parts. one_folder: whether all processes see the run's folder,
    so that they can.
    """

    model: Transformer
    optimizer: Any
    whole: tuple[Transformer, Any] | None
    step: int
    places: Places | None
    described: Any = None
    one_folder: bool = False

    def see_folder(self, folder: Path | None) -> None:
        """Let all processes know whether all see the run's folder, where their parts of checkpoints go. All take part;
        others than rank 0 pass None.

        Raises UserError at rank 0 if they do not and the run is certain to need it: its weights and two moments of them
        have more bytes than its limit. Below it rank 0 writes checkpoints alone.
        """
        world: World = self.optimizer.world
        probe = None if folder is None else folder.resolve() / f".seen.json.{os.getpid()}"  # a name of leftovers
        try:
            if probe is not None:
                probe.write_bytes(b"")
            path = Path(world.share(lambda: str(probe)))
            seen = world.gather_texts([path.is_file(), socket.gethostname()])
            world.meet("the look at the run's folder")
        except OSError as error:
            raise UserError(f"cannot write to {folder}", why=error.strerror or "", code=errors.STORAGE) from None
        finally:
            if probe is not None:
                probe.unlink(missing_ok=True)
        blind = [f"rank {rank} on {host}" for rank, (sees, host) in enumerate(seen) if not sees]
        self.one_folder = not blind
        needed = 0 if self.whole is None else 3 * sum(p.nbytes for p in self.whole[0].parameters())
        if blind and folder is not None and needed > world.shard_above:
            raise UserError(
                f"not all processes of the run see {folder.resolve()}",
                why=f"every process is to save its parts of checkpoints there; {', '.join(blind[:3])} "
                f"{f'and {len(blind) - 3} more ' * (len(blind) > 3)}cannot",
                fix="set out to a folder on a disk that all machines share, or set shard_checkpoints_above to "
                f"{math.ceil(needed / 2**30)} so that rank 0 saves the whole",
                kept="no step was computed",
            )

    def bring_together(self, step: int, last: bool) -> None:
        """Bring the state after `step` together in rank 0's whole model and optimizers; weights and optimizer state of
        more bytes than the run's limit stay where they are, and are saved in parts. last: whether the run ends here, so
        that rank 0 needs the weights in any case. All take part."""
        described, limit = self.optimizer.describe(), self.optimizer.world.shard_above
        able = self.one_folder and self.places is not None
        in_parts = able and self.optimizer.nbytes(described) > limit
        if last or not in_parts:
            self.optimizer.gather(self.whole, None if in_parts else described)
        self.step, self.described = step, described if in_parts else None


def make_sharded(
    world: World,
    run: Run,
    machine: Machine,
    form: Transformer,
    whole: tuple[Transformer, Any] | None,
    resume: Checkpoint | None,
) -> Sharded:
    """Shard `form`, the run's model without its numbers, and give every process its part of rank 0's.

    whole: rank 0's model and optimizer, which have the run's state; None at other ranks. resume: the checkpoint that it
    is of; if all read that from its parts, rank 0's optimizer has only the forms of its state.
    """
    from hectogpt.training.sharded import fill_shards, shard_model
    from hectogpt.training.sharded_optimizer import ShardedOptimizer

    places = places_in_parameters(form)
    model = shard_model(form, world, machine, world.recompute)
    fill_shards(model, world, None if whole is None else whole[0])
    optimizer = ShardedOptimizer(model, world, setup.build_optimizer(run, model))
    parts = None if resume is None else resume.parts
    optimizer.take_over(whole, resume is not None, parts)
    step = 0 if resume is None else resume.step
    return Sharded(model, optimizer, whole, step if parts is None else -1, places)
