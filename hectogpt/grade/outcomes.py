"""The judge: from the answers of a submission to outcomes, broken laws and diagnoses. It runs in
the parent, where right values are."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from hectogpt.assignment.parts import BY_NAME
from hectogpt.grade import laws
from hectogpt.grade.answer import Answer, Curves, Drawn, Raised, Transcript, Values, short
from hectogpt.grade.calls import Call, broken_laws, does_count
from hectogpt.grade.computation import Computation
from hectogpt.grade.explain import diagnose, diagnose_error, diagnose_words
from hectogpt.grade.laws import SAYS
from hectogpt.grade.mistakes import symptoms, words_of
from hectogpt.grade.result import Diagnosis, Finding, Outcome, PartResult
from hectogpt.grade.watch import MOST, Loop, Seen, first_fault


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
    judge_it = judge_watched if part in ("train", "plot") else judge_model
    return judge_it(part, transcript)


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


# --- train.py


def judge_watched(part: str, transcript: Transcript) -> PartResult:
    """Return the result of train(), run without clipping and with it, or of plot_results, which
    carries no points. Notes say what is not asked for."""
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
        named = diagnose_error(part, broken[0])
        return PartResult(part, "failed", "", (law(broken[0].words),), named)
    notes: list[Finding] = []
    named = None
    if isinstance(answers[0], Drawn):
        symptom = answers[0].picture.fault()
    else:
        curves = [answer for answer in answers if isinstance(answer, Curves)]
        symptom, named = judge_curves(curves, notes)
    if not symptom:
        return PartResult(part, "passed", "", tuple(notes))
    return PartResult(part, "failed", "", (law(symptom), *notes), named)


def judge_curves(curves: list[Curves], notes: list[Finding]) -> tuple[str, Diagnosis | None]:
    """Return what is wrong with a loop, or "", and the mistake; add to the notes."""
    if any(answer.kept for answer in curves):
        words = "losses are kept as tensors with their graph: memory grows with every step"
        notes.append(Finding("plain numbers kept", words, SAYS["numbers"]))
    if after := next(filter(None, (answer.after for answer in curves)), None):
        words = f"after the losses were recorded: {after.words}"
        notes.append(Finding("to the end", words, SAYS["end"]))
    try:
        free, clipped = loops_of(curves)
        if fault := first_fault(free, clipped):
            if not fault.name:
                return fault.seen, None
            effect = symptoms()["train"].get(fault.name, "")
            where, what = words_of("loop")[fault.name]
            return fault.seen, Diagnosis((fault.name,), where, what, effect=effect)
        differs = curve(free) or curve(clipped)
        other = free.other_optimizer() or clipped.other_optimizer()
        if not other or not (differs or free.seen.optimizers):
            return differs, None
        notes.append(Finding("another optimizer or schedule", short(other), SAYS["optimizer"]))
    except (KeyError, ValueError, IndexError, RuntimeError) as error:
        return f"what it did cannot be followed: {short(str(error))}", None
    return "", None


def loops_of(answers: list[Curves]) -> list[Loop]:
    """Return what was seen and recorded in each setting. Raises ValueError or KeyError if the
    tensors do not fit together.
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
    """Say where the losses of a loop differ from those of AdamW, see `Loop.curve`."""
    state = laws.weights(laws.TRAIN_MODEL)

    def loss(own: list[Tensor], ids: Tensor) -> Tensor:
        return Computation(dict(zip(state, own, strict=True)), laws.TRAIN_SIZE).loss(ids)

    return loop.curve(loss, [value.float() for value in state.values()])
