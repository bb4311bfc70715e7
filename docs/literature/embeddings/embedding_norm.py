from dataclasses import replace

from hectogpt import EmbeddingNorm, Run


def embedding_norm(run: Run) -> Run:
    """A norm after the embeddings.

    Source: BLOOM, 2211.05100; modded-nanogpt.
    Claim: better; more stable training. BLOOM's authors found worse zero-shot results at 1.3B.
    Expected: tie.
    """
    return replace(run, model=replace(run.model, inputs=(*run.model.inputs, EmbeddingNorm())))
