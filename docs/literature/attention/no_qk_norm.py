from dataclasses import replace

from hectogpt import QKNorm, Run


def no_qk_norm(run: Run) -> Run:
    """Queries and keys as they are, with GPT-2's scale, instead of normalised ones.

    Source: Henry et al. 2020, 2010.04245; Dehghani et al. 2023, 2302.05442 (with the norm).
    Claim: worse; the norm allows higher learning rates and prevents divergence.
    Expected: worse, 0.01.
    """
    parts = tuple(part for part in run.model.attention_parts if not isinstance(part, QKNorm))
    return replace(run, model=replace(run.model, attention_parts=parts, attention_scale=None))
