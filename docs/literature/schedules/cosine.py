from dataclasses import replace

from hectogpt import Cosine, Run


def cosine(run: Run) -> Run:
    """A warm-up of five steps, then half a cosine down to 0.

    Source: Loshchilov and Hutter 2016, 1608.03983.
    Claim: tie with a line (Hoffmann et al. and later); worse than a line to zero (2502.15938).
    Expected: tie.
    """
    return replace(run, schedule=Cosine(warmup=5))
