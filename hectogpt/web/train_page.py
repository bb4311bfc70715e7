"""The page that trains in the browser: the texts to choose from."""

from __future__ import annotations

import random

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.web.page import engine_data, fill

LONGEST_TEXT = 1_000_000  # characters of a text that a page holds; the whole page stays below 3 MB
PRESIDENTS = {"Kennedy": "Kennedy's addresses, 100 kB", "Washington": "Washington's addresses, 100 kB"}


def train_page(text: tuple[str, str] | None = None) -> str:
    """The page as HTML.

    text: a name and a text that stands first; three are in the page anyway. Raises UserError (DATA) for one that the
    page cannot hold.
    """
    if text is not None and not 0 < len(text[1]) <= LONGEST_TEXT:
        why = "it is empty" if not text[1] else f"it has {len(text[1]):,} characters, a page holds {LONGEST_TEXT:,}"
        raise UserError(f"{text[0]} does not fit into a page", why=why, fix="a part of it", code=errors.DATA)
    texts = [{"name": name, "text": content} for name, content in ([text] if text else []) + own_texts()]
    return fill("train", {**engine_data(), "texts": texts})


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
