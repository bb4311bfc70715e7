"""What changes while a run trains, as named tensors and plain values: taken out of model and optimizer, and put back.

Everything else is a pure function of the run and the step: learning rates, the order of the data, random numbers.
Optimizer state goes by the name of its parameter, so it does not depend on the order of groups.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.model import Transformer
from hectogpt.model.weights import copied, load_tensors, saved_tensors
from hectogpt.run_records import STATE_MODEL as MODEL
from hectogpt.training.optim import OptimizerGroup


@dataclass(frozen=True)
class State:
    """tensors: on the CPU; "model.NAME" are the weights, the others the optimizer's. values: what JSON can hold."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]

    def weights(self) -> dict[str, Tensor]:
        """The weights by the names that they are saved under."""
        return {name.removeprefix(MODEL): t for name, t in self.tensors.items() if name.startswith(MODEL)}


def take_state(model: Transformer, optimizer: OptimizerGroup) -> State:
    """A copy of the state of a run between two steps.

    Raises UserError (CHECKPOINT) for an optimizer that keeps something else than tensors, numbers and texts.
    """
    tensors = {MODEL + name: tensor for name, tensor in saved_tensors(model).items()}
    values = []
    for number, own in enumerate(optimizer.optimizers):
        part, groups = own.state_dict(), _names(model, own)
        names = [name for group in groups for name in group]
        state = {names[place]: value for place, value in part["state"].items()}
        named = [group | {"params": its} for group, its in zip(part["param_groups"], groups, strict=True)]
        values.append(_encode(part | {"state": state, "param_groups": named}, f"optimizer.{number}", tensors))
    return State(tensors, {"optimizers": values})


def put_state(model: Transformer, optimizer: OptimizerGroup, state: State) -> None:
    """Give model and optimizer this state. Raises UserError (CHECKPOINT) if it is not a state of theirs."""
    load_tensors(model, state.weights())
    try:
        parts = [_decode(value, state.tensors) for value in state.values["optimizers"]]
        for own, part in zip(optimizer.optimizers, parts, strict=True):
            _load(model, own, part)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise _misfit(f"its optimizer is not this run's ({type(error).__name__}: {error})") from None


def _load(model: Transformer, own: Optimizer, part: dict[str, Any]) -> None:
    groups = _names(model, own)
    if groups != [group["params"] for group in part["param_groups"]]:
        raise _misfit("its optimizer has other groups of parameters")
    numbers = {name: number for number, name in enumerate(name for group in groups for name in group)}
    state = {numbers[name]: value for name, value in part["state"].items()}
    numbered = [group | {"params": [numbers[name] for name in group["params"]]} for group in part["param_groups"]]
    own.load_state_dict(part | {"state": state, "param_groups": numbered})
    if type(own).load_state_dict is not Optimizer.load_state_dict:
        return  # it has rules of its own
    parameters = dict(model.named_parameters())
    for name, entries in part["state"].items():
        # torch has given floats the parameter's dtype, and spoilt texts; it has put tensors on the right device.
        loaded = own.state[parameters[name]]
        for key, value in entries.items():
            where = loaded[key].device if isinstance(loaded[key], Tensor) else parameters[name].device
            loaded[key] = _moved(value, where)


def _names(model: Transformer, own: Optimizer) -> list[list[str]]:
    """The names of an optimizer's parameters, group by group."""
    names = {id(p): name for name, p in model.named_parameters()}
    return [[names[id(p)] for p in group["params"]] for group in own.param_groups]


def _moved(value: Any, device: torch.device) -> Any:
    """The value with all its tensors on the device, in the dtypes that they have."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _moved(item, device) for key, item in value.items()}
    return type(value)(_moved(item, device) for item in value) if isinstance(value, (list, tuple)) else value


def _misfit(why: str) -> UserError:
    return UserError("the checkpoint does not fit", why=why, code=errors.CHECKPOINT)


# --- nested values to JSON, the tensors among them by name ------------------------------------------------------------


def _encode(value: Any, where: str, tensors: dict[str, Tensor]) -> Any:
    """JSON for the value; its tensors are added to `tensors` under names that begin with `where`."""
    if isinstance(value, Tensor):
        tensors[where] = copied(value)
        return {"tensor": where}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: _encode(item, f"{where}.{key}", tensors) for key, item in value.items()}}
    if isinstance(value, (list, tuple)):
        items = [_encode(item, f"{where}.{number}", tensors) for number, item in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise UserError(
        "the optimizer's state cannot be saved",
        why=f"{where} is of type {type(value).__name__}" + ", whose keys are not texts" * isinstance(value, dict),
        fix="keep it in self.state[parameter] or in the groups, as tensors, numbers, texts, lists or dicts of these",
        code=errors.CHECKPOINT,
    )


def _decode(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The value that `_encode` turned to JSON."""
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
