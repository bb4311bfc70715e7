from dataclasses import replace

from hectogpt import (
    AttentionPart,
    NoPositions,
    Positions,
    Rotary,
    Run,
)


def _instead_of_rotary(run: Run, *parts: AttentionPart, positions: Positions | None = None) -> Run:
    kept = tuple(part for part in run.model.attention_parts if not isinstance(part, Rotary))
    model = replace(run.model, attention_parts=(*kept, *parts), positions=positions or NoPositions())
    return replace(run, model=model)


def rotary_whole(run: Run) -> Run:
    """Rotary positions as published: all dimensions of each head rotate, with base 10,000.

    Source: Su et al. 2021, 2104.09864; half of them in modded-nanogpt (2025) and GPT-J.
    Claim: worse; those who rotate a part of the dimensions report slightly lower losses.
    Expected: tie.
    """
    return _instead_of_rotary(run, Rotary())
