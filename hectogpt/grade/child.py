"""The grader's child process: restrict itself, import a submission, and send its results.

`hectogpt.grade.runner` starts it in a temporary folder with a copy of the submission. The child
gets the names of settings and makes weights and inputs itself. It sends only the results of the
submission and, for train(), the right loss of each batch. It makes each call twice: once with the
grader's own functions instead of the parts below the judged one ("patched"), so that a mistake in
those parts does not spread, and once with the submission's own parts ("own"). The restrictions
stop accidents, not attackers.
"""

from __future__ import annotations
import __future__

import importlib
import io
import math
import os
import random
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, redirect_stdout, suppress
from dataclasses import replace
from functools import partial
from importlib.machinery import FileFinder, ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, cast
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from hectogpt import hardware, process
from hectogpt.assignment.parts import BY_NAME, SOURCES
from hectogpt.grade.answer import LONGEST, Answer, Curves, Drawn, Other, Raised, Values, frame_of
from hectogpt.grade.computation import Computation
from hectogpt.grade.laws import (
    BATCH,
    INPUT,
    RATE,
    SETTINGS,
    STEPS,
    TRAIN_MODEL,
    TRAIN_SIZE,
    Setting,
    Size,
    clip_of,
    cotangent,
    given,
    state_of,
    train_text,
    weights,
)
from hectogpt.grade.watch import Watch, arguments_for, draw, plain, rows_of, run_train
from hectogpt.hardware import is_out_of_memory
from hectogpt.sandbox import Policy

DTYPES = {"float64": torch.float64, "float32": torch.float32}
LARGEST = 2_000_000  # elements; a larger result is not sent
MANY = 40  # calls made by `call_often`


def prepare_everything() -> None:
    """Load libraries and make weights and inputs.

    This is done before the limits are set, so that they count only the submission's own use, and
    before the submission can change torch.
    """
    import matplotlib.pyplot  # noqa: F401

    torch.set_num_threads(1)
    for setting in (*SETTINGS.values(), TRAIN_MODEL):
        weights(setting)
        for call in range(len(setting.inputs)):
            given(setting, call)
    torch.ones(1, requires_grad=True).sum().backward()  # starts autograd's threads


def main() -> None:
    """Answer one request.

    The request is {"asked": [[setting, variant], ...], "modules": [names], "memory": bytes}.
    """
    frames = process.frames()
    prepare_everything()
    request = frames.receive()
    finder = shut_in(request["memory"])
    frames.send({"ready": True})
    modules, errors = import_submission(request["modules"], finder)
    for header, body in replies(request["asked"], modules, errors, finder.missing):
        frames.send(header, body)
    frames.done()


def replies(
    asked: Sequence[tuple[str, str]],
    modules: dict[str, ModuleType],
    errors: dict[str, Raised],
    missing: set[str],
) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Yield the frames of a submission.

    The first has the errors of imports and the missing packages. Each of the others has the
    answers to one (setting, variant) in `asked`.
    """
    imports = {name: error.facts() for name, error in errors.items()}
    yield {"imports": imports, "missing": sorted(missing)}, b""
    for name, variant in asked:
        dtype, made = every_answer(SETTINGS[name], modules, variant == "patched")
        header, body = frame_of(made)
        yield {"dtype": dtype, **header}, body


def every_answer(
    setting: Setting, modules: dict[str, ModuleType], patched: bool
) -> tuple[str, list[Answer]]:
    """Return the dtype and the answers of a setting.

    The dtype is float64, or float32 if fewer calls fail in it. There are no answers if the
    setting's module could not be imported.
    """
    if BY_NAME[setting.part].module not in modules:
        return "float64", []
    if setting.part in ("train", "plot"):
        try:
            if setting.part == "train":
                return "float64", [training(setting, modules)]
            return "float64", [Drawn(picture=draw(modules["train"].plot_results))]
        except BaseException as error:
            return "float64", [answer_of_error(error)]
    made = answers(setting, modules["model_solution"], patched, "float64")
    if failures := sum(map(has_failed, made)):
        again = answers(setting, modules["model_solution"], patched, "float32")
        if sum(map(has_failed, again)) < failures:
            return "float32", again
    return "float64", made


def has_failed(answer: Answer) -> bool:
    """True for an error other than a lack of memory, and for a missing gradient."""
    if isinstance(answer, Raised):
        return not answer.is_memory
    return isinstance(answer, Values) and not answer.trains


# --- calling

# Arguments that the official tests pass by name.
KEYWORDS = {"generate": ("x", "num_new_tokens"), "loss": ("input_ids",)}


def answers(setting: Setting, solution: ModuleType, patched: bool, dtype: str) -> list[Answer]:
    """Return the answers to all inputs of a setting, or one error if the part cannot be built.

    In the first setting of a part, many more calls are made before the first input is repeated,
    so that a part that counts its calls is caught.
    """
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
            break  # running out of memory takes seconds, so once is enough
    return made


def call_often(setting: Setting, call: Callable[..., Any], dtype: torch.dtype) -> None:
    """Call a part MANY times with the smallest of its inputs."""
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
    unnamed: tuple[str, ...] = ()
    with suppress(TypeError, ValueError):  # a signature that cannot be inspected
        names = KEYWORDS.get(setting.part, ())
        known = arguments_for(call, dict.fromkeys(names))
        unnamed = tuple(name for name in names if name not in known)
    x = leaf.clone()  # autograd forbids changing a leaf in place
    learns = [parameter.requires_grad for parameter in module.parameters()]
    random_state = torch.get_rng_state()
    try:
        with torch.set_grad_enabled(setting.gradient or setting.train_mode):
            before = torch.is_grad_enabled()
            by_place = "num_new_tokens" in unnamed
            result = call(x, *arguments.values()) if by_place else call(x, **arguments)
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
    changed = tuple(name for name, is_so in left.items() if is_so)
    answer = replace(answer, changed=changed, unnamed=unnamed)
    return differentiated(answer, setting, module, leaf, result) if setting.gradient else answer


def differentiated(
    answer: Values, setting: Setting, module: nn.Module, leaf: Tensor, result: Any
) -> Values:
    """Add to an answer the gradients with respect to its input, `leaf`, and the parameters."""
    if not isinstance(result, Tensor) or not result.requires_grad:
        return replace(answer, has_gradient=False)
    try:
        result.backward(cotangent(setting, result.shape).to(result))
    except BaseException as error:
        return replace(answer, backward=replace(answer_of_error(error), line=""))
    found = fitting(module, state_of(setting))
    leaves = {**found, INPUT: leaf}
    gradients = {n: p.grad.double().cpu() for n, p in leaves.items() if p.grad is not None}
    absent = tuple(name for name in state_of(setting) if name not in found)
    return replace(answer, tensors=answer.tensors | gradients, absent=absent)


def answer_of(result: Any) -> Answer:
    """Return the result of a call as an answer."""
    if isinstance(result, Tensor) and result.layout == torch.strided and not result.is_complex():
        if result.numel() > LARGEST:
            return Other(text=f"a tensor of shape {list(result.shape)}")
        return Values(tensors={"": result.detach().cpu()})
    if isinstance(result, bool | int | float):
        return Values(tensors={"": torch.tensor(result, dtype=torch.float64)})
    size = f" of {len(result)}" if isinstance(result, tuple | list) else ""
    return Other(text="None" if result is None else f"a {type(result).__name__}{size}")


def answer_of_error(error: BaseException) -> Raised:
    """Return an exception as an answer.

    Its message may contain anything: the parent shortens and escapes it.
    """
    try:
        text = str(error)[:LONGEST]
        is_memory = is_out_of_memory(error)
    except BaseException:
        text = "(its message cannot be read)"
        is_memory = False
    name = type(error).__name__
    return Raised(error=name, text=text, line=line_of(error), is_memory=is_memory)


def line_of(error: BaseException) -> str:
    """Return the innermost line of the submission in the traceback; "" if there is none."""
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


# --- building


class MissingClassError(AttributeError):
    """The submission lacks a class."""


class ParametersError(LookupError):
    """The parameters of a module are not those of the assignment."""


class ExtraParametersError(ParametersError):
    """A module has all parameters of the assignment, and additional ones."""


class SharedParametersError(ParametersError):
    """Two names of parameters in a module stand for the same tensor."""


def build(
    setting: Setting, solution: ModuleType, patched: bool, dtype: torch.dtype
) -> tuple[nn.Module, Callable[..., Any]]:
    """Return the module with the setting's weights, and the function to call.

    patched: replace the parts below the judged one with our own.

    Raises MissingClassError, ParametersError, and the errors of the submission.
    """
    name = BY_NAME[setting.part].owner
    if not hasattr(solution, name):
        raise MissingClassError(f"model_solution.py has no class {name}")
    module = construct(solution, name, setting.size)
    module.to(dtype)
    if patched and setting.part in WHOLE:
        refit(module, setting, dtype)
    else:
        fill(module, setting, patched)
    module.train(setting.train_mode)
    method = BY_NAME[setting.part].functions[-1].rpartition(".")[2]
    call = module if method == "forward" else getattr(module, method)
    if patched:
        replace_parts_below(module, setting)
    return module, call


def construct(solution: ModuleType, name: str, size: Size) -> Any:
    """Create an object of a class of the submission.

    The Transformer's `_init_weights` is not run: it is a separate part of the assignment, and our
    weights are loaded afterwards.
    """
    kind = getattr(solution, "Transformer", None)
    written = hasattr(kind, "_init_weights")
    with mock.patch.object(kind, "_init_weights", return_value=None) if written else nullcontext():
        return getattr(solution, name)(*([] if name == "GELU" else [config(solution, size)]))


def config(solution: ModuleType, size: Size) -> Any:
    """Return a config: an object of the submission's class, or of ours if it has none."""
    return getattr(solution, "ModelConfig", Size)(**vars(size))


WHOLE = ("generate", "loss")  # parts that use the whole forward pass
# Part -> prefixes of the parameters of the parts below it, which a mistake in those may rename.
BELOW = {"block": ("mlp.", "attention."), "forward": ("backbone.",)}


def fill(module: nn.Module, setting: Setting, patched: bool) -> None:
    """Copy our weights into the module.

    patched: the parts below are replaced, so their parameters are not checked.

    Raises ParametersError for a parameter that is missing, unknown, shared, or of a different
    shape.
    """
    state = state_of(setting)
    check_parameters(module, state, BELOW.get(setting.part, ()) if patched else ())
    with torch.no_grad():
        for name, parameter in fitting(module, state).items():
            parameter.copy_(state[name])


def refit(module: nn.Module, setting: Setting, dtype: torch.dtype) -> dict[str, nn.Parameter]:
    """Replace all parameters of a module with our weights, and return them by name.

    This is for a module whose whole forward pass is replaced: mistakes in its constructor are
    reported for the part `forward`. All else in it stays, as train() may use it.
    """
    for one in module.modules():
        one._parameters.clear()
    own = {}
    homes = dict[nn.Module, str]()
    for name, value in state_of(setting).items():
        *path, last = name.split(".")
        place = module
        home = ""
        for step in path:
            home = f"{home}.{step}"
            child = getattr(place, step, None)
            if not isinstance(child, nn.Module) or homes.setdefault(child, home) != home:
                child = nn.Module()  # in place of nothing, or of one that is elsewhere too
                setattr(place, step, child)
            place = child
        own[name] = nn.Parameter(value.to(dtype))
        setattr(place, last, own[name])
    return own


def fitting(module: nn.Module, wanted: dict[str, Tensor]) -> dict[str, nn.Parameter]:
    """Return the parameters of a module that have the name and the shape of a wanted one."""
    own = dict(module.named_parameters(remove_duplicate=False))
    return {n: own[n] for n, v in wanted.items() if n in own and own[n].shape == v.shape}


def check_parameters(module: nn.Module, wanted: dict[str, Tensor], below: tuple[str, ...]) -> None:
    """Raise ParametersError unless the parameters of a module are the wanted ones.

    below: prefixes of parameters that are not checked, except that no block may lack all of its
        parameters.
    """
    own = dict(module.named_parameters(remove_duplicate=False))
    known = {name: own[name] for name in wanted if name in own}
    names = {id(value): name for name, value in known.items()}
    pairs = [f"{names[id(v)]} and {name}" for name, v in known.items() if names[id(v)] != name]
    if pairs:
        raise SharedParametersError(f"parameters are shared: {', '.join(pairs)}")
    blocks = {name.split(".")[1] for name in own if name.startswith("backbone.")}
    found = fitting(module, wanted)
    wrong = [
        name
        for name in wanted
        if name not in found
        and not (
            name.startswith(below) and (below != ("backbone.",) or name.split(".")[1] in blocks)
        )
    ]
    faults = {
        "missing": [n for n in wrong if n not in own],
        "other shape": [
            f"{n}: {list(own[n].shape)}, expected {list(wanted[n].shape)}"
            for n in wrong
            if n in own
        ],
        "not in the assignment": [
            n
            for n, value in own.items()
            if id(value) not in names and value.requires_grad and not n.startswith(below)
        ],
    }
    told = [f"{word}: {', '.join(names)}" for word, names in faults.items() if names]
    if told:
        kind = ParametersError if wrong else ExtraParametersError
        raise kind("parameters differ from the assignment's (" + "; ".join(told) + ")")


def replace_parts_below(module: nn.Module, setting: Setting) -> None:
    """Replace the parts directly below the judged one with our own functions.

    These functions use the module's parameters. So a mistake in one part does not make the parts
    above it wrong.
    """
    part = setting.part
    wanted = state_of(setting)

    def ours(owner: nn.Module, prefix: str = "") -> Computation:
        """Return our computation on the owner's parameters.

        Our own weights replace parameters that the owner lacks or has in a different shape.
        """
        like = next(owner.parameters(), torch.zeros((), dtype=torch.float64))
        state = {n.removeprefix(prefix): v for n, v in wanted.items() if n.startswith(prefix)}
        usable = {name: value.to(like) for name, value in state.items()}
        return Computation({**usable, **fitting(owner, state)}, setting.size)

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


# --- train()


def training(setting: Setting, modules: dict[str, ModuleType]) -> Answer:
    """Run train(). Return the numbers that it records, and the record of its batches and steps.

    Raises the error of train(), unless train() has already called plot_results.
    """
    solution = modules["model_solution"]
    model = construct(solution, "Transformer", TRAIN_SIZE)
    own = refit(model, TRAIN_MODEL, torch.float32)

    def loss_of(ids: Tensor) -> Tensor:
        """Return the right loss of a batch.

        If all its rows are found in the text, the loss is that of the whole rows: the loop may
        have cut off their last tokens.
        """
        rows = rows_of(ids, train_text())
        whole = ids.long() if any(row < 0 for row in rows) else train_text()[rows]
        return Computation(own, TRAIN_SIZE).loss(whole)

    wanted = {
        "learning_rate": RATE,
        "gradient_clipping": clip_of(setting),
        "model_config": config(solution, TRAIN_SIZE),
        "batch_size": BATCH,
        "max_steps": STEPS,
    }
    with Watch(own, loss_of) as watch:
        made = run_train(modules["train"], watched(model, watch), train_text(), wanted)
    if made.losses is None:
        return Other(text="no losses, and gave none to plot_results")
    seen = watch.seen()
    tensors = {"losses": plain(made.losses), "norms": plain(made.norms), **seen.numbers}
    numbers = (*made.losses, *made.norms)
    return Curves(
        tensors=tensors | {f"ids {n}": ids for n, ids in enumerate(seen.ids)},
        optimizers=seen.optimizers,
        plain=seen.plain,
        kept=any(isinstance(one, Tensor) and one.requires_grad for one in numbers),
        after=answer_of_error(made.after) if made.after else None,
    )


def watched(model: Any, watch: Watch) -> Any:
    """Replace the forward pass and the loss of a model with ours, which report to `watch`.

    The model's `_init_weights` sets our weights again. Returns the model.
    """
    ours = Computation(watch.parameters, TRAIN_SIZE)

    def noted(function: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
        """Return the function with a report of each batch, which is its first argument."""

        def call(*given: Tensor, **named: Tensor) -> Tensor:
            ids = [*given, *named.values()][0]
            made = function(ids)
            watch.backward_of(ids, made)
            return made

        return call

    def drawn(*_: Any, **__: Any) -> None:
        """Set our weights again: train() may initialise them after setting a seed."""
        with torch.no_grad():
            for name, value in weights(TRAIN_MODEL).items():
                watch.parameters[name].copy_(value)

    model.get_loss_on_batch = noted(lambda ids: ours.loss(ids.long()))
    model.forward = noted(ours.forward)
    model._init_weights = drawn
    return model


# --- importing a submission

# Always replaced by stand-ins: importing them takes seconds, and their downloads would fail.
HEAVY = {
    "transformers",
    "huggingface_hub",
    "datasets",
    "tokenizers",
    "accelerate",
    "wandb",
    "tensorflow",
    "jax",
}


class Absent(type):
    """A stand-in for a package that is not installed, or for anything in it.

    It can be named, subclassed and passed around. A call during the import of files, such as
    one that creates a tokenizer at the top of a file, returns a new stand-in. A later call fails.
    """

    importing = True

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent(f"{cls.__name__}.{name}", (), {})

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if Absent.importing:
            return Absent(cls.__name__, (), {})
        raise RuntimeError(f"{cls.__name__} is not available while grading")


class LazyAnnotations(SourceFileLoader):
    """Load a file without evaluating its annotations, as Python 3.14 does.

    In earlier versions, `Float[Tensor, ...]`, with an ellipsis for its axes, raises an error when
    it is evaluated.
    """

    def source_to_code(self, data: Any, path: Any, *_: Any, **__: Any) -> CodeType:  # type: ignore[override]
        code: CodeType = compile(
            data, path, "exec", flags=__future__.annotations.compiler_flag, dont_inherit=True
        )
        return code


class Finder:
    """Find the submission's files, and stand-ins for HEAVY modules and for missing ones."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = FileFinder(str(folder), (LazyAnnotations, [".py"]))
        self.missing = set[str]()

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> Any:
        spec = None if path else self.files.find_spec(name)
        if spec and (spec.loader or any(Path(self.folder, name).glob("**/*.py"))):
            return spec
        if name.partition(".")[0] in HEAVY | self.missing:
            return ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]
        return None

    def create_module(self, spec: Any) -> Any:
        return Absent(spec.name, (), {})

    def exec_module(self, module: Any) -> None:
        pass


def import_submission(
    names: Sequence[str], finder: Finder
) -> tuple[dict[str, ModuleType], dict[str, Raised]]:
    """Import these modules. Return those that can be imported, and the errors of the others.

    After this, calling a stand-in fails.
    """
    modules: dict[str, ModuleType] = {}
    errors: dict[str, Raised] = {}
    for name in names:
        try:
            modules[name] = import_with_stand_ins(name, finder)
        except BaseException as error:
            errors[name] = answer_of_error(error)
    Absent.importing = False
    return modules, errors


def import_with_stand_ins(name: str, finder: Finder) -> ModuleType:
    """Import a module, with stand-ins for up to 20 imported packages that are not installed."""
    while True:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            top = (error.name or "").partition(".")[0]
            if not top or top in finder.missing or len(finder.missing) == 20:
                raise
            finder.missing.add(top)


# --- restrictions


def shut_in(memory: int) -> Finder:
    """Restrict this process, and return the finder of the folder's modules.

    The process may use `memory` more bytes than now. It may not use the network, start other
    programs, or change files outside its folder. Neither Landlock nor the audit hook can be
    undone. Only Landlock stops code that bypasses Python.
    """

    def refuse(what: str) -> None:
        raise PermissionError(f"no {what} while grading")

    finder = Finder(Path.cwd())
    sys.meta_path.insert(0, finder)
    hardware.limit_this_process(memory, 1 << 28)
    policy = Policy((os.path.realpath(finder.folder), "/dev/shm", os.devnull))
    policy.keep_in()
    policy.watch(refuse)
    return finder


if __name__ == "__main__":
    main()
