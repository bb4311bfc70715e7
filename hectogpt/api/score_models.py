"""Models of any origin on the same held-out text, beside n-gram models that count the training text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from hectogpt import errors
from hectogpt.data import Corpus, Tokenizer
from hectogpt.errors import UserError
from hectogpt.interop.open import open_model
from hectogpt.lab import ideas
from hectogpt.lab.ngram import ngram_losses
from hectogpt.model import Transformer
from hectogpt.training import setup
from hectogpt.training.evaluate import evaluate
from hectogpt.training.run_folder import RUN, read_run

Note = Callable[[str], None]


@dataclass(frozen=True)
class Score:
    """A model's score. loss: nats per token of its own tokenizer. bits_per_byte: of the text, which compares models of
    different tokenizers. tokens: how many were scored. parameters: None for counts."""

    name: str
    loss: float
    bits_per_byte: float
    tokens: int
    parameters: int | None = None


def score_model(
    name: str,
    corpus: Corpus,
    split: str = "dev",
    *,
    max_tokens: int | None = None,
    idea: Sequence[Path | str] = (),
    note: Note = lambda text: None,
) -> Score:
    """The score of a run, of a folder in Hugging Face's layout or of a model on the hub, on a held-out split.

    A model with another tokenizer than the corpus reads the same text in its own tokens. max_tokens: only so many of
    the corpus's tokens are scored, from the first on. Raises UserError as `open_model` does, and (DATA) for too few
    tokens and for text that is no text.
    """
    model, tokenizer = open_model(name, download=True, idea=idea, note=note)
    tokens = held_out(corpus, split, max_tokens)
    if tokenizer.sha256 != corpus.tokenizer.sha256:
        tokens = encoded_anew(tokens, corpus.tokenizer, tokenizer)
    parameters = sum(p.numel() for p in model.parameters())
    note(f"{name}: scoring {len(tokens):,} tokens with {parameters:,} parameters")
    _check_vocabulary(model, tokens, name)
    found = evaluate(model, tokens, tokenizer.token_bytes)
    return Score(name, found.loss, found.bits_per_byte, found.tokens, parameters)


def score_ngrams(
    corpus: Corpus, split: str = "dev", counted: np.ndarray | None = None, max_tokens: int | None = None
) -> list[Score]:
    """The scores of the n-gram models on a held-out split. counted: the tokens that they count; None: the whole
    training split."""
    tokens = held_out(corpus, split, max_tokens)
    counted = corpus.train if counted is None else counted
    if split == "dev":
        losses = ngram_losses(counted, tokens, corpus.n_vocab)
    else:
        losses = ngram_losses(counted, tokens, corpus.n_vocab, fit_on=corpus.dev)
    n_bytes = max(int(corpus.tokenizer.token_bytes[tokens[1:]].sum()), 1)
    per_nat = (len(tokens) - 1) / (math.log(2) * n_bytes)
    return [Score(name, loss, loss * per_nat, len(tokens) - 1) for name, loss in asdict(losses).items()]


def tokens_of_run(name: str, corpus: Corpus) -> np.ndarray | None:
    """The tokens that a run has read, if `name` is a run's folder and it read this corpus."""
    folder = Path(name)
    if not (folder / RUN).is_file():
        return None
    try:
        run = read_run(folder)
        ideas.files_of(run)
    except UserError:  # a file of the user's own decides the order, and is not loaded
        return None
    return setup.training_tokens(run, corpus) if run.corpus == corpus.name else None


def held_out(corpus: Corpus, split: str, max_tokens: int | None) -> np.ndarray:
    """The tokens to score. Raises UserError for a number that is none."""
    if max_tokens is not None and max_tokens < 2:
        raise UserError(f"max_tokens = {max_tokens}", why="scoring takes at least 2")
    return corpus.tokens[split][:max_tokens]


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
