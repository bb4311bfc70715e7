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

OPTIMIZER = "optimizer."


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
    names = _names(model)
    values = []
    for number, part in enumerate(optimizer.state_dict()):
        told = _by_name(part, [[names[id(p)] for p in g["params"]] for g in optimizer.optimizers[number].param_groups])
        values.append(take_value(told, f"{OPTIMIZER}{number}", tensors))
    return State(tensors, {"optimizers": values})


def put_state(model: Transformer, optimizer: OptimizerGroup, state: State) -> None:
    """Give model and optimizer this state. Raises UserError (CHECKPOINT) if it is not a state of theirs."""
    load_tensors(model, state.weights())
    try:
        parts = [give_value(value, state.tensors) for value in state.values["optimizers"]]
        _load_optimizers(model, optimizer, parts)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise _misfit(f"its optimizer is not this run's ({type(error).__name__}: {error})") from None


def _load_optimizers(model: Transformer, optimizer: OptimizerGroup, parts: list[dict[str, Any]]) -> None:
    names = _names(model)
    parameters = dict(model.named_parameters())
    by_number = []
    for own, part in zip(optimizer.optimizers, parts, strict=True):
        groups = [[names[id(p)] for p in group["params"]] for group in own.param_groups]
        if groups != [group["params"] for group in part["param_groups"]]:
            raise _misfit("its optimizer has other groups of parameters")
        by_number.append(_by_number(part))
    optimizer.load_state_dict(by_number)
    for own, part in zip(optimizer.optimizers, parts, strict=True):
        if type(own).load_state_dict is not Optimizer.load_state_dict:
            continue  # it has rules of its own
        for name, entries in part["state"].items():
            # torch has given floats the parameter's dtype, and spoilt texts; it has put tensors on the right device.
            state = own.state[parameters[name]]
            for key, value in entries.items():
                where = state[key].device if isinstance(state[key], Tensor) else parameters[name].device
                state[key] = _moved(value, where)


def _moved(value: Any, device: torch.device) -> Any:
    """The value with all its tensors on the device, in the dtypes that they have."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _moved(item, device) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_moved(item, device) for item in value)
    return value


def _misfit(why: str) -> UserError:
    return UserError("the checkpoint does not fit", why=why, code=errors.CHECKPOINT)


def _names(model: Transformer) -> dict[int, str]:
    return {id(p): name for name, p in model.named_parameters()}


# --- an optimizer's state_dict, whose parameters are numbers, with names instead --------------------------------------


def _by_name(part: dict[str, Any], groups: list[list[str]]) -> dict[str, Any]:
    names = [name for group in groups for name in group]
    named = [group | {"params": own} for group, own in zip(part["param_groups"], groups, strict=True)]
    return part | {"state": {names[number]: value for number, value in part["state"].items()}, "param_groups": named}


def _by_number(part: dict[str, Any]) -> dict[str, Any]:
    names = [name for group in part["param_groups"] for name in group["params"]]
    numbers = {name: number for number, name in enumerate(names)}
    groups = [group | {"params": [numbers[name] for name in group["params"]]} for group in part["param_groups"]]
    return part | {"state": {numbers[name]: value for name, value in part["state"].items()}, "param_groups": groups}


# --- nested values to JSON, the tensors among them by name ------------------------------------------------------------


def take_value(value: Any, where: str, tensors: dict[str, Tensor]) -> Any:
    """JSON for the value; its tensors are added to `tensors` under names that begin with `where`."""
    if isinstance(value, Tensor):
        tensors[where] = copied(value)
        return {"tensor": where}
    if isinstance(value, dict):
        return {"dict": {key: take_value(item, f"{where}.{key}", tensors) for key, item in _texts(value).items()}}
    if isinstance(value, (list, tuple)):
        items = [take_value(item, f"{where}.{number}", tensors) for number, item in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise _unsavable(f"{where} is of type {type(value).__name__}")


def _texts(value: dict[Any, Any]) -> dict[str, Any]:
    if all(isinstance(key, str) for key in value):
        return value
    raise _unsavable("it has a dict whose keys are not texts")


def _unsavable(why: str) -> UserError:
    return UserError(
        "the optimizer's state cannot be saved",
        why=why,
        fix="keep it in self.state[parameter] or in the groups, as tensors, numbers, texts, lists or dicts of these",
        code=errors.CHECKPOINT,
    )


def give_value(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The value that `take_value` turned to JSON."""
    if isinstance(value, list):
        return [give_value(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: give_value(item, tensors) for key, item in content.items()}
    return tuple(give_value(item, tensors) for item in content) if kind == "tuple" else float(content)
