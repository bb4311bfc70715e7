"""From what a submission returned to outcomes, findings and diagnoses: the parent's work, where right values are."""

from __future__ import annotations

from hectogpt.assignment.parts import BY_NAME
from hectogpt.grade import laws
from hectogpt.grade.calls import Call, Transcript, listed, pattern, short
from hectogpt.grade.computation import symptoms
from hectogpt.grade.explain import by_answer, by_words, diagnose
from hectogpt.grade.laws import Setting
from hectogpt.grade.result import Diagnosis, Finding, Outcome, PartResult
from hectogpt.grade.run_part import Answer
from hectogpt.grade.train_case import BATCHES, MISTAKES, Run, close, curve


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
        return PartResult(part, "blocked", words, diagnosis=by_answer(part, error))
    settings = laws.settings_of(part)
    if ended := next((transcript.ends[one.name] for one in settings if one.name in transcript.ends), None):
        return PartResult(part, *ended, diagnosis=by_words(part, ": ".join(ended)))
    if part == "train":
        return judge_train(transcript)
    patched, own = (transcript.whole(part, variant) for variant in ("patched", "own"))
    if not patched:
        return PartResult(part, "grader fault", "nothing came back")
    found = findings_of(patched)
    for made, findings in ((patched, found), (own, findings_of(own))):  # its own lower parts may have other arguments
        if made and not any(finding.counts for finding in findings):
            return PartResult(part, "passed", "", tuple(findings))
    counted = [call for calls in patched for call in calls if call.setting.counts]
    outcome, reason = outcome_of(part, [call.answer for call in counted], transcript)
    if outcome in ("not started", "blocked"):
        return PartResult(part, outcome, reason)
    broken = tuple(finding for finding in found if finding.counts)  # the notes say the same of other inputs
    return PartResult(part, outcome, reason, broken, diagnose(part, counted) if outcome == "failed" else None)


def outcome_of(part: str, answers: list[Answer], transcript: Transcript) -> tuple[Outcome, str]:
    """The outcome of a part that is not right, and its reason: a stub, no memory, another architecture, a part below
    that cannot be built for the same reason; else failed."""
    first, below = answers[0], BY_NAME[part].rests_on
    if all(map(is_stub, answers)):
        words = "it returns the placeholder" if first.kind == "tensor" else "it raises NotImplementedError"
        return "not started", words
    if any(answer.kind == "memory" for answer in answers):
        return "out of memory", "it asked for more memory than it may have"
    if not first.building:
        return "failed", ""
    if "has no class" in first.text:
        return "not started", first.text
    if first.text.startswith("parameters differ") and not ("missing" in first.text or "other shape" in first.text):
        return "changed", f"{short(first.text)}: not comparable"
    for call, *_ in transcript.calls.values():
        answer, title = call.answer, BY_NAME[call.setting.part].title
        if call.setting.part not in below or not answer.building:
            continue
        same = (answer.error, answer.text) == (first.error, first.text) or answer.error == first.error == "LookupError"
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


# --- laws that are broken ---------------------------------------------------------------------------------------------

DIFFERENTIATED = "Training differentiates it: the gradient of the input and of every weight is that of the formula."
BY_NAME_CALLED = "The course's own tests call generate(x=..., num_new_tokens=...) and get_loss_on_batch(input_ids=...)."


def findings_of(made: list[list[Call]]) -> list[Finding]:
    """The broken laws, by the calls of each setting. A gradient counts where the values are right: that of wrong values
    is wrong."""
    found: list[Finding] = []
    for calls, setting in ((calls, calls[0].setting) for calls in made):
        if symptom := wrong_values(calls):
            found.append(Finding(setting.law, symptom, setting.says, setting.counts or is_cropped(setting, calls)))
    if not any(finding.counts for finding in found):
        for calls in made:
            if symptom := wrong_gradients(calls):
                law = calls[0].setting.law.replace("values", "gradient")
                found.append(Finding(law, symptom, DIFFERENTIATED, True))
    if names := next((c.answer.unnamed for calls in made for c in calls if c.setting.counts and c.answer.unnamed), ()):
        named = short(" and ".join(names), 60)
        words = f"it has no argument named {named}, which the course's own tests pass by name"
        found.append(Finding("names of arguments", words, BY_NAME_CALLED))
    return found


def is_cropped(setting: Setting, calls: list[Call]) -> bool:
    """Past the context: an error is a note, and so is another choice; a text whose beginning is lost is wrong."""
    if setting.part != "generate" or setting.train_mode:
        return False
    return all((yours := call.answer.tensor) is not None and yours.shape != call.right.shape for call in calls)


# What was seen in the calls of a setting, "" where the law holds.


def wrong_values(calls: list[Call]) -> str:
    for call in calls:
        if call.answer.tensor is None:
            return describe(call.answer)
        if not call.is_right:
            again = "the first input, given again: " if call is calls[-1] and call.place else ""
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


# --- training ---------------------------------------------------------------------------------------------------------


def judge_train(transcript: Transcript) -> PartResult:
    """Without clipping and with it, and notes on what happened after that which counts."""
    settings = laws.settings_of("train")
    made = [[call.answer for call in transcript.calls.get((one.name, "patched"), [])] for one in settings]
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
        runs = []
        for setting, (losses, norms) in zip(settings, made, strict=True):
            numbers = (losses.numbers[""].float(), norms.numbers[""].float())
            runs.append(Run(setting, *numbers, [[*batch] for batch in losses.batches]))
        symptom, found = explain_curves(runs, notes)
    if not symptom:
        return PartResult("train", "passed", "", tuple(notes))
    law = Finding(settings[0].law, symptom, settings[0].says, True)
    return PartResult("train", "failed", "", (law, *notes), found)


def explain_curves(runs: list[Run], notes: list[Finding]) -> tuple[str, Diagnosis | None]:
    """The symptom, "" if there is none, and the mistake. The first that holds: wrong batches, the right curve, a known
    mistake, another optimizer or schedule."""
    for run in runs:
        for name, what in (row[1:] for row in BATCHES if row[0](run.batches)):
            rows_taken = "; ".join(str(batch[:6]) for batch in run.batches[:3])
            found = Diagnosis((name,), "how the text is cut into batches", what, effect=symptoms()["train"][name])
            return f"rows of the text in the first steps: {rows_taken}", found
    comparable = all(run.comparable for run in runs)
    wrong = [run for run in runs if not comparable or run.difference()]
    if not wrong:
        return "", None
    symptom = next(filter(None, (run.difference() for run in runs)), "losses and gradient norms differ")
    # Some mistakes show in one of the two only.
    if known := [loop for loop in MISTAKES if comparable and not any(run.difference(loop) for run in wrong)]:
        first, *others = (loop.name for loop in known)
        effect = symptoms()["train"][first]
        return symptom, Diagnosis((first,), "the training loop", known[0].what, tuple(others), effect=effect)
    if words := another_schedule(runs[0], comparable):
        notes.append(Finding("another optimizer or schedule", words, "The assignment's baseline uses AdamW."))
        return "", None
    return symptom, None


def another_schedule(run: Run, comparable: bool) -> str:
    """In words that the first step is right and the loss falls, as with another optimizer or schedule; "" if not so."""
    if min(len(run.losses), len(run.norms)) < 2 or not float(run.losses[-1]) < float(run.losses[0]):
        return ""
    if not comparable:
        return "the loss falls, but what each step was trained on is not known: not comparable"
    loss, norm = curve(run.setting, run.batches[:1])
    if not (close(run.losses[:1], loss) and close(run.norms[:1], norm)):
        return ""
    return "the first step is right and the loss falls; the rest follows another optimizer or schedule: not comparable"
