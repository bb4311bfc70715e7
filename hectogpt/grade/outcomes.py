"""The judge: from the answers of a submission to outcomes, broken laws and diagnoses. It runs in
the parent, where right values are."""

from __future__ import annotations

from functools import partial

import torch

from hectogpt.assignment.parts import BY_NAME
from hectogpt.grade import laws
from hectogpt.grade.answer import Answer, Curves, Drawn, Raised, Transcript, Values, short
from hectogpt.grade.calls import Call, difference, listed, pattern
from hectogpt.grade.explain import NOTED, diagnose, diagnose_error, diagnose_words, side_effects
from hectogpt.grade.laws import SAYS, given
from hectogpt.grade.mistakes import symptoms, words_of
from hectogpt.grade.result import Diagnosis, Finding, Outcome, PartResult
from hectogpt.grade.train_case import curve, loops_of
from hectogpt.grade.watch import first_fault


def judge(transcript: Transcript) -> tuple[PartResult, ...]:
    """Return the result of every part that is graded, in the order of the assignment."""
    return tuple(judge_part(part, transcript) for part in laws.GRADED)


def judge_part(part: str, transcript: Transcript) -> PartResult:
    """Return the result of a part: what kept it from being run, or what its answers are worth."""
    module = BY_NAME[part].module
    if module not in transcript.files:
        return PartResult(part, "not handed in", f"there is no {module}.py")
    if "" in transcript.ends:
        outcome, words = transcript.ends[""]
        return PartResult(part, outcome, f"while the files were imported: {words}")
    if error := transcript.imports.get(module):
        words = f"{module}.py cannot be imported: {error.words}"
        if error.is_memory:
            return PartResult(part, "out of memory", words)
        diagnosis = diagnose_error(part, error, importing=True)
        return PartResult(part, "blocked", words, diagnosis=diagnosis)
    settings = laws.settings_of(part)
    ends = (transcript.ends[one.name] for one in settings if one.name in transcript.ends)
    if ended := next(ends, None):
        return PartResult(part, *ended, diagnosis=diagnose_words(part, ": ".join(ended)))
    if part == "train":
        return judge_train(transcript)
    if part == "plot":
        return judge_plot(transcript)
    return judge_model(part, transcript)


def judge_model(part: str, transcript: Transcript) -> PartResult:
    """Return the result of a part of the model. It has passed if no law that counts is broken,
    with our parts below it or with its own."""
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
    # the notes say the same of other inputs
    broken = tuple(finding for finding in found if finding.counts)
    first = counted[0].answer
    named = diagnose(part, counted) if outcome == "failed" else diagnose_error(part, first)
    if outcome == "changed" and named and named.names == ("parameters renamed",):
        named = None
    return PartResult(part, outcome, reason, broken, named)


def calls_of(transcript: Transcript, part: str, variant: str) -> list[list[Call]]:
    """Return the calls of each setting of a part; nothing if a setting that counts has none."""
    found = []
    for setting in laws.settings_of(part):
        dtype, answers = transcript.answers.get((setting.name, variant), ("", []))
        if answers:
            found.append([Call(setting, n, answer, dtype) for n, answer in enumerate(answers)])
        elif setting.counts:
            return []
    return found


def classify(part: str, answers: list[Answer], transcript: Transcript) -> tuple[Outcome, str]:
    """Return the outcome of a part that is not right, and its reason: a stub, no memory, another
    architecture, or a part below that cannot be built for the same reason; otherwise failed."""
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
    """True for what the starter's stubs give: torch.empty(1), or NotImplementedError."""
    if isinstance(answer, Values):
        return tuple(answer.result.shape) == (1,) and answer.result.is_floating_point()
    return isinstance(answer, Raised) and answer.error == "NotImplementedError"


# --- laws that are broken

NO_GRADIENT = "the result carries no gradient: it does not depend on any weight for autograd"


def broken_laws(made: list[list[Call]]) -> list[Finding]:
    """Return the broken laws, by the calls of each setting. A gradient counts only where the
    values are right: that of wrong values is wrong."""
    found: list[Finding] = []
    right: list[list[Call]] = []
    for calls in made:
        setting = calls[0].setting
        if not (symptom := value_symptom(calls)):
            right.append(calls)
        elif is_random(calls):
            found.append(Finding("no dropout", symptom, SAYS["dropout"]))
        else:
            brief = setting.law if setting.law != "values" else pattern(calls)
            found.append(Finding(setting.law, symptom, setting.says, does_count(calls), brief))
    if not any(finding.counts for finding in found):
        found += broken_gradients(right)
    values = [call.answer for calls in made for call in calls if isinstance(call.answer, Values)]
    for name, effect in side_effects(values).items():
        found.append(Finding(effect.name, effect.what, SAYS["caller"], name not in NOTED))
    unnamed = (
        call.answer.unnamed
        for calls in made
        for call in calls
        if isinstance(call.answer, Values) and call.setting.counts
    )
    if names := next(filter(None, unnamed), ()):
        named = short(" and ".join(names), 60)
        words = f"it has no argument named {named}, which the course's own tests pass by name"
        found.append(Finding("names of arguments", words, SAYS["names"]))
    return found


def broken_gradients(right: list[list[Call]]) -> list[Finding]:
    """Return the settings with right values and wrong gradients. A model may switch gradients off
    in eval mode."""
    trains = any(calls[0].setting.train_mode and not gradient_symptom(calls) for calls in right)
    found = []
    for calls in right:
        symptom = gradient_symptom(calls)
        values = [call.answer for call in calls if isinstance(call.answer, Values)]
        if symptom and not (trains and not any(one.has_gradient for one in values)):
            law = calls[0].setting.law.replace("values", "gradient")
            found.append(Finding(law, symptom, SAYS["gradient"], True))
    return found


def does_count(calls: list[Call]) -> bool:
    """True if these calls of a setting decide about points. Dropout does not.

    Past the context, and without a new token, an error is a note, and so is a different choice of
    tokens; a text that lacks the prompt, or is too long, is wrong."""
    setting = calls[0].setting
    if setting.counts or setting.part != "generate":
        return setting.counts and not is_random(calls)

    def is_text(call: Call) -> bool:
        yours = call.result
        prompt = given(setting, call.number)
        if yours is None:
            return True
        whole = yours.dim() == 2 and yours.shape[1] <= call.right.shape[1]
        return whole and torch.equal(yours[:, : prompt.shape[1]], prompt)

    return not all(map(is_text, calls))


def is_random(calls: list[Call]) -> bool:
    """True if, in train mode, the same input gives a different result the second time, as with
    dropout.
    """
    setting = calls[0].setting
    if not setting.train_mode or setting.part == "generate":  # ours below it has no dropout
        return False
    made = [call.result for call in calls]
    pairs = zip(made, made[len(setting.inputs) :], strict=False)
    return any(
        one is not None and two is not None and difference(one, two) > 1e-4 for one, two in pairs
    )


def value_symptom(calls: list[Call]) -> str:
    """Describe the first wrong result of a setting; "" if there is none."""
    for call in calls:
        if call.result is None:
            return call.answer.words
        if not call.is_right:
            is_again = call.place >= len(call.setting.inputs)
            again = "an input that was given before: " if is_again else ""
            return again + "; ".join(filter(None, (call.first_difference(), pattern(calls))))
    return ""


def gradient_symptom(calls: list[Call]) -> str:
    """Describe the first wrong gradients of a setting with right values; "" if there are none."""
    for call in (call for call in calls if call.setting.gradient):
        assert isinstance(call.answer, Values)
        if not call.answer.has_gradient:
            return f"backward: {NO_GRADIENT}"
        if call.answer.backward:
            return f"backward: {short(call.answer.backward.words)}"
        if wrong := call.wrong_gradients():
            if without := call.without(wrong):
                return f"no gradient reaches {listed(without)}"
            return f"the gradient is not the right one, by {listed(wrong)}"
    return ""


# --- train.py


def judge_train(transcript: Transcript) -> PartResult:
    """Return the result of train(), run without clipping and with it, with notes on what is not
    asked for."""
    settings = laws.settings_of("train")
    made = [transcript.answers.get((one.name, "patched"), ("", []))[1] for one in settings]
    if not all(made):
        return PartResult("train", "grader fault", "nothing came back")
    answers = [answer for group in made for answer in group]
    curves = [answer for answer in answers if isinstance(answer, Curves)]
    law = partial(Finding, settings[0].law, says=settings[0].says, counts=True)
    if broken := [answer for answer in answers if not isinstance(answer, Curves)]:
        outcome, reason = classify("train", broken, transcript)
        if outcome != "failed":
            return PartResult("train", outcome, reason)
        named = diagnose_error("train", broken[0]) if isinstance(broken[0], Raised) else None
        return PartResult("train", "failed", "", (law(broken[0].words),), named)
    notes = []
    if any(answer.kept for answer in curves):
        words = "losses are kept as tensors with their graph: memory grows with every step"
        notes.append(Finding("plain numbers kept", words, SAYS["numbers"]))
    if after := next(filter(None, (answer.after for answer in curves)), None):
        words = f"after the losses were recorded: {after.words}"
        notes.append(Finding("to the end", words, SAYS["end"]))
    named = None
    try:
        free, clipped = loops_of(curves)
        fault = first_fault(free, clipped)
        symptom = fault.seen if fault else ""
        if fault and fault.name:
            effect = symptoms()["train"].get(fault.name, "")
            named = Diagnosis((fault.name,), *words_of("loop")[fault.name], effect=effect)
        else:
            others = filter(None, (free.other_optimizer(), clipped.other_optimizer()))
            differs = curve(free) or curve(clipped)
            other = next(others, "")
            if other and not symptom and (differs or free.seen.optimizers):
                notes.append(
                    Finding("another optimizer or schedule", short(other), SAYS["optimizer"])
                )
            else:
                symptom = symptom or differs
    except (KeyError, ValueError, IndexError, RuntimeError) as error:
        symptom = f"what it did cannot be followed: {short(str(error))}"
    if not symptom:
        return PartResult("train", "passed", "", tuple(notes))
    return PartResult("train", "failed", "", (law(symptom), *notes), named)


def judge_plot(transcript: Transcript) -> PartResult:
    """Return the result of plot_results, as the tests of a kit judge it. It carries no points."""
    (setting,) = laws.settings_of("plot")
    _, answers = transcript.answers.get((setting.name, "patched"), ("", []))
    if not answers:
        return PartResult("plot", "grader fault", "nothing came back")
    answer = answers[0]
    if is_stub(answer):
        return PartResult("plot", "not started", "it raises NotImplementedError")
    symptom = answer.picture.fault() if isinstance(answer, Drawn) else answer.words
    if not symptom:
        return PartResult("plot", "passed")
    named = diagnose_error("plot", answer) if isinstance(answer, Raised) else None
    law = Finding(setting.law, symptom, setting.says, counts=True)
    return PartResult("plot", "failed", "", (law,), named)
