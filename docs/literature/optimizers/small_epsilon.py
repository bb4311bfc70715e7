from dataclasses import replace

from hectogpt import Muon, PerKind, Run


def small_epsilon(run: Run) -> Run:
    """AdamW's epsilon of 1e-10 in all tables and the head, as rows of rare tokens like it.

    Source: Kingma and Ba 2014, 1412.6980, with 1e-8; Wortsman et al. 2023, 2309.14322, for smaller ones.
    Claim: better; a large epsilon stops parameters with small gradients.
    Expected: worse, 0.02; the base's epsilons were found on its own texts.
    """
    if not isinstance(run.optim, Muon):
        return run
    rest = replace(run.optim.rest, eps=1e-10, epsilons=PerKind())
    return replace(run, optim=replace(run.optim, rest=rest))
