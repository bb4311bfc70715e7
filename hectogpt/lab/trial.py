"""One trial: a run and its scores, in its own process.

A crash or a leak there costs one trial and nothing else. `python -m hectogpt.lab.trial` runs the
process's side.
"""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hectogpt import __version__, process
from hectogpt.data import Corpus, open_corpus
from hectogpt.errors import DataError, UserError
from hectogpt.idea_file import IdeaFile, explain, load_idea
from hectogpt.lab.tracks import Scoring
from hectogpt.serialization import dump
from hectogpt.training import setup
from hectogpt.training.evaluate import SEQ_LEN
from hectogpt.training.events import Ended, Stepped, events, session_of
from hectogpt.training.run import Run, files_of, load_run
from hectogpt.training.session import Session

PACKAGE = Path(__file__).resolve().parents[1]
OnStep = Callable[[int, float], None]


def request_of(
    run: Run, corpus: Corpus, splits: Sequence[str], scoring: Scoring = "alone"
) -> dict[str, Any]:
    """The request for the trial's process, as plain values that other machines understand too.

    Args:
        run: the run to train.
        corpus: its text.
        splits: the splits to score.
        scoring: how to score them.
    """
    name = corpus.name
    if name not in ("sotu", "tinystories") and os.path.exists(name):
        name = os.path.abspath(name)
    return {
        "ideas": [{"path": str(idea.path), "source": idea.source} for idea in files_of(run)],
        "run": dump(run),
        "splits": list(splits),
        "scoring": scoring,
        "corpus": name,
        "corpus_sha256": corpus.sha256,
    }


def ask(
    request: dict[str, Any],
    on_step: OnStep,
    cancelled: threading.Event | None = None,
) -> dict[str, Any]:
    """Run a trial in a new process on this machine, and return the result fields of its record.

    An error in the process is not raised. The field `status` is then "diverged", with the scores
    of a uniform guess, or "failed", without scores; `error` has the whole message.

    Args:
        request: the request, from `request_of`.
        on_step: called with the step and its loss after every step.
        cancelled: stops the trial once it is set.

    Raises process.CancelledError if it was cancelled.
    """
    result: dict[str, Any] = {}

    def receive(message: dict[str, Any], _: bytes) -> None:
        if "step" in message:
            on_step(message["step"], message["loss"])
        else:
            result.update(message)

    stop = cancelled.is_set if cancelled else None
    outcome = process.Child("hectogpt.lab.trial").listen(request, receive, cancelled=stop)
    if outcome.how == "cancelled":
        raise process.CancelledError
    origin: dict[str, Any] = {"version": __version__}
    if (PACKAGE.parent / ".git").exists():  # not the user's repository around an environment
        origin |= asdict(process.revision(PACKAGE))
    if outcome.error is None and result:
        return origin | result
    ended = f"the trial's process ended with {outcome.error or 'no result'}"
    return origin | {
        "status": "failed",
        "error": "\n".join(filter(None, [ended, outcome.last_words])),
    }


# --- the process's side ---


def train_and_score(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield {step, loss} after every step, then the result fields of the record.

    Raises UserError for every failure except divergence.
    """
    for idea in request["ideas"]:
        load_idea(IdeaFile(Path(idea["path"]), idea["source"]))
    run = load_run(request["run"])
    corpus = open_corpus(request["corpus"], progress=False)
    splits = request["splits"]
    if corpus.sha256 != request["corpus_sha256"]:
        what = f"corpus {corpus.name} has changed since the comparison began"
        raise DataError(
            what,
            why="trials on different texts cannot be compared",
            fix="start again",
        )
    stream = events(run, corpus, splits=splits)
    session = session_of(stream)
    diverged = None
    for event in stream:
        if isinstance(event, Stepped):
            yield {"step": event.step.number, "loss": event.step.loss}
        elif isinstance(event, Ended) and event.how == "diverged":
            diverged = event.why
    result = session.result()
    summary = result.summary()
    scores = (
        _uniform_guess(run, corpus, splits)
        if diverged
        else scores_of(request["scoring"], session, splits)
    )
    summary |= scores | {"seconds": round(result.seconds, 2), "peak_mb": round(result.peak_mb, 1)}
    summary |= {"status": "diverged" if diverged else "ok", "error": diverged}
    # Only for pictures: five digits are enough.
    curves = {"losses": result.losses, "grad_norms": result.grad_norms}
    yield summary | {
        name: [float(f"{value:.5g}") for value in values] for name, values in curves.items()
    }


def scores_of(scoring: Scoring, session: Session, splits: Sequence[str]) -> dict[str, float]:
    """Score a trained run on these splits, in the way that a track prescribes.

    Returns loss and bits per byte, with the keys of a record. For "alone" returns {}, because the
    record already has those scores.
    """
    if scoring == "alone":
        return {}
    # Imported late: it loads scipy, which a track without counting does not need.
    from hectogpt.lab.best_counting import Mixture, held_out_losses

    run = session.run
    corpus = session.corpus
    mixture = Mixture(
        setup.training_tokens(run, corpus), run.model.vocab_size, model=session.model
    )
    seq_len = min(SEQ_LEN, run.model.context_length)
    fields = dict[str, float]()
    for split in splits:
        alone = session.scores.get(split) or session.evaluate(split)
        fit_on = None if split == "dev" else corpus.dev
        loss = held_out_losses(mixture, corpus.tokens[split], seq_len, fit_on)[1]
        fields |= {f"{split}_loss": loss, f"{split}_bpb": loss * alone.bits_per_byte / alone.loss}
    return fields


def _uniform_guess(run: Run, corpus: Corpus, splits: Sequence[str]) -> dict[str, float]:
    """The scores of a uniform guess, which stand for those of a run that diverged."""
    nats = math.log(run.model.vocab_size)
    fields = {"train_loss_last": nats, "train_loss_last10": nats}
    for split in splits:
        tokens = corpus.tokens[split][1:]
        bits = (
            nats
            * len(tokens)
            / (math.log(2) * max(int(corpus.tokenizer.token_bytes[tokens].sum()), 1))
        )
        fields |= {f"{split}_loss": nats, f"{split}_bpb": bits}
    return fields


def serve(reply: Callable[[dict[str, Any]], Iterable[dict[str, Any]]]) -> None:
    """Answer the request on standard input.

    An error that a user can fix ends the process with its message.
    """
    try:
        process.answer(reply)
    except (Exception, SystemExit) as error:
        shown = error if isinstance(error, UserError) else explain(error)
        if shown is None:
            raise
        print(shown, file=sys.stderr)
        raise SystemExit(shown.code) from None


if __name__ == "__main__":
    serve(train_and_score)
