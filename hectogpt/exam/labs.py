"""Labs: models and inputs that are simple enough to compute by hand.

Running a mistake from the grader's catalogue in a lab gives an outcome. questions.toml has the
text, weights and inputs of each lab. The variants of a lab differ in their numbers.
"""

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

from hectogpt.grade.calls import gradients_with
from hectogpt.grade.computation import Computation
from hectogpt.grade.laws import Setting, Size, given, weights
from hectogpt.grade.mistakes import GRADIENTS, MISTAKES, Mistakes, with_mistakes, words_of

WORDS: dict[str, Any] = tomllib.loads(
    Path(__file__).with_name("questions.toml").read_text(encoding="utf-8")
)
LABS: dict[str, dict[str, Any]] = WORDS["lab"]
VARIANTS = 4
RIGHT = ""  # the name of the program without a mistake


class Outcome(NamedTuple):
    """The numbers that a program gave, rounded as they are shown.

    fault: an error, or an unexpected shape or type; "" if there is none.
    rows: the numbers; empty if there is a fault.
    """

    fault: str
    rows: tuple[tuple[float, ...], ...]


@cache
def mistakes_of(lab: str) -> dict[str, Any]:
    """Return name -> mistake for the mistakes of a lab and for the right program.

    A mistake is a Mistake or, in the lab "loop", the letters of a training loop. The right program
    is None or, in "loop", its letters. Mistakes in gradients are named "PART: MISTAKE".
    """
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
    """Return the inputs that a `symptom` or `predict` question shows together."""
    return tuple(LABS[lab].get("shown", list(LABS[lab]["inputs"])[:1]))


@cache
def outcome(lab: str, name: str, inputs: tuple[str, ...], variant: int) -> Outcome:
    """Return the outcome of a mistake on several inputs, with the rows of all inputs joined."""
    rows: list[tuple[float, ...]] = []
    for one in inputs:
        made, right = (observe(lab, program, one, variant) for program in (name, RIGHT))
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
def observe(lab: str, name: str, place: str, variant: int) -> Tensor | str:
    """Return the numbers that a mistake gives on one input, or the error that it raises."""
    mistake = mistakes_of(lab)[name]
    mistakes = (mistake,) if mistake else ()
    try:
        if lab == "loop":
            return record(mistake, LABS[lab]["inputs"][place], variant)
        if "places" in LABS[lab]:
            return gradients(lab, mistakes, variant) / gradients(lab, (), variant) * 100
        with torch.no_grad():
            return result(lab, mistakes, place, variant)
    except (IndexError, RuntimeError, ValueError, TypeError) as error:
        return f"{type(error).__name__}: the shapes do not fit"


def unlike_cells(lab: str, one: Outcome, two: Outcome) -> Iterator[tuple[int, int]]:
    """Yield each (row, column) at which two outcomes of equal shape visibly differ."""
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
    """True if a reader can see a difference between two programs on these inputs."""
    a, b = (outcome(lab, name, inputs, variant) for name in (one, two))
    return a.fault != b.fault or (not a.fault and any(unlike_cells(lab, a, b)))


# --- models


def setting_of(spec: dict[str, Any], variant: int) -> Setting:
    """Return the grader's setting for a lab without numbers of its own."""
    shape = tuple(spec["shape"])
    return Setting(f"exam {variant}", spec["part"], "", Size(*spec["size"]), (shape,))


def numbers(spec: dict[str, Any], variant: int) -> Tensor:
    """Return the input of a lab: token ids if it has a vocabulary, else float64."""
    if "x" not in spec:
        x = given(setting_of(spec, variant), 0)
    elif "vocabulary" in spec:
        x = (torch.tensor(spec["x"]) + variant) % spec["vocabulary"]
    else:
        x = torch.tensor(spec["x"]).double() + variant * spec["vary"]
    x = x[: spec.get("row_count", 9)]
    return x[:, spec["tokens"]] if "tokens" in spec else x


def logits(spec: dict[str, Any], variant: int, ids: Tensor) -> Tensor:
    """Return the logits of a simple rule that replaces the model."""
    if spec["part"] == "generate":
        two = ids + torch.nn.functional.pad(ids, (1, 0))[:, :-1]
        return 9.0 * one_hot((ids.cumsum(1) if variant % 2 else two) % 10, 10).double()
    ahead = spec.get("ahead", 0)
    guess = torch.full_like(ids, spec["always"]) if "always" in spec else ids.roll(-ahead, 1)
    sure = 5.0 * one_hot(guess, 4).double()
    if ahead:  # there are no tokens past the end
        sure[:, -ahead:] = 0
    return sure


def result(lab: str, mistakes: Mistakes, name: str, variant: int) -> Tensor:
    """Return the numbers that the model of a lab gives with these mistakes."""
    spec = LABS[lab] | LABS[lab]["inputs"][name]
    kind = with_mistakes(mistakes)
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
    values = spec.get("weights", {}) | spec.get("instead", {})
    state = {key: torch.tensor(value).double() for key, value in values.items()}
    if lab == "map":
        toys["pattern"] = pattern
        state = weights(setting_of(spec, variant))
    model = type("Toy", (kind,), toys)(state, size)
    x = numbers(spec, variant)
    if lab == "norm":
        return model.final_norm(x)
    made = model.run(spec["part"], x, spec.get("new_tokens", 0))
    return 100 * seen[0][0, 0] if seen else made


def scores(variant: int) -> Tensor:
    """Return the right scores of the first head in the lab "map": [query, key]."""
    spec = LABS["map"]
    setting = setting_of(spec, variant)
    model = Computation(weights(setting), setting.size)
    projected = model.project("backbone.0.attention.", numbers(spec, variant))
    q, k, _ = (model.cut(t) for t in projected)
    return model.scores(q, k)[0, 0]


def gradients(lab: str, mistakes: Mistakes, variant: int) -> Tensor:
    """Return the norm of the gradient at each place of a lab, [place, 1]."""
    spec = LABS[lab]
    made = gradients_with(mistakes, setting_of(spec, variant), 0) or {}
    norms = []
    for place in spec["places"]:
        name, _, row = place.partition(", row ")
        grad = made.get(name, torch.zeros(9))
        norms.append((grad[int(row)] if row else grad).norm())
    return torch.stack(norms)[:, None].double()


# --- the training loop


def targets(variant: int) -> list[Tensor]:
    return [torch.tensor(t).double() + variant for t in LABS["loop"]["targets"]]


def record(letters: str, spec: dict[str, Any], variant: int) -> Tensor:
    """Return the record of a training loop, [step, (loss, norm)].

    The model has two parameters: one has two numbers, the other has one. The loss is half the
    squared distance to a target, which changes from batch to batch.

    Args:
        letters: the actions of each step (see questions.toml), then a space and a word if the
            record is changed or the loop is too long.
        spec: the input: the number of batches, the norm to clip to, and the number of steps.
        variant: a number added to the targets.
    """
    known = targets(variant)[: spec.get("batches", 2)]
    limit = spec.get("limit")
    w = grad = torch.zeros(3).double()
    loss, norm = torch.full((2,), math.nan).double()
    batch = -1
    rows: list[list[Tensor]] = []
    done, _, how = letters.partition(" ")
    for letter in done * 4 if how != "more" else done * 8:
        odd = len(rows) % 2
        if letter.isupper() and odd:
            continue
        letter = letter.lower()
        apart = w - known[max(batch, 0) % len(known)]
        norms = torch.stack([grad[:2].norm(), grad[2:].norm()])
        if letter == "b":
            batch += 1
        elif letter == "f":
            loss = apart.square().sum() / 2
        elif letter in (factors := LABS["loop"]["factors"]):
            grad = factors[letter] * grad
        elif letter == "g":
            grad = grad + apart
        elif letter in "niaj" or (letter == "o" and limit):
            kinds = {"i": norms[0], "a": norms.sum(), "j": norms.square().sum()}
            norm = kinds.get(letter, norms.norm())
        elif letter == "h" or (letter in "ck" and limit):
            size = norms if letter == "k" else norms.norm()[None]
            grad = (
                grad * ((1.0 if letter == "h" else limit or 1.0) / size).clamp(max=1)[[0, 0, -1]]
            )
        elif letter == "v" and limit:
            grad = grad.clamp(-limit, limit)
        elif letter in (rates := LABS["loop"]["rates"]):
            w = w - torch.tensor(rates[letter]) * grad
        elif letter == "u":
            w = 0 * w
        elif letter == "r":
            rows.append([loss, norm])
    made = torch.tensor(rows).double()
    changed = {
        "exchanged": made.flip(1),
        "before": made[[0, 0, 1, 2]],
        "mean": made.cumsum(0) / torch.arange(1, len(made) + 1)[:, None],
        "doubled": made * torch.tensor([2.0, 1.0]),
    }
    return changed.get(how, made)[: spec.get("steps", 8)]
