"""Tokenizer files of a model's folder: transformers' ids, or one error that names the fault."""

from __future__ import annotations

import pytest
from gpt2_folders import MERGES, write_vocabulary

from hectogpt import errors
from hectogpt.data import load_tokenizer
from hectogpt.errors import UserError
from hectogpt.interop.hf_tokenizer import read_tokenizer


@pytest.mark.parametrize("kind", ["files", "pairs", "strings"])
def test_a_vocabulary_of_its_own(tmp_path, kind):
    write_vocabulary(tmp_path, MERGES, kind)
    tokenizer = read_tokenizer(tmp_path, 262)
    assert tokenizer.encode("hello wé").tolist() == [260, 259, *tokenizer.encode("é").tolist()]
    assert tokenizer.end_of_text == 261


def test_it_tokenises_as_transformers_does(tmp_path):
    from transformers import GPT2TokenizerFast

    write_vocabulary(tmp_path, MERGES)
    other = GPT2TokenizerFast(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    tokenizer = read_tokenizer(tmp_path, 262)
    for text in ("hello world", "  hello\n\nshell's 123 wée🙂", ""):
        assert tokenizer.encode(text).tolist() == other.encode(text)


def test_a_folder_without_tokenizer_gets_gpt2s_only_at_its_size(tmp_path):
    assert read_tokenizer(tmp_path, 50257).sha256 == load_tokenizer().sha256
    with pytest.raises(UserError, match="no usable tokenizer"):
        read_tokenizer(tmp_path, 60)


def test_files_that_contradict_each_other_are_refused(tmp_path):
    write_vocabulary(tmp_path, MERGES, "files", he=7)
    with pytest.raises(UserError, match="'he' has id 7") as caught:
        read_tokenizer(tmp_path, 262)
    assert caught.value.code == errors.DATA


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        "[" * 100_000,
        '{"model": {"type": "WordPiece"}, "pre_tokenizer": {"type": "ByteLevel"}}',
        '{"model": {"type": "BPE"}, "pre_tokenizer": {"type": "ByteLevel"}}',
        '{"model": {"type": "BPE", "vocab": {}, "merges": [[1, 2]]}, "pre_tokenizer": {"type": "ByteLevel"}}',
        '{"model": {"type": "BPE", "vocab": {}, "merges": []}, "pre_tokenizer": {"type": "ByteLevel"}}',
        '{"model": {"type": "BPE", "vocab": {}, "merges": []}, "pre_tokenizer": {"type": "Metaspace"}}',
    ],
)
def test_damaged_tokenizer_files_are_refused(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read_tokenizer(tmp_path, 50257)
    assert caught.value.code == errors.DATA


def test_a_vocabulary_larger_than_the_model_is_refused(tmp_path):
    write_vocabulary(tmp_path, MERGES)
    with pytest.raises(UserError, match="no usable tokenizer"):
        read_tokenizer(tmp_path, 261)
