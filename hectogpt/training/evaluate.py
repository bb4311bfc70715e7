"""The results of a run: held-out loss, and all reported numbers.

Every held-out token after the first is scored once, in float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hectogpt.data import Tokenizer
from hectogpt.display import facts_text
from hectogpt.errors import DataError
from hectogpt.model import Transformer
from hectogpt.model.transformer import evaluating
from hectogpt.training.run import Run

SEQ_LEN = 512  # tokens per row; only scores with the same row length can be compared


@dataclass(frozen=True)
class EvalResult:
    """Held-out cross entropy.

    Attributes:
        loss: nats per token.
        bits_per_byte: bits per byte of the text.
        tokens: how many tokens were scored.
        losses: the loss of each token in nats, float64 [tokens].
    """

    loss: float
    bits_per_byte: float
    tokens: int
    losses: np.ndarray = field(default_factory=lambda: np.zeros(0), repr=False, compare=False)

    def __str__(self) -> str:
        """ "2.4061 nats per token, 0.8620 bits per byte"."""
        return f"{self.loss:.4f} nats per token, {self.bits_per_byte:.4f} bits per byte"


def cut(stream: np.ndarray, seq_len: int) -> list[np.ndarray]:
    """Cut a stream [n >= 2] into the sequences to score, as arrays [rows, length + 1].

    Each sequence begins with the last token of the one before, so every token after the first is a
    target exactly once. The last array may be a single shorter row.
    """
    seq_len = min(seq_len, len(stream) - 1)
    whole = (len(stream) - 1) // seq_len
    parts = [stream[np.arange(whole)[:, None] * seq_len + np.arange(seq_len + 1)]]
    if whole * seq_len + 1 < len(stream):
        parts.append(stream[None, whole * seq_len :])
    return parts


@torch.no_grad()
def evaluate(
    model: Transformer,
    tokens: np.ndarray,
    token_bytes: np.ndarray,
    seq_len: int = SEQ_LEN,
    rows: int = 8,
) -> EvalResult:
    """Score every token after the first once, in rows of `seq_len` that do not overlap.

    A token is predicted from the earlier tokens of its row: at most `seq_len`, and at most the
    context length. Products are computed in float32 and sums in float64.

    Args:
        model: the model.
        tokens: ids [n].
        token_bytes: the number of bytes of each id's text [vocab]. End-of-text tokens are scored
            too, and have 0 bytes.
        seq_len: tokens per row.
        rows: rows per batch.

    Raises UserError (DATA) for fewer than two tokens.
    """
    seq_len = min(seq_len, model.config.context_length, len(tokens) - 1)
    if seq_len < 1:
        raise DataError(f"{len(tokens)} held-out tokens", why="scoring needs at least 2")
    device = model.embeddings.weight.device
    total = 0.0
    losses = []
    with evaluating(model):
        for part in cut(tokens, seq_len):
            for at in range(0, len(part), rows):
                some = torch.from_numpy(part[at : at + rows].astype(np.int64)).to(device)
                loss, each = model.losses(some[:, :-1], some[:, 1:], reduction="sum")
                total += loss.item()
                losses.append(each.cpu().double().numpy().ravel())
    n = len(tokens) - 1
    n_bytes = int(token_bytes[tokens[1:]].sum())
    return EvalResult(
        total / n, total / (math.log(2) * max(n_bytes, 1)), n, np.concatenate(losses)
    )


@dataclass(frozen=True)
class RunResult:
    """The numbers that a run reports, and its model.

    Attributes:
        corpus: the name of the corpus.
        corpus_sha256: split -> hash of its tokens.
        losses: the loss of every step, in nats per token, computed before the update.
        grad_norms: the gradient norm of every step, before clipping.
        train_tokens: how many tokens were read.
        params: how many parameters the model has.
        seconds: the time that building, compiling and training took, without scoring.
        peak_mb: the process's peak memory up to the end of training, in MiB; on a GPU, torch's.
        machine: device, dtypes and threads, as plain values.
        scores: split -> held-out score, for the splits that were scored.
        folder: the folder to which the result was written. None if it was not written.
    """

    run: Run
    corpus: str
    corpus_sha256: dict[str, str]
    losses: tuple[float, ...]
    grad_norms: tuple[float, ...]
    train_tokens: int
    params: int
    seconds: float
    peak_mb: float
    machine: dict[str, str | int]
    scores: dict[str, EvalResult]
    model: Transformer = field(repr=False)
    tokenizer: Tokenizer = field(repr=False)
    folder: Path | None = None

    @property
    def dev_loss(self) -> float | None:
        """The held-out loss on the dev split, in nats per token, or None if it was not scored."""
        return self.scores["dev"].loss if "dev" in self.scores else None

    @property
    def train_loss_last(self) -> float:
        """The last batch's loss, before its update, as in the assignment; nan before any step."""
        return self.losses[-1] if self.losses else float("nan")

    @property
    def train_loss_last10(self) -> float:
        """The mean loss of the last ten batches, or of all if fewer; nan before any step."""
        return float(np.mean(self.losses[-10:])) if self.losses else float("nan")

    def __repr__(self) -> str:
        """Format the result for `print` and notebooks."""
        facts = {f"{split} loss": str(score) for split, score in self.scores.items()}
        facts["last training loss"] = f"{self.train_loss_last:.4f}"
        facts["parameters"] = f"{self.params:,}"
        facts["tokens"] = f"{self.train_tokens:,} of {self.corpus}"
        facts["seconds"] = (
            f"{self.seconds:.1f} (threads: {self.machine['threads']}, {self.machine['device']})"
        )
        facts |= {} if self.folder is None else {"folder": str(self.folder)}
        return facts_text(
            f"{self.run.recipe}, seed {self.run.seed}, after {len(self.losses)} steps", facts
        )

    def summary(self) -> dict[str, Any]:
        """The numbers as plain values, for summary.json and records."""
        scored = {f"{split}_loss": score.loss for split, score in self.scores.items()}
        scored |= {f"{split}_bpb": score.bits_per_byte for split, score in self.scores.items()}
        return {
            "recipe": self.run.recipe,
            "corpus": self.corpus,
            "corpus_sha256": self.corpus_sha256,
            "tokenizer_sha256": self.tokenizer.sha256,
            "seed": self.run.seed,
            "steps": len(self.losses),
            "train_tokens": self.train_tokens,
            "params": self.params,
            "train_loss_first": self.losses[0] if self.losses else None,
            "train_loss_last": self.train_loss_last if self.losses else None,
            "train_loss_last10": self.train_loss_last10 if self.losses else None,
            "seconds": self.seconds,
            "peak_mb": self.peak_mb,
            "machine": self.machine,
            **scored,
        }
