"""Judge each part of a submission from its answers, and find the mistake in it.

`judge_part` returns the result of a part: its outcome, the broken laws, and the mistake that
explains them, which `diagnose` finds. This module runs in the parent process, which knows the
right values. mistakes.py has the known mistakes. Numbers in formulas that may be mistyped are
fitted: a family is the computation with free numbers in one step. Least squares finds these
numbers from a few answers, and they are reported only if they reproduce all answers. Errors, and
results that are not tensors, are diagnosed from their message.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from hectogpt.assignment.parts import BY_NAME
from hectogpt.grade import laws
from hectogpt.grade.answer import (
    Answer,
    Curves,
    Drawn,
    Other,
    Raised,
    Transcript,
    Values,
    short,
)
from hectogpt.grade.calls import (
    NOTED,
    Call,
    Computed,
    broken_laws,
    compute,
    difference,
    does_count,
    listed,
    result_with,
    side_effects,
)
from hectogpt.grade.computation import Computation
from hectogpt.grade.mistakes import (
    FAMILIES,
    GRADIENTS,
    MISTAKES,
    Family,
    Mistake,
    Mistakes,
    sentences,
    symptoms,
    words_of,
)
from hectogpt.grade.result import Diagnosis, Finding, Outcome, PartResult
from hectogpt.grade.watch import MOST, Loop, Seen, first_fault

EXACT = dict.fromkeys(("xtol", "ftol", "gtol"), 1e-14)  # tolerances of the least-squares fit
PAIRS = 3000  # the most pairs of mistakes to try, which takes a second or two


def judge_part(part: str, transcript: Transcript) -> PartResult:
    """Judge a part from its answers or, if it could not be run, from the reason for that."""
    module = BY_NAME[part].module
    if module not in transcript.files:
        return PartResult(part, "not handed in", f"there is no {module}.py")
    if error := transcript.imports.get(module):
        words = f"{module}.py cannot be imported: {error.words}"
        if error.is_memory:
            return PartResult(part, "out of memory", words)
        diagnosis = diagnose_error(part, error, importing=True)
        return PartResult(part, "blocked", words, diagnosis=diagnosis)
    if ended := transcript.ends.get(part):
        return PartResult(part, *ended, diagnosis=diagnose_words(part, ": ".join(ended)))
    judge_it = judge_watched if part in ("train", "plot") else judge_model
    return judge_it(part, transcript)


def judge_model(part: str, transcript: Transcript) -> PartResult:
    """Judge a part of the model.

    It passes if it breaks no law that counts, on our lower parts or on the submission's own.
    """
    patched, own = (calls_of(transcript, part, variant) for variant in ("patched", "own"))
    if not patched:
        return PartResult(part, "grader fault", "nothing came back")
    found = broken_laws(patched)
    for made, findings in ((patched, found), (own, broken_laws(own))):
        if made and not any(finding.counts for finding in findings):
            return PartResult(part, "passed", "", tuple(findings))
    counted = [call for calls in patched for call in calls if does_count(calls)]
    outcome, reason = classify(part, [call.answer for call in counted], transcript)
    if outcome in ("not started", "blocked"):
        return PartResult(part, outcome, reason)
    # Leave out the notes, which repeat the same fault for other inputs.
    broken = tuple(finding for finding in found if finding.counts)
    first = counted[0].answer
    diagnosis = diagnose(part, counted) if outcome == "failed" else diagnose_error(part, first)
    if outcome == "changed" and diagnosis and diagnosis.names == ("parameters renamed",):
        diagnosis = None
    return PartResult(part, outcome, reason, broken, diagnosis)


def calls_of(transcript: Transcript, part: str, variant: str) -> list[list[Call]]:
    """Return the calls of each setting of a part; [] if a setting that counts has no answers."""
    found = []
    for setting in laws.settings_of(part):
        dtype, answers = transcript.answers.get((setting.name, variant), ("", []))
        if answers:
            found.append([Call(setting, n, answer, dtype) for n, answer in enumerate(answers)])
        elif setting.counts:
            return []
    return found


def classify(part: str, answers: list[Answer], transcript: Transcript) -> tuple[Outcome, str]:
    """Return the outcome of a part that is not right, and the reason.

    Possible reasons are a stub, lack of memory, a different architecture, or a lower part that
    cannot be built for the same reason. In all other cases the outcome is "failed", without a
    reason.
    """
    first = answers[0]
    if all(map(is_stub, answers)):
        values = isinstance(first, Values)
        return "not started", (
            "it returns the placeholder" if values else "it raises NotImplementedError"
        )
    if any(isinstance(answer, Raised) and answer.is_memory for answer in answers):
        return "out of memory", "it asked for more memory than it may have"
    if not isinstance(first, Raised) or not first.building:
        return "failed", ""
    if first.error == "MissingClassError":
        return "not started", first.text
    if first.error == "ExtraParametersError":
        return "changed", f"{short(first.text)}: not comparable"
    for (name, _), (_, made) in transcript.answers.items():
        below = BY_NAME[laws.SETTINGS[name].part]
        error = made[0] if made else None
        if below.name in BY_NAME[part].rests_on and isinstance(error, Raised) and error.building:
            same = (error.error, error.text) == (first.error, first.text)
            renamed = all(one.error.endswith("ParametersError") for one in (first, error))
            if same or renamed or error.error == "MissingClassError":
                return "blocked", f"{below.title} cannot be built: {error.words}"
    return "failed", ""


def is_stub(answer: Answer) -> bool:
    """True for the answer of a stub in the starter: torch.empty(1) or NotImplementedError."""
    if isinstance(answer, Values) and len(answer.tensors) == 1:  # without a gradient
        return tuple(answer.result.shape) == (1,) and answer.result.is_floating_point()
    return isinstance(answer, Raised) and answer.error == "NotImplementedError"


# --- train.py


def judge_watched(part: str, transcript: Transcript) -> PartResult:
    """Judge train() from runs without and with clipping, or plot_results, which earns no points.

    Remarks on things that the assignment does not ask for become notes.
    """
    settings = laws.settings_of(part)
    made = [transcript.answers.get((one.name, "patched"), ("", []))[1] for one in settings]
    if not all(made):
        return PartResult(part, "grader fault", "nothing came back")
    answers = [answer for group in made for answer in group]
    law = partial(Finding, settings[0].law, says=settings[0].says, counts=True)
    if broken := [answer for answer in answers if not isinstance(answer, Curves | Drawn)]:
        outcome, reason = classify(part, broken, transcript)
        if outcome != "failed":
            return PartResult(part, outcome, reason)
        diagnosis = diagnose_error(part, broken[0])
        return PartResult(part, "failed", "", (law(broken[0].words),), diagnosis)
    notes: list[Finding] = []
    diagnosis = None
    if isinstance(answers[0], Drawn):
        symptom = answers[0].picture.fault()
    else:
        curves = [answer for answer in answers if isinstance(answer, Curves)]
        symptom, diagnosis = judge_curves(curves, notes)
    if not symptom:
        return PartResult(part, "passed", "", tuple(notes))
    return PartResult(part, "failed", "", (law(symptom), *notes), diagnosis)


def judge_curves(curves: list[Curves], notes: list[Finding]) -> tuple[str, Diagnosis | None]:
    """Return the symptom of a wrong loop, or "", and the diagnosis. Add remarks to `notes`."""
    if any(answer.kept for answer in curves):
        words = "losses are kept as tensors with their graph: memory grows with every step"
        notes.append(Finding("plain numbers kept", words, laws.SAYS["numbers"]))
    if after := next(filter(None, (answer.after for answer in curves)), None):
        words = f"after the losses were recorded: {after.words}"
        notes.append(Finding("to the end", words, laws.SAYS["end"]))
    try:
        free, clipped = loops_of(curves)
        if fault := first_fault(free, clipped):
            if not fault.name:
                return fault.seen, None
            return fault.seen, named("loop", [(fault.name,)])
        differs = curve(free) or curve(clipped)
        other = free.other_optimizer() or clipped.other_optimizer()
        if not other or not (differs or free.seen.optimizers):
            return differs, None
        notes.append(
            Finding("another optimizer or schedule", short(other), laws.SAYS["optimizer"])
        )
    except (KeyError, ValueError, IndexError, RuntimeError) as error:
        return f"its steps cannot be followed: {short(str(error))}", None
    return "", None


def loops_of(answers: list[Curves]) -> list[Loop]:
    """Return the watched loop of each setting.

    Raises ValueError or KeyError if the tensors do not fit together.
    """
    loops = []
    for setting, answer in zip(laws.settings_of("train"), answers, strict=True):
        tensors = dict(answer.tensors)
        losses = tensors.pop("losses").double()
        norms = tensors.pop("norms").double()
        ids = [tensors.pop(f"ids {n}") for n in range(MOST) if f"ids {n}" in tensors]
        names = tuple(laws.weights(laws.TRAIN_MODEL))
        seen = Seen(names, answer.optimizers, answer.plain, ids, tensors)
        seen.check()
        asked = (laws.clip_of(setting), laws.RATE, laws.STEPS, laws.BATCH, laws.train_text())
        loops.append(Loop(seen.joined(laws.BATCH), losses, norms, *asked))
    return loops


def curve(loop: Loop) -> str:
    """Describe the first loss that differs from AdamW's, see `Loop.curve`."""
    state = laws.weights(laws.TRAIN_MODEL)

    def loss(own: list[Tensor], ids: Tensor) -> Tensor:
        return Computation(dict(zip(state, own, strict=True)), laws.TRAIN_SIZE).loss(ids)

    return loop.curve(loss, [value.float() for value in state.values()])


# --- the mistake: it is named only if it reproduces the results


def diagnose(part: str, calls: list[Call]) -> Diagnosis | None:
    """Find the mistake in a part that has failed, from the calls that count.

    If only the calls in train mode are wrong, use only those. If no mistake explains all calls,
    try the calls in eval mode alone.
    """
    train = [call for call in calls if call.setting.train_mode]
    others = [call for call in calls if not call.setting.train_mode]
    if train and others and is_wrong(train) and not is_wrong(others):
        found = say(Evidence(part, train)) or UNNAMED_IN_TRAIN_MODE
        names = tuple(f"{name} in train mode" for name in found.names)
        return Diagnosis(names, "what depends on self.training", "In train mode: " + found.what)
    return say(Evidence(part, calls)) or (say(Evidence(part, others)) if train else None)


def is_wrong(calls: list[Call]) -> bool:
    """True if a value or a gradient is wrong."""
    return any(
        not call.is_right or (call.setting.gradient and not call.has_gradients_of())
        for call in calls
    )


UNNAMED_IN_TRAIN_MODE = Diagnosis(
    ("another computation",),
    "",
    "The result differs from that in eval mode, and nothing in it is random.",
)


# --- the rules


class Evidence:
    """The calls of a part that has failed, and facts about them.

    Attributes:
        built: the calls in which the part could be built.
        wrong: the calls in `built` with a wrong value.
        results: the tensors that the calls in `built` returned; None for a call without one.
    """

    def __init__(self, part: str, calls: list[Call]) -> None:
        self.part = part
        self.calls = calls
        self.built = [
            call
            for call in calls
            if not (isinstance(call.answer, Raised) and call.answer.building)
        ]
        self.wrong = [call for call in self.built if not call.is_right]
        self.results = [call.result for call in self.built]


def say(evidence: Evidence) -> Diagnosis | None:
    """Return the diagnosis of the first rule that has one."""
    return next(filter(None, (rule(evidence) for rule in RULES)), None)


def say_state(evidence: Evidence) -> Diagnosis | None:
    """Diagnose an input that gives a different result the second time."""
    firsts = {call.setting.name: call.result for call in evidence.calls if call.place == 0}
    again = [call for call in evidence.calls if call.place == len(call.setting.inputs)]
    pairs = [(call.result, firsts[call.setting.name]) for call in again]
    if all(now is None or was is None or difference(now, was) <= 1e-4 for now, was in pairs):
        return None
    drawn = evidence.part == "generate"
    name = "sampling for greedy" if drawn else "another answer the second time"
    return named(evidence.part, [(name,)])


def say_nan(evidence: Evidence) -> Diagnosis | None:
    if evidence.wrong and all(one is not None and one.isnan().all() for one in evidence.results):
        return named(evidence.part, [("NaN everywhere",)])
    return None


def say_values(evidence: Evidence) -> Diagnosis | None:
    if evidence.wrong and any(one is not None for one in evidence.results):
        return diagnose_values(evidence.part, evidence.built)
    return None


def say_gradient(evidence: Evidence) -> Diagnosis | None:
    """Diagnose calls whose values are right and whose gradients are wrong."""
    if evidence.wrong:
        return None
    part = evidence.part
    calls = [call for call in evidence.built if call.setting.gradient]
    answers = [call.answer for call in calls if isinstance(call.answer, Values)]
    errors = [answer.backward for answer in answers if answer.backward]
    if errors and (found := diagnose_error(part, errors[0])):
        return found
    if fitting := [
        (one.name,)
        for one in GRADIENTS.get(part, ())
        if calls and all(call.has_gradients_of((one,)) for call in calls)
    ]:
        return named(part, fitting)
    wrong = list(dict.fromkeys(name for call in calls for name in call.wrong_gradients()))
    without = [name for name in wrong if any(call.without([name]) for call in calls)]
    if not without or not all(answer.trains for answer in answers):
        return None
    few = without == wrong and len(wrong) <= 4
    return Diagnosis(
        tuple(f"{n} by .data" for n in wrong) if few else ("no gradient of some weights",),
        listed(without),
        "Something before it is detached, taken by .data, or computed under no_grad.",
    )


def say_side_effect(evidence: Evidence) -> Diagnosis | None:
    if evidence.wrong:
        return None
    effects = side_effects([call.answer for call in evidence.built])
    return next((effect for name, effect in effects.items() if name not in NOTED), None)


def say_cropped(evidence: Evidence) -> Diagnosis | None:
    """Diagnose generated texts that lose their beginning when they outgrow the context."""
    if any(not call.setting.counts and any(call.setting.new_tokens) for call in evidence.wrong):
        return named("generate", [("returned text cropped",)])
    return None


def say_error(evidence: Evidence) -> Diagnosis | None:
    """Diagnose the first answer that is not a tensor."""
    answers = [call.answer for call in [*evidence.wrong, *evidence.calls]]
    broken = (answer for answer in answers if isinstance(answer, Raised | Other))
    return next((diagnose_error(evidence.part, answer) for answer in broken), None)


RULES = (say_state, say_nan, say_values, say_gradient, say_side_effect, say_cropped, say_error)


# --- values


def diagnose_values(part: str, calls: list[Call]) -> Diagnosis | None:
    """Return the mistake, mistyped number or pair of mistakes that reproduces all answers.

    Returns None if there is none.
    """
    # Start with small, informative inputs: one is enough to reject most hypotheses.
    calls = sorted(
        calls,
        key=lambda c: (c.setting.size.vocab_size, c.setting.inputs[c.number][1] < 2, c.place),
    )
    if found := [one.name for one in MISTAKES[part] if reproduces((one,), calls)]:
        return named(part, [(name,) for name in found])
    if numbers := fit(part, calls):
        return numbers
    tensors = [call for call in calls if call.result is not None]
    pairs = (pair for pair in pairs_of(part, tensors) if reproduces(pair, calls))
    if both := [(one.name, two.name) for one, two in pairs]:
        return named(part, both)
    if 2 <= len(tensors) < len(calls):  # some calls raised for a different reason: use the others
        return diagnose_values(part, tensors)
    return None


def reproduces(mistakes: Mistakes, calls: list[Call]) -> bool:
    """True if these mistakes together reproduce every answer."""
    return all(call.agrees(result_with(mistakes, call.setting, call.number)) for call in calls)


def pairs_of(part: str, calls: list[Call]) -> list[tuple[Mistake, Mistake]]:
    """Return the pairs of mistakes that may fit, up to PAIRS.

    The two mistakes change different steps. Each of them alone raises no error, gives the right
    shape or the submission's, and agrees with all answers that are right.
    """

    def may_be(mistake: Mistake) -> bool:
        for call in calls:
            made = result_with((mistake,), call.setting, call.number)
            yours = call.result
            if isinstance(made, str) or yours is None:
                return False
            if made.shape not in (call.right.shape, yours.shape):
                return False
            if call.is_right and not call.agrees(made):
                return False
        return True

    pairs = combinations(filter(may_be, MISTAKES[part]), 2)
    return [(one, two) for one, two in pairs if not one.changes.keys() & two.changes.keys()][
        :PAIRS
    ]


def named(part: str, found: Sequence[tuple[str, ...]]) -> Diagnosis:
    """Return the diagnosis of the first of these explanations, with the names of the others.

    Each explanation is the name of a mistake in mistakes.toml, or the two names of a pair.
    """
    words = words_of("end") | words_of(part)
    first, *others = found
    wheres = ["; ".join(dict.fromkeys(words[name].where for name in names)) for names in found[:3]]
    return Diagnosis(
        first,
        ", or ".join(dict.fromkeys(wheres)),
        " ".join(words[name].what for name in first),
        tuple(map(" + ".join, others)),
        symptoms()[part].get(first[0], "") if len(first) == 1 else "",
    )


# --- numbers that may be mistyped


def fit(part: str, calls: list[Call]) -> Diagnosis | None:
    """Diagnose mistyped numbers with the first family that reproduces all answers."""
    results = [call.result for call in calls]
    if not all(one is not None and one.numel() and one.isfinite().all() for one in results):
        return None
    families = (family for family in FAMILIES if family.part in (part, ""))
    return next(filter(None, (fitted(part, family, calls) for family in families)), None)


def fitted(part: str, family: Family, calls: list[Call]) -> Diagnosis | None:
    """Diagnose the mistyped numbers with which a family reproduces all calls, if there are any."""

    def made(values: Iterable[float], call: Call) -> Computed:
        kind = type(
            "Fitted", (Computation,), dict(family.changes([float(value) for value in values]))
        )
        return compute(kind, call.setting, call.number)

    # The longest call of each setting: the same numbers must fit models of all sizes.
    few = {c.setting.name: c for c in sorted(calls, key=lambda c: c.setting.inputs[c.number][1])}

    def misses(values: Iterable[float]) -> np.ndarray:
        """Return every element's error. Raises ArithmeticError if results cannot be compared."""
        parts = []
        for call in few.values():
            mine = made(values, call)
            yours = call.result
            if (
                isinstance(mine, str)
                or yours is None
                or mine.shape != yours.shape
                or not mine.isfinite().all()
            ):
                raise ArithmeticError
            parts.append((mine.double() - yours.double()).flatten())
        return torch.cat(parts).numpy()

    from scipy.optimize import least_squares  # takes half a second to load

    first = [number.starts[0] for number in family.numbers]
    more = [(n, start) for n, number in enumerate(family.numbers) for start in number.starts[1:]]
    for start in (first, *([*first[:n], other, *first[n + 1 :]] for n, other in more)):
        with suppress(ArithmeticError):
            values = least_squares(
                misses, start, method="lm", diff_step=1e-6, max_nfev=100, **EXACT
            ).x
            if not all(call.agrees(made(values, call)) for call in calls):
                continue
            found = {}
            for number, value in zip(family.numbers, map(float, values), strict=True):
                right = number.right
                if right is None or abs(value - right) > 1e-3 * abs(right) + 1e-9:
                    found[number.name] = f"{round(value, 9) + 0.0:.5g}"
            if found:
                words = words_of("end") | words_of(part)
                names = tuple(f"{name} {value}" for name, value in found.items())
                what = " ".join(words[name].what.format(value=v) for name, v in found.items())
                return Diagnosis(names, words[min(found)].where, what)
    return None


# --- messages


def diagnose_words(part: str, words: str) -> Diagnosis | None:
    """Return the diagnosis of the first rule in mistakes.toml that matches these words."""
    for rule in sentences()["fault"]:
        is_for_part = part in rule.get("parts", (part,))
        if is_for_part and re.search(rule["pattern"], words, re.DOTALL):
            return Diagnosis((rule["name"],), rule["where"], rule["what"])
    return None


def diagnose_error(part: str, answer: Answer, importing: bool = False) -> Diagnosis | None:
    """Return the diagnosis of the first rule that matches an answer without a tensor.

    importing: True if the error arose during the import, before any helper was called.
    """
    if isinstance(answer, Other):
        return diagnose_words(part, f"result: {answer.text}")
    if not isinstance(answer, Raised):
        return None
    line = answer.line.partition(": ")[2]
    found = diagnose_words(part, f"{answer.error}: {answer.text} | {line}")
    return None if importing and found and found.names == ("a helper returns nothing",) else found
