from dataclasses import replace

from hectogpt import Run


def head_bias(run: Run) -> Run:
    """A learned number for each token, added to its logit.

    Source: many recurrent language models; left out since GPT-2.
    Claim: tie.
    Expected: tie.
    """
    return replace(run, model=replace(run.model, lm_head=replace(run.model.lm_head, bias=True)))
