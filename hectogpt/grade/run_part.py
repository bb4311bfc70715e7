"""The child's work: what a submission's parts return in each setting. No right value is known
here.

The parts below the judged one are replaced by the grader's own functions ("patched"), so that a
mistake below does not spread. The same calls are made with the submission's own parts."""

from __future__ import annotations

import inspect
import io
import math
import os
import random
import traceback
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout, suppress
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Any, cast
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from hectogpt.assignment.parts import BY_NAME, SOURCES
from hectogpt.grade.answer import LONGEST, Answer, Other, Raised, Values
from hectogpt.grade.computation import Computation
from hectogpt.grade.laws import INPUT, Setting, Size, cotangent, given, state_of
from hectogpt.hardware import is_out_of_memory

DTYPES = {"float64": torch.float64, "float32": torch.float32}
LARGEST = 2_000_000  # numbers in a result that is sent
MANY = 40  # calls of a part, see call_often


def answer_of(result: Any) -> Answer:
    """Return what a call returned as an answer."""
    if isinstance(result, Tensor) and result.layout == torch.strided and not result.is_complex():
        if result.numel() > LARGEST:
            return Other(text=f"a tensor of shape {list(result.shape)}")
        return Values(tensors={"": result.detach().cpu()})
    if isinstance(result, bool | int | float):
        return Values(tensors={"": torch.tensor(result, dtype=torch.float64)})
    size = f" of {len(result)}" if isinstance(result, tuple | list) else ""
    return Other(text="None" if result is None else f"a {type(result).__name__}{size}")


def answer_of_error(error: BaseException) -> Raised:
    """Return an exception as an answer. Its message may hold anything: the parent shortens and
    escapes it.
    """
    try:
        text = str(error)[:LONGEST]
        is_memory = is_out_of_memory(error)
    except BaseException:
        text = "(its message cannot be made)"
        is_memory = False
    name = type(error).__name__
    return Raised(error=name, text=text, line=line_of(error), is_memory=is_memory)


def line_of(error: BaseException) -> str:
    """Return the innermost line of the submission in the traceback, "" if there is none."""
    try:
        if isinstance(error, SyntaxError) and error.filename:
            file = error.filename
            number = error.lineno
            code = error.text
        else:
            frames = traceback.extract_tb(error.__traceback__)[-200:]
            own = [f for f in frames if os.path.split(f.filename)[0] in ("", os.getcwd())]
            file, number, code, _ = next(f for f in reversed(own) if f.filename.endswith(SOURCES))
        return f"{os.path.basename(file)}:{number}: {(code or '').strip()[:160]}"
    except BaseException:
        return ""


# --- what a submission's functions look like
# ---


def accepted(function: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments that the function accepts by name. Raises TypeError or ValueError if
    its signature cannot be inspected."""
    known = inspect.signature(function).parameters
    every = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in known.values())
    return {name: value for name, value in arguments.items() if every or name in known}


# --- building


class MissingClassError(AttributeError):
    """The submission lacks a class."""


class ParametersError(LookupError):
    """A module's parameters are not the assignment's."""


class ExtraParametersError(ParametersError):
    """A module has all parameters of the assignment, and others."""


class SharedParametersError(ParametersError):
    """Two parameters of a module are one."""


def build(
    setting: Setting, solution: ModuleType, patched: bool, dtype: torch.dtype
) -> tuple[nn.Module, Callable[..., Any]]:
    """Return the module with the setting's weights, and the function to call.

    patched: put our own parts below the judged one. Raises MissingClassError, ParametersError, and
    whatever the submission raises.
    """
    name = BY_NAME[setting.part].owner
    if not hasattr(solution, name):
        raise MissingClassError(f"model_solution.py has no class {name}")
    module = construct(solution, name, setting.size)
    fill(module, setting, dtype, patched)
    module.train(setting.train_mode)
    method = BY_NAME[setting.part].functions[-1].rpartition(".")[2]
    call = module if method == "forward" else getattr(module, method)
    if patched:
        replace_parts_below(module, setting)
    return module, call


def construct(solution: ModuleType, name: str, size: Size) -> Any:
    """Make an object of a class of the submission. A transformer draws no initial weights: that is
    a part of its own, and ours are loaded."""
    kind = getattr(solution, "Transformer", None)
    written = hasattr(kind, "_init_weights")
    with mock.patch.object(kind, "_init_weights", return_value=None) if written else nullcontext():
        return getattr(solution, name)(*([] if name == "GELU" else [config(solution, size)]))


def config(solution: ModuleType, size: Size) -> Any:
    """Return a config of the submission's class, or of ours if it has none."""
    return getattr(solution, "ModelConfig", Size)(**vars(size))


WHOLE = ("generate", "loss", "train")  # parts that use the whole forward pass
# How the parameters of the parts below a part begin. A mistake there may have renamed them.
BELOW = {"block": ("mlp.", "attention."), **dict.fromkeys(("forward", *WHOLE), ("backbone.",))}


def fill(module: nn.Module, setting: Setting, dtype: torch.dtype, patched: bool = False) -> None:
    """Copy our weights into the module, in the dtype.

    patched: do not check the parameters of the parts below, except that no block may lack all of
        its own; and check none where the whole forward pass is patched, since the constructor's
        mistakes are those of `forward`.

    Raises ParametersError for a parameter that is missing, unknown, shared, or of a different
    shape."""
    module.to(dtype)
    state = state_of(setting)
    own = dict(module.named_parameters(remove_duplicate=False))
    names = {id(value): name for name, value in own.items()}
    if tied := [
        (names[id(value)], name) for name, value in own.items() if names[id(value)] != name
    ]:
        if not (patched and setting.part in WHOLE):
            pairs = ", ".join(" and ".join(pair) for pair in tied)
            raise SharedParametersError(f"parameters are shared: {pairs}")
        for _, name in tied:
            owner, _, last = name.rpartition(".")
            setattr(module.get_submodule(owner), last, nn.Parameter(own[name].detach().clone()))
        own = dict(module.named_parameters(remove_duplicate=False))
    below = BELOW.get(setting.part, ()) if patched else ()
    blocks = {name.split(".")[1] for name in own if name.startswith("backbone.")}
    fitting = [
        name for name, value in state.items() if name in own and own[name].shape == value.shape
    ]
    free = [
        n
        for n in state
        if n.startswith(below) and (below != ("backbone.",) or n.split(".")[1] in blocks)
    ]
    wrong = [name for name in state if name not in fitting and name not in free]
    faults = {
        "missing": [n for n in wrong if n not in own],
        "other shape": [
            f"{n}: {list(own[n].shape)}, expected {list(state[n].shape)}"
            for n in wrong
            if n in own
        ],
        "not in the assignment": [
            n
            for n, value in own.items()
            if n not in state and value.requires_grad and not n.startswith(below)
        ],
    }
    told = [f"{word}: {', '.join(names)}" for word, names in faults.items() if names]
    if told and not (patched and setting.part in WHOLE):
        kind = ParametersError if wrong else ExtraParametersError
        raise kind("parameters differ from the assignment's (" + "; ".join(told) + ")")
    with torch.no_grad():
        for name in fitting:
            own[name].copy_(state[name])


def replace_parts_below(module: nn.Module, setting: Setting) -> None:
    """Put our own functions, on the module's parameters, in the place of the parts right below the
    judged one: so a mistake in one part leaves the others right.
    """
    part = setting.part
    wanted = state_of(setting)

    def ours(owner: nn.Module, prefix: str = "") -> Computation:
        """Return our computation on the owner's parameters, and on our own where it lacks one or
        has it in a different shape.
        """
        own = dict(owner.named_parameters(remove_duplicate=False))
        like = next(iter(own.values()), torch.zeros((), dtype=torch.float64))
        state = {n.removeprefix(prefix): v for n, v in wanted.items() if n.startswith(prefix)}
        usable = {
            n: own[n] if n in own and own[n].shape == v.shape else v.to(like)
            for n, v in state.items()
        }
        return Computation(usable, setting.size)

    def instead(owner: Any, function: Callable[[Tensor], Tensor]) -> None:
        owner.forward = lambda x, *args, **kwargs: function(x)

    if part == "mlp" and isinstance(getattr(module, "gelu", None), nn.Module):
        instead(module.gelu, lambda x: ours(module).gelu(x))
    if part == "block":
        instead(module.attention, lambda x: ours(module).attention("attention.", x))
        instead(module.mlp, lambda x: ours(module).mlp("mlp.", x))
    if part == "forward":
        for number, block in enumerate(cast(nn.ModuleList, module.backbone)):
            instead(block, partial(ours(block, f"backbone.{number}.").block, ""))
    if part in WHOLE:
        instead(module, lambda ids: ours(module).forward(ids))


# --- calling
# ---

# Arguments that the official tests pass by name.
KEYWORDS = {"generate": ("x", "num_new_tokens"), "loss": ("input_ids",)}


def answers(setting: Setting, solution: ModuleType, patched: bool, dtype: str) -> list[Answer]:
    """Return the answers to all inputs of a setting; a single error if the part cannot be built.

    In the first setting of a part there are many calls before the first input comes again, so that
    a part that counts its calls is seen."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # the submission may draw from the global generator
    made: list[Answer] = []
    try:
        built = build(setting, solution, patched, DTYPES[dtype])
    except BaseException as error:
        return [replace(answer_of_error(error), building=True)]
    for place, number in enumerate(setting.order):
        if setting.name == setting.part and place == len(setting.inputs):
            call_often(setting, built[1], DTYPES[dtype])
        answer = one_call(setting, *built, number, DTYPES[dtype])
        made.append(answer)
        if isinstance(answer, Raised) and answer.is_memory:
            break  # filling memory takes seconds; once is enough
    return made


def call_often(setting: Setting, call: Callable[..., Any], dtype: torch.dtype) -> None:
    """Call a part many times, with the smallest of its inputs."""
    number = min(
        range(len(setting.inputs)),
        key=lambda n: (*setting.new_tokens[n : n + 1], math.prod(setting.inputs[n])),
    )
    x = given(setting, number)
    x = x.to(dtype) if x.is_floating_point() else x
    with suppress(BaseException), torch.no_grad(), redirect_stdout(io.StringIO()):
        for _ in range(MANY):
            call(x.clone(), *setting.new_tokens[number : number + 1])


def one_call(
    setting: Setting, module: nn.Module, call: Callable[..., Any], number: int, dtype: torch.dtype
) -> Answer:
    """Call a part with one input of the setting."""
    leaf = given(setting, number).clone()
    leaf = leaf.to(dtype).requires_grad_(setting.gradient) if leaf.is_floating_point() else leaf
    module.zero_grad(set_to_none=True)
    module.train(setting.train_mode)
    arguments = {"num_new_tokens": setting.new_tokens[number]} if setting.new_tokens else {}
    x = leaf.clone()  # autograd forbids changing a leaf in place
    learns = [parameter.requires_grad for parameter in module.parameters()]
    random_state = torch.get_rng_state()
    try:
        with torch.set_grad_enabled(setting.gradient or setting.train_mode):
            before = torch.is_grad_enabled()
            result = call(x, **arguments)
            after = torch.is_grad_enabled()
    except BaseException as error:
        return answer_of_error(error)
    answer = answer_of(result)
    if not isinstance(answer, Values):
        return answer
    left = {
        "the gradient mode": after != before and setting.part in ("generate", "loss"),
        "the mode": setting.train_mode and not module.training,
        "the input": not torch.equal(x.detach(), leaf.detach()),
        "requires_grad": learns != [one.requires_grad for one in module.parameters()],
        "the random state": not setting.train_mode
        and not torch.equal(random_state, torch.get_rng_state()),
    }
    unnamed: tuple[str, ...] = ()
    with suppress(TypeError, ValueError):  # a signature that cannot be inspected
        names = KEYWORDS.get(setting.part, ())
        unnamed = tuple(name for name in names if not accepted(call, {name: None}))
    changed = tuple(name for name, is_so in left.items() if is_so)
    answer = replace(answer, changed=changed, unnamed=unnamed)
    return differentiated(answer, setting, module, leaf, result) if setting.gradient else answer


def differentiated(
    answer: Values, setting: Setting, module: nn.Module, leaf: Tensor, result: Any
) -> Values:
    """Return the answer with the gradients by the input, `leaf`, and by the parameters."""
    if not isinstance(result, Tensor) or not result.requires_grad:
        return replace(answer, has_gradient=False)
    try:
        result.backward(cotangent(setting, result.shape).to(result))
    except BaseException as error:
        return replace(answer, backward=replace(answer_of_error(error), line=""))
    own = dict(module.named_parameters(remove_duplicate=False)) | {INPUT: leaf}
    wanted = state_of(setting) | {INPUT: leaf}
    found = {
        name: own[name]
        for name, value in wanted.items()
        if name in own and own[name].shape == value.shape
    }
    gradients = {n: p.grad.double().cpu() for n, p in found.items() if p.grad is not None}
    absent = tuple(name for name in wanted if name not in found)
    return replace(answer, tensors=answer.tensors | gradients, absent=absent)
