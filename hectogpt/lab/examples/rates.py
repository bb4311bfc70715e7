"""Idea: other learning rates for some kinds of parameters.

Kinds: embedding, table (of bigrams, of value embeddings), position, matrix, head, head_bias, scalar (gains, shares).
Expected: near nothing at the top, whose learning rates were chosen by comparisons like this one.
"""

from hectogpt import AdamW, Muon, Run, replace


def change(adamw: AdamW) -> AdamW:
    """AdamW's `lrs` is a PerKind: a number for each kind that has its own, None for the others, which take `lr`."""
    return replace(adamw, lrs=replace(adamw.lrs, embedding=0.2, head=0.014))  # the top has 0.3 and 0.02


def idea(run: Run) -> Run:
    """Muon, and SOAP before Muon, take the matrices of the blocks; the AdamW in their field `rest` takes the others."""
    if isinstance(run.optim, Muon):
        return replace(run, optim=replace(run.optim, rest=change(run.optim.rest)))
    assert isinstance(run.optim, AdamW), type(run.optim)
    return replace(run, optim=change(run.optim))
