from dataclasses import replace

from hectogpt import Run


def zero_residual(run: Run) -> Run:
    """The two matrices that write into the residual stream start at zero.

    Source: Zhang et al. 2019 (Fixup), 1901.09321; modded-nanogpt.
    Claim: better; stable without norms, and part of a record.
    Expected: tie.
    """
    return replace(run, init=replace(run.init, residual=0.0))
