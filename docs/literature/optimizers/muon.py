from dataclasses import replace

from hectogpt import Muon, Run, SOAPMuon


def muon(run: Run) -> Run:
    """Muon without SOAP's rescaling before it.

    Source: Jordan 2024, kellerjordan.github.io/posts/muon; both in modded-nanogpt's optimizer track.
    Claim: worse; the track's SOAP-Muon needs 2,690 steps, Muon about 3,250.
    Expected: worse, 0.02.
    """
    fields = {name: value for name, value in vars(run.optim).items() if name not in ("beta", "every")}
    return replace(run, optim=Muon(**fields) if isinstance(run.optim, SOAPMuon) else run.optim)
