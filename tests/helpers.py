"""What tests of several modules share: weights that leave nothing trivial, a corpus with something to learn, a run of
a few seconds."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hectogpt.data import Corpus, open_corpus
from hectogpt.model import ModelConfig
from hectogpt.model.fused_ce import How, fused_losses
from hectogpt.serialization import diff
from hectogpt.training.evaluate import RunResult
from hectogpt.training.optim import AdamW
from hectogpt.training.run import Data, LinearDecay, Run
from hectogpt.training.session import Session

ROOT = Path(__file__).resolve().parent.parent
TINY = ModelConfig(d_model=16, n_heads=2, n_layers=2, context_length=32, vocab_size=50257)

WORDS = ["the", "union", "of", "states", "has", "met", "debated", "peace,", "war", "&", "1790", "liberty;", "é", "😀"]
AnyModule = TypeVar("AnyModule", bound=nn.Module)


def peaked(model: AnyModule, seed: int = 0, scale: float = 0.5) -> AnyModule:
    """Give a model, in place, weights with uneven attention, norms and biases that matter; returns it.

    Matrices have the standard deviation `scale`, everything else 0.3; gains of norms lie around 1. The same seed gives
    the same weights in every dtype.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            draw = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            is_gain = re.search(r"(norm|ln_.)\.weight", name) is not None
            p.copy_(draw * (scale if p.ndim == 2 else 0.3) + is_gain)
    return model


def one_in(count: int, values: Iterable[Any], name: Callable[[Any], str] | None = None) -> list[Any]:
    """A test's parameters: the first of every `count` values, and with --thorough the others."""
    marks: list[Any] = [(), *[pytest.mark.thorough] * (count - 1)]
    return [pytest.param(v, id=name and name(v), marks=marks[n % count]) for n, v in enumerate(values)]


def sections_changed(before: Run, after: Run) -> set[str]:
    """The sections (or plain fields) in which two runs differ, except the recipe's name."""
    return {name.split(".")[0] for name in diff(before, after)} - {"recipe"}


def fused_loss(x: Tensor, weight: Tensor, targets: Tensor, **options: Any) -> Tensor:
    """The first of what `fused_losses` gives. options: its own, and the fields of How."""
    how = How(**{field.name: options.pop(field.name) for field in fields(How) if field.name in options})
    return fused_losses(x, weight, targets, **options, how=how)[0]


def write_tokens(folder: Path, n_documents: int = 120) -> Path:
    """A corpus of documents of 200 small ids, split by their hash: each id is often its predecessor plus one."""
    generator = np.random.default_rng(0)
    splits: dict[str, list[np.ndarray]] = {"train": [], "dev": [], "test": []}
    for _ in range(n_documents):
        steps = np.where(generator.random(200) < 0.8, 1, generator.integers(0, 300, 200))
        ids = (np.cumsum(steps) % 300).astype("<u2")
        number = int.from_bytes(hashlib.sha256(ids.tobytes()).digest()[:8], "big") / 2**64
        splits["train" if number < 0.85 else "dev" if number < 0.925 else "test"].append(np.append(ids, 50256))
    folder.mkdir(exist_ok=True)
    for split, documents in splits.items():
        np.concatenate(documents).astype("<u2").tofile(folder / f"{split}.bin")
    return folder


def tiny_corpus(folder: Path, n_documents: int = 120) -> Corpus:
    """A corpus of `write_tokens` in `folder`."""
    return open_corpus(str(write_tokens(folder / "tokens", n_documents)))


def small_run(**changes: object) -> Run:
    """Six steps of a tiny GPT-2 in float32 on one thread; `changes` are fields of the Run."""
    run = Run(
        model=TINY,
        data=Data(batch_size=8, seq_len=32),
        optim=AdamW(lr=3e-3, weight_decay=0.0),
        schedule=LinearDecay(warmup=2),
        steps=6,
        device="cpu",
        dtype="float32",
        head_dtype="float32",
        threads=1,
    )
    return replace(run, **changes)  # type: ignore[arg-type]


def shrunk(run: Run, steps: int = 3, layers: int = 2, rows: int = 2, dtype: str = "float32") -> Run:
    """A run with all its parts at a size for a test: rows of 16 tokens, 12 numbers a token, one thread."""
    model = replace(run.model, d_model=12, n_heads=2, n_layers=layers, context_length=16, vocab_size=50257)
    data = replace(run.data, batch_size=rows, seq_len=16)
    machine: dict[str, Any] = {"dtype": dtype, "head_dtype": dtype, "device": "cpu", "threads": 1}
    return replace(run, model=model, data=data, steps=steps, **machine)


def train(run: Run, corpus: Corpus) -> RunResult:
    """Train a run to its end, without a folder, and score it."""
    session = Session.open(run, corpus)
    for _ in session.steps():
        pass
    session.evaluate()
    return session.result()


def prose(seed: int, n_words: int) -> str:
    rng = random.Random(seed)
    return "".join(rng.choice(WORDS) + rng.choice([" ", " ", " ", " ", "\n", "\n\n"]) for _ in range(n_words))
