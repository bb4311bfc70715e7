from dataclasses import replace

from hectogpt import Run


def unit_embeddings(run: Run) -> Run:
    """Embeddings start with a standard deviation of 1 instead of 0.02.

    Source: nanochat (2025); Takase et al. 2023, 2312.16903.
    Claim: better; a stream of size 1 keeps the norms' gradients small.
    Expected: worse, 0.02; rows of rare tokens stay near what was drawn.
    """
    return replace(run, init=replace(run.init, embedding=1.0))
