"""What a submission's code returns in each setting: the child's work. No right value is known here.

An `Answer` is one result of one call. Parts that the judged one rests on are replaced by the grader's own functions
("patched"), so that a mistake below does not spread; the same calls are made with the submission's own parts as well.
"""

from __future__ import annotations

import inspect
import os
import random
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hectogpt.grade.built import DTYPES, Built, build, config, patch
from hectogpt.grade.settings import Setting, Size, given, hugging_face_names, order, shapes, weights

MEMORY_WORDS = ("can't allocate memory", "not enough memory", "out of memory", "cannot allocate")


@dataclass
class Answer:
    """kind: tensor, error, other (no tensor), memory. text: the message of an error, or what came instead of a tensor.
    line: where in the submission an error arose, as "model_solution.py:88: code". facts: what was seen beside."""

    kind: str
    tensor: Tensor | None = None
    text: str = ""
    error: str = ""
    line: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


def answers(setting: Setting, modules: dict[str, ModuleType], patched: bool, dtype: str) -> list[Answer]:
    """The answers to all calls of a setting, in the order of `settings.order`; one error for all if the part cannot be
    built. Gradients follow the result of their call as answers of their own."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # the submission may draw from the global generator
    made: list[Answer] = []
    if setting.kind == "elsewhere":
        return [elsewhere(setting, modules["model_solution"])]
    try:
        call = build(setting, modules["model_solution"], patched, DTYPES[dtype])
    except BaseException as error:
        return [told(error, {"building": True})]
    for number in order(setting):
        made += one_call(setting, call, number, DTYPES[dtype])
        if made[-1].kind == "memory":
            break  # filling memory takes seconds; once is enough
    return made


DEVICE_WORDS = ("expected device", "same device", "different device", "is on the device", "device meta")


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
        answer = told(error)
        if any(word in answer.text.lower() for word in DEVICE_WORDS):
            return Answer("other", text="", line=answer.line, facts={"device": answer.text[:200]})
    return Answer("other", text="")


def one_call(setting: Setting, built: Built, number: int, dtype: torch.dtype) -> list[Answer]:
    kept = given(setting, number)
    kept = kept.to(dtype) if kept.is_floating_point() else kept
    x = kept.clone()
    built.watch.clear()
    arguments = {"num_new_tokens": setting.new_tokens[number]} if setting.new_tokens else {}
    try:
        if setting.gradient:
            built.module.zero_grad(set_to_none=True)
            result = built.call(x)
        else:
            with torch.no_grad() if setting.part != "generate" else torch.enable_grad():
                result = built.call(x, **arguments)
    except BaseException as error:
        return [told(error)] * (3 if setting.gradient else 1)
    facts = {"input kept": torch.equal(x, kept), "mode kept": built.module.training == setting.train_mode}
    facts["graph"] = bool(built.watch.get("graph"))
    first = told_result(result, facts)
    if not setting.gradient:
        return [first]
    return [first, *gradients(built.module, result)]


def gradients(module: nn.Module, result: Any) -> list[Answer]:
    """Those of the head and of the token embeddings."""
    try:
        if not isinstance(result, Tensor):
            raise TypeError(f"{type(result).__name__} has no gradient")
        result.sum().backward()
        found = [module.get_parameter(name).grad for name in ("lm_head.weight", "embeddings.weight")]
        return [told_result(grad, {}) if grad is not None else Answer("other", text="no gradient") for grad in found]
    except BaseException as error:
        return [told(error)] * 2


def told_result(result: Any, facts: dict[str, Any]) -> Answer:
    if isinstance(result, Tensor) and not result.is_sparse and result.layout == torch.strided:
        if result.numel() > 2_000_000:
            return Answer("other", text=f"a tensor of shape {list(result.shape)}", facts=facts)
        return Answer("tensor", result.detach().cpu(), facts=facts)
    if isinstance(result, bool | int | float):
        return Answer("tensor", torch.tensor(result, dtype=torch.float64), facts=facts | {"python number": True})
    text = "None" if result is None else f"a {type(result).__name__}"
    if isinstance(result, tuple | list):
        text += f" of {len(result)}"
        if len(result) > 1 and isinstance(result[0], Tensor):  # its numbers tell more
            return told_result(result[0], facts | {"tuple": text})
    return Answer("other", text=text, facts=facts)


def told(error: BaseException, facts: dict[str, Any] | None = None) -> Answer:
    """An exception as an answer. The message may hold anything: the parent shortens and escapes it."""
    try:
        text = str(error)[:2000]
    except BaseException:
        text = "(its message cannot be made)"
    memory = isinstance(error, MemoryError) or any(word in text.lower() for word in MEMORY_WORDS)
    kind = "memory" if memory else "error"
    return Answer(kind, text=text, error=type(error).__name__, line=place(error), facts=facts or {})


FILES = ("model_solution.py", "train.py", "utils.py")


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


def fresh(setting: Setting, modules: dict[str, ModuleType]) -> list[Answer]:
    """The parameters of a new model, one tensor a name of ours."""
    torch.manual_seed(0)
    solution = modules["model_solution"]
    size = Size(64, 4, 4, 64, 97)
    try:
        own = dict(solution.Transformer(config(solution, size)).named_parameters(remove_duplicate=False))
    except BaseException as error:
        return [told(error, {"building": True})]
    return [told_result(own[name].float(), {"name": name}) for name in shapes(size) if name in own]


def converted(setting: Setting, modules: dict[str, ModuleType]) -> list[Answer]:
    """What state_dict_converter makes of a state dict in GPT2LMHeadModel's names, one tensor a name."""
    if "utils" not in modules:
        return []
    try:
        result = modules["utils"].state_dict_converter(theirs(setting))
        pairs = list(result.items())[:1000]
        return [Answer("tensor", value.detach().cpu(), facts={"name": str(name)[:200]}) for name, value in pairs]
    except BaseException as error:
        return [told(error)]


def theirs(setting: Setting) -> dict[str, Tensor]:
    """The setting's weights under Hugging Face's names: stacked, and transposed where theirs are stored so."""
    state = weights(setting)
    made = {}
    for name, ours in hugging_face_names(setting.size.n_layers).items():
        stacked = torch.cat([state[one] for one in ours])
        made[name] = (
            stacked.T.contiguous() if name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")) else stacked
        )
    return made


def every_answer(setting: Setting, modules: dict[str, ModuleType], variant: str) -> Iterator[tuple[str, list[Answer]]]:
    """(dtype, answers) of a setting with our lower parts ("patched") or the submission's own ("own"): in float64, and
    in float32 where float64 raised. What is not a part of the model is run as "patched" only."""
    if setting.part in ("init", "converter", "train", "plot"):
        if variant == "patched":
            yield "float64", other_answers(setting, modules)
        return
    made = answers(setting, modules, variant == "patched", "float64")
    yield "float64", made
    if any(answer.kind == "error" for answer in made):
        yield "float32", answers(setting, modules, variant == "patched", "float32")


def other_answers(setting: Setting, modules: dict[str, ModuleType]) -> list[Answer]:
    """Those of init, converter, train and plot."""
    from hectogpt.grade.train_answers import picture, training

    if setting.part == "init":
        return fresh(setting, modules)
    if setting.part == "converter":
        return converted(setting, modules)
    if "train" not in modules:
        return []
    return training(setting, modules) if setting.part == "train" else picture(modules)


def takes(function: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Of the arguments, those that the function has a name for."""
    known = inspect.signature(function).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in known.values()):
        return arguments
    return {name: value for name, value in arguments.items() if name in known}


def import_submission(names: tuple[str, ...]) -> tuple[dict[str, ModuleType], dict[str, Answer]]:
    """The modules of these names that can be imported, and the errors of those that cannot."""
    import importlib

    modules, errors = {}, {}
    for name in names:
        sys.modules.pop(name, None)
        try:
            modules[name] = importlib.import_module(name)
        except BaseException as error:
            errors[name] = told(error, {"importing": True})
    return modules, errors
