"""What a submission's parts return in each setting, as answers: the child's work. No right value
is known here.

Parts that the judged one rests on are replaced by the grader's own functions ("patched"), so that
a mistake below does not spread; the same calls are made with the submission's own parts as
well."""

from __future__ import annotations

import inspect
import io
import math
import os
import random
import traceback
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from types import ModuleType
from typing import Any, Literal, cast
from unittest import mock

import numpy as np
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from hectogpt.assignment.parts import BY_NAME, SOURCES
from hectogpt.grade.computation import Computation
from hectogpt.grade.laws import INPUT, Setting, Size, cotangent, given, state_of
from hectogpt.hardware import is_out_of_memory
from hectogpt.serialization import load

DTYPES = {"float64": torch.float64, "float32": torch.float32}
LARGEST = 2_000_000  # numbers in a result that is looked at
MANY = 40  # calls of a part, see call_often

# --- answers
# ---


@dataclass
class Answer:
    """What one call gave.

    kind: error, other (no tensor), memory, or tensor.
    numbers: the result, without a name, and its gradients by name, without those that none
        reaches.
    text: the message of an error, or what came instead of a tensor. error: its class.
    line: where in the submission it arose, as "model_solution.py:88: code".
    building: whether the part could not even be built.
    backward: why there are no gradients.
    absent: weights that the module lacks, or has in another shape.
    unnamed: arguments that it has under other names.
    changed: what the call leaves changed, "the input" say.

    Of train(): kept: whether the losses hold their graph. after: an error after they were
    recorded.
    optimizers: their classes. plain: see watch.Seen."""

    kind: Literal["error", "other", "memory", "tensor"]
    numbers: dict[str, Tensor] = field(default_factory=dict)
    text: str = ""
    error: str = ""
    line: str = ""
    building: bool = False
    backward: str = ""
    absent: tuple[str, ...] = ()
    unnamed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    optimizers: tuple[str, ...] = ()
    plain: bool = True
    kept: bool = False
    after: str = ""

    @property
    def tensor(self) -> Tensor | None:
        return self.numbers.get("")

    def header(self) -> dict[str, Any]:
        """All but its numbers, as JSON."""
        return {name: value for name, value in vars(self).items() if name != "numbers"}


def frame_of(made: list[Answer]) -> tuple[dict[str, Any], bytes]:
    """Answers as JSON; and their numbers as the bytes of a safetensors file."""
    tensors = {
        f"{place} {name}": value.clone(memory_format=torch.contiguous_format)
        for place, answer in enumerate(made)
        for name, value in answer.numbers.items()
    }
    return {"answers": [answer.header() for answer in made]}, save_tensors(tensors)


def of_frame(header: dict[str, Any], body: bytes) -> list[Answer]:
    """A frame as answers. Raises UserError, ValueError, KeyError and what safetensors raises for
    one that is none.
    """
    tensors: dict[str, dict[str, Tensor]] = {}
    for name, value in load_tensors(body).items():
        place, _, name = name.partition(" ")
        tensors.setdefault(place, {})[name] = value
    return [
        of_header(one, tensors.get(str(place), {})) for place, one in enumerate(header["answers"])
    ]


def of_header(header: dict[str, Any], numbers: dict[str, Tensor]) -> Answer:
    """An answer with these numbers."""
    answer: Answer = load(
        Answer, {name: v[:2000] if isinstance(v, str) else v for name, v in header.items()}
    )
    if (answer.kind == "tensor") != ("" in numbers):
        raise ValueError("a tensor is missing")
    return replace(answer, numbers=numbers)


def answer_of(result: Any) -> Answer:
    """What a call returned."""
    if isinstance(result, Tensor) and result.layout == torch.strided and not result.is_complex():
        if result.numel() > LARGEST:
            return Answer("other", text=f"a tensor of shape {list(result.shape)}")
        return Answer("tensor", {"": result.detach().cpu()})
    if isinstance(result, bool | int | float):
        return Answer("tensor", {"": torch.tensor(result, dtype=torch.float64)})
    text = "None" if result is None else f"a {type(result).__name__}"
    return Answer(
        "other", text=text + f" of {len(result)}" if isinstance(result, tuple | list) else text
    )


def answer_of_error(error: BaseException) -> Answer:
    """An exception as an answer. The message may hold anything: the parent shortens and escapes
    it.
    """
    try:
        text = str(error)[:2000]
        memory = is_out_of_memory(error)
    except BaseException:
        text = "(its message cannot be made)"
        memory = False
    return Answer(
        "memory" if memory else "error", text=text, error=type(error).__name__, line=place(error)
    )


def place(error: BaseException) -> str:
    """The innermost line of the submission in the traceback."""
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
    """Of the arguments, those that the function has a name for. Raises TypeError and ValueError
    for what is no function that can be looked at."""
    known = inspect.signature(function).parameters
    every = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in known.values())
    return {name: value for name, value in arguments.items() if every or name in known}


# --- building
# ---


def build(
    setting: Setting, solution: ModuleType, patched: bool, dtype: torch.dtype
) -> tuple[nn.Module, Callable[..., Any]]:
    """The part with the setting's weights, and below it, if patched, our own parts; and how it is
    called.
    """
    name = BY_NAME[setting.part].owner
    if not hasattr(solution, name):
        raise AttributeError(f"model_solution.py has no class {name}")
    module = construct(solution, name, setting.size)
    fill(module, setting, dtype, patched)
    module.train(setting.train_mode)
    method = BY_NAME[setting.part].functions[-1].rpartition(".")[2]
    call = module if method == "forward" else getattr(module, method)
    if patched:
        patch(module, setting)
    return module, call


def construct(solution: ModuleType, name: str, size: Size) -> Any:
    """An object of a class of the submission. A transformer draws no first weights: they are
    another part, and ours are loaded."""
    kind = getattr(solution, "Transformer", None)
    written = hasattr(kind, "_init_weights")
    with mock.patch.object(kind, "_init_weights", return_value=None) if written else nullcontext():
        return getattr(solution, name)(*([] if name == "GELU" else [config(solution, size)]))


def config(solution: ModuleType, size: Size) -> Any:
    """The submission's own ModelConfig, or ours if there is none."""
    return getattr(solution, "ModelConfig", Size)(**vars(size))


# Parameters of the parts right below the judged one, which a mistake there may have renamed or
# reshaped.
WHOLE = ("generate", "loss", "train")  # what rests on the whole forward pass
BELOW = {"block": ("mlp.", "attention."), **dict.fromkeys(("forward", *WHOLE), ("backbone.",))}


def fill(module: nn.Module, setting: Setting, dtype: torch.dtype, patched: bool = False) -> None:
    """Copy our weights into the module, in the dtype.

    Raises LookupError for a parameter that is missing, that we do not know, that has another
    shape, or that has two names. If the parts below are to be patched, theirs may differ, but all
    of a block's must not be missing. Where the whole forward pass is patched, the constructor's
    mistakes are those of `forward` alone."""
    module.to(dtype)
    state = state_of(setting)
    own = dict(module.named_parameters(remove_duplicate=False))
    names = {id(value): name for name, value in own.items()}
    if tied := [
        (names[id(value)], name) for name, value in own.items() if names[id(value)] != name
    ]:
        if not (patched and setting.part in WHOLE):
            raise LookupError(
                "parameters are shared: " + ", ".join(" and ".join(pair) for pair in tied)
            )
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
        raise LookupError("parameters differ from the assignment's (" + "; ".join(told) + ")")
    with torch.no_grad():
        for name in fitting:
            own[name].copy_(state[name])


def patch(module: nn.Module, setting: Setting) -> None:
    """Replace the parts right below the judged one by ours, which use the module's own
    parameters.
    """
    part = setting.part
    wanted = state_of(setting)

    def ours(owner: nn.Module, prefix: str = "") -> Computation:
        """On the owner's parameters; where it lacks one, or has it in another shape, on our
        own.
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
    if part in ("generate", "loss", "train"):
        instead(module, lambda ids: ours(module).forward(ids))


# --- calling
# ---

KEYWORDS = {
    "generate": ("x", "num_new_tokens"),
    "loss": ("input_ids",),
}  # that the official tests pass by name


def answers(setting: Setting, solution: ModuleType, patched: bool, dtype: str) -> list[Answer]:
    """The answers to all inputs of a setting; one error for all if the part cannot be built. In
    the first setting of a part there are many calls in between, so that it shows if something is
    counted."""
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
        made.append(one_call(setting, *built, number, DTYPES[dtype]))
        if made[-1].kind == "memory":
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
    leaf = given(setting, number).clone()
    leaf = leaf.to(dtype).requires_grad_(setting.gradient) if leaf.is_floating_point() else leaf
    module.zero_grad(set_to_none=True)
    module.train(setting.train_mode)
    arguments = {"num_new_tokens": setting.new_tokens[number]} if setting.new_tokens else {}
    x = leaf.clone()
    changed = list[str]()  # in place nothing may be done to a leaf
    try:
        with torch.set_grad_enabled(setting.gradient or setting.train_mode):
            before = torch.is_grad_enabled()
            result = call(x, **arguments)
            changed += ["the gradient mode"] * (
                torch.is_grad_enabled() != before and setting.part == "generate"
            )
    except BaseException as error:
        return answer_of_error(error)
    changed += ["the mode"] * (setting.train_mode and not module.training)
    changed += ["the input"] * (not torch.equal(x.detach(), leaf.detach()))
    answer = replace(answer_of(result), changed=tuple(changed))
    with suppress(TypeError, ValueError):  # nothing that can be looked at
        answer.unnamed = tuple(
            n for n in KEYWORDS.get(setting.part, ()) if not accepted(call, {n: None})
        )
    if setting.gradient:
        differentiate(setting, module, number, leaf, result, answer)
    return answer


def differentiate(
    setting: Setting, module: nn.Module, number: int, leaf: Tensor, result: Any, answer: Answer
) -> None:
    """Add the gradients to the answer."""
    if not isinstance(result, Tensor) or result.numel() > LARGEST:
        answer.backward = "it carries no gradient"
        return
    if not result.requires_grad:
        answer.backward = (
            "the result carries no gradient: it does not depend on any weight for autograd"
        )
        return
    try:
        result.backward(cotangent(setting, result.shape).to(result))
    except BaseException as error:
        answer.backward = f"{type(error).__name__}: {str(error)[:400]}"
        return
    own = dict(module.named_parameters(remove_duplicate=False)) | {INPUT: leaf}
    wanted = state_of(setting) | {INPUT: given(setting, number)}
    found = {
        name: own[name]
        for name, value in wanted.items()
        if name in own and own[name].shape == value.shape
    }
    answer.absent = tuple(name for name in wanted if name not in found)
    answer.numbers |= {
        name: one.grad.double().cpu() for name, one in found.items() if one.grad is not None
    }
