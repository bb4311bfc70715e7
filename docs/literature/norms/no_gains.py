from dataclasses import replace

from hectogpt import RMSNorm, Run


def no_gains(run: Run) -> Run:
    """RMSNorm without any learned numbers.

    Source: OLMo, 2402.00838 (no gain, no bias); modded-nanogpt.
    Claim: tie.
    Expected: tie.
    """
    return replace(run, model=replace(run.model, norm=RMSNorm()))
