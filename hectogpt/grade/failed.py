"""A part that broke a law: which outcome that is, and which mistake it may be."""

from __future__ import annotations

from dataclasses import replace

import torch

from hectogpt.assignment.parts import BY_NAME
from hectogpt.grade import compare, diagnose, faults, laws
from hectogpt.grade.answers import Answer
from hectogpt.grade.diagnose import Diagnosis
from hectogpt.grade.result import PartResult
from hectogpt.grade.runner import Transcript
from hectogpt.grade.settings import Setting
from hectogpt.grade.view import View, describe, expected, values_of

# What a part's function rests on when it is built: if that cannot be built, the part is blocked.
RESTS_ON = {
    "mlp": ("gelu",),
    "block": ("mlp", "attention"),
    "forward": ("block", "mlp", "attention"),
    "generate": ("block", "mlp", "attention"),
    "loss": ("block", "mlp", "attention"),
    "init": ("block", "mlp", "attention"),
    "train": ("block", "mlp", "attention"),
}


def fail(result: PartResult, view: View, transcript: Transcript) -> None:
    """Turn a result with broken laws into its outcome, with a diagnosis."""
    part = result.part
    listed = [
        (law.setting, answers)
        for law in laws.laws_of(part)
        if law.counts and law.check == "values" and (answers := view.answers.get(law.setting.name))
    ]
    every = [answer for setting, answers in listed for answer in values_of(setting, answers)]
    result.outcome = "failed"
    if all(is_stub(answer) for answer in every):
        result.outcome, result.findings, result.error = "not started", [], None
        result.reason = "it returns the placeholder" if every[0].kind == "tensor" else "it raises NotImplementedError"
        return
    building = next((answer for answer in every if answer.facts.get("building")), None)
    if building is not None and cannot_be_built(result, building, transcript):
        return
    if any(answer.kind == "memory" for answer in every):
        result.outcome, result.reason = "out of memory", "it asked for more memory than it may have"
        return
    result.diagnosis = name_mistake(part, view, listed)
    if result.diagnosis is None:
        tolerance = result.tolerance or laws.TOLERANCE["float64"]
        for setting, answers in listed:
            result.hint = result.hint or compare.pattern(
                values_of(setting, answers), list(expected(setting)), tolerance
            )


def is_stub(answer: Answer) -> bool:
    """What the starter's stubs give: torch.empty(1), or NotImplementedError."""
    if answer.tensor is not None:
        return tuple(answer.tensor.shape) == (1,) and answer.tensor.is_floating_point()
    return answer.kind == "error" and answer.error == "NotImplementedError"


def cannot_be_built(result: PartResult, building: Answer, transcript: Transcript) -> bool:
    """Decide between not started, blocked, changed and failed; False to go on with the rules for errors."""
    same = (building.error, building.text)
    if building.error == "AttributeError" and "has no class" in building.text:
        result.outcome, result.reason, result.findings = "not started", building.text, []
        return True
    if (
        building.text.startswith("parameters differ")
        and "missing" not in building.text
        and "other shape" not in building.text
    ):
        result.outcome, result.reason = "changed", f"{compare.short(building.text)}: not comparable"
        return True
    for below in RESTS_ON.get(result.part, ()):
        answers = next((a for (name, _, _), a in transcript.answers.items() if laws.SETTINGS[name].part == below), [])
        if answers and answers[0].facts.get("building"):
            ours = answers[0]
            if (ours.error, ours.text) == same or "has no class" in ours.text or same[0] == ours.error == "LookupError":
                result.outcome, result.findings = "blocked", []
                result.reason = f"{BY_NAME[below].title} cannot be built: {describe(ours)}"
                return True
    return False


def name_mistake(part: str, view: View, listed: list[tuple[Setting, list[Answer]]]) -> Diagnosis | None:
    """By reproducing the numbers, else by the rules for errors, else by what state does."""
    dtype = "float32" if "float32" in view.dtypes.values() else "float64"
    if any(a.facts.get("tuple") for _, answers in listed for a in answers):
        return several(part, view, listed)
    numbered = [
        (s, i, a) for s, answers in listed for i, a in enumerate(values_of(s, answers)) if not a.facts.get("building")
    ]
    wrong = [a for s, i, a in numbered if not fits(s, i, a, dtype)]
    right = len(numbered) - len(wrong)
    if part == "loss" and numbered and not wrong:
        wrong_gradient = Diagnosis(("wrong gradient",), "the gradient", "The value is right, but its gradient is not.")
        return graph_fault(part, listed) or wrong_gradient
    if numbered and unstable(part, listed):
        if part == "generate":
            return Diagnosis(
                ("sampling for greedy",),
                "the choice of the next token",
                "Tokens are drawn at random, or a state is kept between calls; greedy decoding takes the likeliest.",
            )
        return Diagnosis(
            ("another answer the second time",),
            "what is kept between calls",
            "The same input gives another output the second time: something is random or kept between calls.",
        )
    if any(a.tensor is not None for _, _, a in numbered) and wrong:
        found = diagnose.explain(part, numbered, dtype)
        if found:
            return joined(found, graph_fault(part, listed))
    cropped = part == "generate" and numbered and not wrong
    if cropped:
        return next(
            Diagnosis((m.name,), m.where, m.what)
            for m in diagnose.MISTAKES["generate"]
            if m.name == "returned text cropped"
        )
    broken = next(
        (a for a in [*wrong, *(a for s, answers in listed for a in answers)] if a.kind in ("error", "other")), None
    )
    if broken is None:
        return None
    return fault_diagnosis(part, broken, some_right=right > 0)


def several(part: str, view: View, listed: list[tuple[Setting, list[Answer]]]) -> Diagnosis:
    """More than one value came back: that, and what is wrong with the first of them."""
    fault = faults.explain(part, "result: a tuple")
    assert fault is not None
    alone = [
        (s, [replace(a, facts={k: v for k, v in a.facts.items() if k != "tuple"}) for a in answers])
        for s, answers in listed
    ]
    first = name_mistake(part, view, alone)
    own = Diagnosis((fault.name,), fault.where, fault.what)
    return own if first is None or first.names == ("no gradient",) else joined(first, own)


def joined(first: Diagnosis, second: Diagnosis | None) -> Diagnosis:
    """Two that were found in different ways, as one."""
    if second is None or second.names[0] in first.names:
        return first
    where, what = f"{first.where}; {second.where}", f"{first.what} {second.what}"
    also = tuple(f"{other} + {second.id}" for other in first.equivalent)
    return Diagnosis(first.names + second.names, where, what, also, first.alternatives)


def graph_fault(part: str, listed: list[tuple[Setting, list[Answer]]]) -> Diagnosis | None:
    """A loss without any gradient."""
    without = [
        a
        for s, answers in listed
        if s.gradient
        for a in answers
        if "no gradient" in a.text or "does not require grad" in a.text
    ]
    if part != "loss" or not without:
        return None
    return NO_GRADIENT


NO_GRADIENT = Diagnosis(
    ("no gradient",), "the gradient", "The result carries no gradient: it was detached or made a plain number."
)


def fits(setting: Setting, number: int, answer: Answer, dtype: str) -> bool:
    value = expected(setting)[number * (3 if setting.gradient else 1)]
    if answer.tensor is None or isinstance(value, str):
        return False
    shaped = answer.tensor.reshape(()) if setting.part == "loss" and answer.tensor.shape == (1,) else answer.tensor
    if setting.part == "generate" and shaped.is_floating_point():
        return False
    return compare.error(shaped, value) <= laws.TOLERANCE[dtype]


def unstable(part: str, listed: list[tuple[Setting, list[Answer]]]) -> bool:
    for setting, answers in listed:
        results = values_of(setting, answers)
        if len(results) > 1 and results[0].tensor is not None and results[-1].tensor is not None:
            if results[0].tensor.shape == results[-1].tensor.shape and not torch.equal(
                results[0].tensor.isnan(), results[-1].tensor.isnan()
            ):
                return True
            if compare.error(results[-1].tensor, results[0].tensor) > 1e-4:
                return True
    return False


def fault_diagnosis(part: str, broken: Answer, some_right: bool = False) -> Diagnosis | None:
    """By the rules for errors. A stand-in for a message is built as the rules expect it."""
    told = (
        f"result: {broken.text}"
        if broken.kind == "other"
        else f"{broken.error}: {broken.text} | {broken.line.partition(': ')[2]}"
    )
    fault = faults.explain(part, told)
    return Diagnosis((fault.name,), fault.where, fault.what) if fault else None
