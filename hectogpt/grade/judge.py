"""From what a submission returned to outcomes, findings and diagnoses: the parent's work, where right values are."""

from __future__ import annotations

import math

from torch import Tensor

from hectogpt.assignment.parts import BY_NAME
from hectogpt.grade import compare, laws, special
from hectogpt.grade.answers import Answer
from hectogpt.grade.diagnose import Diagnosis
from hectogpt.grade.failed import fail, fault_diagnosis
from hectogpt.grade.laws import Law
from hectogpt.grade.result import Finding, PartResult
from hectogpt.grade.runner import Transcript
from hectogpt.grade.settings import home
from hectogpt.grade.view import View, describe, expected, symptom_of, tolerance_of, values_of, view_of


def judge(transcript: Transcript) -> list[PartResult]:
    """The result of every part that is graded, in the order of the assignment."""
    return [judge_part(part, transcript) for part in sorted(laws.GRADED, key=list(BY_NAME).index)]


def judge_part(part: str, transcript: Transcript) -> PartResult:
    module = home(part)
    if module not in transcript.files:
        return PartResult(part, "not handed in", f"there is no {module}.py")
    if "" in transcript.ends:
        outcome, words = transcript.ends[""]
        return PartResult(part, outcome, f"while the files were imported: {words}")
    if module in transcript.imports:
        return import_failed(part, module, transcript)
    ended = next(
        (transcript.ends[law.setting.name] for law in laws.laws_of(part) if law.setting.name in transcript.ends), None
    )
    if ended:
        return PartResult(part, ended[0], ended[1], diagnosis=ended_diagnosis(*ended))
    if is_empty(part, transcript):
        return PartResult(part, "not started", "the function is empty")
    if part in special.JUDGES:
        return special.JUDGES[part](transcript)
    views = [view_of(part, variant, transcript) for variant in ("patched", "own")]
    if not views[0]:
        return PartResult(part, "grader fault", "nothing came back")
    patched, own = (findings_of(part, view) for view in views)
    counted = [any(f.counts for f in findings) for findings, _ in (patched, own)]
    if not counted[0] or counted[1]:
        view, (findings, error) = views[0], patched
    else:  # wrong with our lower parts, right with its own: a call that ours do not have
        view, (findings, error) = views[1], own
    result = PartResult(part, "passed", findings=findings, error=error, tolerance=tolerance_of(part, view))
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
    if outcome == "output flood":
        return Diagnosis(
            ("prints without end",), "a print in the function", "The function prints far too much, or without end."
        )
    if outcome == "crashed" and "exit code 0" in words:
        return Diagnosis(("exit called",), "a call that ends the process", "The code ends the whole process.")
    return None


def is_empty(part: str, transcript: Transcript) -> bool:
    functions = [name for name in BY_NAME[part].functions]
    return bool(functions) and functions[-1] in transcript.empty


def findings_of(part: str, view: View) -> tuple[list[Finding], float | None]:
    """The broken laws, and the largest relative error where values were compared."""
    found, worst = [], None
    for law in laws.laws_of(part):
        answers = view.answers.get(law.setting.name)
        if answers is None:
            continue
        tolerance = laws.TOLERANCE[view.dtypes[law.setting.name]]
        symptom, error = check(law, answers, tolerance)
        if law.counts and error is not None:
            worst = error if worst is None else max(worst, error)
        if symptom:
            found.append(Finding(law.name, symptom, law.says, counts=law.counts or is_cropped(law, answers)))
    return found, worst


def is_cropped(law: Law, answers: list[Answer]) -> bool:
    """Past the context: an error is a note, and so is another choice; a text whose beginning is lost is wrong."""
    if law.setting.part != "generate" or law.check != "values" or law.counts or law.setting.train_mode:
        return False
    right = expected(law.setting)
    return all(
        a.tensor is not None and isinstance(e, Tensor) and a.tensor.shape != e.shape
        for a, e in zip(answers, right, strict=False)
    )


def check(law: Law, answers: list[Answer], tolerance: float) -> tuple[str, float | None]:
    """("", error) if the law holds, else what was seen."""
    if law.check == "device":
        seen = next((answer for answer in answers if answer.facts.get("device")), None)
        return (
            (f"a tensor is made on the CPU, whatever device the input is on: {seen.line}", None) if seen else ("", None)
        )
    setting, right = law.setting, expected(law.setting)
    if len(answers) < len(right):  # it could not be built: one answer for all
        return (symptom_of(answers[0]), None) if law.check == "values" else ("", None)
    if law.check in ("values", "gradient"):
        return check_values(law, answers, right, tolerance)
    results = values_of(setting, answers)
    if law.check == "again":
        first, again = results[0].tensor, results[-1].tensor
        if first is not None and again is not None and compare.error(again, first) > tolerance:
            return "the first input, given again after others, gives another result", None
    if law.check == "integers" and any(a.tensor is not None and a.tensor.is_floating_point() for a in results):
        return "the tokens have a floating-point dtype", None
    if law.check in ("input kept", "mode kept") and any(a.facts.get(law.check) is False for a in results):
        kept = {
            "input kept": "the tensor that was given has been changed in place",
            "mode kept": "the model was left in another mode (train or eval)",
        }
        return kept[law.check], None
    if law.check == "no graph" and any(a.facts.get("graph") is True for a in results):
        return "gradients are recorded while tokens are generated: memory grows with every token", None
    return "", None


def check_values(
    law: Law, answers: list[Answer], right: tuple[Tensor | str, ...], tolerance: float
) -> tuple[str, float | None]:
    setting, worst = law.setting, 0.0
    for number, (answer, value) in enumerate(zip(answers, right, strict=False)):
        is_result = not setting.gradient or number % 3 == 0
        if is_result != (law.check == "values") or isinstance(value, str):
            continue
        if answer.tensor is None:
            return symptom_of(answer), math.inf
        if answer.facts.get("tuple"):
            return f"returned {answer.facts['tuple']}", math.inf
        tensor = answer.tensor
        if law.check == "values" and setting.part == "loss" and tensor.shape == (1,):
            tensor = tensor.reshape(())
        error = compare.error(tensor, value)
        worst = max(worst, error)
        if not error <= tolerance:
            call = number // 3 if setting.gradient else number
            if law.check == "gradient":
                return "the gradients of the loss are not the right ones", worst
            again = "the first input, given again: " if 0 < number == len(answers) - 1 else ""
            return again + compare.first_difference(setting, call, tensor, value, tolerance), worst
    return "", worst
