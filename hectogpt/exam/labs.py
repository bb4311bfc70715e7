"""Labs: models and inputs so simple that a reader can follow them by hand. A mistake of the
catalogue is run in a lab, and shows an outcome.

questions.toml has each lab: its words, weights and inputs. A variant has different numbers."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from hectogpt.grade.computation import Computation
from hectogpt.grade.laws import Size, shapes
from hectogpt.grade.mistakes import GRADIENTS, MISTAKES, Mistake, with_mistakes, words_of

WORDS: dict[str, Any] = tomllib.loads(
    Path(__file__).with_name("questions.toml").read_text(encoding="utf-8")
)
LABS: dict[str, dict[str, Any]] = WORDS["lab"]
VARIANTS = 4
RIGHT = ""  # the name of the program without a mistake


class Outcome(NamedTuple):
    """The numbers that a program gave, rounded as they are shown.

    fault: the error, or the shape if it is not the expected one; the rows are then empty.
    """

    fault: str
    rows: tuple[tuple[float, ...], ...]


@cache
def mistakes_of(lab: str) -> dict[str, Any]:
    """Return name -> mistake of a lab: a Mistake, the letters of a training loop, or for the right
    program None. Of gradients, the name begins with the part."""
    part = LABS[lab]["part"]
    if part == "loop":
        return WORDS["loop"]
    if parts := LABS[lab].get("parts"):
        return {RIGHT: None} | {f"{p}: {one.name}": one for p in parts for one in GRADIENTS[p]}
    final = lab == "norm"
    known = (one for one in MISTAKES[part] if ("final_norm" in one.changes) == final)
    return {RIGHT: None} | {one.name: one for one in known}


def what(lab: str, name: str) -> str:
    """Return the sentence about a mistake."""
    part, _, short = name.rpartition(": ")
    part = part or LABS[lab]["part"]
    if name == RIGHT:
        return "Nothing is wrong."
    own = WORDS["what"].get(part, {}).get(short)
    words = own or (words_of("end") | words_of(part))[short].what
    return re.sub("(?<=cut off from the gradient): .*", ".", words)


def shown_inputs(lab: str) -> tuple[str, ...]:
    """Return the inputs whose outcomes are shown below each other, except in experiments."""
    return tuple(LABS[lab].get("shown", list(LABS[lab]["inputs"])[:1]))


@cache
def outcome(lab: str, name: str, inputs: tuple[str, ...], variant: int) -> Outcome:
    """Return what a mistake shows on inputs, in rows below each other."""
    rows: list[tuple[float, ...]] = []
    for given in inputs:
        made, right = (observe(lab, one, given, variant) for one in (name, RIGHT))
        assert isinstance(right, Tensor)
        if isinstance(made, str):
            return Outcome(made, ())
        if made.shape != right.shape:
            shapes_of = f"{list(made.shape)}, not {list(right.shape)}"
            return Outcome(f"the result has shape {shapes_of}", ())
        if made.dtype != right.dtype:
            return Outcome("the result has floating-point numbers, not integers", ())
        table = made.detach().double().reshape(-1, made.shape[-1] if made.dim() else 1)
        digits = LABS[lab]["digits"]
        rows += (tuple(round(x, digits) + 0.0 for x in row) for row in table.tolist())
    return Outcome("", tuple(rows))


@cache
def observe(lab: str, name: str, given: str, variant: int) -> Tensor | str:
    """Return the numbers that a mistake gives on one input, or its error."""
    mistake = mistakes_of(lab)[name]
    try:
        if lab == "loop":
            return record(mistake, LABS[lab]["inputs"][given], variant)
        if "places" in LABS[lab]:
            return gradients(lab, mistake, variant) / gradients(lab, None, variant) * 100
        with torch.no_grad():
            return result(lab, mistake, given, variant)
    except (IndexError, RuntimeError, ValueError, TypeError) as error:
        return f"{type(error).__name__}: the shapes do not fit"


def unlike_cells(lab: str, one: Outcome, two: Outcome) -> Iterator[tuple[int, int]]:
    """Yield the (row, column) at which two outcomes of equal shape visibly differ."""
    if one.rows == two.rows:
        return
    for r, (left, right) in enumerate(zip(one.rows, two.rows, strict=True)):
        for c, (a, b) in enumerate(zip(left, right, strict=True)):
            if math.isfinite(a) and math.isfinite(b):
                if abs(a - b) >= LABS[lab]["unit"]:
                    yield r, c
            elif a != b and not (math.isnan(a) and math.isnan(b)):
                yield r, c


@cache
def differ(lab: str, one: str, two: str, inputs: tuple[str, ...], variant: int) -> bool:
    """True if a reader sees that two programs differ on these inputs."""
    a, b = (outcome(lab, name, inputs, variant) for name in (one, two))
    return a.fault != b.fault or (not a.fault and any(unlike_cells(lab, a, b)))


@cache
def tells_apart(lab: str, one: str, two: str, given: str, variant: int) -> bool | None:
    """True or False if an input tells two programs apart, or does not. None if that depends on the
    numbers, and they are not shown."""
    variants = range(VARIANTS) if "hidden" in LABS[lab] else (variant,)
    found = {differ(lab, one, two, (given,), number) for number in variants}
    return found.pop() if len(found) == 1 else None


# --- models


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()


@cache
def drawn(size: Size, variant: int) -> dict[str, Tensor]:
    """Return weights on which attention is peaked and nothing is trivial."""
    return {
        name: normal(1000 * variant + n, *shape)
        * (1.3 / size.d_model**0.5 if len(shape) > 1 else 0.4)
        + float(name.endswith("norm.weight"))
        for n, (name, shape) in enumerate(shapes(size).items())
    }


def numbers(spec: dict[str, Any], variant: int) -> Tensor:
    """Return the input of a lab: token ids if it has a vocabulary, else float64."""
    if "x" not in spec:
        x = normal(variant + 50, 1, 16, 14)
    elif "vocabulary" in spec:
        x = (torch.tensor(spec["x"]) + variant) % spec["vocabulary"]
    else:
        x = torch.tensor(spec["x"]).double() + variant * spec["vary"]
    x = x[: spec.get("row_count", 9)]
    return x[:, spec["tokens"]] if "tokens" in spec else x


def logits(spec: dict[str, Any], variant: int, ids: Tensor) -> Tensor:
    """Return what a rule gives in the place of a model."""
    if spec["part"] == "generate":
        two = ids + torch.nn.functional.pad(ids, (1, 0))[:, :-1]
        return 9.0 * one_hot((ids.cumsum(1) if variant % 2 else two) % 10, 10).double()
    ahead = spec.get("ahead", 0)
    guess = torch.full_like(ids, spec["always"]) if "always" in spec else ids.roll(-ahead, 1)
    sure = 5.0 * one_hot(guess, 4).double()
    if ahead:  # nothing is known behind the end
        sure[:, -ahead:] = 0
    return sure


def result(lab: str, mistake: Mistake | None, given: str, variant: int) -> Tensor:
    """Return what the model of a lab with a mistake gives."""
    spec = LABS[lab] | LABS[lab]["inputs"][given]
    kind = with_mistakes((mistake,) if mistake else ())
    seen: list[Tensor] = []

    def line(factors: list[float]) -> Callable[..., Tensor]:
        return lambda *of: factors[0] * of[-1] + factors[1]

    def pattern(s: Computation, scores: Tensor) -> Tensor:
        seen.append(kind.pattern(s, scores))
        return seen[0]

    toys: dict[str, Any] = {name: line(two) for name, two in spec.get("lines", {}).items()}
    if "blocks" in spec:
        toys["block"] = lambda s, p, y: line(spec["blocks"][int(p[9])])(y)
    if "vocabulary" in spec and "weights" not in spec:
        toys["forward"] = lambda s, ids: logits(spec, variant, ids)
    size = Size(*spec["size"])
    weights = spec.get("weights", {}) | spec.get("instead", {})
    state = {name: torch.tensor(value).double() for name, value in weights.items()}
    if lab == "map":
        toys["pattern"] = pattern
        state = drawn(size, variant)
    model = type("Toy", (kind,), toys)(state, size)
    x = numbers(spec, variant)
    if lab == "norm":
        return model.final_norm(x)
    made = model.run(spec["part"], x, spec.get("new_tokens", 0))
    return 100 * seen[0][0, 0] if seen else made


def scores(variant: int) -> Tensor:
    """Return the right scores of the first head in the lab "map": [query, key]."""
    spec = LABS["map"]
    model = Computation(drawn(Size(*spec["size"]), variant), Size(*spec["size"]))
    projected = model.project("backbone.0.attention.", numbers(spec, variant))
    q, k, _ = (model.cut(t) for t in projected)
    return model.scores(q, k)[0, 0]


def gradients(lab: str, mistake: Mistake | None, variant: int) -> Tensor:
    """Return the norm of the gradient at each place of a lab: [place, 1]."""
    spec = LABS[lab]
    size = Size(12, 3, 2, 6, 7)
    state = {n: value.clone().requires_grad_() for n, value in drawn(size, variant).items()}
    x = (2 * normal(variant + 9, 2, 4, 12)).requires_grad_()
    ids = torch.tensor([[0, 3, 6, 2], [5, 0, 1, 6]])
    model = with_mistakes((mistake,) if mistake else ())(state, size)
    made = model.run(spec["part"], ids if spec["part"] == "forward" else x)
    if made.requires_grad:
        (made * normal(variant, *made.shape)).sum().backward()
    norms = []
    for place in spec["places"]:
        name, _, row = place.partition(" ")
        leaf = x if name == "x" else state[name]
        grad = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        norms.append((grad[int(row)] if row else grad).norm())
    return torch.stack(norms)[:, None]


# --- the training loop


class Loop:
    """A training loop of two parameters, of two numbers and of one. The loss is half the squared
    distance to a target, which changes from batch to batch.

    limit: the norm that gradients are clipped to, or None.
    """

    def __init__(self, targets: list[Tensor], limit: float | None) -> None:
        self.targets = targets
        self.limit = limit
        self.batch = -1
        self.w = torch.zeros(3).double()
        self.grad = self.w
        self.loss = torch.zeros(()).double()
        self.norm = self.loss / 0
        self.rows: list[tuple[Tensor, Tensor]] = []

    @property
    def distance(self) -> Tensor:
        return self.w - self.targets[max(self.batch, 0) % len(self.targets)]

    @property
    def norms(self) -> Tensor:
        """The norm of each parameter's gradient."""
        return torch.stack([self.grad[:2].norm(), self.grad[2:].norm()])

    def clipped(self, norms: Tensor, limit: float | None) -> Tensor:
        share = 1 if limit is None else (limit / norms).clamp(max=1)[[0, 0, -1]]
        return self.grad * share

    def do(self, letter: str) -> None:
        """Do what a letter of questions.toml stands for."""
        made: dict[str, tuple[str, Callable[[], Any]]] = {
            "b": ("batch", lambda: self.batch + 1),
            "f": ("loss", lambda: self.distance.square().sum() / 2),
            "z": ("grad", lambda: 0 * self.grad),
            "g": ("grad", lambda: self.grad + self.distance),
            "q": ("grad", lambda: self.grad / 2),
            "n": ("norm", self.norms.norm),
            "o": ("norm", lambda: self.norm if self.limit is None else self.norms.norm()),
            "i": ("norm", lambda: self.norms[0]),
            "a": ("norm", self.norms.sum),
            "j": ("norm", lambda: self.norms.norm() ** 2),
            "c": ("grad", lambda: self.clipped(self.grad.norm()[None], self.limit)),
            "h": ("grad", lambda: self.clipped(self.grad.norm()[None], 1.0)),
            "k": ("grad", lambda: self.clipped(self.norms, self.limit)),
            "v": ("grad", lambda: self.grad.clamp(-(self.limit or math.inf), self.limit)),
            "s": ("w", lambda: self.w - self.grad / 2),
            "l": ("w", lambda: self.w - self.grad / 20),
            "p": ("w", lambda: self.w - self.grad * torch.tensor([0.5, 0.5, 0])),
            "u": ("w", lambda: 0 * self.w),
            "r": ("rows", lambda: [*self.rows, (self.loss, self.norm)]),
        }
        field, value = made[letter]
        setattr(self, field, value())


def targets(variant: int) -> list[Tensor]:
    return [torch.tensor(t).double() + variant for t in LABS["loop"]["targets"]]


def record(letters: str, given: dict[str, Any], variant: int) -> Tensor:
    """Return [step, (loss, norm)] that a loop records with SGD at 0.5.

    letters: what is done in each step, a capital letter at every second step only; then how the
        record is changed.
    """
    loop = Loop(targets(variant)[: given.get("batches", 2)], given.get("limit"))
    done, _, how = letters.partition(" ")
    for step in range(8 if how == "more" else 4):
        for letter in done:
            if letter.islower() or step % 2 == 0:
                loop.do(letter.lower())
    rows = torch.tensor(loop.rows).double()
    changed = {
        "exchanged": rows.flip(1),
        "before": rows[[0, 0, 1, 2]],
        "mean": rows.cumsum(0) / torch.arange(1, len(rows) + 1)[:, None],
        "doubled": rows * torch.tensor([2.0, 1.0]),
    }
    return changed.get(how, rows)[: given.get("steps", 8)]
