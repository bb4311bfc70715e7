"""What came back, call by call, beside what should have, and what a known mistake would return."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from hectogpt.assignment.parts import BY_NAME
from hectogpt.grade import laws
from hectogpt.grade.computation import Computation, Mistake, kind_of
from hectogpt.grade.laws import INPUT, Setting, cotangent, given, state_of, weights
from hectogpt.grade.result import Outcome
from hectogpt.grade.run_part import Answer, of_frame, of_header

Made = Tensor | str  # what a computation returns, or the name of the error that it raises
ALL_BYTES = 32 << 20  # of one child


@lru_cache(maxsize=20_000)
def logits(setting: Setting, ids: tuple[tuple[int, ...], ...]) -> Tensor:
    """What the right model returns for these ids."""
    return Computation(weights(setting), setting.size).forward(
        torch.tensor(ids, dtype=torch.int64)
    )


def outcome_of(kind: type[Computation], setting: Setting, number: int) -> Made:
    """What the setting's part of a computation returns for one input. Generation and loss change
    nothing in the forward
    pass: it is computed once for each input."""
    if setting.part in ("generate", "loss"):
        forward = {"forward": lambda self, ids: logits(setting, tuple(map(tuple, ids.tolist())))}
        kind = type("Remembering", (kind,), forward)
    new_tokens = setting.new_tokens[number] if setting.new_tokens else 0
    try:
        with torch.no_grad():
            return kind(weights(setting), setting.size).run(
                setting.part, given(setting, number), new_tokens
            )
    except (IndexError, RuntimeError, ValueError, TypeError) as error:
        return type(error).__name__


@lru_cache(maxsize=200_000)
def outcome(mistakes: tuple[Mistake, ...], setting: Setting, number: int) -> Made:
    """What a part with these mistakes (none: the right one) returns for one input."""
    return outcome_of(kind_of(mistakes), setting, number)


@lru_cache(maxsize=20_000)
def gradient(
    mistakes: tuple[Mistake, ...], setting: Setting, number: int
) -> dict[str, Tensor] | None:
    """The gradient of a part with these mistakes (none: the right one) by its weights and, if that
    is no token ids, its input; None if its result has none."""
    state = {name: value.clone().requires_grad_() for name, value in weights(setting).items()}
    x = given(setting, number).clone()
    x.requires_grad_(x.is_floating_point())
    result = kind_of(mistakes)(state, setting.size).run(setting.part, x)
    if not result.requires_grad:
        return None
    result.backward(cotangent(setting, result.shape))
    prefix = BY_NAME[setting.part].prefix
    leaves = {name: state[prefix + name] for name in state_of(setting)} | (
        {INPUT: x} if x.requires_grad else {}
    )
    return {
        name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        for name, leaf in leaves.items()
    }


# --- comparing
# ---


def size_of(expected: Tensor) -> float:
    """What a difference is relative to: the spread of what was expected, or the size of a single
    number.
    """
    spread = float(expected.std()) if expected.numel() > 1 else 0.0
    return max(spread if spread > 1e-12 else float(expected.abs().max()), 1e-12)


def difference(yours: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the size of what was expected; infinite for another
    shape, another kind of number, or one that is not finite where it should be. NaN and infinity
    equal themselves."""
    if yours.shape != expected.shape or yours.is_floating_point() != expected.is_floating_point():
        return math.inf
    a = yours.double()
    b = expected.double()
    finite = b.isfinite()
    if not torch.equal(a.isfinite(), finite) or not torch.equal(
        a.nan_to_num()[~finite], b.nan_to_num()[~finite]
    ):
        return math.inf
    a = a[finite]
    b = b[finite]
    return float((a - b).abs().max()) / size_of(b) if b.numel() else 0.0


def short(text: str, width: int = 300) -> str:
    """A foreign text on one line, not longer than width."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 3] + "..."


def listed(names: list[str], most: int = 3) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def pattern(calls: list[Call]) -> str:
    """In words where the wrong answers are wrong: from which position on, not in row 0, not at the
    last position; "" if it is everywhere. Answers have the right shape. Positions of a generated
    text are those after the prompt."""
    part = calls[0].setting.part
    wrong = [call for call in calls if not call.is_right]
    if "position" not in BY_NAME[part].axes or not wrong:
        return ""
    errors: list[Tensor] = []
    for call in wrong:
        yours = call.answer.tensor
        right = call.right
        if yours is None or yours.shape != right.shape or yours.dim() < 2:
            return ""
        error = (yours.double() - right.double()).abs() > call.tolerance * size_of(right.double())
        error = error.flatten(2).any(-1) if error.dim() > 2 else error
        errors.append(
            error[:, given(call.setting, call.number).shape[1] :] if part == "generate" else error
        )
    word = "new token" if part == "generate" else "position"
    places = [{int(place) for place in error.any(0).nonzero()} for error in errors]
    first = min(map(min, filter(None, places)), default=0)
    if all(place == {first} for place in places) and any(error.shape[1] > 1 for error in errors):
        return f"only {word} {first} is wrong"
    if all(not error[0].any() for error in errors):
        return "row 0 is right, other rows are not"
    if all(place and min(place) == first for place in places) and first:
        return f"the first wrong {word} is {first}"
    if all(not error[:, -1:].any() for error in errors):
        return f"the last {word} is right, earlier ones are not"
    return ""


# --- calls
# ---


@dataclass(eq=False)
class Call:
    """One call in a setting. place: in the order of the calls. dtype: that the submission ran
    in.
    """

    setting: Setting
    place: int
    answer: Answer
    dtype: str

    @property
    def number(self) -> int:
        """Of the input that it was given: each once, then the first again."""
        return self.place % len(self.setting.inputs)

    @property
    def tolerance(self) -> float:
        return self.setting.slack * laws.TOLERANCE[self.dtype]

    @property
    def right(self) -> Tensor:
        made = outcome((), self.setting, self.number)
        assert isinstance(made, Tensor)
        return made

    def error_against(self, made: Made) -> float:
        """How far the answer is from what a computation returns, see difference; an error agrees
        with an error.
        """
        yours = self.answer.tensor
        if isinstance(made, str) or yours is None:
            return 0.0 if isinstance(made, str) and self.answer.kind == "error" else math.inf
        if yours.shape == (1,) and self.setting.part == "loss" and made.dim() == 0:
            yours = yours.reshape(())
        return difference(yours, made)

    def agrees(self, made: Made) -> bool:
        return self.error_against(made) <= self.tolerance

    @cached_property
    def error(self) -> float:
        return self.error_against(self.right)

    @property
    def is_right(self) -> bool:
        return self.error <= self.tolerance

    def first_difference(self) -> str:
        """In words: which input, and the first element that differs, with both values."""
        setting = self.setting
        yours = self.answer.tensor
        expected = self.right
        assert yours is not None
        new_tokens = (
            f", {setting.new_tokens[self.number]} new tokens" if setting.new_tokens else ""
        )
        where = (
            f'input {self.number} of "{setting.name}", shape '
            f"{list(given(setting, self.number).shape)}{new_tokens}:"
        )
        yours = (
            yours.reshape(()) if yours.shape == (1,) and not expected.dim() else yours
        )  # a loss
        if yours.shape != expected.shape:
            return (
                f"{where} the result has shape {list(yours.shape)}, expected "
                f"{list(expected.shape)}"
            )
        if yours.is_floating_point() != expected.is_floating_point():
            return f"{where} the result has dtype {yours.dtype}, expected {expected.dtype}"
        a = yours.double()
        b = expected.double()
        wrong = ~((a - b).abs() <= self.tolerance * size_of(b))
        flat = int(wrong.flatten().int().argmax())
        index = (
            [int(i) for i in torch.unravel_index(torch.tensor(flat), b.shape)] if b.dim() else []
        )
        place = ", ".join(
            f"{name} {i}" for name, i in zip(BY_NAME[setting.part].axes, index, strict=False)
        )
        x = float(a.flatten()[flat])
        y = float(b.flatten()[flat])
        part = (
            f"; {float(wrong.double().mean()):.0%} of the numbers differ" if b.numel() > 1 else ""
        )
        at = f" first differs at {place}:" if place else ""
        size = "" if setting.part == "generate" else f", difference {x - y:.2g}"
        return f"{where}{at} yours {x:.6g}, expected {y:.6g}{size}{part}"

    def wrong_gradients(self, mistakes: tuple[Mistake, ...] = ()) -> list[str]:
        """Names of the gradients that are not those of the mistakes (of the right part). A
        difference is relative to the gradient's size, or to a tenth of the largest one's: that of
        W_k's bias is zero but for rounding."""
        made = gradient(mistakes, self.setting, self.number)
        answer = self.answer
        if made is None or answer.backward:
            return [] if made is None and answer.backward else ["all"]
        sizes = {name: float(right.square().mean().sqrt()) for name, right in made.items()}
        least = max(0.1 * max(sizes.values()), 1e-12)
        limit = laws.GRADIENT * self.tolerance

        def is_right(name: str, right: Tensor) -> bool:
            yours = answer.numbers.get(name, torch.zeros_like(right))
            return yours.shape == right.shape and float(
                (yours - right).abs().max()
            ) <= limit * max(sizes[name], least)

        return [
            name
            for name, right in made.items()
            if name not in answer.absent and not is_right(name, right)
        ]

    def without(self, names: list[str]) -> list[str]:
        """Those of the names that no gradient reaches."""
        return [name for name in names if name not in self.answer.numbers]


@dataclass
class Transcript:
    """All that came back.

    files: modules that were handed in. calls: (setting, variant) -> calls in order. imports:
    module -> why it cannot be imported. missing: packages that stand-ins took the place of. ends:
    setting -> (outcome, words) of a child that died in it; "" for the import."""

    files: set[str] = field(default_factory=set)
    calls: dict[tuple[str, str], list[Call]] = field(default_factory=dict)
    imports: dict[str, Answer] = field(default_factory=dict)
    missing: set[str] = field(default_factory=set)
    ends: dict[str, tuple[Outcome, str]] = field(default_factory=dict)
    seconds: float = 0.0
    left: list[tuple[str, str]] = field(
        default_factory=list
    )  # what the child has not answered yet; first the import
    ready: bool = False  # whether the child has begun with the submission
    size: int = 0  # of all its frames, in bytes

    def begin(self, asked: list[tuple[str, str]]) -> None:
        """A new child, which is asked for these (setting, variant)."""
        self.left = [("", ""), *asked]
        self.ready = False
        self.size = 0

    def receive(self, header: dict[str, Any], body: bytes) -> None:
        """Take in one frame. Raises what `of_frame` does, and TypeError or AttributeError, for one
        that cannot be understood, and ValueError for more than answers to the settings can be."""
        self.size += len(str(header)) + len(body)
        if self.size > ALL_BYTES or not self.left:
            raise ValueError("more answers than there are questions")
        if "ready" in header:
            self.ready = True
            return
        name, variant = self.left[0]
        if name:
            setting = laws.SETTINGS[name]
            dtype = one_of(laws.TOLERANCE, header["dtype"])
            made = of_frame(header, body)[: len(setting.order)]
            self.calls[name, variant] = [
                Call(setting, place, answer, dtype) for place, answer in enumerate(made)
            ]
        else:
            self.imports = {
                one_of(self.files, name): of_header(one, {})
                for name, one in header["imports"].items()
            }
            self.missing = {str(name)[:60] for name in header["missing"][:20]}
        del self.left[0]

    def whole(self, part: str, variant: str) -> list[list[Call]]:
        """The calls of each setting of a part; none at all if a setting that counts has none."""
        made = {
            setting: self.calls.get((setting.name, variant), [])
            for setting in laws.settings_of(part)
        }
        return (
            [*filter(None, made.values())] if all(made[one] for one in made if one.counts) else []
        )


def one_of(known: Collection[str], name: Any) -> str:
    """The name, if it is one of the known ones. Raises ValueError."""
    if not isinstance(name, str) or name not in known:
        raise ValueError("an unknown name")
    return name
