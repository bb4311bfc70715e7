from dataclasses import replace

from hectogpt import (
    AttentionPart,
    LearnedPositions,
    NoPositions,
    Positions,
    Rotary,
    Run,
)


def _instead_of_rotary(run: Run, *parts: AttentionPart, positions: Positions | None = None) -> Run:
    kept = tuple(part for part in run.model.attention_parts if not isinstance(part, Rotary))
    model = replace(run.model, attention_parts=(*kept, *parts), positions=positions or NoPositions())
    return replace(run, model=model)


def learned_positions(run: Run) -> Run:
    """GPT-2's table, a learned vector for each position, added to the embeddings.

    Source: Radford et al. 2019 (GPT-2); against rotary positions Su et al. 2021, 2104.09864.
    Claim: worse; rotary positions converge faster.
    Expected: worse, 0.02.
    """
    return _instead_of_rotary(run, positions=LearnedPositions())
