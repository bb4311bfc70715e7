"""A training loop, watched while it runs, and what is wrong with it.

The grader and the tests of a kit share this file: a kit holds a copy of it, so it needs torch
alone. What a loop records is compared with what its model computed, and what its optimizer does is
looked at step by step: no optimizer and no schedule has to be guessed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

MOST = 200  # batches and steps that are looked at
TOLERANCE = 1e-3  # of each number: float32 sums in another order, through some steps


@dataclass
class Seen:
    """What a loop did. P: parameters; n: backward passes; s: steps of an optimizer.

    ids: of each batch [batch, seq]. The other tensors are float64: loss, after [n]: of each batch,
    and once more after its step. left [n]: norm of what was in the gradients before. start [n]: a
    number for all weights, before each batch. raw [n, P]: norms of gradients after each backward
    pass. batch, end [s]: batches so far; the number for the weights after the step. at, most, rate
    [s, P]: norms and largest numbers of the gradients at each step, and learning rates, NaN for a
    parameter that the optimizer does not have. kind [s]: number of the optimizer. optimizers:
    classes; plain: whether all of their other settings are the defaults."""

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
        """Raise ValueError unless all tensors are there and fit each other."""
        length = {"n": len(self.ids), "s": len(self.numbers["batch"]), "P": len(self.names)}
        for name, axes in SHAPES.items():
            if self.numbers[name].shape != tuple(length[axis] for axis in axes):
                raise ValueError(f"{name} has another shape")


SHAPES = {
    "loss": "n",
    "after": "n",
    "left": "n",
    "start": "n",
    "raw": "nP",
    "batch": "s",
    "end": "s",
    "kind": "s",
    "at": "sP",
    "most": "sP",
    "rate": "sP",
}


class Watch:
    """Within the context it sees each backward pass and each step. `loss_of` gives the loss of a
    batch; the model calls `backward_of` with what it returned for a batch."""

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
        """Of the gradients, 0 for a parameter that has none."""
        return [0.0 if p.grad is None else float(of(p.grad)) for p in self.parameters.values()]

    @torch.no_grad()
    def weights(self) -> float:
        """One number that depends on every weight."""
        return sum(
            float(p.double().square().sum()) * (1 + 0.1 * n)
            for n, p in enumerate(self.parameters.values())
        )

    @torch.no_grad()
    def loss(self, ids: Tensor) -> float:
        return float(self.loss_of(ids))

    def backward_of(self, ids: Tensor, output: Tensor) -> None:
        """The output of a batch: it counts once its gradient is asked for."""
        if output.requires_grad:
            loss = self.loss(ids)
            start = self.weights()
            known = ids.detach().clone()
            output.register_hook(lambda _: self.began(known, loss, start))

    def began(self, ids: Tensor, loss: float, start: float) -> None:
        if len(self.ids) < MOST:
            self.ids.append(ids)
            row = {
                "loss": loss,
                "after": loss,
                "start": start,
                "left": sum(n**2 for n in self.norms()) ** 0.5,
            }
            for name, value in row.items():
                self.rows[name].append(value)
            self.rows["raw"].append([0.0] * len(self.parameters))

    def reached(self, number: int, parameter: Tensor) -> None:
        if self.rows["raw"] and parameter.grad is not None:
            self.rows["raw"][-1][number] = float(parameter.grad.norm())

    def before(self, optimizer: Optimizer, *_: Any) -> None:
        if len(self.rows["batch"]) < MOST:
            if not any(optimizer is one for one in self.optimizers):
                self.optimizers.append(optimizer)
            rates = {
                id(p): float(group["lr"])
                for group in optimizer.param_groups
                for p in group["params"]
            }
            row = {
                "batch": len(self.ids),
                "at": self.norms(),
                "most": self.norms(lambda g: g.abs().max()),
            }
            row["kind"] = next(n for n, one in enumerate(self.optimizers) if optimizer is one)
            row["rate"] = [rates.get(id(p), torch.nan) for p in self.parameters.values()]
            for name, value in row.items():
                self.rows[name].append(value)

    def behind(self, *_: Any) -> None:
        if len(self.rows["end"]) < len(self.rows["batch"]):
            self.rows["end"].append(self.weights())
        if self.ids:
            self.rows["after"][-1] = self.loss(self.ids[-1])

    def seen(self) -> Seen:
        """All of it."""
        width = len(self.parameters)
        shaped = {n: torch.tensor(rows, dtype=torch.float64) for n, rows in self.rows.items()}
        shaped = {
            n: t.reshape(-1, width) if SHAPES[n].endswith("P") else t for n, t in shaped.items()
        }
        names = tuple(type(one).__name__ for one in self.optimizers)
        return Seen(
            tuple(self.parameters), names, all(map(is_plain, self.optimizers)), self.ids, shaped
        )


def is_plain(optimizer: Optimizer) -> bool:
    """Whether betas, eps and weight decay are AdamW's defaults."""
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


# --- judging
# ---


def rows_of(ids: Tensor, text: Tensor) -> list[int]:
    """The numbers of a batch's rows in the text, -1 for what is not in it; the last token of a row
    may be cut off.
    """
    known = {
        tuple(row[:length]): n
        for n, row in enumerate(text.tolist())
        for length in (len(row), len(row) - 1)
    }
    return [known.get(tuple(row), -1) for row in ids.tolist()]


@dataclass
class Run:
    """A loop that was watched, with what it recorded. limit: the norm that gradients are clipped
    to, or None.
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

    def mistake(self) -> tuple[str, str]:
        """(name, what was seen) of the first mistake; ("", symptom) for what has no name; ("", "")
        if there is none.
        """
        of = (
            self.of_batches,
            self.of_counts,
            self.of_steps,
            self.of_clipping,
            self.of_records,
            self.of_rates,
        )
        return next(filter(any, (one() for one in of)), ("", ""))

    def of_batches(self) -> tuple[str, str]:
        rows = self.rows()
        pairs = list(itertools.pairwise(self.rows()))
        found = {
            "batches of another size": any(len(one) != self.size for one in rows),
            "one batch for ever": len(rows) > 1 and all(one == rows[0] for one in rows),
            "one row many times in a batch": any(
                len(set(one)) < len(one) and -1 not in one for one in rows
            ),
            "each batch used twice": any(
                set(one) == set(two) and -1 not in one for one, two in pairs
            ),
            "batches overlap": any(set(one) & set(two) for one, two in pairs)
            and all(sorted(one) == list(range(min(one), min(one) + len(one))) for one in rows),
        }
        name = next((name for name, is_so in found.items() if is_so), "")
        return (
            name,
            name
            and "rows of the text in the first steps: "
            f"{'; '.join(str(one[:6]) for one in rows[:3])}",
        )

    def of_counts(self) -> tuple[str, str]:
        for name, made in (("loss", self.losses), ("gradient norm", self.norms)):
            if len(made) != self.steps:
                ignored = len(self.seen.ids) > self.steps
                words = f"{len(made)} numbers for {name}, expected {self.steps} (one a step)"
                return "max_steps ignored" if ignored else "", words
        return "", ""

    def of_steps(self) -> tuple[str, str]:
        seen = self.seen
        count = len(self.seen.ids)
        if not seen.optimizers:
            still = count > 1 and self.limit is None and bool((seen.start == seen.start[0]).all())
            return (
                ("no optimizer step", "the weights are the same at every batch")
                if still
                else ("", "")
            )
        used = [
            [int(n) for n, kind in zip(seen.batch, seen.kind, strict=True) if kind == one]
            for one in range(len(seen.optimizers))
        ]
        dirty = seen.left[1:] > TOLERANCE * seen.raw[1:].norm(dim=1)
        idle = (seen.raw == 0).all(0) & bool(seen.raw.any()) | seen.rate.isnan().all(0)
        untrained = [
            n
            for n, still in zip(seen.names, idle, strict=True)
            if still and not n.endswith("W_k.bias")
        ]
        back = [
            b
            for b in range(1, count)
            if self.limit is None and float(seen.start[b]) in seen.start[:b].tolist()
        ]
        found = {
            "parameters not trained": (
                bool(untrained),
                f"the optimizer has no gradient of {', '.join(untrained[:4])}"
                + f" and {len(untrained) - 4} more" * (len(untrained) > 4),
            ),
            "no zero_grad": (
                count > 1 and bool(dirty.all()),
                "at each backward pass the gradients of the steps before are still there",
            ),
            "zero_grad not at every step": (
                bool(dirty.any()),
                "at the backward pass of step "
                f"{int(dirty.int().argmax()) + 2 if count > 1 else 0} an older gradient is "
                "still there",
            ),
            "step before backward": (
                not seen.batch.all(),
                "the optimizer steps before the first backward pass",
            ),
            "two steps a batch": (
                any(len(set(one)) < len(one) for one in used),
                f"{len(seen.batch)} steps of the optimizer for {count} batches",
            ),
            "no step for some batches": (
                any(len(one) < count for one in used),
                f"{len(seen.batch)} steps of the optimizer for {count} batches",
            ),
            "no gradient at the step": (
                not seen.at.any(),
                "at every step of the optimizer all gradients are zero",
            ),
            "learning rate of zero": (
                float((seen.rate.nan_to_num() == 0).double().mean()) > 0.5,
                "the learning rate is 0 at most steps",
            ),
            "weights set back": (
                bool(back),
                f"the weights at batch {1 + min(back, default=0)} are those of an earlier one",
            ),
        }
        return next(((name, words) for name, (is_so, words) in found.items() if is_so), ("", ""))

    def of_clipping(self) -> tuple[str, str]:
        """Of the gradients at each step, by those that backward made."""
        for at, most, batch in zip(self.seen.at, self.seen.most, self.seen.batch, strict=True):
            step = int(batch)
            raw = self.seen.raw[step - 1]
            total = float(raw.norm())
            limit = self.limit
            if close(at, raw * (1.0 if limit is None else min(1.0, limit / (total + 1e-6)))):
                continue
            words = (
                f"at step {step} the optimizer is given a gradient of norm "
                f"{float(at.norm()):.4g}; backward made one of {total:.4g}, gradient_clipping is "
                f"{limit}"
            )
            if close(at, raw):
                return "no clipping", words
            if limit is not None and close(at, raw * (limit / (raw + 1e-6)).clamp(max=1)):
                return "clipping each parameter by itself", words
            if close(at, raw * (at.norm() / total), 0.01):
                return (
                    "clipping though not asked for"
                    if limit is None
                    else "clipping to another norm",
                    words,
                )
            if limit is not None and float(most.max()) <= 1.001 * limit:
                return "clipping by value", words
            return "gradient changed before the step", words
        return "", ""

    def of_records(self) -> tuple[str, str]:
        """Of the numbers recorded, by those that the model computed. In a run with one batch a
        step.
        """
        seen = self.seen
        if len(seen.ids) != self.steps:
            falls = float(self.losses[-1]) < float(self.losses[0])
            return (
                "",
                ""
                if falls
                else f"{len(seen.ids)} batches were seen in {self.steps} steps, and the loss does "
                "not fall",
            )
        true = seen.loss
        total = seen.raw.norm(dim=1)
        if close(self.losses, total) and close(self.norms, true):
            return (
                "losses and norms exchanged",
                f"loss of step 1: yours {float(self.losses[0]):.6g}, expected "
                f"{float(true[0]):.6g}",
            )
        mean = torch.arange(1, self.steps + 1)
        clipped = seen.at.norm(dim=1)[: self.steps] if len(seen.at) >= self.steps else total
        factor = float(self.losses[0] / true[0])
        for what, yours, right, others in (
            (
                "loss",
                self.losses,
                true,
                {"loss after the step": seen.after, "loss times another number": true * factor},
            ),
            (
                "gradient norm",
                self.norms,
                total,
                {
                    "clipping before backward": total * 0,
                    "norm after clipping": clipped,
                    "norms summed": seen.raw.sum(1),
                    "squared norm": total**2,
                    **{"norm of one tensor" + " " * n: one for n, one in enumerate(seen.raw.T)},
                },
            ),
        ):
            if not close(yours, right):
                others |= {"running mean recorded": right.cumsum(0) / mean}
                name = next(
                    (name.strip() for name, made in others.items() if close(yours, made)), ""
                )
                if not name and close(yours[1:], right[:-1]):
                    name = "value of the step before"
                step = next(n for n in range(self.steps) if not close(yours[n], right[n]))
                clipping = " with clipping" * (self.limit is not None)
                words = (
                    f"{what} of step {step + 1}{clipping}: yours {float(yours[step]):.6g}, "
                    f"expected {float(right[step]):.6g}"
                )
                return name, words
        return "", ""

    def of_rates(self) -> tuple[str, str]:
        """Of the learning rate of Adam and AdamW, where it is the same at all steps."""
        rates = sorted(set(self.seen.rate[~self.seen.rate.isnan()].tolist()))
        if (
            self.seen.optimizers in (("AdamW",), ("Adam",))
            and len(rates) == 1
            and abs(rates[0] - self.rate) > TOLERANCE * self.rate
        ):
            return (
                "another learning rate",
                f"the optimizer's learning rate is {rates[0]:g}; learning_rate is {self.rate:g}",
            )
        return "", ""

    def other_optimizer(self) -> str:
        """In words, what the bonus allows: another optimizer, other settings of AdamW, or a
        schedule; "" if none.
        """
        seen = self.seen
        rates = seen.rate[~seen.rate.isnan()]
        if len(seen.ids) != self.steps:
            return "what each step was trained on is not known"
        if seen.optimizers != ("AdamW",):
            return f"the optimizer is {', '.join(seen.optimizers) or 'none of torch.optim'}"
        if not bool((rates == rates[0]).all()):
            return f"the learning rate goes from {float(rates[0]):g} to {float(rates[-1]):g}"
        return "" if seen.plain else "AdamW has other settings than its defaults"

    def curve(
        self, loss: Callable[[list[Tensor], Tensor], Tensor], parameters: Iterable[Tensor]
    ) -> str:
        """In words, where the losses differ from those of AdamW on the same rows, from these first
        weights; "" if they do not, or if the rows are not known."""
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


def close(a: Tensor, b: Tensor, tolerance: float = TOLERANCE) -> bool:
    """Whether each number is within the tolerance of b, or of a thousandth of the largest of b."""
    if a.shape != b.shape or not b.numel():
        return a.shape == b.shape
    size = torch.maximum(b.double().abs(), 1e-3 * b.double().abs().max()).clamp(min=1e-12)
    return bool(((a.double() - b).abs() <= tolerance * size).all())


def judge(runs: list[Run]) -> tuple[str, str]:
    """(name, what was seen) of the first mistake in these runs, the first without clipping; see
    Run.mistake.
    """
    found = [run.mistake() for run in runs]
    free, *others = found
    norms = free[0] == "clipping before backward" or "numbers for gradient norm" in free[1]
    if norms and others and not any(others[0]):
        return "norm only when clipping", free[1]
    return next(filter(any, found), ("", ""))
