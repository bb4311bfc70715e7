"""train.py: a few steps through the names that the starter defines, watched.

All rows of the text differ, so that rows that are used again are seen, and a shuffle changes
nothing. `training` is the child's work."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from hectogpt.grade.answer import Answer, Curves, Other, Raised
from hectogpt.grade.computation import Computation
from hectogpt.grade.laws import Setting, Size, settings_of, weights
from hectogpt.grade.run_part import (
    accepted,
    answer_of_error,
    config,
    construct,
    fill,
    replace_parts_below,
)
from hectogpt.grade.watch import MOST, Loop, Seen, Watch, rows_of

SIZE = Size(d_model=24, n_heads=3, n_layers=1, context_length=12, vocab_size=31)
STEPS = 6
BATCH = 4
RATE = 3e-3
ROWS = 3 * STEPS * BATCH  # so that a part may be held out, and no row has to come twice
MODEL = Setting("train model", "train", "", SIZE, ())  # of the weights that training starts from


def clip_of(setting: Setting) -> float | None:
    """Return the norm to clip to, or None. It is so small that AdamW's eps matters: without that,
    an update does not depend on the size of the gradient."""
    return 1e-6 if setting.name.endswith("clipped") else None


@lru_cache(maxsize=1)
def text() -> Tensor:
    """[ROWS, context_length] int64. The rows share a pattern, so that a loss falls, and no two are
    equal.
    """
    generator = torch.Generator().manual_seed(7)
    row = torch.randint(1, SIZE.vocab_size, (1, SIZE.context_length), generator=generator).repeat(
        ROWS, 1
    )
    other = torch.randint(1, SIZE.vocab_size, row.shape, generator=generator)
    return torch.where(torch.rand(row.shape, generator=generator) < 0.3, other, row)


def loss_of(parameters: dict[str, Tensor], ids: Tensor) -> Tensor:
    """Return the right loss of a batch; if the last token of its rows is cut off, that of the
    whole rows.
    """
    rows = rows_of(ids, text())
    return Computation(parameters, SIZE).loss(ids.long() if -1 in rows else text()[rows])


def loops_of(answers: list[Curves]) -> list[Loop]:
    """Return what was seen and recorded in each setting. Raises ValueError or KeyError if the
    tensors do not fit together.
    """
    loops = []
    for setting, answer in zip(settings_of("train"), answers, strict=True):
        tensors = dict(answer.tensors)
        losses = tensors.pop("losses").double()
        norms = tensors.pop("norms").double()
        ids = [tensors.pop(f"ids {n}") for n in range(MOST) if f"ids {n}" in tensors]
        seen = Seen(tuple(weights(MODEL)), answer.optimizers, answer.plain, ids, tensors)
        seen.check()
        limit = clip_of(setting)
        loops.append(Loop(seen.joined(BATCH), losses, norms, limit, RATE, STEPS, BATCH, text()))
    return loops


def curve(loop: Loop) -> str:
    """See Loop.curve."""
    names = list(weights(MODEL))
    return loop.curve(
        lambda own, ids: Computation(dict(zip(names, own, strict=True)), SIZE).loss(ids),
        [value.float() for value in weights(MODEL).values()],
    )


# --- the child's work: training
# ---


def training(setting: Setting, modules: dict[str, ModuleType]) -> Answer:
    """Run train(). Return the losses and gradient norms that it returns or gives to plot_results,
    with what was seen of it. Raises whatever it raises before it has recorded any."""
    train = modules["train"]
    solution = modules["model_solution"]
    recorded: list[tuple[Any, Any]] = []
    model = construct(solution, "Transformer", SIZE)
    fill(model, MODEL, torch.float32, patched=True)
    replace_parts_below(model, MODEL)
    own = {
        name: value
        for name, value in model.named_parameters(remove_duplicate=False)
        if name in weights(MODEL)
    }
    replaced = {
        "plot_results": lambda losses=None, grad_norms=None, *_, **__: recorded.append(
            (losses, grad_norms)
        ),
        "get_chunked_tinystories": lambda *_, **__: text().clone(),
    }
    arguments = {
        "learning_rate": RATE,
        "gradient_clipping": clip_of(setting),
        "batch_size": BATCH,
        "max_steps": STEPS,
    }
    asked = accepted(train.train, arguments | {"model_config": config(solution, SIZE)})
    result = None
    after: Raised | None = None
    with Watch(own, lambda ids: loss_of(dict(own), ids)) as watch:
        replaced["Transformer"] = lambda *_, **__: watched(model, watch)
        try:
            torch.manual_seed(0)
            with (
                mock.patch.dict(vars(train), replaced),
                mock.patch.object(DataLoader, "__init__", in_this_process),
            ):
                result = train.train(**required(train.train, asked), **asked)
        except BaseException as error:
            if not recorded:
                raise
            after = answer_of_error(error)
    if not recorded and isinstance(result, tuple | list) and len(result) >= 2:
        recorded.append((result[0], result[1]))
    if not recorded:
        return Other(text="no losses, and gave none to plot_results")
    losses, norms = recorded[-1]
    seen = watch.seen()
    tensors = {"losses": plain(losses), "norms": plain(norms), **seen.numbers}
    return Curves(
        tensors=tensors | {f"ids {n}": ids for n, ids in enumerate(seen.ids)},
        optimizers=seen.optimizers,
        plain=seen.plain,
        kept=any(isinstance(one, Tensor) and one.requires_grad for one in (*losses, *norms)),
        after=after,
    )


def watched(model: Any, watch: Watch) -> Any:
    """Return the model with our weights, blocks and loss; it tells `watch` which rows it is
    trained on.
    """
    forward = model.forward
    first = {name: value.detach().clone() for name, value in watch.parameters.items()}

    def noted(ids: Tensor, *_: Any, **__: Any) -> Tensor:
        made: Tensor = forward(ids)
        watch.backward_of(ids, made)
        return made

    def loss(input_ids: Tensor, *_: Any, **__: Any) -> Tensor:
        made = Computation(watch.parameters, SIZE).loss(input_ids.long())
        watch.backward_of(input_ids, made)
        return made

    def drawn(*_: Any, **__: Any) -> None:
        """Set our weights again: train() may draw initial weights after setting a seed."""
        with torch.no_grad():
            for name, value in first.items():
                watch.parameters[name].copy_(value)

    model.get_loss_on_batch = loss
    model.forward = noted
    model._init_weights = drawn
    return model


LOADER = DataLoader.__init__


def in_this_process(self: Any, *arguments: Any, **options: Any) -> None:
    """Construct a loader without worker processes, which could not reach this one."""
    ours = (
        "num_workers",
        "prefetch_factor",
        "persistent_workers",
        "multiprocessing_context",
        "timeout",
    )
    LOADER(
        self,
        *arguments[:5],
        **{name: value for name, value in options.items() if name not in ours},
    )


GIVEN: dict[str, Any] = {"str": "run", "int": 1, "float": 0.0, "bool": False}  # by annotation


def required(function: Callable[..., Any], asked: dict[str, Any]) -> dict[str, Any]:
    """Return values for the other required arguments of a function."""
    known = inspect.signature(function).parameters.values()
    lacking = [
        one
        for one in known
        if one.default is one.empty and one.name not in asked and one.kind in NAMED
    ]
    return {
        one.name: GIVEN.get(getattr(one.annotation, "__name__", str(one.annotation)))
        for one in lacking
    }


NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def plain(values: Any) -> Tensor:
    """Return recorded numbers, tensors among them, as float64."""
    listed = [float(v.detach() if isinstance(v, Tensor) else v) for v in list(values)[:1000]]
    return torch.tensor(listed, dtype=torch.float64)
