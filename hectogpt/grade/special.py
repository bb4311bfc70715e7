"""The parts whose laws are not equal numbers: first weights, names of weights, training, the picture."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from hectogpt.grade import compare, laws, train_case
from hectogpt.grade.answers import Answer
from hectogpt.grade.failed import fault_diagnosis
from hectogpt.grade.mistake import Diagnosis
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
    diagnosis = fault_diagnosis(part, answer) if answer.kind == "error" else None
    return PartResult(part, "failed", findings=[Finding(law.name, symptom, law.says, True)], diagnosis=diagnosis)


def finding(part: str, symptom: str) -> Finding:
    law = laws.laws_of(part)[0]
    return Finding(law.name, symptom, law.says, True)


def note(name: str, symptom: str, says: str) -> Finding:
    """What costs no points."""
    return Finding(name, symptom, says, False)


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
        words = f"not in the assignment: {', '.join(map(str, unknown[:3]))[:200]}"
        result.findings.append(note("no other names", words, "A strict load takes no other names."))
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


@lru_cache(maxsize=32)
def known_curves(clipped: bool, batches: tuple[tuple[int, ...], ...]) -> list[train_case.Curve]:
    """All curves of these batches."""
    return list(train_case.curves(laws.TRAIN_CLIPPED if clipped else laws.TRAIN, [list(rows) for rows in batches]))


@dataclass
class Runs:
    """Two runs, without and with clipping. seen: losses and gradient norms. batches: rows of the text, a batch a step,
    of both. curves: all known ones on these rows; matches: those that agree with a run."""

    seen: list[tuple[Tensor, Tensor]]
    batches: list[list[list[int]]]

    @property
    def curves(self) -> list[list[train_case.Curve]]:
        return [known_curves(c, tuple(map(tuple, rows))) for c, rows in zip((False, True), self.batches, strict=True)]

    @property
    def comparable(self) -> bool:
        """Whether it is known what each step was trained on, in as many steps as were asked for."""
        return all(
            len(rows) == len(losses) == train_case.STEPS and all(r >= 0 for batch in rows for r in batch)
            for rows, (losses, _) in zip(self.batches, self.seen, strict=True)
        )

    def matches(self) -> list[train_case.Curve]:
        """The curves that both runs agree with, by name, in the second run; where there is none, those of one run, if
        the other is right: some mistakes show in one only."""
        if not self.comparable:
            return []
        agreed = []
        for known, (losses, norms) in zip(self.curves, self.seen, strict=True):
            close = train_case.close
            agreed.append([c for c in known if close(losses.float(), c.losses) and close(norms.float(), c.norms)])
        common = [curve for curve in agreed[0] if curve.name in {c.name for c in agreed[1]}]
        right = [any(c.name == "right" for c in curves) for curves in agreed]
        return common or agreed[1] * right[0] or agreed[0] * right[1]


def judge_train(transcript: Transcript) -> PartResult:
    both = [answers_of("train", transcript), answers_of("train, clipped", transcript)]
    for answers in both:
        if not answers:
            return PartResult("train", "grader fault", "nothing came back")
        if (bad := next((a for a in answers if a.tensor is None), None)) is not None:
            return broken("train", bad)
    losses_norms = [(a[0].tensor, a[1].tensor) for a in both]
    rows = [[[r for r in batch if r != -2] for batch in a[2].tensor.tolist()] for a in both]  # type: ignore[union-attr]
    runs = Runs(losses_norms, rows)  # type: ignore[arg-type]
    result = PartResult("train", "passed", tolerance=1e-3)
    if any(a.facts.get("graph kept") for answers in both for a in answers):
        words = "losses are kept as tensors with their graph: memory grows with every step"
        result.findings.append(note("plain numbers kept", words, "Losses are recorded as numbers."))
    if after := next((str(a.facts["after"]) for answers in both for a in answers if a.facts.get("after")), ""):
        words = f"after the losses were recorded: {compare.short(after)}"
        result.findings.append(note("to the end", words, "The program ends without an error."))
    for rule in (batches_wrong, right_curve, another_optimizer, known_mistake, another_schedule):
        if rule(runs, result):
            return result
    result.outcome = "failed"
    result.findings.append(finding("train", first_difference(runs)))
    return result


# Rules, tried in order: whether it holds; it then completes the result.


def batches_wrong(runs: Runs, result: PartResult) -> bool:
    for batches in runs.batches:
        if batches and (fault := train_case.fault_of_batches(batches)):
            result.outcome, result.diagnosis = (
                "failed",
                Diagnosis((fault[0],), "how the text is cut into batches", fault[1]),
            )
            rows = "; ".join(str(batch[:6]) for batch in batches[:3])
            result.findings.append(finding("train", f"rows of the text in the first steps: {rows}"))
            return True
    return False


def right_curve(runs: Runs, result: PartResult) -> bool:
    return any(curve.name == "right" for curve in runs.matches())


def another_optimizer(runs: Runs, result: PartResult) -> bool:
    changed = next((curve for curve in runs.matches() if curve.changed), None)
    if changed:
        result.findings.append(note("another optimizer", changed.what, "The assignment's baseline uses AdamW."))
    return changed is not None


def known_mistake(runs: Runs, result: PartResult) -> bool:
    if wrong := runs.matches():
        result.outcome = "failed"
        others = tuple(curve.name for curve in wrong[1:])
        result.diagnosis = Diagnosis((wrong[0].name,), "the training loop", wrong[0].what, others)
        result.findings.append(finding("train", first_difference(runs)))
    return bool(wrong)


def another_schedule(runs: Runs, result: PartResult) -> bool:
    """The first step is right and the loss falls, as with another optimizer or schedule."""
    losses, norms = runs.seen[0]
    if min(len(losses), len(norms)) < 2 or not float(losses[-1]) < float(losses[0]):
        return False
    first = runs.batches[0][:1]
    if runs.comparable:
        one = train_case.curve(laws.TRAIN, first)
        if not (train_case.close(losses[:1].float(), one[0]) and train_case.close(norms[:1].float(), one[1])):
            return False
    words = "the first step is right and the loss falls; the rest follows another optimizer or schedule: not comparable"
    if not runs.comparable:
        words = "the loss falls, but what each step was trained on is not known: not comparable"
    result.findings.append(note("another optimizer or schedule", words, "The assignment's baseline uses AdamW."))
    return True


def first_difference(runs: Runs) -> str:
    """The first number that differs."""
    for clipped, (losses, norms) in enumerate(runs.seen):
        for name, yours in (("loss", losses), ("gradient norm", norms)):
            if len(yours) != train_case.STEPS:
                return f"{len(yours)} numbers for {name}, expected {train_case.STEPS} (one a step)"
        if not runs.comparable:
            continue
        right = runs.curves[clipped][0]
        for name, yours, expected in (("loss", losses, right.losses), ("gradient norm", norms, right.norms)):
            for step in range(len(expected)):
                if not train_case.close(yours[step : step + 1].float(), expected[step : step + 1]):
                    values = f"yours {float(yours[step]):.6g}, expected {float(expected[step]):.6g}"
                    return f"{name} of step {step + 1}{' with clipping' * clipped}: {values}"
    return "losses and gradient norms differ"


# --- the picture ----------------------------------------------------------------------------------------------------


def judge_plot(transcript: Transcript) -> PartResult:
    """Blank, or the same for other losses or gradient norms: these are not in it."""
    answers = answers_of("plot", transcript)
    if not answers:
        return PartResult("plot", "grader fault", "nothing came back")
    if (bad := next((answer for answer in answers if answer.tensor is None), None)) is not None:
        return broken("plot", bad)
    result = PartResult("plot", "passed")
    grey, *others = [answer.tensor.double() for answer in answers if answer.tensor is not None]
    if grey.numel() < 100 or float(grey.std()) < 1e-3 or len(torch.unique((grey * 255).round())) < 4:
        what = "The picture is saved after it was shown or closed: it is blank."
        result.diagnosis = Diagnosis(("blank picture",), "the order of saving and showing", what)
        result.findings = [finding("plot", "the picture is blank")]
    else:
        for other, name in zip(others, ("loss", "gradient norm"), strict=False):
            if compare.error(other, grey) == 0 and not result.findings:
                what = f"The {name} is not drawn: two panels are asked for, the loss and the gradient norm."
                result.diagnosis = Diagnosis(("a panel is missing",), "the panels", what)
                result.findings = [finding("plot", f"the picture is the same whatever the {name} is")]
    result.outcome = "failed" if result.findings else "passed"
    if after := next((str(a.facts["after"]) for a in answers if a.facts.get("after")), ""):
        words = f"after the picture was saved: {compare.short(after)}"
        result.findings.append(note("to the end", words, "The function ends without an error."))
    return result


JUDGES: dict[str, Callable[[Transcript], PartResult]] = {
    "init": judge_init,
    "converter": judge_converter,
    "train": judge_train,
    "plot": judge_plot,
}
