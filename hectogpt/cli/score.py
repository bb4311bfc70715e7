"""`hectogpt score MODEL ...`: nats per token and bits per byte, also for n-gram models."""

from __future__ import annotations

import codecs
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from hectogpt.cli.console import loss_table, remarks, show
from hectogpt.cli.options import ScoreOptions
from hectogpt.data import Corpus, Tokenizer, open_corpus
from hectogpt.data.tokenizer import check_ids
from hectogpt.display import NGRAMS, one_line
from hectogpt.errors import DataError, Setting, UserError
from hectogpt.interop.open import find_folder
from hectogpt.lab.ngram import KneserNey, NgramModels, mix, score_both
from hectogpt.run_records import read_record
from hectogpt.training import setup
from hectogpt.training.evaluate import evaluate
from hectogpt.training.history import open_at
from hectogpt.training.run import files_of
from hectogpt.training.run_folder import read_run


@dataclass(frozen=True)
class Score:
    """A model's score.

    Attributes:
        loss: nats per token of its own tokenizer.
        bits_per_byte: bits per byte of the text; comparable between different tokenizers.
        tokens: the number of tokens scored.
        parameters: None for n-gram models.
        with_ngrams: the loss with the n-gram model of order 5 mixed in; None if the model's
            tokenizer is not the corpus's.
        ngram_weights: the weights of the n-grams in the mixture, by the number of context tokens
            that the n-gram model has seen before.
    """

    name: str
    loss: float
    bits_per_byte: float
    tokens: int
    parameters: int | None = None
    with_ngrams: float | None = None
    ngram_weights: tuple[float, ...] = ()


def main(options: ScoreOptions) -> None:
    """Score each model and print a line for it. Raises UserError."""
    if not options.models:
        raise UserError("no model to score", fix="hectogpt score runs/minute")
    if options.max_tokens is not None and options.max_tokens < 2:
        raise UserError(
            Setting("max_tokens", options.max_tokens), why="scoring needs at least 2 tokens"
        )
    for name in options.models:
        find_folder(name, download=True)  # fails early, before a text is tokenised
    corpus = open_corpus(options.corpus)
    split = options.split
    counted = (
        tokens_of_run(options.models[0], corpus, options.step)
        if len(options.models) == 1
        else corpus.train
    )
    counts = NgramModels(counted, corpus.n_vocab)
    # The weights of n-grams are fitted on dev.
    texts: dict[str, np.ndarray] = {
        name: corpus.tokens[name][: options.max_tokens] for name in ("dev", split)
    }
    models = [
        score_model(name, texts, corpus.tokenizer, counts.order_5, options)
        for name in options.models
    ]
    n = len(texts[split]) - 1
    n_bytes = max(int(corpus.tokenizer.token_bytes[texts[split][1:]].sum()), 1)
    losses = counts.losses(texts[split]).items()
    ngrams = [Score(name, loss, loss * n / (math.log(2) * n_bytes), n) for name, loss in losses]

    rows = [(NGRAMS[score.name], score.loss, score.bits_per_byte) for score in ngrams]
    for score in models:
        rows.append((score.name, score.loss, score.bits_per_byte))
        if (loss := score.with_ngrams) is not None:
            rows.append((f"{score.name} + n-grams", loss, loss * score.bits_per_byte / score.loss))
    same = all(score.with_ngrams is not None for score in models)
    what = (
        "the whole training text"
        if counted.size == len(corpus.train)
        else "the text that the run has read"
    )
    answer = {
        "corpus": corpus.name,
        "corpus_sha256": corpus.sha256,
        "split": split,
        "models": [asdict(score) for score in models],
        "ngrams": [asdict(score) for score in ngrams],
        "counted": counted.size,
    }
    lines = [f"{one_line(corpus.name)}: held-out loss ({split})", *loss_table(rows, same)]
    lines += [f"The n-gram models count {what}, {counted.size:,} tokens."]
    if not same:
        lines += [
            "The models predict different tokens, so compare only bits per byte of the text."
        ]
    show(options.json, answer, lines)


def score_model(
    name: str,
    texts: dict[str, np.ndarray],
    tokenizer: Tokenizer,
    order_5: KneserNey,
    options: ScoreOptions,
) -> Score:
    """Score a run, a folder in Hugging Face's layout, or a model on the hub.

    Args:
        name: the model.
        texts: dev and the split to score, encoded with `tokenizer`. For a model with a different
            tokenizer, the same text is encoded with that one.
        tokenizer: the corpus's tokenizer.
        order_5: the n-gram model to mix in.
        options: the command's options.

    Raises UserError as `open_model` does, and (DATA) for too few tokens and for tokens that are
    not text.
    """
    note = remarks(options.quiet)
    split = options.split
    model, own = open_at(name, options.step, options.idea, note)
    parameters = sum(p.numel() for p in model.parameters())
    same = own.sha256 == tokenizer.sha256
    found = {}
    for which, tokens in (
        texts if same else {split: encoded_anew(texts[split], tokenizer, own)}
    ).items():
        note(f"{name}: scoring {len(tokens):,} tokens of {which} with {parameters:,} parameters")
        check_ids(tokens, model.config.vocab_size, f"{which} for {name}")
        found[which] = evaluate(model, tokens, own.token_bytes)
    its = found[split]
    score = Score(name, its.loss, its.bits_per_byte, its.tokens, parameters)
    if not same:
        return score
    both = {which: score_both(order_5, texts[which], one) for which, one in found.items()}
    loss, weights = mix(both[split], None if split == "dev" else both["dev"])
    return replace(score, with_ngrams=loss, ngram_weights=weights)


def tokens_of_run(name: str, corpus: Corpus, step: int | None) -> np.ndarray:
    """The tokens that a run has read up to a step (None: the last one).

    If `name` is not the folder of a run on this corpus, returns the whole training text.
    """
    try:
        run = read_run(Path(name))
        record = read_record(Path(name))
        files_of(run)
    except UserError:  # not a run, or the order comes from a user's file that is not loaded
        return corpus.train
    taken = min(step or record.steps or run.steps, run.steps)
    return (
        setup.training_tokens(replace(run, steps=taken), corpus)
        if run.corpus == corpus.name
        else corpus.train
    )


def encoded_anew(tokens: np.ndarray, old: Tokenizer, new: Tokenizer) -> np.ndarray:
    """Re-encode tokens with a different tokenizer, document by document.

    Raises UserError (DATA).
    """
    ends = np.flatnonzero(tokens == old.end_of_text)
    pieces: list[np.ndarray] = []
    for document in np.split(tokens, ends + 1):
        text = document[document != old.end_of_text]
        ended = len(text) < len(document)
        try:  # the tokens may stop in the middle of the last character, which is dropped
            ids = new.encode(codecs.utf_8_decode(old.decode_bytes(text), "strict", ended)[0])
        except UnicodeDecodeError:
            raise DataError(
                "the held-out tokens are not text",
                why="a different tokenizer can encode only text",
            ) from None
        pieces += [ids, np.array([new.end_of_text] * ended, dtype=ids.dtype)]
    return np.concatenate(pieces)
