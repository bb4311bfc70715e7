from dataclasses import replace

from hectogpt import Run


def no_clipping(run: Run) -> Run:
    """Gradients are not clipped.

    Source: Pascanu et al. 2012, 1211.5063 (with clipping).
    Claim: worse; clipping prevents jumps. Adam and Muon do not see a gradient's size.
    Expected: tie.
    """
    return replace(run, gradient_clipping=None)
