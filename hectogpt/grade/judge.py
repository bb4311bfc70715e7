"""From what a submission returned to outcomes, findings and diagnoses: the parent's work, where right values are."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
from torch import Tensor

from hectogpt.assignment.parts import BY_NAME
from hectogpt.grade import compare, diagnose, faults, laws, special
from hectogpt.grade.answers import Answer
from hectogpt.grade.computation import Computation
from hectogpt.grade.diagnose import Diagnosis
from hectogpt.grade.laws import Law
from hectogpt.grade.result import Finding, PartResult
from hectogpt.grade.runner import Transcript, home
from hectogpt.grade.settings import Setting, given, order, weights

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


@dataclass
class View:
    """The answers of one variant of a part: setting -> answers, and the dtype that each setting is judged in."""

    answers: dict[str, list[Answer]] = field(default_factory=dict)
    dtypes: dict[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.answers)


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


def view_of(part: str, variant: str, transcript: Transcript) -> View:
    """The answers of a variant; float32 where float64 raised and float32 did so less often."""
    view = View()
    for law in laws.laws_of(part):
        name = law.setting.name
        double, single = (transcript.answers.get((name, variant, dtype)) for dtype in ("float64", "float32"))
        if double is None:
            continue
        view.answers[name], view.dtypes[name] = double, "float64"
        if single is not None and errors_in(single) < errors_in(double):
            view.answers[name], view.dtypes[name] = single, "float32"
    return view


def errors_in(answers: list[Answer]) -> int:
    return sum(answer.kind == "error" for answer in answers)


def tolerance_of(part: str, view: View) -> float:
    return max((laws.TOLERANCE[d] for d in view.dtypes.values()), default=laws.TOLERANCE["float64"])


@lru_cache(maxsize=256)
def expected(setting: Setting) -> tuple[Tensor | str, ...]:
    """The right values of a setting, in the order of its answers."""
    made: list[Tensor | str] = []
    for call in order(setting):
        if not setting.gradient:
            made.append(diagnose.outcome(setting.part, (), setting, call))
            continue
        state = {name: value.clone().requires_grad_() for name, value in weights(setting).items()}
        loss = Computation(state, setting.size).run(setting.part, given(setting, call))
        loss.backward()
        made += [loss.detach(), *(state[name].grad for name in ("lm_head.weight", "embeddings.weight"))]  # type: ignore[list-item]
    return tuple(made)


def values_of(setting: Setting, answers: list[Answer]) -> list[Answer]:
    """The results without the gradients."""
    return answers[::3] if setting.gradient and len(answers) > 1 else answers


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


def symptom_of(answer: Answer) -> str:
    """What came instead of a tensor, in words."""
    if answer.kind == "other":
        return f"returned {answer.text}" if not answer.text.startswith("no ") else answer.text
    return describe(answer)


def describe(error: Answer) -> str:
    at = f", at {compare.short(error.line, 200)}" if error.line else ""
    return f"{error.error}: {compare.short(error.text)}{at}" if error.text else f"{error.error}{at}"


# --- a part that failed ---------------------------------------------------------------------------------------------


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
