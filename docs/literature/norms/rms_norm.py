from dataclasses import replace

from hectogpt import RMSNorm, Run


def rms_norm(run: Run) -> Run:
    """RMSNorm with a gain in place of LayerNorm: no mean, no bias.

    Source: Zhang and Sennrich 2019, 1910.07467.
    Claim: tie in quality, and faster.
    Expected: tie.
    """
    return replace(run, model=replace(run.model, norm=RMSNorm(gain=True)))
