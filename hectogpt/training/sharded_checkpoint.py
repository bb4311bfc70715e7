"""Saves a checkpoint of a run with sharded weights in parts: every process writes those that it has, nobody the whole.

torch.distributed.checkpoint plans who writes what and writes safetensors files, one for each process, into the same
temporary folder. When all are on disk rank 0 writes the manifest, and the folder gets its name as any checkpoint does.
All this happens between two steps. checkpoint_parts.py reads the files.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint import DefaultSavePlanner, HuggingFaceStorageWriter, save
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from hectogpt import errors, hardware
from hectogpt.errors import UserError
from hectogpt.files import sync_file
from hectogpt.manifest import describe_file, write_manifest_of
from hectogpt.model.weights import copied, named_tensors
from hectogpt.training.checkpoint import SHARDED, Checkpoint, Checkpoints, describe
from hectogpt.training.parallel import World
from hectogpt.training.session import Session
from hectogpt.training.sharded_optimizer import Described, OwnRows
from hectogpt.training.state import MODEL, State, take_state

WRITING, WRITTEN = "writes its parts of the checkpoint", "the end of the checkpoint"


def save_parts(
    session: Session, checkpoints: Checkpoints | None = None, before: Callable[[], None] = lambda: None
) -> None:
    """Save the state after the last step done, which is `in_parts`. All take part; others than rank 0 pass nothing.

    checkpoints: None at rank 0 means that no checkpoint is wanted after all. before: is called before one is written.
    Raises PeerError if another process fails, and at rank 0 alone UserError: as Checkpoints.save does (STORAGE), for an
    optimizer whose state cannot be saved (CHECKPOINT), for a process without memory to do it (MEMORY); and OSError of
    `before`.
    """
    sharded, world = session.sharded, session.world
    assert sharded is not None
    assert world is not None
    described, sharded.step, sharded.described = sharded.described, -1, None
    parts = sharded.optimizer.own_state(described)
    parts |= {MODEL + name: own for name, own in sharded.optimizer.own_weights(sharded.places).items()}
    if world.is_first:
        _lead(session, described, parts, checkpoints, before)
    elif _agree(world, True, parts) == "":
        with suppress(OSError):  # rank 0 tells it
            _write(world, Path(world.hear()), parts)


def _lead(
    session: Session,
    described: Described,
    parts: dict[str, OwnRows],
    checkpoints: Checkpoints | None,
    before: Callable[[], None],
) -> None:
    """Rank 0's part of saving: the folder and its manifest."""
    assert session.sharded is not None
    assert session.world is not None
    world, agreed = session.world, False
    try:
        if checkpoints is None:
            return
        before()
        form = session.checkpoint(_form(session, described))
        parts = parts | _own_of_first(form)
        with checkpoints.replacing(form.step, session.sharded.optimizer.nbytes(described)) as new:
            if new is None:
                return
            agreed = True
            if lacking := _agree(world, True, parts):
                raise UserError(
                    f"the checkpoint of step {form.step} could not be saved",
                    why=lacking,
                    fix="close other programs, or start fewer processes on a machine",
                    code=errors.MEMORY,
                )
            world.tell(str(new.resolve()))
            files = _write(world, new, parts)
            for name, expected in files.items():
                if not (new / name).is_file() or (new / name).stat().st_size != expected["bytes"]:
                    raise OSError(f"{name} of another process is not there")
            write_manifest_of(new, files, describe(form, SHARDED))
    finally:
        if not agreed:  # the others wait for it
            _agree(world, False, parts)


def _form(session: Session, described: Described) -> State:
    """The state as rank 0 would have it whole, with forms on the meta device for what the processes have in parts."""
    assert session.sharded is not None
    optimizer = session.sharded.optimizer
    updated = {entry.name for entry in optimizer.entries}
    elsewhere = {name for name, (parameter, _, _) in (session.sharded.places or {}).items() if parameter in updated}
    weights = {
        name: torch.empty_like(tensor, device="meta") if name in elsewhere else copied(tensor)
        for name, tensor in named_tensors(session.model).items()
    }
    optimizer.give_forms((session.model, session.optimizer), described)
    try:
        return take_state(session.model, session.optimizer, weights)
    finally:
        session.optimizer.forget_state()


def _own_of_first(form: Checkpoint) -> dict[str, OwnRows]:
    """What rank 0 has to save beside its parts: what no process shares, and tensors without numbers."""
    tensors = form.state.tensors | {"history": form.history}
    empty = {name: torch.empty(t.shape, dtype=t.dtype) for name, t in tensors.items() if t.is_meta and not t.numel()}
    own = {name: t for name, t in tensors.items() if not t.is_meta} | empty
    return {name: OwnRows(tensor, 0, tuple(tensor.shape)) for name, tensor in own.items()}


def _agree(world: World, wanted: bool, parts: dict[str, OwnRows]) -> str | None:
    """None if rank 0 wants no checkpoint, or has failed to begin one; else, at all ranks, who lacks the memory to write
    its parts, in words; "" if nobody does."""
    needed = 0
    for own in parts.values():  # safetensors has the bytes twice; of what is on a GPU there is a copy too
        needed += own.tensor.nbytes * (2 if own.tensor.device.type == "cpu" else 3)
    free = hardware.free_memory() // world.launch.local_size
    mine = torch.tensor([int(wanted), needed, free])
    every = [torch.empty_like(mine) for _ in range(world.size)]
    with world.guarded("the agreement on a checkpoint"):
        dist.all_gather(every, mine)
    told = [other.tolist() for other in every]
    if not told[0][0]:
        return None
    lacking = [(rank, needed, free) for rank, (_, needed, free) in enumerate(told) if needed > free]
    return "; ".join(f"rank {rank} needs {n:,} bytes of memory, {f:,} are free for it" for rank, n, f in lacking[:3])


def _write(world: World, folder: Path, parts: dict[str, OwnRows]) -> dict[str, dict[str, Any]]:
    """Write this process's parts. Returns the names, sizes and hashes of all processes' files, which are on disk.
    Raises OSError, at all ranks, if one of them could not be written."""
    world.mark(WRITING)
    writer = _Writer(folder, world)
    try:
        with world.guarded(WRITTEN, mark=False):
            save({}, storage_writer=writer, planner=_Planner(parts))
    except CheckpointException as error:
        raise _cause(error, world.rank) from None
    every = world.gather_texts(writer.described)
    world.meet(WRITTEN)
    return {name: told for its in every for name, told in its.items()}


class _Planner(DefaultSavePlanner):
    """Plans to write the parts of one process; that all of them cover each tensor once is checked at rank 0."""

    def __init__(self, parts: dict[str, OwnRows]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self.parts = parts
        self._written: set[int] = set()  # memory of tensors: a safetensors file takes none that share any

    def create_local_plan(self) -> SavePlan:
        """A part is a "shard" of its tensor, also if it is all of it."""
        items = []
        for name, own in self.parts.items():
            begin = torch.Size([own.begin, *[0] * (len(own.shape) - 1)] if own.shape else [])
            chunk = ChunkStorageMetadata(begin, own.tensor.size())
            properties = TensorProperties.create_from_tensor(own.tensor)
            data = TensorWriteData(chunk, properties, torch.Size(own.shape))
            items.append(WriteItem(MetadataIndex(name, begin), WriteItemType.SHARD, tensor_data=data))
        self.plan = SavePlan(items)
        return self.plan

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        """The part that has this place; contiguous, in memory of its own."""
        tensor = self.parts[index.fqn].tensor
        place = tensor.untyped_storage().data_ptr()
        shared = place in self._written
        self._written.add(place)
        return tensor.clone(memory_format=torch.contiguous_format) if shared else tensor.contiguous()


class _Writer(HuggingFaceStorageWriter):
    """Writes one process's file and waits until it is on disk. described: its size and hash by its name."""

    def __init__(self, folder: Path, world: World) -> None:
        super().__init__(str(folder), save_distributed=True)
        self.world = world
        self.described: dict[str, dict[str, Any]] = {}

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write the parts of a plan. Raises OSError, which all processes hear of."""
        done = super().write_data(plan, planner)
        for name in sorted({result.storage_data.relative_path for result in done.value()}):
            path = Path(self.path) / name
            sync_file(path)  # torch has synced before the last bytes left its buffer, if the file is small
            self.described[name] = describe_file(path)
        self.world.mark(WRITTEN)
        return done


def _cause(error: CheckpointException, rank: int) -> BaseException:
    """What saving failed of: OSError for what a later attempt may not meet, else the exception itself."""
    failures = {which: wrapped[0] for which, wrapped in error.failures.items()}
    for own in (failures.get(rank), *failures.values()):
        if own is not None and not isinstance(own, Exception):
            return own  # a signal has ended it
    which, first = min(failures.items())
    if isinstance(first, OSError):
        return OSError(f"rank {which}: {first.strerror or first}")
    if isinstance(first, SafetensorError) or hardware.is_out_of_memory(first):
        return OSError(f"rank {which}: {first}".partition("\n")[0])
    return first
