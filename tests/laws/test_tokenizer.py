"""The tokenizer: bytes in are bytes out, ids are those of Hugging Face's GPT-2, damage is named."""

from __future__ import annotations

import json
import lzma
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hectogpt.data import load_tokenizer, tokenizer
from hectogpt.errors import UserError

TOK = load_tokenizer()
SPACES = " \t\n\r\x0b\x0c\x85\xa0\u1680\u2003\u2028\u2029\u202f\u205f\u3000"
ANY_TEXT = st.text() | st.text(alphabet=SPACES + "ab'sé7.\x1c\u200b😀") | st.binary().map(lambda b: b.decode("latin-1"))


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Hugging Face's GPT2Tokenizer, built from our merges: an implementation that shares no code with tiktoken."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("vocabulary")
    (folder / "vocab.json").write_text(json.dumps(TOK.vocabulary()), encoding="utf-8")
    (folder / "merges.txt").write_bytes(TOK.merges)
    return transformers.GPT2Tokenizer(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))


def test_sizes_and_hash() -> None:
    assert (TOK.n_vocab, TOK.end_of_text) == (50_257, 50_256)
    assert TOK.sha256 == "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
    assert load_tokenizer() is TOK
    assert TOK.encode("hello world").tolist() == [31373, 995]
    assert list(TOK.vocabulary().values()) == list(range(50_257))


@settings(max_examples=100)
@given(ANY_TEXT)
def test_bytes_in_are_bytes_out(text: str) -> None:
    ids = TOK.encode(text)
    assert ids.dtype == np.int64
    assert TOK.decode(ids) == text
    assert TOK.decode_bytes(ids) == text.encode()
    assert TOK.token_bytes[ids].sum() == len(text.encode())
    assert TOK.end_of_text not in ids


def test_end_of_text_in_the_text_is_plain() -> None:
    assert TOK.encode("a<|endoftext|>b").tolist() == [64, 27, 91, 437, 1659, 5239, 91, 29, 65]
    assert TOK.token_bytes[TOK.end_of_text] == 0
    assert TOK.decode([TOK.end_of_text]) == "<|endoftext|>"


def test_same_ids_as_hugging_face_on_fuzzed_unicode(hugging_face: Any) -> None:
    rng = random.Random(0)
    planes = [(0, 128), (128, 0x250), (0x250, 0xD800), (0xE000, 0x10000), (0x10000, 0x20000), (0x20000, 0x110000)]
    for _ in range(500):
        words = []
        for _ in range(rng.randint(1, 12)):
            lo, hi = rng.choice(planes)
            words.append("".join(chr(rng.randrange(lo, hi)) for _ in range(rng.randint(1, 5))))
            words.append(rng.choice([*SPACES, "", "  ", "\r\n", "'s", "'LL", "7", "<|endoftext|>"]))
        text = "".join(words)
        assert TOK.encode(text).tolist() == hugging_face.encode(text, split_special_tokens=True), repr(text)


def test_every_damage_to_the_vocabulary_is_named(tmp_path: Path) -> None:
    good = tokenizer.VOCABULARY.read_bytes()
    path = tmp_path / "vocab.bpe.xz"
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 4
    for copy in (good[:-9], b"", lzma.compress(b"#version: 0.2\na b\n"), bytes(flipped)):
        path.write_bytes(copy)
        with pytest.raises(UserError, match=r"vocab\.bpe\.xz is damaged") as caught:
            tokenizer._read_vocabulary(path)
        assert "pip install --force-reinstall" in caught.value.fix
    path.unlink()
    with pytest.raises(UserError, match="damaged"):
        tokenizer._read_vocabulary(path)
