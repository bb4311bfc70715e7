from dataclasses import replace

from hectogpt import AdamW, Muon, Run


def _rest_of(run: Run) -> AdamW:
    """The AdamW of everything that is no matrix."""
    return run.optim.rest if isinstance(run.optim, Muon) else AdamW()


def adamw(run: Run) -> Run:
    """AdamW for the matrices too, at its own learning rate.

    Source: Loshchilov and Hutter 2017, 1711.05101, against Muon (Jordan 2024) and SOAP, 2409.11321.
    Claim: worse; Muon needs about half of the compute for the same loss (2502.16982).
    Expected: worse, 0.03.
    Sweep: optim.lrs.matrix of 0.002, 0.005, 0.01.
    """
    rest = _rest_of(run)
    return replace(run, optim=replace(rest, lrs=replace(rest.lrs, matrix=0.005)))
