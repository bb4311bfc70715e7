from dataclasses import replace

from hectogpt import LinearDecay, Run


def no_warmup(run: Run) -> Run:
    """The first step has the full learning rate.

    Source: with a warm-up, Goyal et al. 2017, 1706.02677; Kalra and Barkeshli 2024, 2406.09405.
    Claim: worse; early steps at full rate can diverge.
    Expected: tie.
    """
    return replace(run, schedule=LinearDecay(warmup=0, hold=0.5))
