from dataclasses import replace

from hectogpt import Run


def no_residual_scaling(run: Run) -> Run:
    """The two matrices that write into the residual stream start as large as the others.

    Source: with the scaling, Radford et al. 2019 (GPT-2).
    Claim: worse; with depth the stream grows.
    Expected: tie; there are two layers.
    """
    return replace(run, init=replace(run.init, residual=run.init.linear))
