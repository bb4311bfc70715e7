"""The Python interface: recipes, training, comparisons, opening models, generation, attention."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float

from hectogpt import errors
from hectogpt.data import Corpus, Tokenizer, find_tokenizer, open_corpus
from hectogpt.display import Progress
from hectogpt.errors import SetTo, UserError
from hectogpt.generation import Sampling, complete
from hectogpt.generation.model_view import read_prompt, trace
from hectogpt.interop import open_model
from hectogpt.lab import ideas, recipes
from hectogpt.lab.compare import Comparison
from hectogpt.lab.engines import local_engine, perform
from hectogpt.lab.full_run import Plan, check_same, describe, find_corpus, run_and_score
from hectogpt.lab.plan import arms_of
from hectogpt.lab.record import check_writable
from hectogpt.lab.tracks import find_track
from hectogpt.lab.verdict import ComparisonResult
from hectogpt.model.transformer import Transformer, evaluating
from hectogpt.run_records import KEEP, RUN, Habits
from hectogpt.signals import Stopped
from hectogpt.training.evaluate import RunResult
from hectogpt.training.events import drive, events, session_of
from hectogpt.training.history import open_at
from hectogpt.training.listeners import step_lines
from hectogpt.training.run import Run, label_of
from hectogpt.training.run_folder import read_run
from hectogpt.training.setup import check_corpus, fit_vocabulary

Source: TypeAlias = RunResult | Path | str | tuple[Transformer, Tokenizer]
Ideas: TypeAlias = Path | str | Sequence[Path | str]
# the default of `generate`; small models repeat themselves if they take the most likely token
TEMPERATURE = 0.8


def recipe(name: str = recipes.DEFAULT) -> Run:
    """The Run of a recipe, or of an idea in a file ("my.py:idea").

    "top" is the best recipe of the ladder, "minute" the best that trains in about a minute. A Run
    is frozen: `replace(run, steps=50)` returns a changed copy. Raises UserError for an unknown
    name, with the nearest known one.
    """
    return ideas.find_run(name)


def train(
    run: Run | str = recipes.DEFAULT,
    *,
    out: Path | str | None = None,
    corpus: Corpus | Path | str | None = None,
    prompt: str | None = None,
    quiet: bool = False,
    save_every: int | None = None,
    keep_checkpoints: int = KEEP,
    eval_every: int = 0,
    resume: bool = False,
) -> RunResult:
    """Train a run to its end and score it on held-out text, bit for bit as `hectogpt train` does.

    Args:
        run: a Run, or the name of a recipe.
        out: the run folder. None writes nothing.
        corpus: the text to train on, if not the run's own.
        prompt: a text for the trained model to continue; the result goes to summary.json.
        quiet: show no progress on stderr.
        save_every: steps between checkpoints; 0 saves none. None saves by time and deletes them
            when the run is done.
        keep_checkpoints: keep only this many checkpoints, the newest.
        eval_every: steps between held-out scores during training; 0 scores only at the end.
        resume: if `out` already holds this run, resume it from its newest checkpoint.

    Raises UserError as the command does. On Ctrl-C the current step finishes; with `out`, a
    checkpoint, weights, metrics and a summary with state "interrupted" are saved before
    KeyboardInterrupt is raised.
    """
    folder = None if out is None else Path(out).expanduser()
    habits = Habits(folder, save_every, keep_checkpoints, eval_every, prompt)
    run = recipe(run) if isinstance(run, str) else run
    ideas.check_causal(run)
    if corpus is not None:
        run = replace(run, corpus=corpus.name if isinstance(corpus, Corpus) else str(corpus))
    progress = Progress(quiet, lines=10)
    run = fit_vocabulary(
        run, corpus.tokenizer if isinstance(corpus, Corpus) else find_tokenizer(run.corpus)
    )
    if isinstance(corpus, Corpus):
        check_corpus(run, corpus)
    else:
        corpus = find_corpus(run, progress)
    base = recipes.recipe_of(run)
    before = None if base is None else fit_vocabulary(base, corpus.tokenizer)
    plan = Plan(run, habits, recipe=before)
    if folder is None:
        return _train_without_folder(plan, corpus, progress)
    if resume and (folder / RUN).exists():
        check_same(folder, read_run(folder), run)
        plan = replace(plan, resume=folder)
    try:
        return run_and_score(plan, corpus, progress).result
    except (
        UserError,
        Stopped,
    ) as error:  # Stopped is raised before the first step, when there is nothing to save
        if isinstance(error, UserError) and SetTo("resume", folder) in error.fix_parts:
            error.amended(
                fix=f"hectogpt.train(run, out={str(folder)!r}, resume=True), or a different out"
            )
        if error.code == errors.INTERRUPTED:
            raise KeyboardInterrupt(str(error)) from None
        if error.code in (errors.TERMINATED, errors.HANGUP):
            raise SystemExit(error.code) from None
        raise


def _train_without_folder(plan: Plan, corpus: Corpus, progress: Progress) -> RunResult:
    stream = events(plan.run, corpus, eval_every=plan.habits.eval_every, splits=("dev",))
    session = session_of(stream)
    progress.line(f"{label_of(plan.run, plan.modified)}: {describe(session)}")
    ended = drive(stream, step_lines(session, progress))
    if ended.error is not None:
        raise ended.error
    return session.result()


def load(
    source: Source, idea: Ideas = (), *, step: int | None = None
) -> tuple[Transformer, Tokenizer]:
    """Open a model, on the CPU and in evaluation mode, and its tokenizer.

    Args:
        source: a run folder, a folder in Hugging Face's GPT-2 layout, a name on the hub ("gpt2"),
            or a RunResult, whose own model is returned.
        idea: your own files, one or several, that define classes of the model; they are imported.
            You need not name a file that you ran here and have not changed since.
        step: open the weights of a run's folder after this step. If the folder does not have them,
            they are computed again and compared with the recorded hash.

    Raises UserError (CHECKPOINT) if there is no model, or if a file that you did not
    name would have to be imported.
    """
    if isinstance(source, RunResult):
        return source.model, source.tokenizer
    if isinstance(source, tuple):
        return source
    if step is not None:
        return open_at(source, step, [idea] if isinstance(idea, Path | str) else idea)
    return open_model(source, download=isinstance(source, str), idea=idea)


def generate(
    source: Source,
    prompt: str = "",
    *,
    max_new_tokens: int = 100,
    seed: int = 0,
    greedy: bool = False,
    idea: Ideas = (),
    **options: Any,
) -> str:
    """The prompt and the model's continuation, as `hectogpt generate` prints them.

    Args:
        source: a RunResult, a folder, a name on the hub, or what `load` returned.
        prompt: the text to continue; an empty one starts a new text.
        max_new_tokens: generate at most this many tokens.
        seed: the seed of the random draws.
        greedy: always take the most likely token. Otherwise tokens are drawn at a temperature of
            0.8 from the 50 most likely ones.
        idea: as in `load`.
        options: other fields of Sampling (temperature, top_k, stop_strings, ...).

    The text ends before an end-of-text token, or before `eos_token_id` (-1: never). Raises
    UserError for an option that does not exist or has a wrong value.
    """
    own = ("max_new_tokens", "num_return_sequences")
    known = [f.name for f in fields(Sampling) if f.name not in own]
    for name in set(options).difference(known):
        raise errors.unknown(f"generate has no option {name!r}", name, known)
    model, tokenizer = load(source, idea)
    options = {
        "max_new_tokens": max_new_tokens,
        "do_sample": not greedy,
        "temperature": TEMPERATURE,
    } | options
    return prompt + complete(
        model, tokenizer, prompt, Sampling.of(tokenizer.end_of_text, **options), seed=seed
    )


def attention_maps(
    source: Source, text: str, idea: Ideas = ()
) -> Float[np.ndarray, "layers heads time time"]:
    """The attention of every layer and head on a text.

    [layer, head, t, s] is the weight that token t gives to token s. Rows sum to 1; the future
    (s > t) has weight 0. If the text is longer than the context, only its end is read.

    Args:
        source: as in `generate`.
        text: the text to read.
        idea: as in `load`.

    Raises UserError for an empty text.
    """
    model, tokenizer = load(source, idea)
    ids = read_prompt(text, tokenizer, model)
    if model.embeddings.weight.device.type != "cpu":
        model = copy.deepcopy(model).to(torch.device("cpu"))
    with evaluating(model):
        return trace(model, ids).maps


# --- comparisons


def compare(
    runs: Sequence[Run | str],
    *,
    seeds: int = 5,
    first_seed: int = 0,
    steps: int | None = None,
    corpus: Corpus | Path | str | None = None,
    track: str = "closed",
    threads: int = 0,
    workers: int = 1,
    test: bool = False,
    out: Path | str | None = None,
    quiet: bool = False,
) -> ComparisonResult:
    """Train every run with every seed and test the differences, as `hectogpt compare` does.

    Args:
        runs: Runs, names of recipes, or FILE.py:FUNCTION. The others are compared with the first.
            A function from a file is applied to the first run. Trials run in separate processes,
            so your own classes must be in a file.
        seeds: the number of seeds.
        first_seed: the seeds are first_seed, first_seed + 1, ...
        steps: the number of steps for all runs; None keeps each run's own.
        corpus: the text; None takes the runs' own.
        track: the track whose rules are checked.
        threads: threads of a trial; 0 takes as many as the track allows.
        workers: how many trials run at a time, on separate cores. The number does not change
            the results.
        test: also score the test split, and compare the runs on it.
        out: the file of records; trials recorded there are not run again. None keeps no records.
        quiet: show no progress on stderr.

    Raises UserError, including when no trial gives a result. After KeyboardInterrupt, finished
    trials are in `out`.
    """
    arms = arms_of(runs, steps, threads)
    names = list(dict.fromkeys(arm.run.corpus for arm in arms))
    if corpus is None and len(names) > 1:
        raise UserError(
            f"the runs read {', '.join(names)}",
            why="losses on different texts cannot be compared",
            fix=SetTo("corpus", names[0]),
        )
    text = corpus if isinstance(corpus, Corpus) else open_corpus(str(corpus or names[0]))
    with tempfile.TemporaryDirectory(prefix="hectogpt-") as folder:
        path = Path(folder, "compare.jsonl") if out is None else Path(out).expanduser()
        wanted = range(first_seed, first_seed + seeds)
        comparison = Comparison(arms, wanted, text, find_track(track), path, test)
        check_writable(path)
        engine = local_engine(comparison, workers)
        perform(comparison, comparison.missing(), engine, Progress(quiet))
        found = ComparisonResult.of(comparison)
    if not found.results:
        raise UserError(
            f"no result from {len(comparison.trials())} trials",
            why=str(comparison.failed[0].error) if comparison.failed else "",
            code=1,
        )
    return found
