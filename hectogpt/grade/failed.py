"""A part that broke a law: which outcome that is, and which mistake it may be. Rules, tried in order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from hectogpt.assignment.parts import BY_NAME
from hectogpt.grade import compare, diagnose, faults, laws
from hectogpt.grade.answers import Answer
from hectogpt.grade.mistake import Diagnosis
from hectogpt.grade.result import PartResult
from hectogpt.grade.runner import Transcript
from hectogpt.grade.settings import Setting
from hectogpt.grade.view import View, describe, expected, is_right, wrong_gradients


@dataclass
class Case:
    """A part whose values were asked for in some settings. numbered: setting, number of the call, answer, where the
    part could be built; wrong: those of them that are not right."""

    part: str
    view: View
    listed: list[tuple[Setting, list[Answer]]]
    numbered: list[tuple[Setting, int, Answer]] = field(init=False)
    wrong: list[Answer] = field(init=False)

    def __post_init__(self) -> None:
        every = [(s, i, a) for s, answers in self.listed for i, a in enumerate(answers)]
        self.numbered = [one for one in every if not one[2].facts.get("building")]
        self.wrong = [a for s, i, a in self.numbered if not is_right(s, i, a, self.view.dtype)]

    @property
    def answers(self) -> list[Answer]:
        return [answer for _, answers in self.listed for answer in answers]


def fail(result: PartResult, view: View, transcript: Transcript) -> None:
    """Turn a result with broken laws into its outcome, with a diagnosis."""
    asked = {law.setting.name: law.setting for law in laws.laws_of(result.part) if law.counts and law.check == "values"}
    case = Case(result.part, view, [(s, view.answers[name]) for name, s in asked.items() if view.answers.get(name)])
    result.outcome = "failed"
    for rule in (not_started, another_architecture, cannot_be_built, out_of_memory):
        if found := rule(case, transcript):
            result.outcome, result.reason = found
            if result.outcome in ("not started", "blocked"):
                result.findings, result.error = [], None
            return
    result.diagnosis = next(filter(None, (rule(case) for rule in RULES)), None)
    if result.diagnosis is None:
        settings = [setting for setting, _ in case.listed]
        right = [expected(setting) for setting in settings]
        answers = [answers for _, answers in case.listed]
        result.hint = compare.pattern(case.part, settings, answers, right, laws.TOLERANCE[view.dtype])


# --- outcomes: (outcome, reason) if a rule holds ----------------------------------------------------------------------


def not_started(case: Case, transcript: Transcript) -> tuple[str, str] | None:
    """What the starter's stubs give: torch.empty(1), or NotImplementedError."""

    def is_stub(answer: Answer) -> bool:
        if answer.tensor is not None:
            return tuple(answer.tensor.shape) == (1,) and answer.tensor.is_floating_point()
        return answer.kind == "error" and answer.error == "NotImplementedError"

    first = case.answers[0]
    if first.facts.get("building") and "has no class" in first.text:
        return "not started", first.text
    if not all(map(is_stub, case.answers)):
        return None
    return "not started", "it returns the placeholder" if first.kind == "tensor" else "it raises NotImplementedError"


def another_architecture(case: Case, transcript: Transcript) -> tuple[str, str] | None:
    text = case.answers[0].text
    if not case.answers[0].facts.get("building") or not text.startswith("parameters differ"):
        return None
    return None if "missing" in text or "other shape" in text else ("changed", f"{compare.short(text)}: not comparable")


def cannot_be_built(case: Case, transcript: Transcript) -> tuple[str, str] | None:
    """Blocked, where a part below cannot be built for the same reason."""
    first = case.answers[0]
    for below in BY_NAME[case.part].rests_on if first.facts.get("building") else ():
        found = next((a for (name, _, _), a in transcript.answers.items() if laws.SETTINGS[name].part == below), [])
        if not found or not found[0].facts.get("building"):
            continue
        same = (found[0].error, found[0].text) == (first.error, first.text)
        if same or "has no class" in found[0].text or found[0].error == first.error == "LookupError":
            return "blocked", f"{BY_NAME[below].title} cannot be built: {describe(found[0])}"
    return None


def out_of_memory(case: Case, transcript: Transcript) -> tuple[str, str] | None:
    full = any(answer.kind == "memory" for answer in case.answers)
    return ("out of memory", "it asked for more memory than it may have") if full else None


# --- diagnoses --------------------------------------------------------------------------------------------------------

NO_GRADIENT = diagnose.GRADIENTS["loss"][0]


def several_values(case: Case) -> Diagnosis | None:
    """More than one value came back: that, and what is wrong with the first of them."""
    if not any(answer.facts.get("tuple") for answer in case.answers):
        return None

    def alone(answers: list[Answer]) -> list[Answer]:
        return [replace(a, facts={k: v for k, v in a.facts.items() if k not in ("tuple", "gradient")}) for a in answers]

    own = as_diagnosis(faults.explain(case.part, "result: a tuple"))
    first = Case(case.part, case.view, [(s, alone(answers)) for s, answers in case.listed])
    return joined(next(filter(None, (rule(first) for rule in RULES[1:])), None) if first.wrong else None, own)


def unstable(case: Case) -> Diagnosis | None:
    """The first input, given again at the end, has another result."""
    for _, answers in case.listed:
        first, again = answers[0].tensor, answers[-1].tensor
        if len(answers) < 2 or first is None or again is None:
            continue
        other_nan = first.shape == again.shape and not torch.equal(first.isnan(), again.isnan())
        if other_nan or compare.error(again, first) > 1e-4:
            if case.part == "generate":
                what = (
                    "Tokens are drawn at random, or a state is kept between calls; greedy decoding takes the likeliest."
                )
                return Diagnosis(("sampling for greedy",), "the choice of the next token", what)
            what = "The same input gives another output the second time: something is random or kept between calls."
            return Diagnosis(("another answer the second time",), "what is kept between calls", what)
    return None


def no_number(case: Case) -> Diagnosis | None:
    """NaN everywhere has many causes: none of them is named alone."""
    if not case.wrong or not all(a.tensor is not None and a.tensor.isnan().all() for _, _, a in case.numbered):
        return None
    what = "Every number is NaN."
    if case.part == "attention":
        what = "Every number is NaN: minus infinity fills whole rows of the scores, or is multiplied by zero."
    return Diagnosis(("NaN everywhere",), "the causal mask" if case.part == "attention" else "the result", what)


def reproduced(case: Case) -> Diagnosis | None:
    """A mistake that gives the same numbers."""
    if not case.wrong or not any(a.tensor is not None for _, _, a in case.numbered):
        return None
    found = diagnose.explain(case.part, case.numbered, case.view.dtype)
    without = case.part == "loss" and any("no gradient" in str(a.facts.get("gradient")) for a in case.wrong)
    return joined(found, Diagnosis((NO_GRADIENT.name,), NO_GRADIENT.where, NO_GRADIENT.what) if without else None)


def wrong_gradient(case: Case) -> Diagnosis | None:
    """The values are right, their gradients are not."""
    asked = [one for one in case.numbered if one[0].gradient]
    if case.wrong or not asked:
        return None
    told = next((str(a.facts["gradient"]) for _, _, a in asked if a.facts.get("gradient")), "")
    if found := as_diagnosis(faults.explain(case.part, told)):
        return found
    if found := diagnose.explain_gradient(case.part, asked, case.view.dtype):
        return found
    wrong = {n: None for s, i, a in asked for n in wrong_gradients(s, i, a, case.view.dtype)}
    without = [n for n in wrong if any(n in a.facts.get("without", ()) for _, _, a in asked)]
    if without and not told:
        what = "On the way to it something is detached, taken by .data, or computed under no_grad."
        return Diagnosis(("no gradient of some weights",), compare.listed(without), what)
    if not wrong and not told:
        return None
    return Diagnosis(("wrong gradient",), "the gradient", "The values are right, their gradient is not.")


def cropped(case: Case) -> Diagnosis | None:
    """Nothing else is wrong with generation: the text past the context is."""
    if case.part != "generate" or case.wrong or not case.numbered:
        return None
    return next(
        Diagnosis((m.name,), m.where, m.what) for m in diagnose.MISTAKES["generate"] if "text cropped" in m.name
    )


def by_error(case: Case) -> Diagnosis | None:
    """What the message of an error says, or what came instead of a tensor."""
    broken = next((a for a in [*case.wrong, *case.answers] if a.kind in ("error", "other")), None)
    return fault_diagnosis(case.part, broken) if broken else None


RULES: tuple[Callable[[Case], Diagnosis | None], ...] = (
    several_values,
    unstable,
    no_number,
    wrong_gradient,
    reproduced,
    cropped,
    by_error,
)


def joined(first: Diagnosis | None, second: Diagnosis | None) -> Diagnosis | None:
    """Two that were found in different ways, as one."""
    if first is None or second is None or second.names[0] in first.names:
        return first or second
    also = tuple(f"{other} + {second.id}" for other in first.equivalent)
    where, what = f"{first.where}; {second.where}", f"{first.what} {second.what}"
    return Diagnosis(first.names + second.names, where, what, also, first.alternatives)


def as_diagnosis(fault: faults.Fault | None) -> Diagnosis | None:
    return Diagnosis((fault.name,), fault.where, fault.what) if fault else None


def fault_diagnosis(part: str, broken: Answer) -> Diagnosis | None:
    """By the rules for errors. A stand-in for a message is built as the rules expect it."""
    text = f"{broken.error}: {broken.text} | {broken.line.partition(': ')[2]}"
    return as_diagnosis(faults.explain(part, f"result: {broken.text}" if broken.kind == "other" else text))
