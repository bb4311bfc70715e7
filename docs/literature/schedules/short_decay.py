from dataclasses import replace

from hectogpt import LinearDecay, Run


def short_decay(run: Run) -> Run:
    """The learning rates stay at their maximum until four fifths of the run are over.

    Source: warm-up, stable, decay: MiniCPM, 2404.06395; Haegele et al. 2024, 2405.18392.
    Claim: tie with a cosine, with a decay of a fifth of the run.
    Expected: worse, 0.01.
    """
    return replace(run, schedule=LinearDecay(warmup=5, hold=0.8))
