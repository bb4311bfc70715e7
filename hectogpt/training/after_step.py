"""What is done between an optimizer's step and the next batch: averages of the weights, numbers of one's own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from hectogpt.data import Corpus
from hectogpt.model import Transformer
from hectogpt.serialization import Value


class SessionView(Protocol):
    """What a Session shows of itself here. kept: tensors by name, which checkpoints hold beside weights and optimizer.
    step: how many steps are done, of `run.steps`."""

    model: Transformer
    corpus: Corpus
    kept: dict[str, Tensor]

    @property
    def step(self) -> int: ...


@dataclass(frozen=True)
class AfterStep(Value):
    """Something that is done after every step, without gradients. What it changes in the model stays."""

    @abstractmethod
    def after_step(self, session: SessionView) -> Mapping[str, float] | None:
        """Look at the session, which is a Session, or change its model. Numbers that are returned stand in
        metrics.jsonl as `own/NAME`. What it has to remember stands in `session.kept`, so that a resume has it."""
