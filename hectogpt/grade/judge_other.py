"""The parts whose laws are not equal numbers: first weights, the picture."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hectogpt.grade import laws
from hectogpt.grade.answer import Answer
from hectogpt.grade.calls import listed, short
from hectogpt.grade.explain import describe, fault_diagnosis
from hectogpt.grade.result import Diagnosis, Finding, PartResult
from hectogpt.grade.runner import Transcript


def answers_of(setting: str, transcript: Transcript) -> list[Answer]:
    """The answers in a setting that is run once."""
    return transcript.answers.get((setting, "patched", "float64"), [])


def unusable(part: str, answers: list[Answer]) -> PartResult | None:
    """The result of a part whose function raised, or returned what cannot be used."""
    if not answers:
        return PartResult(part, "grader fault", "nothing came back")
    answer = next((answer for answer in answers if answer.tensor is None), None)
    if answer is None:
        return None
    if answer.error == "NotImplementedError":
        return PartResult(part, "not started", "it raises NotImplementedError")
    if answer.kind == "memory":
        return PartResult(part, "out of memory", "it asked for more memory than it may have")
    if answer.facts.get("building"):
        return PartResult(part, "blocked", f"the model cannot be built: {answer.error}: {short(answer.text)}")
    more = "".join(f"; {value}" for value in answer.facts.values()) if answer.kind == "other" else ""
    found = fault_diagnosis(part, answer) if answer.kind == "error" else None
    return failed(part, describe(answer) + more, found)


def failed(part: str, symptom: str, diagnosis: Diagnosis | None = None) -> PartResult:
    law = laws.laws_of(part)[0]
    return PartResult(part, "failed", findings=[Finding(law.name, symptom, law.says, True)], diagnosis=diagnosis)


def add_error_after(result: PartResult, answers: list[Answer], what: str) -> None:
    """A note on an error after what counts."""
    if after := next((str(a.facts["after"]) for a in answers if a.facts.get("after")), ""):
        says = "The function runs to its end without an error."
        result.findings.append(Finding("to the end", f"after the {what}: {short(after)}", says, False))


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
