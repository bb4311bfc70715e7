from dataclasses import replace

from hectogpt import Run


def no_biases(run: Run) -> Run:
    """Linear maps without biases.

    Source: Chowdhery et al. 2022 (PaLM), 2204.02311.
    Claim: tie; more stable for large models.
    Expected: tie.
    """
    return replace(run, model=replace(run.model, biases=False))
