"""Compare calls with right results and with results of known mistakes, and find broken laws."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from hectogpt.assignment.parts import BY_NAME
from hectogpt.grade import laws
from hectogpt.grade.answer import Answer, Raised, Values, short
from hectogpt.grade.computation import Computation
from hectogpt.grade.laws import INPUT, SAYS, Setting, cotangent, given, state_of, weights
from hectogpt.grade.mistakes import Mistakes, sentences, with_mistakes
from hectogpt.grade.result import Diagnosis, Finding

Computed = Tensor | str  # what a computation returns, or the name of the error that it raises


@lru_cache(maxsize=20_000)
def logits(setting: Setting, ids: tuple[tuple[int, ...], ...]) -> Tensor:
    """Return the logits of the right model for these ids."""
    return Computation(weights(setting), setting.size).forward(
        torch.tensor(ids, dtype=torch.int64)
    )


def compute(kind: type[Computation], setting: Setting, number: int) -> Computed:
    """Run the setting's part of a computation on one input.

    Mistakes in generation and loss do not change the forward pass, so the right logits are
    computed once for each input and used again.
    """
    if setting.part in ("generate", "loss"):
        forward = {"forward": lambda self, ids: logits(setting, tuple(map(tuple, ids.tolist())))}
        kind = type("Remembering", (kind,), forward)
    new_tokens = setting.new_tokens[number] if setting.new_tokens else 0
    computation = kind(weights(setting), setting.size)
    try:
        with torch.no_grad():
            return computation.run(setting.part, given(setting, number), new_tokens)
    except (IndexError, RuntimeError, ValueError, TypeError) as error:
        return type(error).__name__


@lru_cache(maxsize=200_000)
def result_with(mistakes: Mistakes, setting: Setting, number: int) -> Computed:
    """Return the result of a part with these mistakes for one input; () gives the right result."""
    return compute(with_mistakes(mistakes), setting, number)


@lru_cache(maxsize=20_000)
def gradients_with(mistakes: Mistakes, setting: Setting, number: int) -> dict[str, Tensor] | None:
    """Return the gradients of a part with these mistakes, by name.

    They are taken with respect to the weights of the part and to its input, unless that is token
    ids. Returns None if the result does not require a gradient.
    """
    state = {name: value.clone().requires_grad_() for name, value in weights(setting).items()}
    x = given(setting, number).clone()
    x.requires_grad_(x.is_floating_point())
    result = with_mistakes(mistakes)(state, setting.size).run(setting.part, x)
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


def scale_of(expected: Tensor) -> float:
    """Return the number that differences are relative to.

    It is the standard deviation of the expected numbers; if that is 0, their largest magnitude.
    """
    spread = float(expected.std()) if expected.numel() > 1 else 0.0
    return max(spread if spread > 1e-12 else float(expected.abs().max()), 1e-12)


def difference(yours: Tensor, expected: Tensor) -> float:
    """Return the largest difference, relative to the scale of the expected numbers.

    It is infinite if the shape or the kind of number differs, or if some element is finite on only
    one side. Two NaNs count as equal, and so do two equal infinities.
    """
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
    return float((a - b).abs().max()) / scale_of(b) if b.numel() else 0.0


def listed(names: list[str], most: int = 3) -> str:
    """Join the first few names, and say how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


# --- calls


@dataclass(eq=False)
class Call:
    """One call in a setting.

    setting: the setting.
    place: the 0-based number of the call.
    answer: the submission's answer.
    dtype: the dtype that the submission ran in.
    """

    setting: Setting
    place: int
    answer: Answer
    dtype: str

    @property
    def number(self) -> int:
        """The number of its input: every input comes once before the first is repeated."""
        return self.place % len(self.setting.inputs)

    @property
    def result(self) -> Tensor | None:
        """The tensor that the call returned, or None. A loss of shape (1,) becomes a scalar."""
        if not isinstance(self.answer, Values):
            return None
        made = self.answer.result
        return made.reshape(()) if self.setting.part == "loss" and made.shape == (1,) else made

    @property
    def tolerance(self) -> float:
        return self.setting.slack * laws.TOLERANCE[self.dtype]

    @property
    def right(self) -> Tensor:
        """The right result: that of the Computation without mistakes."""
        made = result_with((), self.setting, self.number)
        assert isinstance(made, Tensor)
        return made

    def error_against(self, made: Computed) -> float:
        """Return the `difference` between the answer and a computation's result.

        It is 0 if both are errors, and infinite if only one is.
        """
        yours = self.result
        if isinstance(made, str) or yours is None:
            both = isinstance(made, str) and isinstance(self.answer, Raised)
            return 0.0 if both else math.inf
        return difference(yours, made)

    def agrees(self, made: Computed) -> bool:
        return self.error_against(made) <= self.tolerance

    @cached_property
    def is_right(self) -> bool:
        return self.agrees(self.right)

    def first_difference(self) -> str:
        """Describe the input and the first element that differs, with both values."""
        setting = self.setting
        yours = self.result
        expected = self.right
        assert yours is not None
        new_tokens = (
            f", {setting.new_tokens[self.number]} new tokens" if setting.new_tokens else ""
        )
        where = (
            f'input {self.number} of "{setting.name}", shape '
            f"{list(given(setting, self.number).shape)}{new_tokens}:"
        )
        if yours.shape != expected.shape:
            shapes = f"shape {list(yours.shape)}, expected {list(expected.shape)}"
            return f"{where} the result has {shapes}"
        if yours.is_floating_point() != expected.is_floating_point():
            return f"{where} the result has dtype {yours.dtype}, expected {expected.dtype}"
        a = yours.double()
        b = expected.double()
        wrong = ~((a - b).abs() <= self.tolerance * scale_of(b))
        flat = int(wrong.flatten().int().argmax())
        index = torch.unravel_index(torch.tensor(flat), b.shape) if b.dim() else ()
        axes = zip(BY_NAME[setting.part].axes, index, strict=False)
        place = ", ".join(f"{name} {int(i)}" for name, i in axes)
        x = float(a.flatten()[flat])
        y = float(b.flatten()[flat])
        share = float(wrong.double().mean())
        part = f"; {share:.0%} of the numbers differ" if b.numel() > 1 else ""
        at = f" first differs at {place}:" if place else ""
        size = "" if setting.part == "generate" else f", difference {x - y:.2g}"
        return f"{where}{at} yours {x:.6g}, expected {y:.6g}{size}{part}"

    def has_gradients_of(self, mistakes: Mistakes = ()) -> bool:
        """True if the gradients are those of the part with these mistakes; () means with none."""
        made = gradients_with(mistakes, self.setting, self.number)
        trains = isinstance(self.answer, Values) and self.answer.trains
        if made is None or not trains:
            return made is None and not trains
        return not self.gradients_unlike(made)

    def wrong_gradients(self) -> list[str]:
        """Return the names of the wrong gradients."""
        made = gradients_with((), self.setting, self.number)
        return self.gradients_unlike(made) if made else []

    def gradients_unlike(self, made: dict[str, Tensor]) -> list[str]:
        """Return the names of the gradients that differ from these.

        A difference is taken relative to the size of the gradient, or to a tenth of the largest
        gradient's size if that is larger: the gradient of W_k's bias is zero except for rounding.
        """
        answer = self.answer
        assert isinstance(answer, Values)
        sizes = {name: float(right.square().mean().sqrt()) for name, right in made.items()}
        least = max(0.1 * max(sizes.values()), 1e-12)
        limit = laws.GRADIENT * self.tolerance

        def is_right(name: str, right: Tensor) -> bool:
            yours = answer.tensors.get(name, torch.zeros_like(right))
            if yours.shape != right.shape:
                return False
            return float((yours - right).abs().max()) <= limit * max(sizes[name], least)

        return [
            n for n, right in made.items() if n not in answer.absent and not is_right(n, right)
        ]

    def without(self, names: list[str]) -> list[str]:
        """Return the names, among these, that no gradient reaches."""
        return [name for name in names if name not in self.answer.tensors]


# --- laws that are broken

# Name of a side effect in an answer -> its diagnosis.
SIDE_EFFECTS = {
    name: Diagnosis((one["name"],), one["where"], one["what"])
    for name, one in sentences()["left"].items()
}
NOTED = ("the mode", "the random state")  # side effects that cost no points


def side_effects(answers: Iterable[Answer]) -> dict[str, Diagnosis]:
    """Return the side effects of these calls, by name."""
    names = [n for one in answers if isinstance(one, Values) for n in one.changed]
    return {name: SIDE_EFFECTS[name] for name in dict.fromkeys(names) if name in SIDE_EFFECTS}


NO_GRADIENT = "the result carries no gradient: autograd sees no weight that it depends on"


def broken_laws(made: list[list[Call]]) -> list[Finding]:
    """Return the broken laws, given the calls of each setting.

    Gradients are checked only if the values are right, since wrong values have wrong gradients.
    """
    found: list[Finding] = []
    right: list[list[Call]] = []
    for calls in made:
        setting = calls[0].setting
        if not (symptom := value_symptom(calls)):
            right.append(calls)
        elif is_random(calls):
            found.append(Finding("no dropout", symptom, SAYS["dropout"]))
        else:
            brief = setting.law if setting.law != "values" else pattern(calls)
            found.append(Finding(setting.law, symptom, setting.says, does_count(calls), brief))
    if not any(finding.counts for finding in found):
        found += broken_gradients(right)
    values = [call.answer for calls in made for call in calls if isinstance(call.answer, Values)]
    for name, effect in side_effects(values).items():
        found.append(Finding(effect.id, effect.what, SAYS["caller"], name not in NOTED))
    if names := next(filter(None, (one.unnamed for one in values)), ()):
        named = short(" and ".join(names), 60)
        words = f"it has no argument named {named}, which the course's own tests pass by name"
        found.append(Finding("names of arguments", words, SAYS["names"]))
    return found


def broken_gradients(right: list[list[Call]]) -> list[Finding]:
    """Return the broken laws of settings with right values and wrong gradients.

    A model may switch gradients off in eval mode if it has the right ones in train mode.
    """
    trains = any(calls[0].setting.train_mode and not gradient_symptom(calls) for calls in right)
    found = []
    for calls in right:
        symptom = gradient_symptom(calls)
        values = [call.answer for call in calls if isinstance(call.answer, Values)]
        if symptom and not (trains and not any(one.has_gradient for one in values)):
            law = calls[0].setting.law.replace("values", "gradient")
            found.append(Finding(law, symptom, SAYS["gradient"], True))
    return found


def does_count(calls: list[Call]) -> bool:
    """True if wrong calls of a setting cost points. Dropout costs none.

    In settings of `generate` that do not count (a text longer than the context, or no new token),
    an error or a different choice of tokens is a note. But a text that lacks the prompt, or is too
    long, costs points.
    """
    setting = calls[0].setting
    if setting.counts or setting.part != "generate":
        return setting.counts and not is_random(calls)

    def is_text(call: Call) -> bool:
        yours = call.result
        prompt = given(setting, call.number)
        if yours is None:
            return True
        whole = yours.dim() == 2 and yours.shape[1] <= call.right.shape[1]
        return whole and torch.equal(yours[:, : prompt.shape[1]], prompt)

    return not all(map(is_text, calls))


def is_random(calls: list[Call]) -> bool:
    """True if an input gives a different result the second time in train mode, as with dropout."""
    setting = calls[0].setting
    # A patched "generate" runs on our own forward pass, which has no dropout.
    if not setting.train_mode or setting.part == "generate":
        return False
    made = [call.result for call in calls]
    pairs = zip(made, made[len(setting.inputs) :], strict=False)
    return any(
        one is not None and two is not None and difference(one, two) > 1e-4 for one, two in pairs
    )


def value_symptom(calls: list[Call]) -> str:
    """Describe the first wrong result of a setting; "" if there is none."""
    for call in calls:
        if call.result is None:
            return call.answer.words
        if not call.is_right:
            is_again = call.place >= len(call.setting.inputs)
            again = "the same input a second time: " if is_again else ""
            return again + "; ".join(filter(None, (call.first_difference(), pattern(calls))))
    return ""


def gradient_symptom(calls: list[Call]) -> str:
    """Describe the first wrong gradients of a setting with right values; "" if there are none."""
    for call in (call for call in calls if call.setting.gradient):
        assert isinstance(call.answer, Values)
        if not call.answer.has_gradient:
            return f"backward: {NO_GRADIENT}"
        if call.answer.backward:
            return f"backward: {short(call.answer.backward.words)}"
        if wrong := call.wrong_gradients():
            if without := call.without(wrong):
                return f"no gradient reaches {listed(without)}"
            return f"the gradient is wrong for {listed(wrong)}"
    return ""


def pattern(calls: list[Call]) -> str:
    """Describe which rows or positions are wrong in answers of the right shape.

    Returns "" if there is no simple pattern. Positions of a generated text are counted from the
    end of the prompt.
    """
    part = calls[0].setting.part
    wrong = [call for call in calls if not call.is_right]
    if "position" not in BY_NAME[part].axes or not wrong:
        return ""
    errors: list[Tensor] = []
    for call in wrong:
        yours = call.result
        right = call.right
        if yours is None or yours.shape != right.shape or yours.dim() < 2:
            return ""
        error = (yours.double() - right.double()).abs() > call.tolerance * scale_of(right.double())
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
