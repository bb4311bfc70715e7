"""The parts whose laws are not equal numbers: first weights, names of weights, training, the picture."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from hectogpt.grade import compare, faults, laws, train_case
from hectogpt.grade.answers import Answer
from hectogpt.grade.diagnose import Diagnosis
from hectogpt.grade.result import Finding, PartResult
from hectogpt.grade.runner import Transcript
from hectogpt.grade.settings import weights


def answers_of(name: str, transcript: Transcript) -> list[Answer]:
    return next((found for (setting, _, _), found in transcript.answers.items() if setting == name), [])


def broken(part: str, answer: Answer) -> PartResult:
    """A part whose function raised, or returned what cannot be used."""
    law = laws.laws_of(part)[0]
    if answer.error == "NotImplementedError":
        return PartResult(part, "not started", "it raises NotImplementedError")
    if answer.kind == "memory":
        return PartResult(part, "out of memory", "it asked for more memory than it may have")
    if answer.facts.get("building"):
        return PartResult(part, "blocked", f"the model cannot be built: {answer.error}: {compare.short(answer.text)}")
    at = f", at {compare.short(answer.line, 200)}" if answer.line else ""
    symptom = f"{answer.error}: {compare.short(answer.text)}{at}"
    if answer.kind == "other":
        symptom = f"returned {answer.text}" + "".join(f"; {value}" for value in answer.facts.values())
    told = f"{answer.error}: {answer.text} | {answer.line.partition(': ')[2]}"
    fault = faults.explain(part, told) if answer.kind == "error" else None
    diagnosis = Diagnosis((fault.name,), fault.where, fault.what) if fault else None
    return PartResult(part, "failed", findings=[Finding(law.name, symptom, law.says, True)], diagnosis=diagnosis)


def finding(part: str, symptom: str, law: int = 0) -> Finding:
    rule = laws.laws_of(part)[law]
    return Finding(rule.name, symptom, rule.says, True)


# --- first weights --------------------------------------------------------------------------------------------------


def judge_init(transcript: Transcript) -> PartResult:
    """Every weight N(0, 0.02), or smaller by the root of 2 n_layers in the projections into the stream."""
    answers = answers_of("init", transcript)
    if not answers or answers[0].kind != "tensor":
        return broken("init", answers[0]) if answers else PartResult("init", "grader fault", "nothing came back")
    wrong = []
    for answer in answers:
        name, value = str(answer.facts.get("name", ""))[:100], answer.tensor
        assert value is not None
        fault = fault_of(name, value.double())
        if fault:
            wrong.append(f"{name}: {fault}")
    if not wrong:
        return PartResult("init", "passed")
    symptom = "; ".join(wrong[:3]) + (f"; and {len(wrong) - 3} more" if len(wrong) > 3 else "")
    names = " ".join(wrong)
    untouched = (
        "embeddings.weight: standard deviation 1.0" in names or "embeddings.weight: standard deviation 0.9" in names
    )
    diagnosis = None
    if untouched:
        diagnosis = Diagnosis(
            ("weights not initialised",),
            "the constructor of Transformer",
            "The weights are PyTorch's own first ones: _init_weights does not reach them.",
        )
    return PartResult("init", "failed", findings=[finding("init", symptom)], diagnosis=diagnosis)


def fault_of(name: str, value: Tensor) -> str:
    if "norm" in name or name.endswith("bias"):
        wanted = 1.0 if name.endswith("weight") else 0.0
        return "" if bool((value == wanted).all()) else f"expected {wanted:g} everywhere"
    allowed = [0.02, 0.02 / math.sqrt(8)] if name.endswith(("W_o.weight", "fc2.weight")) else [0.02]
    found = float(value.std())
    if abs(float(value.mean())) < 0.004 and any(abs(found - std) < 0.12 * std for std in allowed):
        return ""
    return f"standard deviation {found:.3g}, expected {allowed[0]:g}"


# --- names of weights -----------------------------------------------------------------------------------------------


def judge_converter(transcript: Transcript) -> PartResult:
    answers = answers_of("converter", transcript)
    if not answers:
        return PartResult("converter", "not started", "it returns nothing")
    if answers[0].kind != "tensor":
        return broken("converter", answers[0])
    right = weights(laws.CONVERTER)
    got = {str(a.facts.get("name")): a.tensor for a in answers if a.tensor is not None}
    missing, unknown = [n for n in right if n not in got], [n for n in got if n not in right]
    wrong = {n: cause(n, got[n], right) for n in right if n in got and compare.error(got[n], right[n]) > 1e-6}
    result = PartResult("converter", "passed")
    if missing or wrong:
        said = [f"{len(wrong)} with wrong values, {next(iter(wrong))} first"] if wrong else []
        said += (
            [f"missing: {', '.join(missing[:3])}" + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")]
            if missing
            else []
        )
        result.outcome = "failed"
        result.findings.append(finding("converter", "; ".join(said)))
        causes = list(dict.fromkeys(text for text in wrong.values() if text))
        if causes:
            names = tuple(text.partition(":")[0] for text in causes[:2])
            result.diagnosis = Diagnosis(
                names, ", ".join(list(wrong)[:2]), " ".join(text.partition(": ")[2] for text in causes[:2])
            )
    if unknown:
        result.findings.append(
            Finding(
                "no other names",
                f"not in the assignment: {', '.join(map(str, unknown[:3]))[:200]}",
                "A strict load takes no other names.",
                False,
            )
        )
    return result


def cause(name: str, value: Tensor, right: dict[str, Tensor]) -> str:
    """What a wrong tensor is instead: "name: sentence", or "" if nothing fits."""

    def equals(other: Tensor) -> bool:
        return compare.error(value, other) <= 1e-6

    wanted = right[name]
    if wanted.dim() == 2 and equals(wanted.T):
        return f"{name.split('.', 2)[-1]} not transposed: Conv1D stores (in, out); the transpose is missing."
    swapped = next(
        (n for n, other in right.items() if n != name and other.shape == value.shape and equals(other)), None
    )
    if swapped is None:
        swapped = next(
            (n for n, other in right.items() if other.dim() == 2 and other.T.shape == value.shape and equals(other.T)),
            None,
        )
    if swapped is None:
        return ""
    if "attention.W_" in swapped and "attention.W_" in name:
        return "order of q, k, v: The three parts of c_attn are queries, keys and values, in this order."
    if "layer_norm" in swapped and "layer_norm" in name:
        return "norms swapped: ln_1 stands before attention, ln_2 before the MLP."
    return f"{name.split('.', 2)[-1]} from another tensor: It holds what belongs into {swapped}."


# --- training -------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4)
def known_curves(clipped: bool) -> tuple[train_case.Curve, ...]:
    return tuple(train_case.curves(laws.TRAIN_CLIPPED if clipped else laws.TRAIN))


def judge_train(transcript: Transcript) -> PartResult:
    both = [answers_of("train", transcript), answers_of("train, clipped", transcript)]
    for answers in both:
        if not answers:
            return PartResult("train", "grader fault", "nothing came back")
        bad = next((a for a in answers if a.kind != "tensor"), None)
        if bad is not None:
            return broken("train", bad)
    seen = [(a.tensor, b.tensor) for a, b in both if a.tensor is not None and b.tensor is not None]
    result = PartResult("train", "passed", tolerance=1e-3)
    if any(a.facts.get("graph kept") for answers in both for a in answers):
        result.findings.append(
            Finding(
                "plain numbers kept",
                "losses are kept as tensors with their graph: memory grows with every step",
                "Losses are recorded as numbers.",
                False,
            )
        )
    matches = [
        agreeing(losses, norms, known_curves(clipped))
        for clipped, (losses, norms) in zip((False, True), seen, strict=True)
    ]
    common = [curve for curve in matches[0] if curve.name in {c.name for c in matches[1]}]
    if any(curve.name == "right" for curve in common):
        return result
    changed = next((curve for curve in common if curve.changed), None)
    if changed is not None:
        says = "The assignment's baseline uses AdamW."
        result.findings.append(Finding("another optimizer", changed.what, says, False))
        return result
    # A mistake that clipping alone shows is among the curves with clipping only.
    wrong = common or [c for c in matches[1] if is_right(matches[0])] or [c for c in matches[0] if is_right(matches[1])]
    if wrong:
        result.outcome = "failed"
        names = tuple(curve.name for curve in wrong)
        result.diagnosis = Diagnosis(names[:1], "the training loop", wrong[0].what, names[1:])
        result.findings.append(finding("train", told(seen, known_curves)))
        return result
    return not_reproduced(result, seen)


def is_right(matches: list[train_case.Curve]) -> bool:
    return any(curve.name == "right" for curve in matches)


def not_reproduced(result: PartResult, seen: list[tuple[Tensor, Tensor]]) -> PartResult:
    """Another curve than any we know: "changed" if the first step is right and the loss falls, as with another
    optimizer or schedule; otherwise wrong."""
    right = known_curves(False)[0]
    losses, norms = seen[0]
    n = min(len(losses), len(norms))
    starts = (
        n >= 2
        and train_case.close(losses[:1].float(), right.losses[:1])
        and train_case.close(norms[:1].float(), right.norms[:1])
    )
    if starts and float(losses[-1]) < float(losses[0]):
        words = (
            "the first step is right and the loss falls; the rest follows another optimizer or schedule: not comparable"
        )
        result.findings.append(
            Finding("another optimizer or schedule", words, "The assignment's baseline uses AdamW.", False)
        )
        return result
    result.outcome = "failed"
    result.findings.append(finding("train", told(seen, known_curves)))
    return result


def agreeing(losses: Tensor, norms: Tensor, curves: tuple[train_case.Curve, ...]) -> list[train_case.Curve]:
    return [
        c for c in curves if train_case.close(losses.float(), c.losses) and train_case.close(norms.float(), c.norms)
    ]


def told(
    seen: list[tuple[Tensor | None, Tensor | None]] | list[tuple[Tensor, Tensor]],
    curves: Callable[[bool], tuple[train_case.Curve, ...]],
) -> str:
    """The first number that differs."""
    for clipped, pair in zip((False, True), seen, strict=True):
        right = curves(clipped)[0]
        for name, yours, expected in zip(("loss", "gradient norm"), pair, (right.losses, right.norms), strict=True):
            assert yours is not None
            if len(yours) != len(expected):
                return f"{len(yours)} numbers for {name}, expected {len(expected)} (one a step)"
            for step in range(len(expected)):
                if not train_case.close(yours[step : step + 1].float(), expected[step : step + 1]):
                    with_clip = " with clipping" if clipped else ""
                    values = f"yours {float(yours[step]):.6g}, expected {float(expected[step]):.6g}"
                    return f"{name} of step {step + 1}{with_clip}: {values}"
    return "losses and gradient norms differ"


# --- the picture ----------------------------------------------------------------------------------------------------


def judge_plot(transcript: Transcript) -> PartResult:
    answers = answers_of("plot", transcript)
    if not answers:
        return PartResult("plot", "grader fault", "nothing came back")
    if answers[0].tensor is None:
        return broken("plot", answers[0])
    grey = answers[0].tensor.double()
    if grey.numel() < 100 or float(grey.std()) < 1e-3 or len(torch.unique((grey * 255).round())) < 4:
        diagnosis = Diagnosis(
            ("blank picture",),
            "the order of saving and showing",
            "The picture is saved after it was shown or closed: it is blank.",
        )
        return PartResult("plot", "failed", findings=[finding("plot", "the picture is blank")], diagnosis=diagnosis)
    return PartResult("plot", "passed")


JUDGES: dict[str, Callable[[Transcript], PartResult]] = {
    "init": judge_init,
    "converter": judge_converter,
    "train": judge_train,
    "plot": judge_plot,
}
