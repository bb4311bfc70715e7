"""Test losses on sotu with and without its near duplicate: python -m tools.research.near_duplicate RECIPE SEED [STEPS].

Trains the recipe, scores its network alone, with n-grams mixed in, and the n-grams alone, and appends a line to
results/near_duplicate.jsonl, from which LADDER.md has a table. With STEPS a shorter run is scored on the document and
2,000 tokens around it, and only printed. Without the document means that its tokens are not targets; the tokens after
it keep their contexts.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np

from hectogpt.data import open_corpus
from hectogpt.data.sources import find_source
from hectogpt.files import append_line
from hectogpt.lab import ngram, recipes
from hectogpt.training.session import Session
from hectogpt.training.setup import training_tokens
from tools import ROOT

DOCUMENT = "1945-Roosevelt-2"
TARGET = ROOT / "results" / "near_duplicate.jsonl"


def find(ids: np.ndarray, tokens: np.ndarray) -> int:
    """Where the document's tokens begin."""
    windows = np.lib.stride_tricks.sliding_window_view(tokens, len(ids))
    return next(int(at) for at in np.flatnonzero(tokens == ids[0]) if np.array_equal(windows[at], ids))


def measure(recipe: str, seed: int, steps: int = 100) -> dict[str, object]:
    """The line of one run: for each of its rows the mean loss over all of the test text, and without the document."""
    run = replace(recipes.recipe(recipe), seed=seed, steps=steps)
    corpus, source = open_corpus("sotu"), find_source("sotu")
    texts = [document.text for document in source.documents() if DOCUMENT in document.label]
    ids = corpus.tokenizer.encode(texts[0])
    start = find(ids, corpus.test)
    if steps < 100:
        cut = {"dev": corpus.dev[:2000], "test": corpus.test[start - 1000 : start + len(ids) + 1000]}
        corpus = replace(corpus, tokens=corpus.tokens | cut)
        start = find(ids, corpus.test)
    others = np.ones(len(corpus.test) - 1, bool)
    others[max(start - 1, 0) : start + len(ids)] = False  # its tokens and its end as targets
    session = Session.open(run, corpus)
    for _ in session.steps():
        pass
    models = ngram.NgramModels(training_tokens(run, corpus), corpus.n_vocab)
    found = {s: ngram.score_both(models.order_5, corpus.tokens[s], session.evaluate(s)) for s in ("dev", "test")}
    losses = {
        "closed": -np.log(found["test"].network),
        "closed+counting": ngram.mixed_losses(found["test"], ngram.fit_weights(found["dev"])),
        "kn3": models.nats(corpus.test)["kn3"],
        "kn5": -np.log(found["test"].other),
    }
    rows = {name: [round(float(x.mean()), 4), round(float(x[others].mean()), 4)] for name, x in losses.items()}
    return {"recipe": recipe, "seed": seed, "corpus_sha256": corpus.sha256, "tokens": int((~others).sum()), **rows}


if __name__ == "__main__":
    line = json.dumps(measure(sys.argv[1], *map(int, sys.argv[2:])))
    if len(sys.argv) == 3:
        append_line(TARGET, line)
    print(line)
