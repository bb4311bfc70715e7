"""One training run with a folder, from its corpus to its summary: `hectogpt train` and `hectogpt.train(run, out=...)`.

Progress goes to stderr. What ends a run early raises UserError after what can be kept is written.
"""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hectogpt import errors
from hectogpt.api.progress import Progress
from hectogpt.data import Corpus, open_corpus
from hectogpt.errors import UserError
from hectogpt.generate import Sampling, complete
from hectogpt.lab import baseline_curves, ideas
from hectogpt.lab.baseline_curves import Curve
from hectogpt.lab.ngram import loss_standard_error, ngram_losses
from hectogpt.model.weights import save_model
from hectogpt.serialization import diff
from hectogpt.signals import Stopped, exit_code, raise_on_signal, stop_on_signal
from hectogpt.train import precision, setup
from hectogpt.train.loop import Step
from hectogpt.train.run import Run
from hectogpt.train.run_folder import RUN, RunFolder
from hectogpt.train.session import RunResult, Session

PICTURE = "losses_and_grad_norms.png"
SOTU_PROMPT = "The state of our"
PROMPT_TOKENS = 6  # of a held-out document, for other corpora
FEW_TOKENS = 2000  # held-out tokens below which a score is rough
# Changing these does not make a run another recipe: they choose text, luck and machine.
UNMARKED = {"corpus", "seed", "device", "dtype", "head_dtype", "threads", "compile"}


@dataclass(frozen=True)
class FullRun:
    """A finished run: its result, what summary.json holds, and the baseline's curve on the same text if there is
    one."""

    result: RunResult
    summary: dict[str, Any]
    baseline: Curve | None


def is_modified(base: Run, run: Run) -> bool:
    """Whether a run is another recipe than `base`: whether they differ in more than text, seed and machine."""
    return bool({path.split(".")[0] for path in diff(base, run)} - UNMARKED)


def find_corpus(run: Run, progress: Progress, encoding: str = "utf-8", force: bool = False) -> Corpus:
    """The run's corpus, once it is known that run, corpus and memory fit each other. Raises UserError."""
    precision.check_memory(run.model, torch.device("cpu"))
    corpus = open_corpus(run.corpus, encoding=encoding, force=force)
    for problem in corpus.problems:
        progress.line(f"note: {problem}")
    setup.check_corpus(run, corpus)
    return corpus


def run_to_folder(
    run: Run,
    corpus: Corpus,
    progress: Progress,
    *,
    name: str,
    modified: bool,
    out: Path | None = None,
    prompt: str | None = None,
) -> FullRun:
    """Take the folder `out` (or runs/NAME, runs/NAME-2 ...), train, score, draw, summarise.

    modified: whether the recipe was changed. prompt: what the trained model continues at the end. Raises UserError; its
    code is INTERRUPTED or TERMINATED if a signal ended the run.
    """
    with raise_on_signal():
        folder, session = take_folder(run, corpus, progress, modified, name, out)
        with folder:
            facts = {"modified": modified, "folder": str(folder.path)}
            run_steps(session, folder, progress, facts)
            try:
                summary, baseline = score(session, folder, progress, facts, prompt)
            except (Exception, KeyboardInterrupt) as error:
                told = unscored(error, session, folder, facts)
                if told is error:
                    raise
                raise told from None
    return FullRun(replace(session.result(), folder=folder.path), summary, baseline)


def label_of(run: Run, modified: bool) -> str:
    """The recipe's name, marked if it was changed."""
    return run.recipe + (" (modified)" if modified else "")


def size_notes(run: Run, corpus: Corpus) -> list[str]:
    """What there is to say about a small corpus."""
    found = []
    read, have, held_out = tokens_of(run), len(corpus.train), len(corpus.dev)
    if read >= 2 * have:
        found.append(f"{run.steps} steps read the {have:,} tokens of training text {read / have:,.0f} times over")
    if held_out < FEW_TOKENS:
        error = loss_standard_error(corpus.train, corpus.dev, corpus.n_vocab)
        found.append(
            f"the held-out text has only {held_out:,} tokens, so the score is rough: its standard error is about "
            f"{error:.2g} nats (a trigram's)"
        )
    return found


def tokens_of(run: Run) -> int:
    """Tokens that the run reads."""
    return run.steps * run.data.batch_size * run.data.seq_len


def take_folder(
    run: Run, corpus: Corpus, progress: Progress, modified: bool, name: str, out: Path | None
) -> tuple[RunFolder, Session]:
    """Take the run's folder, then build the model and say what will be done; if that fails, nothing of the folder is
    left."""
    own_files = ideas.files_of(run)
    wanted = out or Path("runs") / name
    before = {path for path in (wanted, *wanted.parents) if path.exists()}
    folder = RunFolder.create(run, modified, name, out)
    try:
        session = Session.open(run, corpus)
        progress.line(f"{label_of(run, modified)}: {describe(session)}")
        for line in size_notes(run, corpus):
            progress.line(f"note: {line}")
    except BaseException:
        (folder.path / RUN).unlink()
        with suppress(OSError):  # a folder that holds something else stays
            for path in (folder.path, *folder.path.parents):
                if path not in before:
                    path.rmdir()
        raise
    folder.keep_ideas(own_files)
    return folder, session


def describe(session: Session) -> str:
    """Sizes and machine of a run, on one line."""
    run, facts = session.run, session.machine.describe()
    return (
        f"{session.result().params:,} parameters, {run.steps} steps of {run.data.batch_size} x {run.data.seq_len} "
        f"tokens from {session.corpus.name}; {facts['device']}, {facts['threads']} "
        f"thread{'' if facts['threads'] == 1 else 's'}, {facts['dtype']} blocks, {facts['head_dtype']} head, "
        f"{session.head}"
    )


def run_steps(session: Session, folder: RunFolder, progress: Progress, facts: dict[str, Any]) -> None:
    """Train to the end and save the weights. Raises UserError for a run that was stopped or diverged, after its weights
    and a summary are written."""
    run = session.run
    with stop_on_signal() as signals:
        folder.begin(session.machine)
        try:
            for step in progress.follow(session.steps(), run.steps, StepLine(run)):
                folder.add(step)
                if signals:
                    break
        except Stopped as stop:
            raise UserError(
                f"stopped during step {len(session.done) + 1} of {run.steps}",
                why="a second Ctrl-C ended it at once, so there are no weights",
                kept=f"metrics and run.json in {folder.path}",
                code=stop.code,
            ) from None
        except UserError as error:
            if error.code == errors.DIVERGED:
                keep(session, folder, facts | {"state": "diverged"})
                error.kept += f", in {folder.path}" if error.kept else str(folder.path)
            raise
        save_model(session.model, folder.path)
    done = len(session.done)
    if signals and done < run.steps:
        folder.finish(session.result().summary() | facts | {"state": "interrupted"})
        raise UserError(
            f"stopped by a signal after step {done} of {run.steps}",
            kept=f"weights, metrics and run.json in {folder.path}",
            code=exit_code(signals[0]),
        )


def keep(session: Session, folder: RunFolder, facts: dict[str, Any]) -> None:
    """Write the weights and a summary of a run that ends early."""
    save_model(session.model, folder.path)
    summary = session.result().summary() | facts
    missing = {key: None for key, value in summary.items() if isinstance(value, float) and not np.isfinite(value)}
    folder.finish(summary | missing)  # a run that diverged at its first step has no loss


class StepLine:
    """One line about a step, with the time that is left."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.begun = time.perf_counter()

    def __call__(self, step: Step) -> str:
        steps = self.run.steps
        left = (time.perf_counter() - self.begun) / step.number * (steps - step.number)
        speed = self.run.data.batch_size * self.run.data.seq_len / step.seconds
        return (
            f"step {step.number:05d}/{steps:05d} | loss {step.loss:.3f} | lr {step.lr:.1e} | "
            f"norm {step.grad_norm:.2f} | dt {step.seconds * 1000:.0f}ms | tok/s {speed:,.0f} | eta {left / 60:.1f}m"
        )


def score(
    session: Session, folder: RunFolder, progress: Progress, facts: dict[str, Any], prompt: str | None
) -> tuple[dict[str, Any], Curve | None]:
    """Score the trained model, draw its picture, write its summary. Returns the summary, and the baseline's curve on
    the same text if there is one."""
    from hectogpt.train.plot import plot_run  # loads matplotlib, which would hold up the first step

    run, corpus, modified = session.run, session.corpus, facts["modified"]
    progress.line(f"scoring {len(corpus.dev):,} held-out tokens ...")
    found = session.evaluate("dev")
    folder.add_score(len(session.done), found)
    counted = setup.training_tokens(run, corpus)
    ngrams = ngram_losses(counted, corpus.dev, run.model.vocab_size)
    is_baseline = run.recipe == "baseline" and not modified
    if is_baseline:
        baseline_curves.save(baseline_curves.curve_of(session.result()))
    baseline = None if is_baseline else baseline_curves.find(corpus, run.steps)
    plot_run(
        folder.path / PICTURE,
        [step.loss for step in session.done],
        [step.grad_norm for step in session.done],
        f"{run.recipe}{' (modified)' if modified else ''} on {corpus.name}, seed {run.seed}",
        baseline=(baseline.losses, baseline.grad_norms) if baseline else None,
        levels={"unigram counts": ngrams.unigram},
    )
    prompt = default_prompt(corpus) if prompt is None else prompt
    summary = session.result().summary() | facts
    summary |= {"ngrams": asdict(ngrams), "samples": samples(session, prompt), "state": "done"}
    folder.finish(summary)
    return summary, baseline


def unscored(
    error: Exception | KeyboardInterrupt, session: Session, folder: RunFolder, facts: dict[str, Any]
) -> Exception:
    """What to raise when scoring ends early: says that the weights are kept, after a summary without scores is written
    if that can be done."""
    with suppress(UserError):
        folder.finish(session.result().summary() | facts | {"state": "unscored"})
    kept = f"the trained weights, metrics and run.json in {folder.path}"
    if isinstance(error, KeyboardInterrupt):
        code = error.code if isinstance(error, Stopped) else errors.INTERRUPTED
        return UserError("stopped while the trained model was being scored", kept=kept, code=code)
    if isinstance(error, OSError):
        return UserError(
            f"cannot write {error.filename or folder.path}",
            why=error.strerror or str(error),
            kept=kept,
            code=errors.STORAGE,
        )
    if isinstance(error, UserError):
        error.kept = kept
    else:
        print(f"kept: {kept}", file=sys.stderr)
    return error


def default_prompt(corpus: Corpus) -> str:
    """A prompt that fits the corpus: for others than sotu, the first tokens of the first held-out document."""
    if corpus.name == "sotu":
        return SOTU_PROMPT
    ends = np.flatnonzero(corpus.dev[:100_000] == corpus.tokenizer.end_of_text)
    documents = [d[d != corpus.tokenizer.end_of_text] for d in np.split(corpus.dev[:100_000], ends + 1)]
    first = next((d for d in documents if len(d) > PROMPT_TOKENS), documents[0])
    text = corpus.tokenizer.decode_bytes(first[:PROMPT_TOKENS].tolist())
    return text.decode("utf-8", errors="ignore")  # the last character may be cut


def samples(session: Session, prompt: str) -> dict[str, str]:
    """A greedy and a sampled continuation of the prompt, 40 tokens each."""
    how = {"greedy": Sampling(max_new_tokens=40), "sampled": Sampling(max_new_tokens=40, do_sample=True)}
    model, tokenizer, seed = session.model, session.corpus.tokenizer, session.run.seed
    return {name: prompt + complete(model, tokenizer, prompt, sampling, seed=seed) for name, sampling in how.items()}
