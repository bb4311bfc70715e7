"""From what a submission returned to outcomes, findings and diagnoses: the parent's work, where
right values are.
"""

from __future__ import annotations

import torch

from hectogpt.assignment.parts import BY_NAME
from hectogpt.grade import laws
from hectogpt.grade.calls import Call, Transcript, difference, listed, pattern, short
from hectogpt.grade.computation import sentences, symptoms
from hectogpt.grade.explain import SIDE_EFFECTS, by_answer, by_words, diagnose
from hectogpt.grade.laws import given
from hectogpt.grade.result import Diagnosis, Finding, Outcome, PartResult
from hectogpt.grade.run_part import Answer
from hectogpt.grade.train_case import curve, runs_of
from hectogpt.grade.watch import Run
from hectogpt.grade.watch import judge as judge_runs


def judge(transcript: Transcript) -> tuple[PartResult, ...]:
    """The result of every part that is graded, in the order of the assignment."""
    return tuple(judge_part(part, transcript) for part in laws.GRADED)


def judge_part(part: str, transcript: Transcript) -> PartResult:
    module = BY_NAME[part].module
    if module not in transcript.files:
        return PartResult(part, "not handed in", f"there is no {module}.py")
    if "" in transcript.ends:
        outcome, words = transcript.ends[""]
        return PartResult(part, outcome, f"while the files were imported: {words}")
    if error := transcript.imports.get(module):
        words = f"{module}.py cannot be imported: {describe(error)}"
        if error.kind == "memory":
            return PartResult(part, "out of memory", words)
        return PartResult(part, "blocked", words, diagnosis=by_answer(part, error, importing=True))
    settings = laws.settings_of(part)
    if ended := next(
        (transcript.ends[one.name] for one in settings if one.name in transcript.ends), None
    ):
        return PartResult(part, *ended, diagnosis=by_words(part, ": ".join(ended)))
    if part == "train":
        return judge_train(transcript)
    patched, own = (transcript.whole(part, variant) for variant in ("patched", "own"))
    if not patched:
        return PartResult(part, "grader fault", "nothing came back")
    found = findings_of(patched)
    for made, findings in (
        (patched, found),
        (own, findings_of(own)),
    ):  # its own lower parts may have other arguments
        if made and not any(finding.counts for finding in findings):
            return PartResult(part, "passed", "", tuple(findings))
    counted = [call for calls in patched for call in calls if does_count(calls)]
    outcome, reason = outcome_of(part, [call.answer for call in counted], transcript)
    if outcome in ("not started", "blocked"):
        return PartResult(part, outcome, reason)
    broken = tuple(
        finding for finding in found if finding.counts
    )  # the notes say the same of other inputs
    named = diagnose(part, counted) if outcome == "failed" else by_answer(part, counted[0].answer)
    named = (
        None
        if outcome == "changed" and named and named.names == ("parameters renamed",)
        else named
    )
    return PartResult(part, outcome, reason, broken, named)


def outcome_of(part: str, answers: list[Answer], transcript: Transcript) -> tuple[Outcome, str]:
    """The outcome of a part that is not right, and its reason: a stub, no memory, another
    architecture, a part below that cannot be built for the same reason; else failed."""
    first = answers[0]
    below = BY_NAME[part].rests_on
    if all(map(is_stub, answers)):
        words = (
            "it returns the placeholder"
            if first.kind == "tensor"
            else "it raises NotImplementedError"
        )
        return "not started", words
    if any(answer.kind == "memory" for answer in answers):
        return "out of memory", "it asked for more memory than it may have"
    if not first.building:
        return "failed", ""
    if "has no class" in first.text:
        return "not started", first.text
    if first.text.startswith("parameters differ") and not (
        "missing" in first.text or "other shape" in first.text
    ):
        return "changed", f"{short(first.text)}: not comparable"
    for call, *_ in transcript.calls.values():
        answer = call.answer
        title = BY_NAME[call.setting.part].title
        if call.setting.part not in below or not answer.building:
            continue
        same = (answer.error, answer.text) == (
            first.error,
            first.text,
        ) or answer.error == first.error == "LookupError"
        if same or "has no class" in answer.text:
            return "blocked", f"{title} cannot be built: {describe(answer)}"
    return "failed", ""


def is_stub(answer: Answer) -> bool:
    """What the starter's stubs give: torch.empty(1), or NotImplementedError."""
    if answer.tensor is not None:
        return tuple(answer.tensor.shape) == (1,) and answer.tensor.is_floating_point()
    return answer.kind == "error" and answer.error == "NotImplementedError"


def describe(answer: Answer) -> str:
    """What came instead of a tensor, in words."""
    if answer.kind == "other":
        return f"returned {answer.text}"
    at = f", at {short(answer.line, 200)}" if answer.line else ""
    return f"{answer.error}: {short(answer.text)}{at}" if answer.text else f"{answer.error}{at}"


# --- laws that are broken
# ---

DIFFERENTIATED = (
    "Training differentiates it: the gradient of the input and of every weight is that of the "
    "formula."
)
NO_GRADIENT = "the result carries no gradient"
NO_DROPOUT = "The assignment's model has no dropout."
LEFT_ALONE = "A function leaves what belongs to its caller as it is."
BY_NAME_CALLED = (
    "The course's own tests call generate(x=..., num_new_tokens=...) and "
    "get_loss_on_batch(input_ids=...)."
)


def findings_of(made: list[list[Call]]) -> list[Finding]:
    """The broken laws, by the calls of each setting. A gradient counts where the values are right:
    that of wrong values is wrong."""
    found: list[Finding] = []
    right: list[list[Call]] = []
    for calls, setting in ((calls, calls[0].setting) for calls in made):
        if not (symptom := wrong_values(calls)):
            right.append(calls)
        elif is_random(calls):
            found.append(Finding("no dropout", symptom, NO_DROPOUT))
        else:
            brief = setting.law if setting.law != "values" else pattern(calls)
            found.append(Finding(setting.law, symptom, setting.says, does_count(calls), brief))
    if not any(finding.counts for finding in found):
        trains = any(calls[0].setting.train_mode and not wrong_gradients(calls) for calls in right)
        for calls in right:
            symptom = wrong_gradients(calls)
            if symptom and not (
                trains and all(call.answer.backward.startswith(NO_GRADIENT) for call in calls)
            ):
                law = calls[0].setting.law.replace("values", "gradient")
                found.append(Finding(law, symptom, DIFFERENTIATED, True))
    for name in dict.fromkeys(
        name for calls in made for call in calls for name in call.answer.changed
    ):
        if name in SIDE_EFFECTS:
            effect = SIDE_EFFECTS[name]
            found.append(Finding(effect.name, effect.what, LEFT_ALONE, name != "the mode"))
    if names := next(
        (
            c.answer.unnamed
            for calls in made
            for c in calls
            if c.setting.counts and c.answer.unnamed
        ),
        (),
    ):
        named = short(" and ".join(names), 60)
        words = f"it has no argument named {named}, which the course's own tests pass by name"
        found.append(Finding("names of arguments", words, BY_NAME_CALLED))
    return found


def does_count(calls: list[Call]) -> bool:
    """Whether these calls of a setting decide about points. Dropout does not.

    Past the context, and without a new token, an error is a note, and so is another choice of
    tokens; a text that lacks the prompt, or is too long, is wrong."""
    setting = calls[0].setting
    if setting.counts or setting.part != "generate":
        return setting.counts and not is_random(calls)

    def is_text(call: Call) -> bool:
        yours = call.answer.tensor
        prompt = given(setting, call.number)
        if yours is None:
            return True
        whole = yours.dim() == 2 and yours.shape[1] <= call.right.shape[1]
        return whole and torch.equal(yours[:, : prompt.shape[1]], prompt)

    return not all(map(is_text, calls))


def is_random(calls: list[Call]) -> bool:
    """Whether the same input gives another result the second time, as with dropout, in train
    mode.
    """
    half = len(calls[0].setting.inputs)
    made = [call.answer.tensor for call in calls]
    pairs = [
        (one, two)
        for one, two in zip(made, made[half:], strict=False)
        if one is not None and two is not None
    ]
    is_model = calls[0].setting.part != "generate"  # which is given a forward pass without dropout
    return (
        is_model
        and calls[0].setting.train_mode
        and any(difference(one, two) > 1e-4 for one, two in pairs)
    )


# What was seen in the calls of a setting, "" where the law holds.


def wrong_values(calls: list[Call]) -> str:
    for call in calls:
        if call.answer.tensor is None:
            return describe(call.answer)
        if not call.is_right:
            again = (
                "an input that was given before: "
                if call.place >= len(call.setting.inputs)
                else ""
            )
            return again + "; ".join(filter(None, (call.first_difference(), pattern(calls))))
    return ""


def wrong_gradients(calls: list[Call]) -> str:
    for call in (call for call in calls if call.setting.gradient):
        if call.answer.backward:
            return f"backward: {short(call.answer.backward)}"
        if wrong := call.wrong_gradients():
            if without := call.without(wrong):
                return f"no gradient reaches {listed(without)}"
            return f"the gradient is not the right one, by {listed(wrong)}"
    return ""


# --- training
# ---


def judge_train(transcript: Transcript) -> PartResult:
    """Without clipping and with it, and notes on what happened after that which counts."""
    settings = laws.settings_of("train")
    made = [
        [call.answer for call in transcript.calls.get((one.name, "patched"), [])]
        for one in settings
    ]
    answers = [answer for group in made for answer in group]
    if not all(made):
        return PartResult("train", "grader fault", "nothing came back")
    notes = []
    if broken := [answer for answer in answers if answer.tensor is None]:
        outcome, reason = outcome_of("train", broken, transcript)
        if outcome != "failed":
            return PartResult("train", outcome, reason)
        symptom = describe(broken[0])
        found = by_answer("train", broken[0]) if broken[0].kind == "error" else None
    else:
        if any(answer.kept for answer in answers):
            words = "losses are kept as tensors with their graph: memory grows with every step"
            notes.append(Finding("plain numbers kept", words, "Losses are recorded as numbers."))
        if after := next(filter(None, (answer.after for answer in answers)), ""):
            words = f"after the losses were recorded: {short(after)}"
            notes.append(Finding("to the end", words, "The function ends without an error."))
        try:
            symptom, found = explain_runs(runs_of(made), notes)
        except (KeyError, ValueError, IndexError, RuntimeError) as error:
            symptom = f"what it did cannot be followed: {short(str(error))}"
            found = None
    if not symptom:
        return PartResult("train", "passed", "", tuple(notes))
    law = Finding(settings[0].law, symptom, settings[0].says, True)
    return PartResult("train", "failed", "", (law, *notes), found)


def explain_runs(runs: list[Run], notes: list[Finding]) -> tuple[str, Diagnosis | None]:
    """The symptom, "" if there is none, and the mistake; another optimizer or schedule is a
    note.
    """
    name, symptom = judge_runs(runs)
    if name:
        return symptom, Diagnosis(
            (name,), **sentences()["loop"][name], effect=symptoms()["train"].get(name, "")
        )
    others = [run.other_optimizer() for run in runs]
    differs = next(filter(None, map(curve, runs)), "")
    if not symptom and any(others) and (differs or runs[0].seen.optimizers):
        words = next(filter(None, others))
        notes.append(
            Finding(
                "another optimizer or schedule",
                short(words),
                "The assignment's baseline uses AdamW.",
            )
        )
        return "", None
    return symptom or differs, None
