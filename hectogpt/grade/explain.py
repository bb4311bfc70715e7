"""Why a part broke a law: its outcome, and the mistake it may be. Only what reproduces the results is named.

Rules are tried in order. The tables of known mistakes stand in mistakes_*.py, those of messages in faults.py; numbers
that may be mistyped are fitted (fit.py).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import torch
from torch import Tensor

from hectogpt.assignment.parts import BY_NAME
from hectogpt.grade import faults, fit, laws, mistakes_attention, mistakes_layers, mistakes_model
from hectogpt.grade.answer import Answer
from hectogpt.grade.calls import Call, Case, difference, listed, outcome, short
from hectogpt.grade.computation import Mistake, combine, with_symptoms
from hectogpt.grade.faults import by_words
from hectogpt.grade.result import Diagnosis, PartResult
from hectogpt.grade.runner import Transcript

TABLES = {
    "gelu": mistakes_layers.GELU,
    "mlp": mistakes_layers.MLP,
    "attention": mistakes_attention.ATTENTION,
    "block": mistakes_layers.BLOCK,
    "forward": mistakes_model.FORWARD,
    "generate": mistakes_model.GENERATE,
    "loss": mistakes_model.LOSS,
}
MISTAKES, GRADIENTS = with_symptoms(TABLES), with_symptoms(faults.GRADIENTS)
IN_WORDS = 3  # explanations of the same results that are given in words
PAIRS = 3000  # that are tried at most: a second or two
CROPPED = next(one for one in MISTAKES["generate"] if one.name == "returned text cropped")
Mistakes = tuple[Mistake, ...]


def explain(result: PartResult, case: Case, transcript: Transcript) -> None:
    """Give a result with broken laws its outcome, and a diagnosis if there is one."""
    result.outcome, result.reason = outcome_of(case, transcript)
    if result.outcome in ("not started", "blocked"):
        result.findings, result.error = [], None
    if result.outcome == "failed":
        result.diagnosis = next(filter(None, (rule(case) for rule in RULES)), None)


# --- outcomes ---------------------------------------------------------------------------------------------------------


def outcome_of(case: Case, transcript: Transcript) -> tuple[str, str]:
    """The outcome and its reason: a stub, another architecture, a part below that cannot be built for the same reason,
    no memory; else failed."""
    answers = [call.answer for call in case.counted]
    first, below = answers[0], BY_NAME[case.part].rests_on
    if all(map(is_stub, answers)):
        words = "it returns the placeholder" if first.kind == "tensor" else "it raises NotImplementedError"
        return "not started", words
    if any(answer.kind == "memory" for answer in answers):
        return "out of memory", "it asked for more memory than it may have"
    if not first.facts.get("building"):
        return "failed", ""
    if "has no class" in first.text:
        return "not started", first.text
    if first.text.startswith("parameters differ") and not ("missing" in first.text or "other shape" in first.text):
        return "changed", f"{short(first.text)}: not comparable"
    for (name, _, _), (answer, *_) in transcript.answers.items():
        if laws.SETTINGS[name].part not in below or not answer.facts.get("building"):
            continue
        same = (answer.error, answer.text) == (first.error, first.text) or answer.error == first.error == "LookupError"
        if same or "has no class" in answer.text:
            return "blocked", f"{BY_NAME[laws.SETTINGS[name].part].title} cannot be built: {describe(answer)}"
    return "failed", ""


def is_stub(answer: Answer) -> bool:
    """What the starter's stubs give: torch.empty(1), or NotImplementedError."""
    if answer.tensor is not None:
        return tuple(answer.tensor.shape) == (1,) and answer.tensor.is_floating_point()
    return answer.kind == "error" and answer.error == "NotImplementedError"


def describe(answer: Answer) -> str:
    """What came instead of a tensor, in words."""
    if answer.kind == "other":
        return f"returned {answer.text}"
    at = f", at {short(answer.line, 200)}" if answer.line else ""
    return f"{answer.error}: {short(answer.text)}{at}" if answer.text else f"{answer.error}{at}"


# --- diagnoses --------------------------------------------------------------------------------------------------------


def unstable(case: Case) -> Diagnosis | None:
    """The first input, given again at the end, has another result."""
    for calls in case.calls.values():
        first, again = calls[0].answer.tensor, calls[-1].answer.tensor
        if len(calls) < 2 or first is None or again is None or calls[0] not in case.counted:
            continue
        other_nan = first.shape == again.shape and not torch.equal(first.isnan(), again.isnan())
        if not (other_nan or difference(again, first) > 1e-4):
            continue
        if case.part == "generate":
            what = "Tokens are drawn at random, or a state is kept between calls; greedy decoding takes the likeliest."
            return Diagnosis(("sampling for greedy",), "the choice of the next token", what)
        what = "The same input gives another output the second time: something is random or kept between calls."
        return Diagnosis(("another answer the second time",), "what is kept between calls", what)
    return None


def no_number(case: Case) -> Diagnosis | None:
    """NaN everywhere has many causes: none of them is named alone."""
    tensors = [call.answer.tensor for call in case.built]
    if not case.wrong or not all(tensor is not None and tensor.isnan().all() for tensor in tensors):
        return None
    what = "Every number is NaN."
    if case.part == "attention":
        what = "Every number is NaN: minus infinity fills whole rows of the scores, or is multiplied by zero."
    return Diagnosis(("NaN everywhere",), "the causal mask" if case.part == "attention" else "the result", what)


def wrong_gradient(case: Case) -> Diagnosis | None:
    """The values are right, their gradients are not."""
    asked = [call for call in case.built if call.setting.gradient]
    if case.wrong or not asked:
        return None
    told = next((str(call.answer.facts["gradient"]) for call in asked if call.answer.facts.get("gradient")), "")
    if found := by_words(case.part, told):
        return found
    for count in (1, 2):
        usable = [mistakes for mistakes in combinations(GRADIENTS[case.part], count) if combine(mistakes)]
        if found := diagnosis([m for m in usable if not any(call.wrong_gradients(m) for call in asked)]):
            return found
    wrong = {name: call for call in asked for name in call.wrong_gradients()}
    without = [name for name, call in wrong.items() if name in call.answer.facts.get("without", ())]
    if without and not told:
        what = "On the way to it something is detached, taken by .data, or computed under no_grad."
        return Diagnosis(("no gradient of some weights",), listed(without), what)
    if not wrong and not told:
        return None
    return Diagnosis(("wrong gradient",), "the gradient", "The values are right, their gradient is not.")


def reproduced(case: Case) -> Diagnosis | None:
    """A mistake that gives the same numbers."""
    if not case.wrong or all(call.answer.tensor is None for call in case.built):
        return None
    return explain_values(case.part, case.built)


def cropped(case: Case) -> Diagnosis | None:
    """Nothing else is wrong with generation: the text past the context is."""
    return diagnosis([(CROPPED,)]) if case.part == "generate" and not case.wrong and case.built else None


def by_error(case: Case) -> Diagnosis | None:
    """What the message of an error says, or what came instead of a tensor."""
    answers = [call.answer for call in [*case.wrong, *case.counted]]
    broken = next((answer for answer in answers if answer.kind in ("error", "other")), None)
    return fault_diagnosis(case.part, broken) if broken else None


RULES: tuple[Callable[[Case], Diagnosis | None], ...]
RULES = (unstable, no_number, wrong_gradient, reproduced, cropped, by_error)


def fault_diagnosis(part: str, broken: Answer) -> Diagnosis | None:
    """By the rules for errors, from the message and the line of code."""
    if broken.kind == "other":
        return by_words(part, f"result: {broken.text}")
    return by_words(part, f"{broken.error}: {broken.text} | {broken.line.partition(': ')[2]}")


# --- what reproduces the values ---------------------------------------------------------------------------------------


def explain_values(part: str, calls: list[Call]) -> Diagnosis | None:
    """The mistake, the number that is another one, or else the pair of mistakes, that reproduces all the answers; None
    if there is none."""
    found = (
        diagnosis([(one,) for one in MISTAKES[part] if reproduces((one,), calls)])
        or fit.explain(part, calls)
        or diagnosis([pair for pair in pairs_of(part, calls) if reproduces(pair, calls)])
        or constant_factor(calls)
    )
    tensors = [call for call in calls if call.answer.tensor is not None]
    if found is None and 2 <= len(tensors) < len(calls):  # some calls raised for another reason: the others tell
        return explain_values(part, tensors)
    return found


def reproduces(mistakes: Mistakes, calls: list[Call]) -> bool:
    """Whether the mistakes give every answer, at least one of them a tensor with a number in it: NaN everywhere has
    many causes."""
    told = False
    for call in cheapest_first(calls):
        made = outcome(mistakes, call.setting, call.number)
        if not call.agrees(made):
            return False
        told = told or (isinstance(made, Tensor) and (not made.numel() or bool(made.isfinite().any())))
    return told


def cheapest_first(calls: list[Call]) -> list[Call]:
    """Small inputs that tell much first: a wrong hypothesis is given up after one."""
    return sorted(calls, key=lambda c: (c.setting.inputs[c.number][1] < 2, c.setting.size.n_layers, c.place))


def pairs_of(part: str, calls: list[Call]) -> list[Mistakes]:
    """Pairs that may fit: they change different steps, and neither alone raises, has another shape, or is wrong where
    the answer is neither."""
    ordered = [call for call in cheapest_first(calls) if call.answer.tensor is not None]

    def may_be(mistake: Mistake) -> bool:
        for call in ordered:
            made = outcome((mistake,), call.setting, call.number)
            assert call.answer.tensor is not None
            if isinstance(made, str) or made.shape not in (call.right.shape, call.answer.tensor.shape):
                return False
            if call.is_right and not call.agrees(made):
                return False
        return True

    pairs: list[Mistakes] = list(combinations(filter(may_be, MISTAKES[part]), 2))
    return [pair for pair in pairs if combine(pair)][:PAIRS]


def constant_factor(calls: list[Call]) -> Diagnosis | None:
    """The one number by which all results differ from the right ones."""
    factor = 0.0
    for call in calls:
        yours, right = call.answer.tensor, call.right
        if yours is None or yours.shape != right.shape or not (yours.is_floating_point() and yours.isfinite().all()):
            return None
        factor = factor or float((yours.double() * right).sum() / (right * right).sum())
        if factor == 0 or not difference(yours.double() / factor, right) <= call.tolerance:
            return None
    return Diagnosis(("a constant factor",), "the result", f"Every number is {factor:.6g} times the right one.")


def diagnosis(found: list[Mistakes]) -> Diagnosis | None:
    """The first of the explanations, with the names of the others; the first few in words as well."""
    if not found:
        return None
    names = [tuple(one.name for one in mistakes) for mistakes in found]
    wheres = ["; ".join(dict.fromkeys(one.where for one in mistakes)) for mistakes in found[:IN_WORDS]]
    what, *others = [" ".join(one.what for one in mistakes) for mistakes in found[:IN_WORDS]]
    equivalent = tuple(" + ".join(other) for other in names[1:])
    effect = found[0][0].symptom if len(found[0]) == 1 else ""
    return Diagnosis(names[0], ", or ".join(dict.fromkeys(wheres)), what, equivalent, tuple(others), effect)
