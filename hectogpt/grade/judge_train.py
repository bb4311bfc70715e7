"""train.py: losses and gradient norms of a few steps, compared with known curves on the rows that were taken."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

from torch import Tensor

from hectogpt.grade import laws, train_case
from hectogpt.grade.explain import add_error_after, answers_of, failed, unusable
from hectogpt.grade.laws import Setting
from hectogpt.grade.result import Diagnosis, Finding, PartResult
from hectogpt.grade.runner import Transcript
from hectogpt.grade.train_case import STEPS, Curve, close


@lru_cache(maxsize=32)
def known_curves(setting: Setting, batches: tuple[tuple[int, ...], ...]) -> list[Curve]:
    """All curves of these batches."""
    return list(train_case.curves(setting, [list(rows) for rows in batches]))


@dataclass
class Run:
    """What was recorded in one setting. batches: rows of the text, a batch a step."""

    setting: Setting
    losses: Tensor
    norms: Tensor
    batches: list[list[int]]

    @property
    def comparable(self) -> bool:
        """Whether it is known what each step was trained on, in as many steps as were asked for."""
        known = all(row >= 0 for batch in self.batches for row in batch)
        return known and len(self.batches) == len(self.losses) == STEPS

    @cached_property
    def matches(self) -> list[Curve]:
        """The known curves that it agrees with."""
        known = known_curves(self.setting, tuple(map(tuple, self.batches)))
        return [curve for curve in known if close(self.losses, curve.losses) and close(self.norms, curve.norms)]


def matches_of(both: list[Run]) -> list[Curve]:
    """The curves that both runs agree with, by name; where there is none, those of one run, if the other is right: some
    mistakes show in one only."""
    if not all(run.comparable for run in both):
        return []
    one, two = (run.matches for run in both)
    right = [any(curve.name == "right" for curve in curves) for curves in (one, two)]
    return [curve for curve in one if curve.name in {c.name for c in two}] or two * right[0] or one * right[1]


def judge_train(transcript: Transcript) -> PartResult:
    """Right, changed (a note), or wrong: without clipping and with it."""
    both = []
    for setting in (laws.TRAIN, laws.TRAIN_CLIPPED):
        answers = answers_of(setting.name, transcript)
        if broken := unusable("train", answers):
            return broken
        losses, norms, rows = (answer.tensor for answer in answers[:3])
        assert losses is not None
        assert norms is not None
        assert rows is not None
        batches = [[row for row in batch if row != train_case.NO_ROW] for batch in rows.tolist()]
        both.append(Run(setting, losses.float(), norms.float(), batches))
    result = outcome_of(both)
    answers = [a for setting in (laws.TRAIN, laws.TRAIN_CLIPPED) for a in answers_of(setting.name, transcript)]
    if any(answer.facts.get("graph kept") for answer in answers):
        words = "losses are kept as tensors with their graph: memory grows with every step"
        result.findings.append(Finding("plain numbers kept", words, "Losses are recorded as numbers.", False))
    add_error_after(result, answers, "losses were recorded")
    return result


def outcome_of(both: list[Run]) -> PartResult:
    """The first that holds: wrong batches, the right curve, a known mistake, another optimizer or schedule."""
    for run in both:
        if run.batches and (fault := train_case.fault_of_batches(run.batches)):
            rows = "; ".join(str(batch[:6]) for batch in run.batches[:3])
            found = Diagnosis((fault[0],), "how the text is cut into batches", fault[1])
            return failed("train", f"rows of the text in the first steps: {rows}", found)
    result = PartResult("train", "passed", tolerance=train_case.TOLERANCE)
    matches = matches_of(both)
    if any(curve.name == "right" for curve in matches):
        return result
    if matches:
        others = tuple(curve.name for curve in matches[1:])
        found = Diagnosis((matches[0].name,), "the training loop", matches[0].what, others)
        return failed("train", first_difference(both), found)
    if words := another_schedule(both[0], all(run.comparable for run in both)):
        says = "The assignment's baseline uses AdamW."
        result.findings.append(Finding("another optimizer or schedule", f"{words}: not comparable", says, False))
        return result
    return failed("train", first_difference(both))


def another_schedule(run: Run, comparable: bool) -> str:
    """In words that the first step is right and the loss falls, as with another optimizer or schedule; "" if not so."""
    if min(len(run.losses), len(run.norms)) < 2 or not float(run.losses[-1]) < float(run.losses[0]):
        return ""
    if not comparable:
        return "the loss falls, but what each step was trained on is not known"
    loss, norm = train_case.curve(laws.TRAIN, run.batches[:1])
    if not (close(run.losses[:1], loss) and close(run.norms[:1], norm)):
        return ""
    return "the first step is right and the loss falls; the rest follows another optimizer or schedule"


def first_difference(both: list[Run]) -> str:
    """The first number that differs."""
    for run in both:
        numbers = {"loss": run.losses, "gradient norm": run.norms}
        for name, yours in numbers.items():
            if len(yours) != STEPS:
                return f"{len(yours)} numbers for {name}, expected {STEPS} (one a step)"
        if not run.comparable:
            continue
        right = train_case.curve(run.setting, run.batches)
        for (name, yours), expected in zip(numbers.items(), right, strict=True):
            for step in range(STEPS):
                if not close(yours[step : step + 1], expected[step : step + 1]):
                    values = f"yours {float(yours[step]):.6g}, expected {float(expected[step]):.6g}"
                    clipping = " with clipping" * (run.setting is laws.TRAIN_CLIPPED)
                    return f"{name} of step {step + 1}{clipping}: {values}"
    return "losses and gradient norms differ"
