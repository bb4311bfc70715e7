from dataclasses import replace

from hectogpt import Constant, Run


def constant(run: Run) -> Run:
    """The learning rates stay where they are, from the first step to the last.

    Source: with a decay to zero, Bergsma et al. 2025, 2502.15938.
    Claim: worse; the decay is worth more than half of the compute of some runs.
    Expected: worse, 0.08.
    """
    return replace(run, schedule=Constant())
