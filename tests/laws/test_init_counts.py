"""First weights from counts: the bigram they claim to be, of the tokens that are read and no others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import tiny_corpus

from hectogpt.data import tokens_read
from hectogpt.lab import recipes
from hectogpt.model import Init, ModelConfig, Transformer
from hectogpt.model.inputs import EmbeddingNorm
from hectogpt.model.lm_head import LMHeadConfig
from hectogpt.model.parts import NoPositions, RMSNorm
from hectogpt.training import precision, setup
from hectogpt.training.first_weights import BigramInit

TOKENS = 40
CONFIG = ModelConfig(
    39,
    3,
    1,
    64,
    50,
    norm=RMSNorm(),
    inputs=(EmbeddingNorm(),),
    positions=NoPositions(),
    lm_head=LMHeadConfig(bias=True),
)
INIT = Init(embedding=1.0, residual=0.0, head=0.0)


@pytest.fixture(scope="module")
def text() -> np.ndarray:
    """Rows of a chain in which each of 40 tokens has a few likely followers."""
    generator = np.random.default_rng(0)
    table = generator.dirichlet(np.full(TOKENS, 0.1), TOKENS)
    steps = [3]
    for draw in generator.random(64 * 400):
        steps.append(min(int(table[steps[-1]].cumsum().searchsorted(draw)), TOKENS - 1))
    return np.array(steps[1:]).reshape(400, 64)


def loss(model: Transformer, text: np.ndarray) -> float:
    ids = torch.from_numpy(text)
    with torch.no_grad():
        return model.get_loss_on_batch(ids).item()


def test_the_first_loss_is_near_the_bigrams(text: np.ndarray) -> None:
    model = Transformer(CONFIG, INIT)
    before = model.embeddings.weight[TOKENS:].clone()
    BigramInit(smoothing=1.0, head=0.3).apply(model, text)
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
    assert torch.equal(model.embeddings.weight[TOKENS:], before)
    assert not model.lm_head.weight[TOKENS:].any()


def test_the_same_with_a_compact_vocabulary_and_each_time(text: np.ndarray) -> None:
    whole, compact = Transformer(CONFIG), Transformer(replace(CONFIG, lm_head=LMHeadConfig(True, compact_vocab=True)))
    compact.lm_head.compact(torch.from_numpy(np.unique(text)))
    for model in (whole, compact):
        model.init_weights(INIT, seed=0)
    for model in (whole, compact, compact):
        BigramInit().apply(model, text)
    assert loss(compact, text) == pytest.approx(loss(whole, text), abs=1e-3)
    again = compact.lm_head.weight.clone()
    BigramInit().apply(compact, text)
    assert torch.equal(compact.lm_head.weight, again)


def test_a_run_counts_what_it_reads(tmp_path: Path) -> None:
    corpus = tiny_corpus(tmp_path, n_documents=60)
    run = recipes.recipe("counts")
    run = replace(run, data=replace(run.data, batch_size=2, seq_len=16), steps=3, device="cpu", threads=1)
    run = replace(run, model=replace(run.model, d_model=16, n_layers=1))
    model = setup.build_model(run, precision.choose(run), corpus)
    read = tokens_read(corpus.train, 16, 2, run.seed, 3)
    rows = model.lm_head.row_of_token
    assert rows is not None
    counts = np.bincount(read.ravel(), minlength=50257) + 0.1
    bias = model.lm_head.bias[rows].detach().numpy()
    seen = np.unique(read)
    np.testing.assert_allclose(bias[seen], np.log(counts / counts.sum())[seen], rtol=1e-4)
