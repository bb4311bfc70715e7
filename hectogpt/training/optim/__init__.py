"""Optimizers: frozen configs whose `build(model)` returns the object that takes steps."""

from hectogpt.training.optim.adamw import AdamW
from hectogpt.training.optim.groups import Kind, Optim, OptimizerGroup, PerKind, kinds
from hectogpt.training.optim.muon import Muon, SOAPMuon

__all__ = ["AdamW", "Kind", "Muon", "Optim", "OptimizerGroup", "PerKind", "SOAPMuon", "kinds"]
