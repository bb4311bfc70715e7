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


def nope(run: Run) -> Run:
    """No positions at all: order comes from the causal mask (and here from smear and pairs).

    Source: Haviv et al. 2022, 2203.16634; Kazemnejad et al. 2023, 2305.19466.
    Claim: worse; slightly higher perplexity at 1.3B, though better on longer texts.
    Expected: worse, 0.01.
    """
    return _instead_of_rotary(run)
