"""A training run: its description, optimizers and schedules, the loop, what it leaves on disk."""

import sys

from hectogpt.upward import TrainPackage

sys.modules[__name__].__class__ = TrainPackage  # so that hectogpt.train(run) works; upward.py says why
