"""Watch a student's train.py while it runs, and find its mistakes.

The grader and the tests of a kit share this file: a kit contains a copy of it, so it imports
nothing from hectogpt. `run_train` runs the loop on a given model and text. The losses and norms
that the loop records are compared with those that the model computed. Each step of the loop's
optimizer is inspected, so the grader need not know the optimizer or the schedule. `draw` inspects
the pictures that plot_results saves.
"""

from __future__ import annotations

import inspect
import itertools
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils.data import DataLoader

MOST = 200  # the most batches, and the most steps, that are recorded
TOLERANCE = 1e-3  # relative; float32 sums in a different order drift apart over several steps


@dataclass
class Seen:
    """The record of a loop: float64 tensors by name, with the axes of SHAPES.

    Attributes:
        names: the names of the parameters.
        optimizers: the classes of the optimizers.
        plain: True if all their settings, except the learning rate, are AdamW's defaults.
        ids: the token ids of each batch, [batch, seq].
        loss: the right loss of each batch.
        after: the right loss of the same batch after the optimizer's step.
        norm: the norm of the gradient of `loss`.
        left: the norm of the gradients that were present before each backward pass.
        start: a checksum of the weights before each batch.
        raw: the norms of the gradients after each backward pass.
        batch: at each step of an optimizer, the number of batches so far.
        kind: the number of the optimizer that made the step.
        at: the norms of the gradients at each step.
        most: the largest absolute values of the gradients at each step.
        rate: the learning rates; NaN for a parameter that the optimizer does not have.
    """

    names: tuple[str, ...]
    optimizers: tuple[str, ...] = ()
    plain: bool = True
    ids: list[Tensor] = field(default_factory=list)
    numbers: dict[str, Tensor] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Tensor:
        if name in SHAPES:
            return self.numbers[name]
        raise AttributeError(name)

    def check(self) -> None:
        """Raise ValueError or KeyError unless all tensors are present and their shapes agree."""
        length = {"n": len(self.ids), "s": len(self.numbers["batch"]), "P": len(self.names)}
        for name, axes in SHAPES.items():
            if self.numbers[name].shape != tuple(length[axis] for axis in axes):
                raise ValueError(f"{name} has the wrong shape")

    def joined(self, size: int) -> Seen:
        """Join the backward passes of each step into one batch of `size` rows.

        This undoes gradient accumulation. Returns the record unchanged unless every step has the
        same number of passes, all equal in size, that add up to `size` rows.
        """
        one = self.numbers
        parts = len(self.ids) // max(1, len(one["batch"]))
        steps = [parts * (step + 1) for step in range(len(one["batch"]))]
        whole = len(self.ids) == parts * len(steps) and one["batch"].tolist() == steps
        if parts < 2 or not whole or any(len(ids) * parts != size for ids in self.ids):
            return self
        last = slice(parts - 1, None, parts)
        numbers = {name: one[name][::parts] for name in ("left", "start")}
        numbers |= {name: one[name][last] for name in ("raw", "after")}
        numbers |= {"loss": one["loss"].reshape(-1, parts).mean(1), "batch": one["batch"] / parts}
        numbers["norm"] = numbers["raw"].norm(dim=1)
        ids = [torch.cat(self.ids[n : n + parts]) for n in range(0, len(self.ids), parts)]
        return replace(self, ids=ids, numbers={**one, **numbers})


# Name -> axes. n: backward passes; s: steps of an optimizer; P: parameters.
SHAPES = {
    "loss": "n",
    "norm": "n",
    "after": "n",
    "left": "n",
    "start": "n",
    "raw": "nP",
    "batch": "s",
    "kind": "s",
    "at": "sP",
    "most": "sP",
    "rate": "sP",
}


class Watch:
    """Context manager: record each backward pass and each step of an optimizer.

    The model must call `backward_of` with each batch and its output.

    parameters: the parameters to watch, by name.
    loss_of: computes the right loss of a batch.
    """

    def __init__(
        self, parameters: dict[str, nn.Parameter], loss_of: Callable[[Tensor], Tensor]
    ) -> None:
        self.parameters = parameters
        self.loss_of = loss_of
        self.rows: dict[str, list[Any]] = {name: [] for name in SHAPES}
        self.ids: list[Tensor] = []
        self.optimizers: list[Optimizer] = []

    def __enter__(self) -> Watch:
        for number, one in enumerate(self.parameters.values()):
            one.register_post_accumulate_grad_hook(
                lambda p, number=number: self.reached(number, p)
            )
        self.hooks = [
            register_optimizer_step_pre_hook(self.before),
            register_optimizer_step_post_hook(self.behind),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def norms(self, of: Callable[[Tensor], Tensor] = torch.linalg.vector_norm) -> list[float]:
        """Return the norm of each parameter's gradient, or 0 if it has none.

        of: the function of the gradient to use instead of the norm.
        """
        return [0.0 if p.grad is None else float(of(p.grad)) for p in self.parameters.values()]

    @torch.no_grad()
    def weights(self) -> float:
        """Return one number that depends on every weight."""
        return sum(
            float(p.double().square().sum()) * (1 + 0.1 * n)
            for n, p in enumerate(self.parameters.values())
        )

    @torch.enable_grad()
    def loss_and_norm(self, ids: Tensor) -> tuple[float, float]:
        """Return the right loss of a batch, and the norm of its gradient."""
        loss = self.loss_of(ids)
        gradients = torch.autograd.grad(loss, list(self.parameters.values()), allow_unused=True)
        norms = [one.norm() for one in gradients if one is not None]
        return float(loss.detach()), float(torch.stack(norms).norm())

    def backward_of(self, ids: Tensor, output: Tensor) -> None:
        """Register the output of a batch, which is recorded when backward reaches the output."""
        if output.requires_grad:
            loss, norm = self.loss_and_norm(ids)
            known = ids.detach().clone()
            row = {"loss": loss, "after": loss, "norm": norm, "start": self.weights()}
            output.register_hook(lambda _: self.began(known, row))

    def note(self, row: dict[str, Any]) -> None:
        for name, value in row.items():
            self.rows[name].append(value)

    def began(self, ids: Tensor, row: dict[str, float]) -> None:
        if len(self.ids) < MOST:
            self.ids.append(ids)
            left = sum(n**2 for n in self.norms()) ** 0.5
            self.note({**row, "left": left, "raw": [0.0] * len(self.parameters)})

    def reached(self, number: int, parameter: Tensor) -> None:
        if self.rows["raw"] and parameter.grad is not None:
            self.rows["raw"][-1][number] = float(parameter.grad.norm())

    def before(self, optimizer: Optimizer, *_: Any) -> None:
        if len(self.rows["batch"]) < MOST:
            if optimizer not in self.optimizers:
                self.optimizers.append(optimizer)
            rates = {
                id(p): float(group["lr"])
                for group in optimizer.param_groups
                for p in group["params"]
            }
            self.note(
                {
                    "batch": len(self.ids),
                    "kind": self.optimizers.index(optimizer),
                    "at": self.norms(),
                    "most": self.norms(lambda g: g.abs().max()),
                    "rate": [rates.get(id(p), torch.nan) for p in self.parameters.values()],
                }
            )

    def behind(self, *_: Any) -> None:
        if self.ids:
            self.rows["after"][-1] = self.loss_and_norm(self.ids[-1])[0]

    def seen(self) -> Seen:
        """Return the record."""
        numbers = {
            name: torch.tensor(rows, dtype=torch.float64).reshape(
                (-1, len(self.parameters))[: len(SHAPES[name])]
            )
            for name, rows in self.rows.items()
        }
        names = tuple(type(one).__name__ for one in self.optimizers)
        plain = all(map(is_plain, self.optimizers))
        return Seen(tuple(self.parameters), names, plain, self.ids, numbers)


def is_plain(optimizer: Optimizer) -> bool:
    """True if betas, eps and weight decay are AdamW's defaults."""
    wanted = {
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 1e-2,
        "amsgrad": False,
        "maximize": False,
    }
    return all(
        group.get(name) == value
        for group in optimizer.param_groups
        for name, value in wanted.items()
    )


# --- running train()

LOADER = DataLoader.__init__
NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
# Annotation -> the value for a required argument that the grader does not know.
GIVEN: dict[str, Any] = {"str": "run", "int": 1, "float": 0.0, "bool": False}


class Recorded(NamedTuple):
    """The numbers that train() has recorded.

    losses, norms: the arguments of plot_results or, if it was not called, the first two results of
        train(); None if there are none.
    after: an error that was raised after plot_results was called.
    result: the value that train() returned.
    """

    losses: Any
    norms: Any
    after: BaseException | None
    result: Any


def run_train(file: Any, model: Any, text: Tensor, wanted: dict[str, Any]) -> Recorded:
    """Run train() of a file with this model and this text instead of its own.

    Args:
        file: the module.
        model: the model to train.
        text: the chunks to train on.
        wanted: arguments to pass if train() accepts them.

    Raises the error of train(), unless train() has already called plot_results.
    """
    recorded: list[tuple[Any, Any]] = []
    result = after = None
    replaced: dict[str, Any] = {
        "Transformer": lambda *_, **__: model,
        "get_chunked_tinystories": lambda *_, **__: text.clone(),
        "plot_results": lambda losses=None, grad_norms=None, *_, **__: recorded.append(
            (losses, grad_norms)
        ),
        "pick_device": lambda: torch.device("cpu"),  # a function of the textbook
    }
    try:
        torch.manual_seed(0)
        with (
            mock.patch.dict(vars(file), replaced),
            # train.py may use names of model_solution through the module.
            mock.patch.dict(vars(sys.modules.get("model_solution", file)), replaced),
            mock.patch.object(DataLoader, "__init__", in_this_process),
        ):
            result = file.train(**arguments_for(file.train, wanted))
    except BaseException as error:
        if not recorded:
            raise
        after = error
    if not recorded and isinstance(result, tuple | list) and len(result) >= 2:
        recorded.append((result[0], result[1]))
    return Recorded(*(recorded or [(None, None)])[-1], after, result)


def in_this_process(loader: Any, *arguments: Any, **options: Any) -> None:
    """Construct a loader without worker processes, which the changes made here would not reach."""
    LOADER(loader, *arguments, **options)
    loader.num_workers = loader.timeout = 0


def arguments_for(function: Callable[..., Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """Return the wanted arguments that a function accepts, and values for others that it requires.

    Raises TypeError or ValueError if its signature cannot be inspected.
    """
    known = inspect.signature(function).parameters
    every = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in known.values())
    given = {name: value for name, value in wanted.items() if every or name in known}
    for name, one in known.items():
        if one.default is one.empty and name not in given and one.kind in NAMED:
            kind = getattr(one.annotation, "__name__", str(one.annotation))
            given[name] = GIVEN.get(kind)
    return given


def plain(values: Any) -> Tensor:
    """Return the first 1000 recorded numbers, which may be tensors, as a float64 tensor."""
    listed = [float(v.detach() if isinstance(v, Tensor) else v) for v in list(values)[:1000]]
    return torch.tensor(listed, dtype=torch.float64)


# --- judging


def rows_of(ids: Tensor, text: Tensor) -> list[int]:
    """Return, for each row of a batch, its number in the text.

    A row is found even if its last token is cut off. A row that is not in the text has a negative
    number, which depends on its tokens.
    """
    known = {
        tuple(row[:length]): n
        for n, row in enumerate(text.tolist())
        for length in (len(row), len(row) - 1)
    }
    return [known.get(row, -1 - hash(row) % 2**62) for row in map(tuple, ids.tolist())]


@dataclass(frozen=True)
class Fault:
    """A mistake in a loop.

    name: its name in mistakes.toml; "" if it has none.
    seen: the observation, with numbers.
    """

    name: str
    seen: str


@dataclass
class Loop:
    """A loop that was watched, and the numbers that it recorded.

    seen: the record that `Watch` made.
    losses, norms: the numbers that the loop recorded.
    limit: the norm to clip gradients to, or None.
    rate: the learning rate that it was given.
    steps: the number of steps that it was asked for.
    size: the number of rows of a batch.
    text: all rows of the text.
    """

    seen: Seen
    losses: Tensor
    norms: Tensor
    limit: float | None
    rate: float
    steps: int
    size: int
    text: Tensor

    def rows(self) -> list[list[int]]:
        return [rows_of(ids, self.text) for ids in self.seen.ids]

    def faults(self) -> Iterator[Fault]:
        """Yield the mistakes. Later ones may be consequences of the first."""
        yield from self.faults_of_batches()
        yield from self.faults_of_counts()
        yield from self.faults_of_steps()
        yield from self.faults_of_clipping()
        yield from self.faults_of_records()
        yield from self.faults_of_rates()

    def faults_of_batches(self) -> Iterator[Fault]:
        rows = self.rows()
        pairs = list(itertools.pairwise(rows))
        holds = {
            "batches of another size": any(len(one) != self.size for one in rows),
            "one batch for ever": len(rows) > 1 and all(one == rows[0] for one in rows),
            "one row many times in a batch": any(rows)
            and all(len(set(one)) < len(one) for one in rows),
            "each batch used twice": any(set(one) == set(two) for one, two in pairs),
            "batches overlap": any(set(one) & set(two) for one, two in pairs)
            and all(sorted(one) == list(range(min(one), min(one) + len(one))) for one in rows),
        }
        shown = "; ".join(str(one[:6]) for one in rows[:3])
        for name, is_so in holds.items():
            if is_so:
                yield Fault(name, f"rows of the text in the first steps: {shown}")

    def faults_of_counts(self) -> Iterator[Fault]:
        ignored = len(self.seen.ids) > self.steps
        for name, made in (("loss", self.losses), ("gradient norm", self.norms)):
            if len(made) != self.steps:
                seen = f"{len(made)} {name} values, expected {self.steps} (one per step)"
                yield Fault("max_steps ignored" if ignored else "", seen)

    def faults_of_steps(self) -> Iterator[Fault]:
        seen = self.seen
        count = len(seen.ids)
        if not seen.optimizers:
            if count > 1 and self.limit is None and (seen.start == seen.start[0]).all():
                yield Fault("no optimizer step", "the weights are the same at every batch")
            return
        idle = (seen.raw == 0).all(0) & bool(seen.raw.any()) | seen.rate.isnan().all(0)
        untrained = [
            n
            for n, still in zip(seen.names, idle, strict=True)
            if still and not n.endswith("W_k.bias")
        ]
        if untrained:
            more = f" and {len(untrained) - 4} more" if len(untrained) > 4 else ""
            words = f"the optimizer has no gradient for {', '.join(untrained[:4])}{more}"
            yield Fault("parameters not trained", words)
        dirty = seen.left[1:] > TOLERANCE * seen.raw[1:].norm(dim=1)
        if count > 1 and dirty.all():
            words = "at each backward pass the gradients of earlier steps are still there"
            yield Fault("no zero_grad", words)
        if dirty.any():
            step = int(dirty.int().argmax()) + 2
            words = f"at the backward pass of step {step} an older gradient is still there"
            yield Fault("zero_grad not at every step", words)
        if not seen.batch.all():
            words = "the optimizer takes a step before the first backward pass"
            yield Fault("step before backward", words)
        used = [seen.batch[seen.kind == one] for one in range(len(seen.optimizers))]
        steps = f"{len(seen.batch)} steps of the optimizer for {count} batches"
        if any(len(one.unique()) < len(one) for one in used):
            yield Fault("two steps a batch", steps)
        if any(len(one) < count for one in used):
            yield Fault("no step for some batches", steps)
        if not seen.at.any():
            words = "at every step of the optimizer all gradients are zero"
            yield Fault("no gradient at the step", words)
        if float((seen.rate.nan_to_num() == 0).double().mean()) > 0.5:
            yield Fault("learning rate of zero", "the learning rate is 0 at most steps")
        moving = seen.batch[seen.rate.nan_to_num().any(1)]  # steps with a learning rate
        for batch, weights in enumerate(seen.start):
            if self.limit is None and batch in moving and (seen.start[:batch] == weights).any():
                words = f"the weights at batch {batch + 1} are those of an earlier one"
                yield Fault("weights set back", words)

    def faults_of_clipping(self) -> Iterator[Fault]:
        """Compare the gradients at each step with those that backward computed."""
        for at, most, batch in zip(self.seen.at, self.seen.most, self.seen.batch, strict=True):
            step = int(batch)
            raw = self.seen.raw[step - 1]
            total = float(raw.norm())
            factor = 1.0 if self.limit is None else min(1.0, self.limit / (total + 1e-6))
            if not close(at, raw * factor):
                words = (
                    f"at step {step} the optimizer is given a gradient of norm "
                    f"{float(at.norm()):.4g}; backward computed {total:.4g}, gradient_clipping "
                    f"is {self.limit}"
                )
                yield Fault(name_of_clipping(at, most, raw, self.limit), words)

    def faults_of_records(self) -> Iterator[Fault]:
        """Compare the recorded numbers with those that the model computed.

        If there is not one batch per step, only check that the loss falls.
        """
        seen = self.seen
        if len(seen.ids) != self.steps:
            if not self.losses[-1] < self.losses[0]:
                words = f"there were {len(seen.ids)} batches in {self.steps} steps"
                yield Fault("", f"{words}, and the loss does not fall")
            return
        true = seen.loss
        total = seen.raw.norm(dim=1)
        if close(self.losses, total) and close(self.norms, true):
            words = (
                f"loss of step 1: yours {float(self.losses[0]):.6g}, expected {float(true[0]):.6g}"
            )
            yield Fault("losses and norms exchanged", words)
        factor = total[0] / seen.norm[0]
        if close(total, seen.norm * factor) and not close(total, seen.norm):
            yield Fault("", f"the gradient is {float(factor):.4g} times that of the loss")
        clipped = seen.at.norm(dim=1)[: self.steps] if len(seen.at) >= self.steps else total
        of_losses = {
            "loss after the step": seen.after,
            "loss times another number": true * float(self.losses[0] / true[0]),
        }
        of_norms = {
            "clipping before backward": total * 0,
            "norm after clipping": clipped,
            "norms summed": seen.raw.sum(1),
            "squared norm": total**2,
            **{"norm of one tensor" + " " * n: one for n, one in enumerate(seen.raw.T)},
        }
        yield from self.wrong_numbers("loss", self.losses, true, of_losses)
        yield from self.wrong_numbers("gradient norm", self.norms, total, of_norms)

    def wrong_numbers(
        self, what: str, yours: Tensor, right: Tensor, others: dict[str, Tensor]
    ) -> Iterator[Fault]:
        """Compare the recorded losses or norms with the right ones.

        Args:
            what: "loss" or "gradient norm".
            yours: the recorded numbers.
            right: the right ones.
            others: mistake -> the numbers that it would record.
        """
        if close(yours, right):
            return
        mean = right.cumsum(0) / torch.arange(1, self.steps + 1)
        others = {**others, "running mean recorded": mean}
        name = next((name.strip() for name, made in others.items() if close(yours, made)), "")
        if not name and close(yours[1:], right[:-1]):
            name = "value of the step before"
        step = next(n for n in range(self.steps) if not close(yours[n], right[n]))
        clipping = "" if self.limit is None else " with clipping"
        words = (
            f"{what} of step {step + 1}{clipping}: yours {float(yours[step]):.6g}, expected "
            f"{float(right[step]):.6g}"
        )
        yield Fault(name, words)

    def faults_of_rates(self) -> Iterator[Fault]:
        """Compare the learning rate of Adam or AdamW with `rate`, if it never changes."""
        rates = sorted(set(self.seen.rate[~self.seen.rate.isnan()].tolist()))
        adam = self.seen.optimizers in (("AdamW",), ("Adam",))
        if adam and len(rates) == 1 and abs(rates[0] - self.rate) > TOLERANCE * self.rate:
            words = (
                f"the optimizer's learning rate is {rates[0]:g}; learning_rate is {self.rate:g}"
            )
            yield Fault("another learning rate", words)

    def other_optimizer(self) -> str:
        """Describe a different optimizer, changed settings of AdamW, or a schedule.

        The bonus allows all of these. Returns "" for plain AdamW.
        """
        seen = self.seen
        rates = seen.rate[~seen.rate.isnan()]
        if len(seen.ids) != self.steps:
            return "the batches of each step are not known"
        if seen.optimizers != ("AdamW",):
            return f"the optimizer is {', '.join(seen.optimizers) or 'not from torch.optim'}"
        if not bool((rates == rates[0]).all()):
            return f"the learning rate goes from {float(rates[0]):g} to {float(rates[-1]):g}"
        return "" if seen.plain else "AdamW's settings are not its defaults"

    def curve(
        self, loss: Callable[[list[Tensor], Tensor], Tensor], parameters: Iterable[Tensor]
    ) -> str:
        """Describe the first loss that differs from AdamW's on the same rows.

        Returns "" if none differs, or if the rows are not known.

        loss: computes the loss of weights and token ids.
        parameters: the initial weights.
        """
        rows = self.rows()
        if len(rows) != self.steps or any(row < 0 for batch in rows for row in batch):
            return ""
        own = [one.detach().clone().requires_grad_() for one in parameters]
        optimizer = torch.optim.AdamW(own, lr=self.rate)
        for step, batch in enumerate(rows):
            made = loss(own, self.text[batch])
            if not close(self.losses[step], made.detach()):
                return (
                    f"loss of step {step + 1}: yours {float(self.losses[step]):.6g}, AdamW's "
                    f"{float(made.detach()):.6g}"
                )
            optimizer.zero_grad()
            made.backward()
            if self.limit is not None:
                torch.nn.utils.clip_grad_norm_(own, self.limit)
            optimizer.step()
        return ""


def name_of_clipping(at: Tensor, most: Tensor, raw: Tensor, limit: float | None) -> str:
    """Name the change that was made to the gradients between backward and a step.

    Args:
        at: their norms at the step.
        most: their largest absolute values at the step.
        raw: their norms after backward.
        limit: the norm to clip to, or None.
    """
    if close(at, raw):
        return "no clipping"
    if limit is not None and close(at, raw * (limit / (raw + 1e-6)).clamp(max=1)):
        return "clipping each parameter by itself"
    if close(at, raw * (at.norm() / raw.norm()), 0.01):
        return "clipping though not asked for" if limit is None else "clipping to another norm"
    if limit is not None and float(most.max()) <= 1.001 * limit:
        return "clipping by value"
    return "gradient changed before the step"


def close(a: Tensor, b: Tensor, tolerance: float = TOLERANCE) -> bool:
    """True if a and b have the same shape and all numbers agree.

    The tolerance is relative to each number of b, or to a thousandth of the largest one if that
    is more.
    """
    if a.shape != b.shape or not b.numel():
        return a.shape == b.shape
    size = torch.maximum(b.double().abs(), 1e-3 * b.double().abs().max()).clamp(min=1e-12)
    return bool(((a.double() - b).abs() <= tolerance * size).all())


def first_fault(free: Loop, clipped: Loop) -> Fault | None:
    """Return the first mistake of a loop, given a run without clipping and one with it."""
    fault = next(free.faults(), None)
    other = next(clipped.faults(), None)
    if fault is None or other is not None:
        return fault or other
    no_norms = not fault.name and len(free.losses) == free.steps != len(free.norms)
    if no_norms or fault.name == "clipping before backward":
        return Fault("norm only when clipping", fault.seen)
    return fault


# --- plot_results

LOSSES = (4.0, 3.5, 3.75, 2.0, 1.5)
NORMS = (1.0, 7.0, 2.5, 6.0, 0.5)
PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Panel:
    """One panel of a picture.

    curves: the y values of each line.
    names: the title, and the labels of both axes.
    """

    curves: tuple[tuple[float, ...], ...]
    names: tuple[str, str, str]


@dataclass(frozen=True)
class Picture:
    """The pictures that plot_results made of LOSSES and NORMS.

    panels: the panels of each picture that it saved.
    is_png: True if the file at save_path is a PNG; None if there is no file.
    left_open: True if a figure of pyplot is still open.
    """

    panels: tuple[tuple[Panel, ...], ...]
    is_png: bool | None
    left_open: bool

    def fault(self) -> str:
        """Describe the first mistake; "" if there is none."""
        if self.is_png is None:
            return "nothing was written to save_path"
        if len(self.panels) != 1:
            return f"{len(self.panels)} pictures were saved, expected one"
        if not self.is_png:
            return "the file is not a PNG"
        (panels,) = self.panels
        if len(panels) != 2:
            count = f"the saved picture has {len(panels)} panels, expected 2"
            return f"{count}; is it saved after show()?"
        for numbers, name, panel in zip(
            (LOSSES, NORMS), ("losses", "gradient norms"), panels, strict=True
        ):
            if numbers not in panel.curves:
                return f"no curve of the panel shows the {name}"
            if not all(panel.names):
                return f"the panel of the {name} lacks a title or an axis label"
        open_figure = "a figure was left open: use plt.close(figure) or matplotlib.figure.Figure"
        return open_figure if self.left_open else ""


def draw(plot_results: Callable[..., object]) -> Picture:
    """Call plot_results with five steps, then with one. Return the pictures of the first call."""
    import matplotlib.pyplot as plt
    from matplotlib.figure import Figure

    saved: list[tuple[Panel, ...]] = []
    save = Figure.savefig

    def savefig(figure: Any, *args: Any, **kwargs: Any) -> Any:
        saved.append(tuple(panel_of(axes) for axes in figure.axes[:10]))
        return save(figure, *args, **kwargs)

    def show(*_: Any, **__: Any) -> None:  # closes all figures, as if the user had closed them
        plt.close("all")

    plt.close("all")
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(Figure, "savefig", savefig),
        mock.patch.object(plt, "show", show),
    ):
        path = Path(folder) / "picture.png"
        plot_results(list(LOSSES), list(NORMS), path)
        is_png = path.read_bytes()[: len(PNG)] == PNG if path.is_file() else None
        picture = Picture(tuple(saved), is_png, bool(plt.get_fignums()))
        plot_results([2.0], [1.0], path)
    return picture


def panel_of(axes: Any) -> Panel:
    curves = (tuple(float(y) for y in line.get_ydata()[:100]) for line in axes.get_lines()[:20])
    title = axes.get_title() or axes.get_title("left") or axes.get_title("right")
    return Panel(tuple(curves), (title[:200], axes.get_xlabel()[:200], axes.get_ylabel()[:200]))
