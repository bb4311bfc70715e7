"""Held-out loss: every token once, exactly, and a model that is left as it was."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import TINY, tiny_corpus

from hectogpt.data import Corpus
from hectogpt.model import Init, Transformer
from hectogpt.training.evaluate import evaluate


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return tiny_corpus(tmp_path_factory.mktemp("text"))


def test_evaluation_scores_every_token_once_exactly(corpus: Corpus) -> None:
    model = Transformer(TINY, Init(head=0.5)).double()
    tokens = corpus.dev[: 32 * 9 + 7]  # eight full rows after the first token, and a short one
    nats = []
    stream = torch.from_numpy(tokens.astype(np.int64))
    for start in range(0, len(tokens) - 1, 32):
        stop = min(start + 32, len(tokens) - 1)
        logits = model(stream[start:stop][None])[0].log_softmax(-1)
        nats += [-logits[i, stream[start + i + 1]].item() for i in range(stop - start)]
    score = evaluate(model, tokens, corpus.tokenizer.token_bytes)
    assert score.losses == pytest.approx(nats, rel=1e-6)
    assert score.tokens == len(tokens) - 1 == len(nats)
    assert score.loss == pytest.approx(np.mean(nats), rel=1e-9)
    n_bytes = sum(len(corpus.tokenizer.decode_bytes([int(t)])) for t in tokens[1:] if t != 50256)
    assert score.bits_per_byte == pytest.approx(sum(nats) / math.log(2) / n_bytes, rel=1e-9)


@pytest.mark.parametrize("n", [2, 3, 32, 33, 34, 65])
def test_edges_of_the_rows(corpus: Corpus, n: int) -> None:
    """A last row of any length, and none."""
    score = evaluate(Transformer(TINY, Init(head=0.0)), corpus.dev[:n], corpus.tokenizer.token_bytes, rows=2)
    assert score.tokens == n - 1
    assert score.loss == pytest.approx(math.log(50257))


class SpoiltModel(Transformer):
    def losses(self, *_: object, **__: object) -> tuple[torch.Tensor, torch.Tensor]:
        assert not self.training
        raise RuntimeError("spoilt")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", [Transformer, SpoiltModel])
def test_the_mode_is_restored_whatever_happens(corpus: Corpus, training: bool, kind: type[Transformer]) -> None:
    model = kind(TINY).train(training)
    if kind is SpoiltModel:
        with pytest.raises(RuntimeError, match="spoilt"):
            evaluate(model, corpus.dev[:40], corpus.tokenizer.token_bytes)
    else:
        evaluate(model, corpus.dev[:40], corpus.tokenizer.token_bytes)
    assert all(module.training is training for module in model.modules())
    assert all(p.grad is None for p in model.parameters())
