"""What a submission's code returns in each setting: the child's work. No right value is known here.

An `Answer` is one result of one call. Parts that the judged one rests on are replaced by the grader's own functions
("patched"), so that a mistake below does not spread; the same calls are made with the submission's own parts as well.
"""

from __future__ import annotations

import inspect
import os
import random
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hectogpt.assignment.parts import BY_NAME
from hectogpt.grade.built import DTYPES, Built, build, config, patch
from hectogpt.grade.settings import (
    INPUT,
    Setting,
    Size,
    cotangent,
    given,
    gradient_sizes,
    hugging_face_names,
    order,
    shapes,
    weights,
)

MEMORY_WORDS = ("can't allocate memory", "not enough memory", "out of memory", "cannot allocate")
DEVICE_WORDS = ("expected device", "same device", "different device", "is on the device", "device meta")
FILES = ("model_solution.py", "train.py", "utils.py")
LARGEST = 2_000_000  # numbers in a result that is looked at


@dataclass
class Answer:
    """kind: tensor, error, other (no tensor), memory. text: the message of an error, or what came instead of a tensor.
    line: where in the submission an error arose, as "model_solution.py:88: code". facts: what was seen beside.
    gradient: flat, in the order of settings.gradient_sizes; None if there is none, and facts["gradient"] says why."""

    kind: str
    tensor: Tensor | None = None
    text: str = ""
    error: str = ""
    line: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    gradient: Tensor | None = None


def answers(setting: Setting, modules: dict[str, ModuleType], patched: bool, dtype: str) -> list[Answer]:
    """The answers to all calls of a setting, in the order of `settings.order`; one error for all if the part cannot be
    built."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # the submission may draw from the global generator
    made: list[Answer] = []
    if setting.kind == "elsewhere":
        return [elsewhere(setting, modules["model_solution"])]
    try:
        built = build(setting, modules["model_solution"], patched, DTYPES[dtype])
    except BaseException as error:
        return [answer_of_error(error, {"building": True})]
    for number in order(setting):
        made.append(one_call(setting, built, number, DTYPES[dtype]))
        if made[-1].kind == "memory":
            break  # filling memory takes seconds; once is enough
    return made


def elsewhere(setting: Setting, solution: ModuleType) -> Answer:
    """Whether the part runs on another device than the CPU: "meta", which every machine has. Tables that are asked
    with a tensor of another device raise there as they do on a GPU. Other errors tell nothing about devices."""

    def same_device(module: nn.Module, given: tuple[Any, ...]) -> None:
        if isinstance(given[0], Tensor) and given[0].device != next(module.parameters()).device:
            raise RuntimeError(f"{given[0].device} and {next(module.parameters()).device}: not the same device")

    try:
        built = build(setting, solution, False, torch.float32)
        built.module.to("meta")  # makes new parameters, so that ours below come after it
        patch(built.module, setting, built.watch)
        for table in built.module.modules():
            if isinstance(table, nn.Embedding):
                table.register_forward_pre_hook(same_device)
        with torch.no_grad():
            built.call(given(setting, 0).to("meta", torch.float32 if setting.part == "attention" else None))
    except BaseException as error:
        answer = answer_of_error(error)
        if any(word in answer.text.lower() for word in DEVICE_WORDS):
            return Answer("other", text="", line=answer.line, facts={"device": answer.text[:200]})
    return Answer("other", text="")


def one_call(setting: Setting, built: Built, number: int, dtype: torch.dtype) -> Answer:
    kept = given(setting, number)
    kept = kept.to(dtype) if kept.is_floating_point() else kept
    leaf = kept.clone().requires_grad_(setting.gradient and kept.is_floating_point())
    built.watch.clear()
    built.module.zero_grad(set_to_none=True)
    arguments = {"num_new_tokens": setting.new_tokens[number]} if setting.new_tokens else {}
    try:
        with torch.set_grad_enabled(setting.gradient or setting.part == "generate"):
            x = leaf.clone()  # what is done to it in place shows, and is done to no leaf
            result = built.call(x, **arguments)
    except BaseException as error:
        return answer_of_error(error)
    facts = {"input kept": torch.equal(x, kept), "mode kept": built.module.training == setting.train_mode}
    facts["graph"] = bool(built.watch.get("graph"))
    answer = answer_of(result, facts)
    if setting.gradient:
        differentiate(setting, built.module, number, leaf, result, answer)
    return answer


def differentiate(setting: Setting, module: nn.Module, number: int, leaf: Tensor, result: Any, answer: Answer) -> None:
    """Add the gradients to the answer; what gets none counts as zeros. facts["absent"]: weights that the module lacks,
    or has in another shape; facts["without"]: those that no gradient reaches."""
    result = result[0] if isinstance(result, tuple | list) and result else result
    if not isinstance(result, Tensor) or result.numel() > LARGEST:
        answer.facts["gradient"] = "it carries no gradient"
        return
    if not result.requires_grad:
        answer.facts["gradient"] = "the result carries no gradient: it does not depend on any weight for autograd"
        return
    try:
        result.backward(cotangent(setting, result.shape).to(result))
    except BaseException as error:
        answer.facts["gradient"] = f"{type(error).__name__}: {str(error)[:400]}"
        return
    own = dict(module.named_parameters(remove_duplicate=False)) | {INPUT: leaf}
    expected = gradient_sizes(setting, number)
    found = {name: own[name].grad for name, size in expected.items() if name in own and own[name].numel() == size}
    answer.facts["absent"] = [name for name in expected if name not in found]
    answer.facts["without"] = [name for name, grad in found.items() if grad is None]
    flat = [torch.zeros(size) if (g := found.get(name)) is None else g.flatten() for name, size in expected.items()]
    answer.gradient = torch.cat([g.double().cpu() for g in flat])


def answer_of(result: Any, facts: dict[str, Any]) -> Answer:
    """What a call returned."""
    if isinstance(result, Tensor) and not result.is_sparse and result.layout == torch.strided:
        if result.numel() > LARGEST:
            return Answer("other", text=f"a tensor of shape {list(result.shape)}", facts=facts)
        return Answer("tensor", result.detach().cpu(), facts=facts)
    if isinstance(result, bool | int | float):
        return Answer("tensor", torch.tensor(result, dtype=torch.float64), facts=facts | {"python number": True})
    text = "None" if result is None else f"a {type(result).__name__}"
    if isinstance(result, tuple | list):
        text += f" of {len(result)}"
        if len(result) > 1 and isinstance(result[0], Tensor):  # its numbers tell more
            return answer_of(result[0], facts | {"tuple": text})
    return Answer("other", text=text, facts=facts)


def answer_of_error(error: BaseException, facts: dict[str, Any] | None = None) -> Answer:
    """An exception as an answer. The message may hold anything: the parent shortens and escapes it."""
    try:
        text = str(error)[:2000]
    except BaseException:
        text = "(its message cannot be made)"
    memory = isinstance(error, MemoryError) or any(word in text.lower() for word in MEMORY_WORDS)
    kind = "memory" if memory else "error"
    return Answer(kind, text=text, error=type(error).__name__, line=place(error), facts=facts or {})


def place(error: BaseException) -> str:
    """The innermost line of the submission in the traceback."""
    with_line = ""
    try:
        for frame in traceback.extract_tb(error.__traceback__)[-200:]:
            folder, name = os.path.split(frame.filename)
            if name in FILES and folder in ("", os.getcwd()):
                with_line = f"{name}:{frame.lineno}: {(frame.line or '').strip()[:160]}"
        if isinstance(error, SyntaxError) and error.filename:
            with_line = f"{error.filename.rpartition('/')[2]}:{error.lineno}: {(error.text or '').strip()[:160]}"
    except BaseException:
        return ""
    return with_line


# --- init, converter ------------------------------------------------------------------------------------------------


def fresh(modules: dict[str, ModuleType]) -> list[Answer]:
    """The parameters of a new model, one tensor a name of ours."""
    torch.manual_seed(0)
    solution = modules["model_solution"]
    size = Size(64, 4, 4, 64, 97)
    try:
        own = dict(solution.Transformer(config(solution, size)).named_parameters(remove_duplicate=False))
    except BaseException as error:
        return [answer_of_error(error, {"building": True})]
    return [answer_of(own[name].float(), {"name": name}) for name in shapes(size) if name in own]


def converted(setting: Setting, modules: dict[str, ModuleType]) -> list[Answer]:
    """What state_dict_converter makes of a state dict in GPT2LMHeadModel's names, one tensor a name."""
    try:
        result = modules["utils"].state_dict_converter(theirs(setting))
        pairs = list(result.items())[:1000]
        return [Answer("tensor", value.detach().cpu(), facts={"name": str(name)[:200]}) for name, value in pairs]
    except BaseException as error:
        return [answer_of_error(error)]


def theirs(setting: Setting) -> dict[str, Tensor]:
    """The setting's weights under Hugging Face's names: stacked, and transposed where theirs are stored so."""
    state = weights(setting)
    made = {}
    for name, ours in hugging_face_names(setting.size.n_layers).items():
        stacked = torch.cat([state[one] for one in ours])
        transposed = name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight"))
        made[name] = stacked.T.contiguous() if transposed else stacked
    return made


def every_answer(setting: Setting, modules: dict[str, ModuleType], variant: str) -> Iterator[tuple[str, list[Answer]]]:
    """(dtype, answers) of a setting with our lower parts ("patched") or the submission's own ("own"): in float64, and
    in float32 where float64 raised. What is not a part of the model is run as "patched" only."""
    if setting.part in ("init", "converter", "train", "plot"):
        if variant == "patched" and BY_NAME[setting.part].module in modules:
            yield "float64", other_answers(setting, modules)
        return
    made = answers(setting, modules, variant == "patched", "float64")
    yield "float64", made
    if any(answer.kind == "error" or "Error: " in str(answer.facts.get("gradient")) for answer in made):
        yield "float32", answers(setting, modules, variant == "patched", "float32")


def other_answers(setting: Setting, modules: dict[str, ModuleType]) -> list[Answer]:
    """Those of init, converter, train and plot."""
    from hectogpt.grade.train_answers import picture, training

    if setting.part == "init":
        return fresh(modules)
    if setting.part == "converter":
        return converted(setting, modules)
    return training(setting, modules) if setting.part == "train" else picture(modules)


def takes(function: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Of the arguments, those that the function has a name for."""
    known = inspect.signature(function).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in known.values()):
        return arguments
    return {name: value for name, value in arguments.items() if name in known}
