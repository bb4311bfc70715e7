from dataclasses import dataclass, replace

from hectogpt import AfterStep, Run


@dataclass(frozen=True)
class Averaged(AfterStep):
    """An exponential average of the weights (EMA), which is the model at the end; how far they are from it."""

    decay: float = 0.9

    def after_step(self, session):
        distance = 0.0
        for name, weight in session.model.named_parameters():
            average = session.kept.setdefault(name, weight.clone())
            average.lerp_(weight, 1 - self.decay)
            distance += float((weight - average).square().sum())
            if session.step == session.run.steps:
                weight.copy_(average)
        return {"distance": distance**0.5}


def averaged(run: Run) -> Run:
    """The model at the end is an exponential average of its weights, over about ten steps.

    Source: Polyak and Juditsky 1992; Morales-Brotons et al. 2024, 2411.18704.
    Claim: better with a constant learning rate; a tie where it decays to zero.
    Expected: tie.
    """
    return replace(run, after_step=(*run.after_step, Averaged()))
