from dataclasses import replace

from hectogpt import Muon, Run


def weight_decay(run: Run) -> Run:
    """Weight decay of 0.1 for the matrices.

    Source: Loshchilov and Hutter 2017, 1711.05101; for Muon, Liu et al. 2025, 2502.16982.
    Claim: better in long runs.
    Expected: tie.
    """
    optim = run.optim
    return replace(run, optim=replace(optim, weight_decay=0.1)) if isinstance(optim, Muon) else run
