"""train.py: a few steps through the starter's own handles, watched.

All rows of the text differ, so that rows that are used again are seen, and a shuffle changes
nothing. `training` is the child's work."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from hectogpt.grade.computation import Computation
from hectogpt.grade.laws import Setting, Size, settings_of, weights
from hectogpt.grade.run_part import (
    Answer,
    accepted,
    answer_of_error,
    config,
    construct,
    fill,
    patch,
)
from hectogpt.grade.watch import MOST, Run, Seen, Watch, rows_of

SIZE = Size(d_model=24, n_heads=3, n_layers=1, context_length=12, vocab_size=31)
STEPS = 6
BATCH = 4
RATE = 3e-3
ROWS = 3 * STEPS * BATCH  # so that a part may be held out, and no row has to come twice
MODEL = Setting("train model", "train", "", "", SIZE)  # of the weights that training starts from


def clip_of(setting: Setting) -> float | None:
    """So small that AdamW's own eps is felt: that, unlike the direction, depends on the size of
    the gradient."""
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
    """The right loss of a batch; if the last token of its rows is cut off, of the whole rows."""
    rows = rows_of(ids, text())
    return Computation(parameters, SIZE).loss(ids.long() if -1 in rows else text()[rows])


def runs_of(made: list[list[Answer]]) -> list[Run]:
    """What was seen and recorded in each setting. Raises ValueError and KeyError for what does not
    fit together.
    """
    runs = []
    for setting, (losses, norms) in zip(settings_of("train"), made, strict=True):
        tensors = dict(losses.numbers)
        numbers = tensors.pop("").double()
        ids = [tensors.pop(f"ids {n}") for n in range(MOST) if f"ids {n}" in tensors]
        seen = Seen(tuple(weights(MODEL)), losses.optimizers, losses.plain, ids, tensors)
        seen.check()
        runs.append(
            Run(
                seen,
                numbers,
                norms.numbers[""].double(),
                clip_of(setting),
                RATE,
                STEPS,
                BATCH,
                text(),
            )
        )
    return runs


def curve(run: Run) -> str:
    """See Run.curve."""
    names = list(weights(MODEL))
    return run.curve(
        lambda own, ids: Computation(dict(zip(names, own, strict=True)), SIZE).loss(ids),
        [value.float() for value in weights(MODEL).values()],
    )


# --- the child's work: training
# ---


def training(setting: Setting, modules: dict[str, ModuleType]) -> list[Answer]:
    """Losses and gradient norms, as train() gives them to plot_results, or returns them; and what
    was seen of it.
    """
    train = modules["train"]
    solution = modules["model_solution"]
    recorded: list[tuple[Any, Any]] = []
    model = construct(solution, "Transformer", SIZE)
    fill(model, MODEL, torch.float32, patched=True)
    patch(model, MODEL)
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
    after = ""
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
            answer = answer_of_error(error)
            after = f"{answer.error}: {answer.text[:200]}, at {answer.line}"
    if not recorded and isinstance(result, tuple | list) and len(result) >= 2:
        recorded.append((result[0], result[1]))
    if not recorded:
        return [Answer("other", text="no losses, and gave none to plot_results")]
    losses, norms = map(numbers, recorded[-1])
    seen = watch.seen()
    losses.numbers |= seen.numbers | {f"ids {n}": ids for n, ids in enumerate(seen.ids)}
    return [replace(losses, optimizers=seen.optimizers, plain=seen.plain, after=after), norms]


def watched(model: Any, watch: Watch) -> Any:
    """The model, with our weights, blocks and loss, which tells of the rows that it is trained
    on.
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
        """train() may draw again after a seed of its own; not while it trains."""
        with torch.no_grad():
            for name, value in first.items():
                watch.parameters[name].copy_(value)

    model.get_loss_on_batch = loss
    model.forward = noted
    model._init_weights = drawn
    return model


LOADER = DataLoader.__init__


def in_this_process(self: Any, *arguments: Any, **options: Any) -> None:
    """The loader's constructor without processes of its own, which may not talk to this one."""
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
    """Values for the other arguments that a function cannot do without."""
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


def numbers(values: Any) -> Answer:
    kept = any(isinstance(value, Tensor) and value.requires_grad for value in values)
    listed = [float(v.detach() if isinstance(v, Tensor) else v) for v in list(values)[:1000]]
    return Answer("tensor", {"": torch.tensor(listed, dtype=torch.float64)}, kept=kept)
