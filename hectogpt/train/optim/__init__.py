"""Optimizers: each is a frozen config whose `build(model)` gives the object that steps."""

from hectogpt.train.optim.adamw import AdamW
from hectogpt.train.optim.groups import Optim, OptimizerGroup, PerKind, kinds
from hectogpt.train.optim.memory import MemorySGD
from hectogpt.train.optim.muon import Muon
from hectogpt.train.optim.soap import SOAPMuon

__all__ = ["AdamW", "MemorySGD", "Muon", "Optim", "OptimizerGroup", "PerKind", "SOAPMuon", "kinds"]
