"""Schedules: the factor on every learning rate at each step."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from hectogpt.serialization import Value
from hectogpt.training.optim import Kind


@dataclass(frozen=True)
class Schedule(Value):
    """A factor on every learning rate, a pure function of the step."""

    @abstractmethod
    def factor(self, step: int, steps: int) -> float:
        """The factor at 0-based `step` of `steps`."""

    def of_kind(self, kind: Kind, step: int, steps: int) -> float:
        """The factor of one kind of parameters; a class that defines it has schedules by kind."""
        return self.factor(step, steps)


@dataclass(frozen=True)
class Constant(Schedule):
    """The same learning rate at every step."""

    def factor(self, step: int, steps: int) -> float:
        return 1.0


@dataclass(frozen=True)
class LinearDecay(Schedule):
    """Rise over `warmup` steps (from 1/warmup, never 0), stay until `hold` of the run is over, fall in a straight line.

    The last step's factor is one decrement above `final` (2502.15938: decay to zero).
    """

    old_names: ClassVar[tuple[str, ...]] = ("Linear",)

    warmup: int = 0
    hold: float = 0.0
    final: float = 0.0

    def factor(self, step: int, steps: int) -> float:
        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        start = max(self.hold * steps, min(self.warmup, steps))
        fall = (steps - step) / (steps - start) if step >= start else 1.0
        return rise * (self.final + (1 - self.final) * min(1.0, fall))


@dataclass(frozen=True)
class Cosine(Schedule):
    """Rise over `warmup` steps, then half a cosine down to `final` (1608.03983)."""

    warmup: int = 0
    final: float = 0.0

    def factor(self, step: int, steps: int) -> float:
        if step < self.warmup:
            return (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, steps - self.warmup)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress))
