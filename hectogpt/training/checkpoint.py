"""Checkpoints: weights and optimizer between two steps, in memory and in folders step-N on disk.

Everything else is a pure function of the run and the step: learning rates, the order of the data
and random numbers. Optimizer state is stored by parameter name, so it does not depend on the order
of groups.

Saving writes a temporary folder next to the others, waits until it is on disk, and then renames
it. Only then are old checkpoints removed. Loading takes the newest checkpoint whose hashes match.
No matter when the process is killed, the power fails or the disk fills up, the previous or the new
checkpoint is intact. No file is unpickled.

The manifest holds the hashes, and the facts about the session that saved the checkpoint: its run,
text and machine.
"""

from __future__ import annotations

import math
import shutil
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from hectogpt import errors, files
from hectogpt.display import Note
from hectogpt.errors import CheckpointError, UserError
from hectogpt.files import read_manifest, write_manifest
from hectogpt.model import Transformer
from hectogpt.model.weights import check_header, copied, load_tensors, saved_tensors
from hectogpt.run_records import FORMAT, KEEP, MOST_STATE_TENSORS, STATE, SavedCheckpoints
from hectogpt.run_records import STATE_MODEL as MODEL
from hectogpt.training.optim import OptimizerGroup


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run between two steps.

    Attributes:
        step: how many steps are done.
        tensors: the tensors by name, on the CPU. "model.NAME" are the weights. "history", float64
            [step, columns], has one row per step, and "hashes" has the hash of the weights after
            each step. "kept.NAME" are those of AfterStep parts. The others are the optimizer's.
        values: the part of the optimizer's state that JSON can hold.
        facts: the run, text and machine that produced it, as plain values.
    """

    step: int
    tensors: dict[str, Tensor]
    values: dict[str, Any]
    facts: dict[str, Any]


class Checkpoints(SavedCheckpoints):
    """The checkpoints in a folder.

    Only one process at a time may write them: the caller holds a lock on the folder.

    Attributes:
        folder: the folder that has a folder step-N for each checkpoint.
        keep: keep only this many checkpoints, the newest.
    """

    keep = KEEP

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint to disk, then remove the oldest ones if there are more than `keep`.

        When this returns, the checkpoint is on disk. A valid checkpoint of the same step is left
        as it is.

        Raises UserError (STORAGE). Then earlier checkpoints remain, but no part of the new one.
        """
        tensors = checkpoint.tensors
        step = checkpoint.step
        path = self.path(step)
        try:
            if path.exists() and not self.problem(step):
                # An earlier attempt may have failed, or been killed, before it synced the folder.
                files.sync_folder(self.folder)
            else:
                self.remove_leftovers()
                content: dict[str, Any] = {"format": FORMAT, "step": step}
                content |= {"values": checkpoint.values, "facts": checkpoint.facts}
                with files.replacing_folder(path) as new:
                    files.sync_folder(self.folder.parent)
                    save_file(tensors, new / STATE)
                    write_manifest(new, [STATE], content)
            for old in self.steps()[: -self.keep]:
                files.remove_folder(self.path(old))
        except (OSError, SafetensorError, UserError) as error:
            needed = sum(t.nbytes for t in tensors.values())
            why = error.why if isinstance(error, UserError) else error
            before = [other for other in self.steps() if other != step]
            with suppress(OSError):
                why = (
                    f"{why}: it takes {needed:,} bytes; {files.free_bytes(self.folder):,} are free"
                )
            raise UserError(
                f"the checkpoint of step {step} could not be saved in {self.folder}",
                why=str(why),
                fix="free some space on that disk, or choose a different folder",
                kept=f"the checkpoint of step {before[-1]}" if before else "",
                code=errors.STORAGE,
            ) from None

    def remove_leftovers(self) -> None:
        """Remove temporary files of processes that were killed while saving or removing."""
        for path in self.folder.glob(".step-*"):
            shutil.rmtree(path, ignore_errors=True)

    def remove(self) -> None:
        """Remove all checkpoints and their folder."""
        with suppress(OSError):
            for step in self.steps():
                files.remove_folder(self.path(step))
            self.folder.rmdir()

    def load(self, step: int) -> Checkpoint:
        """Check the hashes of a step's checkpoint, then read it. Raises UserError (CHECKPOINT)."""
        path = self.path(step)
        try:
            if problem := self.problem(step):
                raise ValueError(problem)
            manifest = read_manifest(path)
            check_header(path / STATE, MOST_STATE_TENSORS)
            tensors = load_file(path / STATE)
            if (steps_held := len(tensors["history"])) != step:
                raise ValueError(f"it holds {steps_held} steps instead of {step}")
            return Checkpoint(step, tensors, dict(manifest["values"]), dict(manifest["facts"]))
        except (
            OSError,
            SafetensorError,
            AttributeError,
            LookupError,
            TypeError,
            ValueError,
            UserError,
        ) as error:
            what = (
                f"the checkpoint of step {step} "
                f"{'is damaged' if step in self.steps() else 'does not exist'}"
            )
            raise CheckpointError(what, why=str(error)) from None

    def newest(self, warn: Note, most: int | None = None) -> Checkpoint | None:
        """Return the newest valid checkpoint, or None if there are no checkpoints.

        Args:
            warn: called with a message if newer checkpoints are damaged.
            most: consider only checkpoints up to this step.

        Raises UserError (CHECKPOINT) if there are checkpoints but all are damaged. If the run then
        silently started over, it would look like a resumed run.
        """
        steps = [step for step in self.steps() if most is None or step <= most]
        problems = []
        for step in reversed(steps):
            try:
                found = self.load(step)
            except UserError as error:
                problems.append(error.line)
                continue
            if problems:
                warn(
                    f"{problems[0]}; resuming from step {step}; the steps after it are computed "
                    "again"
                )
            return found
        if not steps:
            return None
        raise CheckpointError(
            f"every checkpoint in {self.folder} is damaged",
            why="; ".join(problems),
            fix=f"put back a copy of one; to start the run over, remove {self.folder}",
            kept="all files, untouched",
        )


PACKAGE = Path(__file__).resolve().parents[1]
# The layers whose code decides what a step computes.
COMPUTES = ("data", "kernels", "model", "training")


@cache
def code_hash() -> str:
    """The hash of the code that decides what a step computes, as of this process's first call."""
    return files.code_hash([PACKAGE / layer for layer in COMPUTES])


# --- the state of a run between two steps: taken from model and optimizer, and restored ---


def weights_in(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights among a checkpoint's tensors, keyed by their names in a saved model."""
    return {
        name.removeprefix(MODEL): tensor
        for name, tensor in tensors.items()
        if name.startswith(MODEL)
    }


def take_state(
    model: Transformer, optimizer: OptimizerGroup
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Copy the state of a run between two steps, as the tensors and the values of a Checkpoint.

    Raises UserError (CHECKPOINT) if the optimizer keeps anything except tensors, numbers and
    strings.
    """
    tensors = {MODEL + name: tensor for name, tensor in saved_tensors(model).items()}
    names = {id(p): name for name, p in model.named_parameters()}
    values = []
    for number, own in enumerate(optimizer.optimizers):
        state = {names[id(p)]: dict(entries) for p, entries in own.state.items()}
        part = {"state": state, "param_groups": _named_groups(model, own)}
        values.append(_encode(part, f"optimizer.{number}", tensors))
    return tensors, {"optimizers": values}


def put_state(
    model: Transformer,
    optimizer: OptimizerGroup,
    tensors: dict[str, Tensor],
    values: dict[str, Any],
) -> None:
    """Restore a model and its optimizer to a saved state.

    Raises UserError (CHECKPOINT) if the state does not fit them.
    """
    load_tensors(model, weights_in(tensors))
    try:
        parts = [_decode(value, tensors) for value in values["optimizers"]]
        for own, part in zip(optimizer.optimizers, parts, strict=True):
            _load(model, own, part)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise _misfit(
            f"its optimizer is not this run's ({type(error).__name__}: {error})"
        ) from None


def _load(model: Transformer, own: Optimizer, part: dict[str, Any]) -> None:
    """Load one optimizer's state without `load_state_dict`.

    That method casts floats to the parameter's dtype, corrupts strings, and imports torch's
    compiler.
    """
    if [group["params"] for group in part["param_groups"]] != [
        g["params"] for g in _named_groups(model, own)
    ]:
        raise _misfit("its optimizer has different groups of parameters")
    parameters = dict(model.named_parameters())
    own.state.clear()
    own.state.update(
        {
            parameters[n]: _moved(entries, parameters[n].device)
            for n, entries in part["state"].items()
        }
    )
    for group, saved in zip(own.param_groups, part["param_groups"], strict=True):
        group.update(saved | {"params": group["params"]})


def _named_groups(model: Transformer, own: Optimizer) -> list[dict[str, Any]]:
    """An optimizer's groups, with each parameter replaced by its name."""
    names = {id(p): name for name, p in model.named_parameters()}
    return [
        group | {"params": [names[id(p)] for p in group["params"]]} for group in own.param_groups
    ]


def _moved(value: Any, device: torch.device) -> Any:
    """The value with all its tensors moved to the device; their dtypes stay the same."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _moved(item, device) for key, item in value.items()}
    return (
        type(value)(_moved(item, device) for item in value)
        if isinstance(value, (list, tuple))
        else value
    )


def _misfit(why: str) -> UserError:
    return CheckpointError("the checkpoint does not fit", why=why)


# --- nested values as JSON, with their tensors by name ---


def _encode(value: Any, where: str, tensors: dict[str, Tensor]) -> Any:
    """Convert a value to JSON; its tensors go to `tensors` under names that start with `where`."""
    if isinstance(value, Tensor):
        tensors[where] = copied(value)
        return {"tensor": where}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {
            "dict": {key: _encode(item, f"{where}.{key}", tensors) for key, item in value.items()}
        }
    if isinstance(value, (list, tuple)):
        items = [_encode(item, f"{where}.{number}", tensors) for number, item in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise CheckpointError(
        "the optimizer's state cannot be saved",
        why=f"{where} is of type {type(value).__name__}",
        fix="keep it in self.state[parameter] or in the groups, as tensors, numbers, strings, "
        "lists, or dicts of these with strings as keys",
    )


def _decode(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Convert the JSON of `_encode` back to the original value."""
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _decode(item, tensors) for key, item in content.items()}
    return tuple(_decode(item, tensors) for item in content) if kind == "tuple" else float(content)
