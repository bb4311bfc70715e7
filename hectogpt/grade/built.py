"""One part of a submission, built and ready to be called, with the grader's weights and its own parts below it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from hectogpt.assignment.parts import BY_NAME
from hectogpt.grade.computation import Computation
from hectogpt.grade.settings import Setting, Size, state_of

DTYPES = {"float64": torch.float64, "float32": torch.float32}


@dataclass
class Built:
    """A part ready to be called, and the module that it belongs to."""

    module: nn.Module
    call: Callable[..., Any]
    watch: dict[str, Any] = field(default_factory=dict)


def build(setting: Setting, solution: ModuleType, patched: bool, dtype: torch.dtype) -> Built:
    """The part with the setting's weights, and below it, if patched, our own parts."""
    name = BY_NAME[setting.part].owner
    if not hasattr(solution, name):
        raise AttributeError(f"model_solution.py has no class {name}")
    if setting.part == "gelu":
        module = getattr(solution, name)()
    else:
        with no_first_weights(solution):
            module = getattr(solution, name)(config(solution, setting.size))
    load(module, setting, dtype, patched)
    module.train(setting.train_mode)
    watch: dict[str, Any] = {}
    if patched:
        patch(module, setting, watch)
    method = BY_NAME[setting.part].functions[-1].rpartition(".")[2]
    return Built(module, module if method == "forward" else getattr(module, method), watch)


@contextmanager
def no_first_weights(solution: ModuleType) -> Iterator[None]:
    """A transformer that is built here draws no first weights: they are another part, and ours are loaded."""
    kind: Any = getattr(solution, "Transformer", None)
    written = vars(kind).get("_init_weights") if isinstance(kind, type) else None
    if written is None:
        yield
        return
    kind._init_weights = lambda *_, **__: None
    try:
        yield
    finally:
        kind._init_weights = written


def config(solution: ModuleType, size: Size) -> Any:
    """The submission's own ModelConfig, or ours if there is none."""
    fields = {name: getattr(size, name) for name in ("d_model", "n_heads", "n_layers", "context_length", "vocab_size")}
    return getattr(solution, "ModelConfig", Size)(**fields)


# Parameters of the parts right below the judged one, which a mistake there may have renamed or reshaped.
BELOW = {"block": ("mlp.", "attention."), "forward": ("backbone.",), "generate": ("backbone.",), "loss": ("backbone.",)}
BELOW["train"] = ("backbone.",)


def load(module: nn.Module, setting: Setting, dtype: torch.dtype, patched: bool = False) -> None:
    """Our weights into the module, in the dtype. Raises LookupError for a parameter that is missing, that we do not
    know, or that has another shape; if the parts below are to be patched, not for theirs, but all of a block's must
    not be missing."""
    module.to(dtype)
    if setting.part == "gelu":
        return
    state = state_of(setting)
    own = dict(module.named_parameters(remove_duplicate=False))
    there = {name.rpartition(".")[0].split(".")[1] for name in own if name.startswith("backbone.")}
    below = BELOW.get(setting.part, ()) if patched else ()

    def needed(name: str) -> bool:
        return not name.startswith(below) or (name.startswith("backbone.") and name.split(".")[1] not in there)

    if below:
        state = {n: v for n, v in state.items() if needed(n) or (n in own and own[n].shape == v.shape)}
    missing = [name for name in state if name not in own]
    extra = [
        name
        for name, value in own.items()
        if name not in state and value.requires_grad and not (below and name.startswith(below))
    ]
    shape = [
        f"{n}: {list(own[n].shape)}, expected {list(state[n].shape)}"
        for n in state
        if n in own and own[n].shape != state[n].shape
    ]
    if missing or extra or shape:
        parts = [
            f"{word}: {', '.join(names)}"
            for word, names in (("missing", missing), ("other shape", shape), ("not in the assignment", extra))
            if names
        ]
        raise LookupError("parameters differ from the assignment's (" + "; ".join(parts) + ")")
    with torch.no_grad():
        for name, value in state.items():
            own[name].copy_(value)


def patch(module: nn.Module, setting: Setting, watch: dict[str, Any]) -> None:
    """Replace the parts right below the judged one by ours, which use the module's own parameters."""
    size, part = setting.size, setting.part
    wanted = {} if part == "gelu" else state_of(setting)

    def ours(owner: nn.Module) -> Computation:
        """On the owner's parameters; where it lacks one, or has it in another shape, on our own."""
        prefix = next((f"{name}." for name, child in module.named_modules() if child is owner and name), "")
        state = {n.removeprefix(prefix): v for n, v in wanted.items() if n.startswith(prefix)}
        own = dict(owner.named_parameters(remove_duplicate=False))
        like = next(iter(own.values()), torch.zeros((), dtype=torch.float64))
        usable = {n: own[n] if n in own and own[n].shape == v.shape else v.to(like) for n, v in state.items()}
        return Computation(usable, size)

    def replace(owner: Any, function: Callable[[Tensor], Tensor]) -> None:
        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            watch["graph"] = watch.get("graph", False) or torch.is_grad_enabled()
            return function(x)

        owner.forward = forward

    if part == "mlp" and isinstance(getattr(module, "gelu", None), nn.Module):
        replace(module.gelu, lambda x: ours(module).gelu(x))
    if part == "block":
        replace(module.attention, lambda x: ours(module).attention("attention.", x))
        replace(module.mlp, lambda x: ours(module).mlp("mlp.", x))
    if part == "forward":
        blocks: Any = module.backbone
        for block in blocks:
            replace(block, partial(whole_block, ours(block)))
    if part in ("generate", "loss", "train"):
        replace(module, lambda ids: ours(module).forward(ids))


def whole_block(computation: Computation, x: Tensor) -> Tensor:
    """Our block on a block's own parameters."""
    return computation.block("", x)
