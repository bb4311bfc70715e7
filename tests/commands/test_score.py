"""`hectogpt score`: the loss of a run is the one that the run has; other tokenizers read the same text."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from command import TINY, Here, assert_good_error
from model_folders import write_model
from model_kinds import KINDS

from hectogpt import errors
from hectogpt.cli.options import ScoreOptions
from hectogpt.cli.score import encoded_anew, score_model
from hectogpt.data import Tokenizer, open_corpus
from hectogpt.interop import open_model
from hectogpt.lab.ngram import NgramModels

TEXT = "\n\n".join(f"Document {n}: the hello world of well-known words, number {n * 7}." for n in range(400))


@pytest.mark.thorough
def test_a_run_has_the_score_of_its_summary(tmp_path: Path, here: Here) -> None:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    options = ["--corpus", "text.txt", "--quiet", "--out", "run", "--dtype", "float32", "--head-dtype", "float32"]
    here.ok("train", "baseline", *TINY, *options)
    here.ok("export", "run", "exported")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))
    found = json.loads(here("score", "run", "--corpus", "text.txt", "--json").stdout)
    assert found["models"][0]["loss"] == pytest.approx(summary["dev_loss"], abs=1e-9)
    assert found["models"][0]["bits_per_byte"] == pytest.approx(summary["dev_bpb"], abs=1e-9)
    assert found["models"][0]["with_ngrams"] == pytest.approx(summary["dev_loss_with_ngrams"], abs=1e-6)
    assert found["models"][0]["ngram_weights"] == pytest.approx(summary["ngram_weights"], abs=1e-6)
    best = min(summary["dev_loss"], summary["ngrams"]["kn5"])  # of an untrained network the counts alone
    assert summary["dev_loss_with_ngrams"] < best + 1e-6
    assert {score["name"]: score["loss"] for score in found["ngrams"]} == pytest.approx(summary["ngrams"])
    assert len({round(score["bits_per_byte"] / score["loss"], 9) for score in found["ngrams"]}) == 1
    shown = here("score", "run", "exported", "--corpus", "text.txt", "--quiet")
    rows = {line[:20].strip(): line[20:].split() for line in shown.stdout.splitlines()}
    assert rows["run"] == rows["exported"]
    assert rows["run + n-grams"] == rows["exported + n-grams"]
    assert "whole training text" in shown.stdout
    assert_good_error(here("score", "--corpus", "text.txt"), errors.USAGE, "no model")
    assert_good_error(here("score", "run", "--corpus", "text.txt", "--max-tokens", "1"), errors.USAGE, "at least 2")


def test_a_model_with_its_own_tokenizer_reads_the_same_text(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    corpus = open_corpus(str(tmp_path / "text.txt"), cache=tmp_path / "cache")
    model = write_model(tmp_path / "model", KINDS["gpt2"], torch.float32)
    options, counts = ScoreOptions(models=(), max_tokens=200), NgramModels(corpus.train, corpus.n_vocab)
    score = score_model(str(tmp_path / "model"), {"dev": corpus.dev[:200]}, corpus.tokenizer, counts.order_5, options)
    assert score.with_ngrams is None, "its probabilities are of other tokens"
    own = open_model(tmp_path / "model")[1]
    anew = encoded_anew(corpus.dev[:200], corpus.tokenizer, own)
    total, length = 0.0, model.config.context_length
    for start in range(0, len(anew) - 1, length):
        row = torch.from_numpy(anew[start : start + length + 1].astype("int64"))[None]
        with torch.no_grad():
            logits = model(row[:, :-1]).double().log_softmax(-1)
        total -= float(logits.gather(2, row[:, 1:, None]).sum())
    n_bytes = sum(own.token_bytes[anew[1:]])
    assert score.loss == pytest.approx(total / (len(anew) - 1), rel=1e-6)
    assert score.bits_per_byte == pytest.approx(total / math.log(2) / n_bytes, rel=1e-6)


def test_texts_keep_their_bytes_in_other_tokens(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT + "\n\nnaïve \U0001f600 日本", encoding="utf-8")
    corpus = open_corpus(str(tmp_path / "text.txt"), cache=tmp_path / "cache")
    small = Tokenizer(b"h e\nl l\nhe ll")
    for split in ("dev", "test", "train"):
        tokens = corpus.tokens[split]
        assert small.decode_bytes(encoded_anew(tokens, corpus.tokenizer, small)) == corpus.tokenizer.decode_bytes(
            tokens
        )
    half = corpus.tokenizer.encode("hello \U0001f600")[:-1]
    assert small.decode(encoded_anew(half, corpus.tokenizer, small)) == "hello ", "no half of a character"
