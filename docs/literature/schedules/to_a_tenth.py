from dataclasses import replace

from hectogpt import LinearDecay, Run


def to_a_tenth(run: Run) -> Run:
    """The learning rates fall to a tenth instead of to 0.

    Source: Hoffmann et al. 2022, 2203.15556, against Bergsma et al. 2025, 2502.15938.
    Claim: worse than to zero.
    Expected: worse, 0.005.
    """
    return replace(run, schedule=LinearDecay(warmup=5, hold=0.5, final=0.1))
