from dataclasses import dataclass, replace

from hectogpt import AfterStep, Run


@dataclass(frozen=True)
class Lookahead(AfterStep):
    """Every `every` steps the weights go back by half of the way to where they were."""

    every: int = 5
    share: float = 0.5

    def after_step(self, session):
        for name, weight in session.model.named_parameters():
            slow = session.kept.setdefault(name, weight.clone())
            if session.step % self.every == 0:
                weight.copy_(slow.lerp_(weight, self.share))


def lookahead(run: Run) -> Run:
    """Slow weights follow the fast ones halfway, every five steps.

    Source: Zhang et al. 2019, 1907.08610.
    Claim: better; lower losses for SGD and Adam, language models of one layer among them.
    Expected: worse, 0.05; half of the way is lost.
    """
    return replace(run, after_step=(*run.after_step, Lookahead()))
