"""The tokenizer in a model's folder: tokenizer.json, or merges.txt with vocab.json. Only GPT-2's kind is read; the form
that is written is tokenizer.json."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hectogpt import errors
from hectogpt.data import Tokenizer, load_tokenizer
from hectogpt.data.tokenizer import END_OF_TEXT, MERGES, read_merges, tokenizer_of
from hectogpt.errors import UserError
from hectogpt.json_files import read_json_object

FIX = "use the vocab.json and merges.txt that the model came with"


def read_tokenizer(folder: Path, vocab_size: int) -> Tokenizer:
    """The folder's byte-level BPE, for a model of `vocab_size` ids; GPT-2's own if the folder has none and the size
    is GPT-2's.

    Raises UserError (DATA) if the files describe another kind of tokenizer, contradict each other, or have another
    number of ids than the model.
    """
    vocabulary: dict[str, Any] | None = None
    if os.path.lexists(folder / "tokenizer.json"):
        merges, vocabulary = _parse_tokenizer_json(folder / "tokenizer.json")
        tokenizer = tokenizer_of(merges, folder.name)
    elif os.path.lexists(folder / MERGES):
        tokenizer = read_merges(folder / MERGES, folder.name)
        vocabulary = _json(folder / "vocab.json") if os.path.lexists(folder / "vocab.json") else None
    else:
        tokenizer = load_tokenizer()
        if tokenizer.n_vocab != vocab_size:
            raise _no_tokenizer(folder, f"it has no tokenizer.json, no {MERGES}, and {vocab_size:,} ids, not GPT-2's")
    if vocabulary is not None and vocabulary != tokenizer.vocabulary():
        raise _no_tokenizer(folder, "its ids do not follow GPT-2's rule: 256 bytes, the merges in order, end-of-text")
    if tokenizer.n_vocab != vocab_size:  # a model with more ids would write some that no text belongs to
        raise _no_tokenizer(folder, f"it has {tokenizer.n_vocab:,} ids, the model {vocab_size:,}")
    return tokenizer


def tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of tokenizer.json, as the library tokenizers writes a GPT-2's. There, unlike here, the text
    <|endoftext|> becomes the separator."""
    vocabulary = tokenizer.vocabulary()
    end = vocabulary.pop(END_OF_TEXT)
    merges = [line for line in tokenizer.merges.decode("utf-8").splitlines() if not line.startswith("#version")]
    by_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    options: dict[str, Any] = {"dropout": None, "unk_token": None, "continuing_subword_prefix": ""}
    options |= {"end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": end, "content": END_OF_TEXT, **flags}],
        "normalizer": None,
        "pre_tokenizer": by_bytes,
        "post_processor": by_bytes | {"trim_offsets": False},
        "decoder": by_bytes,
        "model": {
            "type": "BPE",
            **options,
            "vocab": vocabulary | {END_OF_TEXT: end},
            "merges": [line.split(" ") for line in merges],
        },
    }


def tokenizer_config(context_length: int) -> dict[str, Any]:
    """The content of tokenizer_config.json."""
    names = {name: END_OF_TEXT for name in ("bos_token", "eos_token", "unk_token")}
    return {
        "tokenizer_class": "GPT2Tokenizer",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context_length,
        **names,
    }


def _parse_tokenizer_json(path: Path) -> tuple[bytes, dict[str, int]]:
    """The merges in merges.txt's form, and token -> id."""
    content = _json(path)
    model = content.get("model")
    split = content.get("pre_tokenizer")
    if not isinstance(model, dict) or not isinstance(split, dict):
        raise _no_tokenizer(path.parent, f"{path.name} has no model or no pre_tokenizer")
    if model.get("type", "BPE") != "BPE" or split.get("type") != "ByteLevel" or split.get("add_prefix_space"):
        raise _no_tokenizer(path.parent, f"{path.name} is not a byte-level BPE with GPT-2's word pattern")
    merges: Any = model.get("merges")
    vocabulary: Any = model.get("vocab")
    if not isinstance(merges, list) or not isinstance(vocabulary, dict):
        raise _no_tokenizer(path.parent, f"{path.name} lacks its merges or its vocabulary")
    pairs = [[merge] if isinstance(merge, str) else merge for merge in merges]  # "a b", or ["a", "b"]
    if not all(isinstance(pair, list) and all(isinstance(p, str) and p.isprintable() for p in pair) for pair in pairs):
        raise _no_tokenizer(path.parent, f"a merge of {path.name} is no pair of strings")
    added = content.get("added_tokens")
    for token in added if isinstance(added, list) else []:
        if isinstance(token, dict) and isinstance(token.get("content"), str) and isinstance(token.get("id"), int):
            vocabulary[token["content"]] = token["id"]
    return "\n".join(map(" ".join, pairs)).encode(), vocabulary


def _json(path: Path) -> dict[str, Any]:
    return read_json_object(path, fix=FIX, code=errors.DATA)


def _no_tokenizer(folder: Path, why: str) -> UserError:
    return UserError(f"no usable tokenizer in {folder}", why=why, fix=FIX, code=errors.DATA)
