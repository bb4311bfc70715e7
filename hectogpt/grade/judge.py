"""From what a submission returned to outcomes, findings and diagnoses: the parent's work, where right values are."""

from __future__ import annotations

import math

from torch import Tensor

from hectogpt.assignment.parts import BY_NAME
from hectogpt.grade import compare, laws, special
from hectogpt.grade.answers import Answer
from hectogpt.grade.failed import fail, fault_diagnosis
from hectogpt.grade.laws import Law
from hectogpt.grade.mistake import Diagnosis
from hectogpt.grade.result import Finding, PartResult
from hectogpt.grade.runner import Transcript
from hectogpt.grade.view import View, describe, expected, symptom_of, view_of, wrong_gradients

KEPT = {
    "input kept": "the tensor that was given has been changed in place",
    "mode kept": "the model was left in another mode (train or eval)",
}


def judge(transcript: Transcript) -> list[PartResult]:
    """The result of every part that is graded, in the order of the assignment."""
    return [judge_part(part, transcript) for part in sorted(laws.GRADED, key=list(BY_NAME).index)]


def judge_part(part: str, transcript: Transcript) -> PartResult:
    module = BY_NAME[part].module
    if module not in transcript.files:
        return PartResult(part, "not handed in", f"there is no {module}.py")
    if "" in transcript.ends:
        outcome, words = transcript.ends[""]
        return PartResult(part, outcome, f"while the files were imported: {words}")
    if module in transcript.imports:
        return import_failed(part, module, transcript)
    names = [law.setting.name for law in laws.laws_of(part)]
    if ended := next((transcript.ends[name] for name in names if name in transcript.ends), None):
        return PartResult(part, ended[0], ended[1], diagnosis=ended_diagnosis(*ended))
    if BY_NAME[part].functions[-1] in transcript.empty:
        return PartResult(part, "not started", "the function is empty")
    if part in special.JUDGES:
        return special.JUDGES[part](transcript)
    views = [view_of(part, variant, transcript) for variant in ("patched", "own")]
    if not views[0].answers:
        return PartResult(part, "grader fault", "nothing came back")
    patched, own = (findings_of(part, view, transcript) for view in views)
    counted = [any(f.counts for f in findings) for findings, _ in (patched, own)]
    if not counted[0] or counted[1]:
        view, (findings, error) = views[0], patched
    else:  # wrong with our lower parts, right with its own: a call that ours do not have
        view, (findings, error) = views[1], own
    result = PartResult(part, "passed", findings=findings, error=error, tolerance=laws.TOLERANCE[view.dtype])
    if any(finding.counts for finding in findings):
        compared = {law.name for law in laws.laws_of(part) if law.check == "values" and not law.counts}
        result.findings = [f for f in findings if f.counts or f.law not in compared]  # other inputs show the same
        fail(result, view, transcript)
    return result


def import_failed(part: str, module: str, transcript: Transcript) -> PartResult:
    error = transcript.imports[module]
    words = f"{module}.py cannot be imported: {describe(error)}"
    if error.kind == "memory":
        return PartResult(part, "out of memory", words)
    return PartResult(part, "blocked", words, diagnosis=fault_diagnosis(part, error))


def ended_diagnosis(outcome: str, words: str) -> Diagnosis | None:
    if outcome == "output flood" and "printed" in words:
        what = "The function prints far too much, or without end."
        return Diagnosis(("prints without end",), "a print in the function", what)
    if outcome == "crashed" and "exit code 0" in words:
        return Diagnosis(("exit called",), "a call that ends the process", "The code ends the whole process.")
    return None


def findings_of(part: str, view: View, transcript: Transcript) -> tuple[list[Finding], float | None]:
    """The broken laws, and the largest relative error where values were compared. A gradient counts where the values
    are right: that of wrong values is wrong."""
    found: list[Finding] = []
    worst = None
    for law in laws.laws_of(part):
        answers = view.answers.get(law.setting.name)
        if answers is None or (law.check == "gradient" and any(f.counts for f in found)):
            continue
        if law.check == "keywords":
            symptom, error = lacking(transcript.keywords.get(part, [])), None
        else:
            symptom, error = check(law, answers, view.dtypes[law.setting.name])
        if law.counts and error is not None:
            worst = error if worst is None else max(worst, error)
        if symptom:
            found.append(Finding(law.name, symptom, law.says, counts=law.counts or is_cropped(law, answers)))
    return found, worst


def lacking(names: list[str]) -> str:
    """A note on arguments that the official tests pass by name."""
    return f"it has no argument named {' and '.join(names)}, which the course's own tests pass by name" * bool(names)


def is_cropped(law: Law, answers: list[Answer]) -> bool:
    """Past the context: an error is a note, and so is another choice; a text whose beginning is lost is wrong."""
    if law.setting.part != "generate" or law.check != "values" or law.counts or law.setting.train_mode:
        return False
    right = expected(law.setting)
    return all(
        a.tensor is not None and isinstance(e, Tensor) and a.tensor.shape != e.shape
        for a, e in zip(answers, right, strict=False)
    )


def check(law: Law, answers: list[Answer], dtype: str) -> tuple[str, float | None]:
    """("", error) if the law holds, else what was seen."""
    if law.check == "device":
        seen = next((answer for answer in answers if answer.facts.get("device")), None)
        return (f"a tensor is made on the CPU, whatever device the input is on: {seen.line}" if seen else ""), None
    right, tolerance = expected(law.setting), laws.TOLERANCE[dtype]
    if len(answers) < len(right):  # it could not be built: one answer for all
        return (symptom_of(answers[0]) if law.check == "values" else ""), None
    if law.check == "values":
        return check_values(law, answers, right, tolerance)
    if law.check == "gradient":
        return check_gradient(law, answers, dtype), None
    first, again = answers[0].tensor, answers[-1].tensor
    if law.check == "again" and first is not None and again is not None and compare.error(again, first) > tolerance:
        return "the first input, given again after others, gives another result", None
    if law.check == "integers" and any(a.tensor is not None and a.tensor.is_floating_point() for a in answers):
        return "the tokens have a floating-point dtype", None
    if law.check in KEPT and any(a.facts.get(law.check) is False for a in answers):
        return KEPT[law.check], None
    if law.check == "no graph" and any(a.facts.get("graph") is True for a in answers):
        return "gradients are recorded while tokens are generated: memory grows with every token", None
    return "", None


def check_values(
    law: Law, answers: list[Answer], right: tuple[Tensor | str, ...], tolerance: float
) -> tuple[str, float | None]:
    setting, worst = law.setting, 0.0
    for number, (answer, value) in enumerate(zip(answers, right, strict=False)):
        if isinstance(value, str):
            continue
        if answer.tensor is None:
            return symptom_of(answer), math.inf
        if answer.facts.get("tuple"):
            return f"returned {answer.facts['tuple']}", math.inf
        tensor = answer.tensor.reshape(()) if setting.part == "loss" and answer.tensor.shape == (1,) else answer.tensor
        error = compare.error(tensor, value)
        worst = max(worst, error)
        if not error <= tolerance:
            again = "the first input, given again: " if 0 < number == len(answers) - 1 else ""
            return again + compare.first_difference(setting, number, tensor, value, tolerance), worst
    return "", worst


def check_gradient(law: Law, answers: list[Answer], dtype: str) -> str:
    """What is wrong with the gradients of the first call whose are; "" if nothing."""
    for number, answer in enumerate(answers):
        if answer.facts.get("gradient"):
            return f"backward: {compare.short(str(answer.facts['gradient']))}"
        if wrong := wrong_gradients(law.setting, number, answer, dtype):
            without = [name for name in wrong if name in answer.facts.get("without", ())]
            if without:
                return f"no gradient reaches {compare.listed(without)}"
            return f"the gradient is not the right one, by {compare.listed(list(wrong))}"
    return ""
