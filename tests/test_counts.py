"""A start from counts: the bigram it claims to be, of the tokens that are read and no others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from hectogpt.data import Corpus, open_corpus, tokens_read
from hectogpt.errors import UserError
from hectogpt.lab import recipes
from hectogpt.model import Init, ModelConfig, Transformer
from hectogpt.model.inputs import EmbeddingNorm
from hectogpt.model.parts import Head, NoPositions, RMSNorm
from hectogpt.train import loop, machine
from hectogpt.train.counts import BigramStart

WORDS = 40
CONFIG = ModelConfig(
    39, 3, 1, 64, 50, norm=RMSNorm(), inputs=(EmbeddingNorm(),), positions=NoPositions(), head=Head(bias=True)
)


@pytest.fixture(scope="module")
def text() -> np.ndarray:
    """Windows of a chain in which each of 40 words has a few likely followers."""
    generator = np.random.default_rng(0)
    table = generator.dirichlet(np.full(WORDS, 0.1), WORDS)
    steps = [3]
    for draw in generator.random(64 * 400):
        steps.append(min(int(table[steps[-1]].cumsum().searchsorted(draw)), WORDS - 1))
    return np.array(steps[1:]).reshape(400, 64)


def loss(model: Transformer, text: np.ndarray) -> float:
    ids = torch.from_numpy(text)
    with torch.no_grad():
        return model.get_loss_on_batch(ids).item()


def test_the_first_loss_is_near_the_bigrams(text: np.ndarray) -> None:
    model = Transformer(CONFIG, Init(embedding=1.0, residual=0.0, head=0.0))
    before = model.embeddings.weight[WORDS:].clone()
    BigramStart(smoothing=1.0, head=0.3).apply(model, text)
    counts = np.bincount(text.ravel(), minlength=50) + 0.1
    p = counts / counts.sum()
    pairs = np.zeros((50, 50))
    np.add.at(pairs, (text[:, :-1].ravel(), text[:, 1:].ravel()), 1)
    bigram = (pairs + p) / (pairs.sum(1, keepdims=True) + 1)
    unigram_loss = -np.log(p)[text[:, 1:]].mean()
    bigram_loss = -np.log(bigram)[text[:, :-1], text[:, 1:]].mean()
    assert bigram_loss + 0.5 < unigram_loss
    assert loss(model, text) < bigram_loss + 0.35 * (unigram_loss - bigram_loss)
    np.testing.assert_allclose(model.lm_head.bias.detach().numpy(), np.log(p), rtol=1e-5)
    assert torch.equal(model.embeddings.weight[WORDS:], before)
    assert not model.lm_head.weight[WORDS:].any()


def test_the_same_with_a_shared_head_and_each_time(text: np.ndarray) -> None:
    whole = Transformer(CONFIG, Init(embedding=1.0, residual=0.0, head=0.0))
    whole.init_weights(Init(embedding=1.0, residual=0.0, head=0.0), seed=0)
    used = np.unique(text)
    shared = Transformer(replace(CONFIG, head=Head(bias=True, shared=True, used=len(used))))
    shared.init_weights(Init(embedding=1.0, residual=0.0, head=0.0), seed=0)
    shared.word_rows.fill_(len(used))
    shared.word_rows[torch.from_numpy(used)] = torch.arange(len(used))
    for model in (whole, shared, shared):
        BigramStart().apply(model, text)
    assert loss(shared, text) == pytest.approx(loss(whole, text), abs=1e-3)
    again = shared.lm_head.weight.clone()
    BigramStart().apply(shared, text)
    assert torch.equal(shared.lm_head.weight, again)


def test_a_run_counts_what_it_reads(tmp_path) -> None:  # type: ignore[no-untyped-def]
    generator = np.random.default_rng(1)
    documents = [np.append(generator.integers(0, 300, 200), 50256) for _ in range(60)]
    np.concatenate(documents).astype("<u2").tofile(tmp_path / "words.bin")
    corpus: Corpus = open_corpus(str(tmp_path / "words.bin"), cache=tmp_path / "cache")
    run = recipes.recipe("counts")
    run = replace(run, data=replace(run.data, batch_size=2, window=16), steps=3, device="cpu", threads=1)
    run = replace(run, model=replace(run.model, d_model=16, n_layers=1))
    model = loop.build_model(run, machine.choose(run), corpus)
    read = tokens_read(corpus.train, 16, 2, run.seed, 3)
    assert model.word_rows is not None
    counts = np.bincount(read.ravel(), minlength=50257) + 0.1
    bias = model.lm_head.bias[model.word_rows].detach().numpy()
    seen = np.unique(read)
    np.testing.assert_allclose(bias[seen], np.log(counts / counts.sum())[seen], rtol=1e-4)


def test_a_head_without_bias_is_refused(text: np.ndarray) -> None:
    with pytest.raises(UserError, match="no bias"):
        BigramStart().apply(Transformer(replace(CONFIG, head=Head())), text)
