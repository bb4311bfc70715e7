"""A vocabulary of a text's own: of its training part alone, used by every command, compared in bits per byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import TINY, Here
from helpers import WORDS, prose

import hectogpt
from hectogpt.data import Tokenizer, find_tokenizer, open_corpus
from hectogpt.data.sources import split_of
from hectogpt.errors import UserError

pytest.importorskip("tokenizers")
pytestmark = pytest.mark.usefixtures("here")
N = 270


def write_texts(folder: Path, held_out: str = "") -> list[str]:
    """A folder of texts. held_out: is added to those that are not for training, which stay so."""
    folder.mkdir()
    texts = [f"{number} {prose(number, 150)}" for number in range(120)]
    for number, text in enumerate(texts):
        if held_out and split_of(text) != "train":
            tries = (text + held_out * n for n in range(1, 50))
            texts[number] = next(longer for longer in tries if split_of(longer) != "train")
        (folder / f"{number:03}.txt").write_text(texts[number], encoding="utf-8")
    return texts


def build(here: Here, source: str, *options: object) -> dict[str, Any]:
    done = here.ok("data", "build", source, "--vocab", N, "--json", *options)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_a_vocabulary_is_of_the_training_part_alone_and_the_same_every_time(here: Here, tmp_path: Path) -> None:
    texts = write_texts(tmp_path / "texts")
    answer = build(here, "texts")
    folder = tmp_path / answer["folder"]
    assert (folder.name, answer["n_vocab"]) == (f"texts-vocab-{N}", N)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(before) == {"train.bin", "dev.bin", "test.bin", "index.json", "merges.txt"}
    assert build(here, "texts")["splits"] == answer["splits"]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    corpus, tokenizer = open_corpus(folder.name), find_tokenizer(folder.name)
    assert tokenizer.sha256 == corpus.tokenizer.sha256
    found = b"".join(tokenizer.decode_bytes(ids[ids != N - 1]) for ids in corpus.tokens.values())
    assert len(found) == len("".join(texts).encode())
    assert sorted(path.name for path in tmp_path.glob(".*")) == []
    write_texts(tmp_path / "other", held_out=" zzzyx" * 400)
    build(here, "other")
    assert (tmp_path / f"other-vocab-{N}/merges.txt").read_bytes() == before["merges.txt"]


@pytest.mark.thorough
def test_every_command_uses_it(here: Here, tmp_path: Path) -> None:
    write_texts(tmp_path / "texts")
    folder = build(here, "texts")["folder"]
    small = ["adamw_128", *TINY, "--quiet"]
    for name, corpus in (("own", folder), ("gpt2", "texts")):
        here.ok("train", *small, "--corpus", corpus, "--out", name)
    model, tokenizer = hectogpt.load(tmp_path / "own")
    assert (model.config.vocab_size, tokenizer.sha256) == (N, find_tokenizer(folder).sha256)
    here.ok("check", "own")
    # It needs no text any more.
    (tmp_path / folder / "merges.txt").rename(tmp_path / folder / "kept")
    assert here("generate", "own", "the union", "--max-new-tokens", 8).stdout.startswith("the union")
    (tmp_path / folder / "kept").rename(tmp_path / folder / "merges.txt")
    transformers = pytest.importorskip("transformers")
    here.ok("export", "own", "exported")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "exported")
    for text in (prose(0, 300), "".join(WORDS), " a  b\n\n c", "él 😀😀"):
        assert theirs.encode(text) == tokenizer.encode(text).tolist()
    assert hectogpt.load(tmp_path / "exported")[1].sha256 == tokenizer.sha256

    found = json.loads(here("score", "own", "exported", "gpt2", "--corpus", "texts", "--json").stdout)["models"]
    assert found[0]["bits_per_byte"] == pytest.approx(found[1]["bits_per_byte"], abs=1e-5)
    assert "nats/token" in here("score", "own", "exported", "--corpus", folder).stdout
    mixed = here("score", "own", "gpt2", "--corpus", "texts").stdout
    assert ("nats/token" in mixed, "only bits per byte" in mixed) == (False, True)


def test_a_vocabulary_above_65536_has_no_token_files(tmp_path: Path) -> None:
    """Two bytes hold no more ids."""
    shown = list(Tokenizer(b"").vocabulary())[:256]
    pairs = [f"{a} {b}" for a in shown for b in shown]
    (tmp_path / "merges.txt").write_text("\n".join(pairs), encoding="utf-8")
    for split in ("train", "dev", "test"):
        np.arange(9, dtype="<u4").tofile(tmp_path / f"{split}.bin")
    with pytest.raises(UserError, match="65,793 ids"):
        open_corpus(str(tmp_path))
