"""`hectogpt score MODEL ...`: nats per token and bits per byte of models of any origin, beside n-gram models."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hectogpt import errors
from hectogpt.cli.console import loss_table, one_line, remarks, show
from hectogpt.cli.options import ScoreOptions
from hectogpt.data import Corpus, Tokenizer, open_corpus
from hectogpt.display import NGRAMS
from hectogpt.errors import UserError
from hectogpt.interop.open import find_folder, open_model
from hectogpt.lab import ideas
from hectogpt.lab.counting import mix, score_both
from hectogpt.lab.ngram import NgramModels
from hectogpt.model import Transformer
from hectogpt.run_records import RUN, read_record
from hectogpt.training import setup
from hectogpt.training.evaluate import evaluate
from hectogpt.training.run_folder import read_run


@dataclass(frozen=True)
class Score:
    """A model's score. loss: nats per token of its own tokenizer. bits_per_byte: of the text, which compares models of
    different tokenizers. tokens: how many were scored. parameters: None for counts.

    with_ngrams: the loss with the n-gram model of order 5 mixed in, None for a model with another tokenizer than the
    corpus. ngram_weights: those of the n-grams, by how many tokens of the context they know.
    """

    name: str
    loss: float
    bits_per_byte: float
    tokens: int
    parameters: int | None = None
    with_ngrams: float | None = None
    ngram_weights: tuple[float, ...] = ()


@dataclass(frozen=True)
class Scores:
    """models and n-gram models on one held-out text. counted: the tokens that the n-gram models count."""

    models: list[Score]
    ngrams: list[Score]
    counted: int


def main(options: ScoreOptions) -> None:
    """Score and print a line for each model. Raises UserError."""
    if not options.models:
        raise UserError("no model to score", fix="hectogpt score runs/minute, which hectogpt train makes, or gpt2")
    for name in options.models:
        find_folder(name, download=True)  # before a text is tokenised
    corpus, split = open_corpus(options.corpus), options.split
    settings: dict[str, Any] = {"step": options.step, "max_tokens": options.max_tokens, "idea": options.idea}
    found = score_models(options.models, corpus, split, **settings, note=remarks(options.quiet))
    rows = [(NGRAMS[score.name], score.loss, score.bits_per_byte) for score in found.ngrams]
    for score in found.models:
        rows.append((score.name, score.loss, score.bits_per_byte))
        if (loss := score.with_ngrams) is not None:
            rows.append((f"{score.name} + n-grams", loss, loss * score.bits_per_byte / score.loss))
    same = all(score.with_ngrams is not None for score in found.models)
    what = "the whole training text" if found.counted == len(corpus.train) else "what the run has read"
    counted = f"The n-gram models count {what}, {found.counted:,} tokens."
    answer = {"corpus": corpus.name, "corpus_sha256": corpus.sha256, "split": split} | asdict(found)
    lines = [f"{one_line(corpus.name)}: held-out loss ({split})", *loss_table(rows, same), counted]
    lines += [] if same else ["The models predict different tokens, so only bits per byte of the text compare them."]
    show(options.json, answer, lines)


def score_models(
    names: Sequence[str],
    corpus: Corpus,
    split: str = "dev",
    *,
    step: int | None = None,
    max_tokens: int | None = None,
    idea: Sequence[Path | str] = (),
    note: Callable[[str], None] = lambda text: None,
) -> Scores:
    """The scores of runs, folders in Hugging Face's layout and models on the hub on a held-out split.

    The n-gram models count what the run has read if one run is scored on its own corpus, else the whole training split.
    A model with another tokenizer than the corpus reads the same text in its own tokens. step: of runs, as for
    `open_model`. max_tokens: only so many of the corpus's tokens are scored, from the first on. The weights of the
    n-grams are fitted on dev (`counting.mix`), so for test a model is scored on dev too. Raises UserError as
    `open_model` does, and (DATA) for too few tokens and for text that is no text.
    """
    counted = tokens_of_run(names[0], corpus, step) if len(names) == 1 else None
    counted = corpus.train if counted is None else counted
    if max_tokens is not None and max_tokens < 2:
        raise UserError(f"max_tokens = {max_tokens}", why="scoring takes at least 2")
    texts = {which: corpus.tokens[which][:max_tokens] for which in ("dev", split)}
    counts = NgramModels(counted, corpus.n_vocab)
    models = []
    for name in names:
        model, tokenizer = open_model(name, step=step, download=True, idea=idea, note=note)
        parameters = sum(p.numel() for p in model.parameters())
        same = tokenizer.sha256 == corpus.tokenizer.sha256
        read = texts if same else {split: encoded_anew(texts[split], corpus.tokenizer, tokenizer)}
        found = {}
        for which, tokens in read.items():
            note(f"{name}: scoring {len(tokens):,} tokens of {which} with {parameters:,} parameters")
            _check_vocabulary(model, tokens, name)
            found[which] = evaluate(model, tokens, tokenizer.token_bytes)
        its = found[split]
        score = Score(name, its.loss, its.bits_per_byte, its.tokens, parameters)
        if same:
            both = {which: score_both(counts.order_5, read[which], one) for which, one in found.items()}
            mixed = mix(both[split], None if split == "dev" else both["dev"])
            score = replace(score, with_ngrams=mixed.loss, ngram_weights=mixed.weights)
        models.append(score)
    n_bytes = max(int(corpus.tokenizer.token_bytes[texts[split][1:]].sum()), 1)
    n = len(texts[split]) - 1
    losses = asdict(counts.losses(texts[split]))
    ngrams = [Score(name, loss, loss * n / (math.log(2) * n_bytes), n) for name, loss in losses.items()]
    return Scores(models, ngrams, counted.size)


def tokens_of_run(name: str, corpus: Corpus, step: int | None) -> np.ndarray | None:
    """The tokens that a run has read up to a step (None: the last one taken), if `name` is a run's folder and it read
    this corpus."""
    folder = Path(name)
    if not (folder / RUN).is_file():
        return None
    try:
        run, record = read_run(folder), read_record(folder)
        ideas.files_of(run)
    except UserError:  # a file of the user's own decides the order, and is not loaded
        return None
    taken = min(step or record.steps or run.steps, run.steps)
    return setup.training_tokens(replace(run, steps=taken), corpus) if run.corpus == corpus.name else None


def encoded_anew(tokens: np.ndarray, old: Tokenizer, new: Tokenizer) -> np.ndarray:
    """The text of these tokens in those of another tokenizer, document by document. Raises UserError (DATA)."""
    ends = np.flatnonzero(tokens == old.end_of_text)
    pieces: list[np.ndarray] = []
    for document in np.split(tokens, ends + 1):
        text = document[document != old.end_of_text]
        try:
            ids = new.encode(old.decode_bytes(text).decode("utf-8"))
        except UnicodeDecodeError:
            raise UserError(
                "the held-out tokens are no text", why="so they have no form in another tokenizer", code=errors.DATA
            ) from None
        pieces += [ids, *([np.array([new.end_of_text], dtype=ids.dtype)] if len(text) < len(document) else [])]
    return np.concatenate(pieces)


def _check_vocabulary(model: Transformer, tokens: np.ndarray, name: str) -> None:
    if len(tokens) and int(tokens.max()) >= model.config.vocab_size:
        raise UserError(
            f"{name}: the text has the id {int(tokens.max())}, the model {model.config.vocab_size:,} ids",
            why="the text's token ids are of another tokenizer than the model's",
            code=errors.DATA,
        )
