"""From what a submission returned to outcomes, findings and diagnoses: the parent's work, where right values are."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from hectogpt.assignment.parts import BY_NAME
from hectogpt.grade import laws
from hectogpt.grade.calls import Call, Case, case_of, difference, listed, short
from hectogpt.grade.explain import add_error_after, answers_of, describe, explain, failed, fault_diagnosis, unusable
from hectogpt.grade.judge_train import judge_train
from hectogpt.grade.laws import Law
from hectogpt.grade.result import Diagnosis, Finding, PartResult
from hectogpt.grade.runner import Transcript


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
    if error := transcript.imports.get(module):
        outcome = "out of memory" if error.kind == "memory" else "blocked"
        words = f"{module}.py cannot be imported: {describe(error)}"
        return PartResult(
            part, outcome, words, diagnosis=fault_diagnosis(part, error) if outcome == "blocked" else None
        )
    names = [law.setting.name for law in laws.laws_of(part)]
    if ended := next((transcript.ends[name] for name in names if name in transcript.ends), None):
        return PartResult(part, *ended, diagnosis=ended_diagnosis(*ended))
    if BY_NAME[part].functions[-1] in transcript.empty:
        return PartResult(part, "not started", "the function is empty")
    if part in OTHER:
        return OTHER[part](transcript)
    cases = [case_of(part, variant, transcript) for variant in ("patched", "own")]
    if not cases[0].is_whole:
        return PartResult(part, "grader fault", "nothing came back")
    patched, own = ([*findings_of(case), *lacking(part, transcript)] for case in cases)
    wrong, wrong_alone = (any(f.counts for f in findings) for findings in (patched, own))
    wrong_alone = wrong_alone or not cases[1].is_whole  # a child that died there shows nothing
    # wrong with our lower parts, right with its own: a call that ours do not have
    case, findings = (cases[1], own) if wrong and not wrong_alone else (cases[0], patched)
    worst = max((call.error for call in case.built), default=None)
    result = PartResult(part, "passed", findings=findings, error=worst, tolerance=case.tolerance)
    if wrong and wrong_alone:
        compared = {law.name for law in laws.laws_of(part) if law.check == "values" and not law.counts}
        result.findings = [f for f in findings if f.counts or f.law not in compared]  # other inputs show the same
        explain(result, case, transcript)
    return result


def ended_diagnosis(outcome: str, words: str) -> Diagnosis | None:
    if outcome == "output flood" and "printed" in words:
        what = "The function prints far too much, or without end."
        return Diagnosis(("prints without end",), "a print in the function", what)
    if outcome == "crashed" and "exit code 0" in words:
        return Diagnosis(("exit called",), "a call that ends the process", "The code ends the whole process.")
    return None


def lacking(part: str, transcript: Transcript) -> list[Finding]:
    """A note on arguments that the official tests pass by name."""
    names = transcript.keywords.get(part, [])
    words = f"it has no argument named {' and '.join(names)}, which the course's own tests pass by name"
    says = "The course's own tests call generate(x=..., num_new_tokens=...) and get_loss_on_batch(input_ids=...)."
    return [Finding("names of arguments", words, says, counts=False)] if names else []


def findings_of(case: Case) -> list[Finding]:
    """The broken laws, those that count first. A gradient counts where the values are right: that of wrong values is
    wrong."""
    found: list[Finding] = []
    for law in laws.laws_of(case.part):
        calls = case.calls.get(law.setting.name, [])
        if not calls or (law.check == "gradient" and any(finding.counts for finding in found)):
            continue
        if symptom := CHECKS[law.check](calls):
            found.append(Finding(law.name, symptom, law.says, counts=law.counts or is_cropped(law, calls)))
    return found


def is_cropped(law: Law, calls: list[Call]) -> bool:
    """Past the context: an error is a note, and so is another choice; a text whose beginning is lost is wrong."""
    if law.setting.part != "generate" or law.check != "values" or law.setting.train_mode:
        return False
    return all((yours := call.answer.tensor) is not None and yours.shape != call.right.shape for call in calls)


# --- checks: what was seen in the calls of a setting, "" where the law holds ------------------------------------------


def check_values(calls: list[Call]) -> str:
    for call in calls:
        if call.answer.tensor is None:
            return describe(call.answer)
        if not call.is_right:
            again = "the first input, given again: " if call is calls[-1] and call.place else ""
            return again + call.first_difference()
    return ""


def check_again(calls: list[Call]) -> str:
    first, again = calls[0].answer.tensor, calls[-1].answer.tensor
    if first is None or again is None or difference(again, first) <= calls[0].tolerance:
        return ""
    return "the first input, given again after others, gives another result"


def check_gradient(calls: list[Call]) -> str:
    for call in calls:
        if told := call.answer.facts.get("gradient"):
            return f"backward: {short(str(told))}"
        if wrong := call.wrong_gradients():
            without = [name for name in wrong if name in call.answer.facts.get("without", ())]
            if without:
                return f"no gradient reaches {listed(without)}"
            return f"the gradient is not the right one, by {listed(wrong)}"
    return ""


def check_device(calls: list[Call]) -> str:
    seen = next((call.answer.line for call in calls if call.answer.facts.get("device")), None)
    return f"a tensor is made on the CPU, whatever device the input is on: {seen}" if seen is not None else ""


def never(fact: str, value: bool, words: str) -> Callable[[list[Call]], str]:
    """A check that a fact has this value in no call."""
    return lambda calls: words if any(call.answer.facts.get(fact) is value for call in calls) else ""


CHECKS: dict[str, Callable[[list[Call]], str]] = {
    "values": check_values,
    "again": check_again,
    "gradient": check_gradient,
    "device": check_device,
    "input kept": never("input kept", False, "the tensor that was given has been changed in place"),
    "mode kept": never("mode kept", False, "the model was left in another mode (train or eval)"),
    "no graph": never(
        "graph", True, "gradients are recorded while tokens are generated: memory grows with every token"
    ),
}


# --- first weights ----------------------------------------------------------------------------------------------------


def judge_init(transcript: Transcript) -> PartResult:
    """Every weight N(0, 0.02), or smaller by the root of 2 n_layers in the projections into the stream."""
    answers = answers_of("init", transcript)
    if result := unusable("init", answers):
        return result
    values = {str(a.facts.get("name"))[:100]: a.tensor.double() for a in answers if a.tensor is not None}
    wrong = [f"{name}: {fault}" for name, value in values.items() if (fault := fault_of(name, value))]
    if not wrong:
        return PartResult("init", "passed")
    diagnosis = None
    if "embeddings.weight" in values and float(values["embeddings.weight"].std()) > 0.5:
        what = "The weights are PyTorch's own first ones: _init_weights does not reach them."
        diagnosis = Diagnosis(("weights not initialised",), "the constructor of Transformer", what)
    return failed("init", listed(wrong, between="; "), diagnosis)


def fault_of(name: str, value: Tensor) -> str:
    if "norm" in name or name.endswith("bias"):
        wanted = 1.0 if name.endswith("weight") else 0.0
        return "" if bool((value == wanted).all()) else f"expected {wanted:g} everywhere"
    allowed = [0.02, 0.02 / math.sqrt(8)] if name.endswith(("W_o.weight", "fc2.weight")) else [0.02]
    found = float(value.std())
    if abs(float(value.mean())) < 0.004 and any(abs(found - std) < 0.12 * std for std in allowed):
        return ""
    return f"standard deviation {found:.3g}, expected {allowed[0]:g}"


# --- the picture ------------------------------------------------------------------------------------------------------


def judge_plot(transcript: Transcript) -> PartResult:
    """Blank, or the same for other losses or gradient norms: these are not in it."""
    answers = answers_of("plot", transcript)
    if broken := unusable("plot", answers):
        return broken
    result = PartResult("plot", "passed")
    grey, *others = [answer.tensor.double() for answer in answers if answer.tensor is not None]
    same = [name for other, name in zip(others, ("loss", "gradient norm"), strict=False) if torch.equal(other, grey)]
    if grey.numel() < 100 or float(grey.std()) < 1e-3 or len(torch.unique((grey * 255).round())) < 4:
        what = "The picture is saved after it was shown or closed: it is blank."
        found = Diagnosis(("blank picture",), "the order of saving and showing", what)
        result = failed("plot", "the picture is blank", found)
    elif same:
        what = f"The {same[0]} is not drawn: two panels are asked for, the loss and the gradient norm."
        found = Diagnosis(("a panel is missing",), "the panels", what)
        result = failed("plot", f"the picture is the same whatever the {same[0]} is", found)
    add_error_after(result, answers, "picture was saved")
    return result


OTHER: dict[str, Callable[[Transcript], PartResult]] = {
    "init": judge_init,
    "train": judge_train,
    "plot": judge_plot,
}
