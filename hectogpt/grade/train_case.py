"""train.py: a few steps through the starter's own handles, the right curve and known wrong ones.

All rows of the text differ, and the curves are computed from the rows that the submission took: a shuffle changes
nothing, and rows that are used again are seen. `training` is the child's work, and knows no right value.
"""

# ruff: noqa: E501  # a table, an entry a line
from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from hectogpt.grade.computation import Computation
from hectogpt.grade.laws import Setting, Size, weights
from hectogpt.grade.run_part import Answer, accepted, answer_of_error, config, construct, fill, patch

SIZE = Size(d_model=24, n_heads=3, n_layers=1, context_length=12, vocab_size=31)
STEPS, BATCH, RATE = 6, 4, 3e-3
ROWS = 3 * STEPS * BATCH  # so that a part may be held out, and no row has to come twice
MODEL = Setting("train model", "train", "", "", SIZE)  # of the weights that training starts from
TOLERANCE = 1e-3  # of each number: float32 sums in another order, through six steps


def clip_of(setting: Setting) -> float | None:
    """So small that AdamW's own eps is felt: that, unlike the direction, depends on the size of the gradient."""
    return 1e-6 if setting.name.endswith("clipped") else None


@lru_cache(maxsize=1)
def text() -> Tensor:
    """[ROWS, context_length] int64. The rows share a pattern, so that a loss falls, and no two are equal."""
    generator = torch.Generator().manual_seed(7)
    row = torch.randint(1, SIZE.vocab_size, (1, SIZE.context_length), generator=generator).repeat(ROWS, 1)
    other = torch.randint(1, SIZE.vocab_size, row.shape, generator=generator)
    return torch.where(torch.rand(row.shape, generator=generator) < 0.3, other, row)


def rows_of(ids: Tensor) -> list[int]:
    """The numbers of a batch's rows in the text, -1 for what is not in it; the last token of a row may be cut off."""
    known = {tuple(row[:length]): n for n, row in enumerate(text().tolist()) for length in (len(row), len(row) - 1)}
    return [known.get(tuple(row), -1) for row in ids.tolist()]


# --- curves -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loop:
    """A training loop, with a known mistake. what: the sentence for it. order: what a step does, letter by letter:
    c clip, v clip by value, n take the norm, s step. zero: whether old gradients are set to zero. norm: of the norms of
    all parameters' gradients, the one that is recorded."""

    name: str
    what: str
    order: str = "ncs"
    zero: bool = True
    norm: Callable[[Tensor], Tensor] = torch.linalg.vector_norm


RIGHT = Loop("right", "")
MISTAKES = (
    Loop("no zero_grad", "Gradients are not set to zero between steps: they add up.", zero=False),
    Loop("no clipping", "The gradient is not clipped.", "ns"),
    Loop("clipping after the step", "The gradient is clipped after the step, where it changes nothing.", "snc"),
    Loop("norm after clipping", "The gradient norm is recorded after clipping.", "cns"),
    Loop("clipping by value", "Each number of the gradient is clipped by itself; the norm is meant.", "nvs"),
    Loop("clipping before backward", "The gradient is clipped before it has been computed.", "s"),
    Loop("no gradient at the step", "No gradient reaches the step: it is set to zero after backward, or the loss has none.", ""),
    Loop("no optimizer step", "The optimizer makes no step: the weights never change.", "n"),
    Loop("norm of one tensor", "The gradient norm is that of the last parameter alone.", norm=lambda n: n[-1]),
    Loop("norms summed", "The norms of the parameters are summed; the norm of all of them together is asked for.", norm=torch.sum),
    Loop("squared norm", "The square of the gradient norm is recorded.", norm=lambda n: n.norm() ** 2),
)  # fmt: skip


def curve(setting: Setting, batches: list[list[int]], loop: Loop = RIGHT) -> tuple[Tensor, Tensor]:
    """Losses and gradient norms, float32, of training our own computation on these rows."""
    state = {name: value.float().requires_grad_() for name, value in weights(MODEL).items()}
    parameters, limit = list(state.values()), clip_of(setting)
    optimizer = torch.optim.AdamW(parameters, lr=RATE)
    losses, norms = [], []
    for rows in batches:
        loss = Computation(state, SIZE).loss(text()[rows])
        if loop.zero:
            optimizer.zero_grad()
        loss.backward()
        norm = torch.zeros(())
        for letter in loop.order:
            if letter == "n":
                norm = loop.norm(torch.stack([p.grad.norm() for p in parameters if p.grad is not None]))
            elif letter == "s":
                optimizer.step()
            elif limit is not None:
                clip = torch.nn.utils.clip_grad_norm_ if letter == "c" else torch.nn.utils.clip_grad_value_
                clip(parameters, limit)
        norms.append(norm)
        losses.append(loss.detach())
    return torch.stack(losses), torch.stack(norms)


def close(a: Tensor, b: Tensor) -> bool:
    """Whether each number is within the tolerance."""
    same = a.shape == b.shape and bool(((a - b).abs() <= TOLERANCE * b.abs().clamp(min=1e-9)).all())
    return same and math.isfinite(float(a.sum()))


@dataclass
class Run:
    """What was recorded in one setting. batches: rows of the text, a batch a step."""

    setting: Setting
    losses: Tensor
    norms: Tensor
    batches: list[list[int]]

    @property
    def comparable(self) -> bool:
        """Whether it is known what each step was trained on, in as many steps as were asked for."""
        known = all(row >= 0 for batch in self.batches for row in batch)
        return known and len(self.batches) == len(self.losses) == STEPS

    def difference(self, loop: Loop = RIGHT) -> str:
        """The first number that is not the loop's; "" if there is none, or none that can be compared."""
        numbers = {"loss": self.losses, "gradient norm": self.norms}
        for name, yours in numbers.items():
            if len(yours) != STEPS:
                return f"{len(yours)} numbers for {name}, expected {STEPS} (one a step)"
        expected = curve(self.setting, self.batches, loop) if self.comparable else ()
        for (name, yours), values in zip(numbers.items(), expected, strict=False):
            for step, (mine, value) in enumerate(zip(yours, values, strict=True), 1):
                if not close(mine, value):
                    clipping = " with clipping" * (clip_of(self.setting) is not None)
                    return f"{name} of step {step}{clipping}: yours {float(mine):.6g}, expected {float(value):.6g}"
        return ""


# Batches that are no way to read a text: (whether it is so, name, sentence), tried in order.
BATCHES: list[tuple[Callable[[list[list[int]]], bool], str, str]] = [
    (lambda b: any(len(rows) != BATCH for rows in b), "batches of another size", "A batch does not have batch_size rows."),
    (lambda b: len(b) > 1 and all(rows == b[0] for rows in b), "one batch for ever", "Every step trains on the same rows of the text."),
    (lambda b: any(len(set(rows)) < len(rows) for rows in b), "one row many times in a batch", "The rows of a batch are not all different."),
    (lambda b: any(set(one) & set(two) for one, two in itertools.pairwise(b)) and all(sorted(r) == list(range(min(r), min(r) + len(r))) for r in b), "batches overlap", "The batches overlap: a step begins inside the batch of the one before."),
]  # fmt: skip


# --- the child's work: training ---------------------------------------------------------------------------------------


def training(setting: Setting, modules: dict[str, ModuleType]) -> list[Answer]:
    """Losses and gradient norms, as train() gives them to plot_results, or returns them."""
    train, solution = modules["train"], modules["model_solution"]
    recorded: list[tuple[Any, Any]] = []
    batches: list[list[int]] = []
    replaced = {
        "Transformer": lambda *_, **__: watched_model(solution, batches),
        "plot_results": lambda losses=None, grad_norms=None, *_, **__: recorded.append((losses, grad_norms)),
        "get_chunked_tinystories": lambda *_, **__: text().clone(),
    }
    arguments = {"learning_rate": RATE, "gradient_clipping": clip_of(setting), "batch_size": BATCH, "max_steps": STEPS}
    result, after = None, ""
    try:
        torch.manual_seed(0)
        with mock.patch.dict(vars(train), replaced):
            result = train.train(**accepted(train.train, arguments | {"model_config": config(solution, SIZE)}))
    except BaseException as error:
        if not recorded:
            raise
        answer = answer_of_error(error)
        after = f"{answer.error}: {answer.text[:200]}, at {answer.line}"
    if not recorded and isinstance(result, tuple | list) and len(result) >= 2:
        recorded.append((result[0], result[1]))
    if not recorded:
        return [Answer("other", text="no losses, and gave none to plot_results")]
    losses, norms = recorded[-1]
    rows = tuple(map(tuple, batches))
    return [replace(numbers(losses), batches=rows, after=after), numbers(norms)]


def watched_model(solution: ModuleType, batches: list[list[int]]) -> Any:
    """A transformer with our weights, blocks and loss, which adds to `batches` the rows that it is trained on."""
    made = construct(solution, "Transformer", SIZE)
    fill(made, MODEL, torch.float32, patched=True)
    patch(made, MODEL)
    forward = made.forward

    def note(ids: Tensor) -> None:
        if torch.is_grad_enabled() and len(batches) < 1000:
            batches.append(rows_of(ids))

    def noted(ids: Tensor, *_: Any, **__: Any) -> Tensor:
        note(ids)
        return forward(ids)

    def loss(input_ids: Tensor, *_: Any, **__: Any) -> Tensor:
        note(input_ids)
        return Computation(dict(made.named_parameters(remove_duplicate=False)), SIZE).loss(input_ids.long())

    made.get_loss_on_batch, made.forward = loss, noted
    made._init_weights = lambda *_, **__: None  # train() may draw again after a seed of its own
    return made


def numbers(values: Any) -> Answer:
    kept = any(isinstance(value, Tensor) and value.requires_grad for value in values)
    listed = [float(v.detach() if isinstance(v, Tensor) else v) for v in list(values)[:1000]]
    return Answer("tensor", {"": torch.tensor(listed, dtype=torch.float64)}, kept=kept)
