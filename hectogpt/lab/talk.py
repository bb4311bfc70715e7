"""The judge's side of a contestant's process (lab/contestant.py): requests, checked answers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from hectogpt import hardware
from hectogpt.process import Child
from hectogpt.sandbox import Policy

HANGS = 300.0  # seconds without a message


class Talk:
    """A conversation with a new process that runs a task of an arm.

    Attributes:
        frames: its messages; closing them ends the process.
        peak_mb: the largest memory that was measured from outside.
    """

    def __init__(
        self, request: dict[str, Any], environment: Mapping[str, str], policy: Policy, most: int
    ) -> None:
        """Start the process. most: bytes of a message."""
        self.child = Child("hectogpt.lab.contestant", Path("/"), environment, policy)
        self.frames = self.child.frames(
            request, first_seconds=HANGS, seconds=HANGS, body_bytes=most
        )
        self.peak_mb = 0.0

    def send(self, numbers: np.ndarray | bytes) -> None:
        """Send values without a message."""
        self.child.send({}, numbers if isinstance(numbers, bytes) else numbers.tobytes())

    def receive(self) -> tuple[dict[str, Any], bytes]:
        """The next message and its body. Raises EOFError if the process ends instead."""
        for frame in self.frames:
            return frame
        raise EOFError

    def finish(self) -> str:
        """Wait for the process to end properly, and return its attempts to leave the sandbox.

        Raises EOFError if it ends in any other way.
        """
        attempts = "; ".join(map(str, self.receive()[0]["attempts"]))
        for message, _ in self.frames:
            raise ValueError(f"more than asked: {message!r:.100}")
        if self.child.ending is None or self.child.ending.error:
            raise EOFError
        return attempts

    def fault(self, error: Exception) -> str:
        """Describe the fault of a process whose answers caused an error."""
        ending = self.child.ending
        if ending is None or not isinstance(error, EOFError):
            return f"it sends what is no answer: {error!r:.300}"
        how = f"its process ended ({ending.how}, exit code {ending.code})"
        return ending.last_words[-2000:] or how

    def measure(self) -> float:
        """Measure the process's memory. Returns the CPU seconds that it has used."""
        megabytes, seconds = hardware.taken_by(self.child.process.pid)
        self.peak_mb = max(self.peak_mb, megabytes)
        return seconds


def clean_weights(data: bytes) -> tuple[int, bytes]:
    """The number of values in a safetensors file, and the same tensors written again.

    Nothing else in the file survives. Raises the library's error for an invalid file.
    """
    tensors = safetensors.numpy.load(data)
    return sum(tensor.size for tensor in tensors.values()), safetensors.numpy.save(tensors)


def nats(body: bytes, vocab: int, targets: np.ndarray) -> np.ndarray:
    """Losses of target ids, float64 [rows].

    Args:
        body: float32 [rows, vocab], logits or log-probabilities (which are logits too).
        vocab: the size of the vocabulary.
        targets: the ids.

    Raises ValueError if a target has no probability.
    """
    logits = np.frombuffer(body, np.float32).reshape(len(targets), vocab)
    most = logits.max(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        total = np.log(np.exp(logits - most).sum(axis=1, dtype=np.float64)) + most[:, 0]
        losses: np.ndarray = total - logits[np.arange(len(targets)), targets]
    if not np.isfinite(losses).all():
        raise ValueError("tokens have no probability")
    return losses
