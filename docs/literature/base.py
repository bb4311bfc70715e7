"""The base of the atlas: what every idea of this folder is compared with."""

from hectogpt import Induction, NgramHash, Run, Spelling, replace


def base(run: Run) -> Run:
    """`half_minute` with two attention heads of 32 dimensions instead of one of 64.

    Some ideas change how several heads work together. It is small, so that all ideas can have at least five seeds on
    two texts. The scale of the scores is doubled, because a normalised head of half the size has products of half the
    size. It is without `induction_spelling`, a rung that came after the first trials.
    """
    kept = (part for part in run.model.inputs if not isinstance(part, Induction | Spelling))
    inputs = tuple(replace(part, rows=95_000) if isinstance(part, NgramHash) else part for part in kept)
    return replace(run, model=replace(run.model, n_heads=2, attention_scale=0.24, inputs=inputs))
