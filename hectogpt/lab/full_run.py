"""A training run with a folder: its plan, its start or resumption, its end and its scores.

Commands read a Plan from their options; Python builds one from keywords. `run_and_score` then does
the rest: `open_run` opens the folder and the session, `train_in_folder` trains, and
`write_results` compares the result with others. Progress goes to stderr. A run that ends early
saves what it can, then raises UserError.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from hectogpt import errors, hardware, torch_private
from hectogpt.data import Corpus, Tokenizer, open_corpus
from hectogpt.data.corpus import beginning
from hectogpt.display import Progress
from hectogpt.errors import CheckpointError, SetTo, Text, UserError
from hectogpt.files import free_bytes, remove_folder
from hectogpt.generation import Sampling, complete
from hectogpt.lab.ngram import NgramModels, mix, score_both
from hectogpt.lab.recipes import DEFAULT
from hectogpt.model import Transformer
from hectogpt.model.weights import hash_weights
from hectogpt.run_records import (
    CHECKPOINTS,
    FIX,
    HASH,
    KEEP,
    METRICS,
    PICTURE,
    RUN,
    STEP_FOLDER,
    Habits,
    count_of,
    object_of,
    read_object,
    read_record,
    read_rows,
    read_scores,
)
from hectogpt.serialization import dump
from hectogpt.signals import code_of, raise_on_signal, stop_behind
from hectogpt.training import precision, setup
from hectogpt.training.evaluate import RunResult
from hectogpt.training.events import (
    Ended,
    Event,
    Listener,
    Stepped,
    Stream,
    Trained,
    drive,
    events,
    session_of,
)
from hectogpt.training.history import branch_state
from hectogpt.training.listeners import Saver, early_summary, rows, step_lines, tracker
from hectogpt.training.parallel import ALONE, World
from hectogpt.training.run import Run, changes, files_of, is_modified, label_of
from hectogpt.training.run_folder import Branch, RunFolder, read_branch, read_steps
from hectogpt.training.session import Session

FEW_TOKENS = 2000  # held-out tokens below which a score is rough
# nats; standard deviation of the losses of single tokens, which is 2.6 to 3.2 for n-gram models
# and small networks
TOKEN_SD = 3.0
LONG = 90.0  # seconds; a quicker recipe is suggested for a run that takes longer
SOTU_PROMPT = "The state of our"
PROMPT_TOKENS = 6  # the prompt for other corpora: this many tokens of the held-out text


@dataclass(frozen=True)
class Plan:
    """A run to train in a folder.

    Attributes:
        run: the run.
        habits: how to train it.
        name: the name of the folder; None uses the recipe's.
        recipe: the run as it was before any field was overridden; None if it is not a recipe.
        resume: the folder of a run to resume instead of starting a new one.
        step: the checkpoint to resume from; None resumes from the newest valid one.
        branch: where the new run branches off an earlier run; None if it does not.
    """

    run: Run
    habits: Habits = field(default_factory=Habits)
    name: str | None = None
    recipe: Run | None = None
    resume: Path | None = None
    step: int | None = None
    branch: Branch | None = None

    @property
    def modified(self) -> bool:
        """True for a new run that differs from its recipe."""
        if self.resume is not None or self.recipe is None:
            return False
        return is_modified(self.recipe, self.run)

    def with_saved_habits(self) -> Plan:
        """Return the plan with the checkpoint settings that a resumed run had before.

        Settings that this command gives take precedence.
        """
        if self.resume is None:
            return self
        before = object_of(read_object(self.resume / RUN).get("saving"))
        every = self.habits.save_every
        keep = self.habits.keep_checkpoints
        if every is None:
            every = count_of(before.get("save_every"))
        if keep == KEEP:
            keep = count_of(before.get("keep_checkpoints")) or KEEP
        return replace(self, habits=replace(self.habits, save_every=every, keep_checkpoints=keep))


@dataclass(frozen=True)
class FullRun:
    """A finished run.

    Attributes:
        result: losses, gradient norms and model of the run.
        summary: the contents of summary.json.
        baseline: the assignment's baseline on the same text, from `find_baseline`.
    """

    result: RunResult
    summary: dict[str, Any]
    baseline: dict[str, Any] | None


def find_corpus(run: Run, progress: Progress, check: bool = True) -> Corpus:
    """Open the run's corpus, and check that the run fits the corpus and the memory.

    Args:
        run: the run.
        progress: shows notes about the corpus.
        check: also compare the files of the corpus with their hashes.

    Raises UserError.
    """
    precision.check_memory(run.model, torch.device("cpu"), run.data, run.dtype)
    corpus = open_corpus(run.corpus, check=check)
    for problem in corpus.problems:
        progress.line(f"note: {problem}")
    setup.check_corpus(run, corpus)
    return corpus


def check_space(session: Session, where: Path) -> None:
    """Check that the disk has room for the weights. Raises UserError (STORAGE)."""
    weights = sum(p.nbytes for p in session.model.parameters())
    with suppress(OSError):  # if the free space is unknown, writing will fail instead
        if (free := free_bytes(where)) < 1.1 * weights:
            raise UserError(
                f"the disk of {where} is full",
                why=f"the weights take {weights:,} bytes, {free:,} are free",
                fix=("free some space on it, or ", SetTo("out", "a folder on another disk")),
                code=errors.STORAGE,
            )


# --- existing runs ---


def named_folder(where: str) -> tuple[Path, int | None]:
    """Return the run folder that a path names, and the step if it names a checkpoint.

    The path is FOLDER or FOLDER/checkpoints/step-N; without a checkpoint, the step is None. Raises
    UserError (CHECKPOINT) for any other path.
    """
    path = Path(where).expanduser()
    match = STEP_FOLDER.fullmatch(path.name)
    if match and path.parent.name == CHECKPOINTS:
        return path.parent.parent, int(match[1])
    if not (path / RUN).is_file():
        raise CheckpointError(f"no run in {path}", why=f"it has no {RUN}", fix=FIX)
    return path, None


def check_same(folder: Path, before: Run, after: Run) -> None:
    """Refuse to resume a run whose fields have changed. Raises UserError."""
    if found := changes(before, after):
        more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
        raise UserError(
            f"{folder} holds a different run",
            why="; ".join(found[:3]) + more,
            fix=("leave these options out, or ", SetTo("out", f"{folder}-2"), " for a new run"),
            kept="the old run, untouched",
        )


# --- descriptions ---


def say_what_is_done(session: Session, folder: RunFolder, progress: Progress) -> None:
    """Print the run's size and machine, and notes about its folder and its text."""
    progress.line(f"{label_of(session.run, folder.modified)}: {describe(session)}")
    notes = [torch_private.untested()]
    if not folder.locked:
        notes.append(f"the file system of {folder.path} has no locks: run nothing else there")
    for line in filter(None, [*notes, *size_notes(session.run, session.corpus)]):
        progress.line(f"note: {line}")


def size_notes(run: Run, corpus: Corpus) -> list[str]:
    """Notes about a small corpus, as sentences."""
    found = []
    have = len(corpus.train)
    held_out = len(corpus.dev)
    if run.tokens >= 2 * have:
        found.append(
            f"{run.steps} steps read the {have:,} tokens of training text "
            f"{run.tokens / have:,.0f} times over"
        )
    if held_out < FEW_TOKENS:
        found.append(
            f"the held-out text has only {held_out:,} tokens, so the score is rough: its "
            "standard error is about "
            f"{TOKEN_SD / held_out**0.5:.2g} nats"
        )
    return found


def describe(session: Session) -> str:
    """Sizes and machine of a run, on one line."""
    run = session.run
    facts = session.machine.describe()
    processes = session.world.size
    parts = [
        f"{session.result().params:,} parameters, {run.steps} steps of {run.data.batch_size} x "
        f"{run.data.seq_len} tokens from {session.corpus.name}",
        f"{facts['device']}, threads: {facts['threads']}, {facts['dtype']} blocks, "
        f"{facts['head_dtype']} head, {session.kernels} kernels",
        *([f"{processes} processes"] if processes > 1 else []),
    ]
    return "; ".join(parts)


# --- from the first step to the last ---


@dataclass(frozen=True)
class OpenRun:
    """A run that is ready for its next step.

    Attributes:
        habits: how to train it.
        folder: the locked run folder.
        session: the session, at the next step.
        stream: the events from that step on.
    """

    habits: Habits
    folder: RunFolder
    session: Session
    stream: Stream


@contextmanager
def open_run(
    plan: Plan, corpus: Corpus, progress: Progress, world: World = ALONE
) -> Iterator[OpenRun]:
    """Context manager: lock a run's folder, and open its session at its first or next step.

    Args:
        plan: the run to train.
        corpus: its text.
        progress: shows notes and how the run starts.
        world: the processes that share the run, of which this is rank 0; the others call `follow`.

    Raises UserError.
    """
    plan = plan.with_saved_habits()
    run = plan.run
    habits = plan.habits
    with ExitStack() as held:
        at = None
        if plan.resume is not None:
            folder = held.enter_context(RunFolder.reopen(plan.resume, run))
            saved = folder.checkpoints
            at = saved.newest(progress.line) if plan.step is None else saved.load(plan.step)
        first = None  # the state of the trunk
        branch = read_branch(plan.resume) if plan.resume else plan.branch
        if at is None and branch is not None:
            first = branch_state(branch, run, note=progress.line)
        stream = events(
            run, corpus, at or first, world, habits.eval_every, ("dev",), stoppable=True
        )
        session = session_of(stream)  # before the folder, so that a refused run leaves none
        if plan.resume is None:
            check_space(session, habits.out or Path("runs"))
            name = plan.name or run.recipe
            folder = held.enter_context(
                RunFolder.create(run, plan.modified, name, habits.out, branch)
            )
        folder.checkpoints.keep = habits.keep_checkpoints
        folder.processes = world.size
        folder.saving = {
            "save_every": habits.save_every,
            "keep_checkpoints": habits.keep_checkpoints,
        }
        say_what_is_done(session, folder, progress)
        if at is not None:
            differences = session.differences(at.facts)
            exact = f"no ({', '.join(differences)})" if differences else "yes"
            for later in saved.steps():
                if later > at.step:  # damaged, or of the steps that are now taken again
                    remove_folder(saved.path(later))
            where = f"after step {at.step} of {run.steps} in {folder.path}"
            progress.line(f"resuming {where}; exact: {exact}")
            folder.resume(session.done, differences, session.hashes)
        elif plan.resume and session.take_weights(read_steps(folder.path), folder.path):
            progress.line(f"all {run.steps} steps are done in {folder.path}")
            folder.unseal(METRICS)
            folder.resume(session.done, [])
        else:
            if plan.resume:
                progress.line(f"{folder.path} has no checkpoint yet: starting over")
            folder.start(
                first_facts(session), files_of(run), corpus.tokenizer, rows_before(branch)
            )
        yield OpenRun(habits, folder, session, stream)


def first_facts(session: Session) -> dict[str, Any]:
    """The entries of run.json about the machine, the text and the initial weights."""
    facts = session.facts()
    names = ("machine", "corpus_sha256", "tokenizer_sha256")
    about = {name: facts[name] for name in names}
    return about if session.step else about | {HASH: hash_weights(session.model)}


def rows_before(branch: Branch | None) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl that a branch takes over from its trunk."""
    if branch is None:
        return []
    return [row for row in read_rows(Path(branch.run) / METRICS) if row["step"] <= branch.step]


def run_and_score(plan: Plan, corpus: Corpus, progress: Progress, world: World = ALONE) -> FullRun:
    """Train a run in its folder, score it, draw its picture and write its summary.

    world: the processes that share the run, of which this is rank 0.

    Raises UserError as `train_in_folder` does.
    """
    prompt = plan.habits.prompt
    corpus.tokenizer.encode(prompt or "")  # refuses an invalid prompt before training
    is_default = plan.run.recipe == DEFAULT and plan.resume is None and not plan.modified
    found = []
    with raise_on_signal(), open_run(plan, corpus, progress, world) as opened:

        def listen(event: Event) -> None:
            if isinstance(event, Stepped) and event.step.number == 5 and is_default:
                seconds = sum(step.seconds for step in opened.session.done) / 5 * plan.run.steps
                if seconds > LONG:
                    progress.line(
                        f"note: this run takes about {seconds / 60:.1f} minutes here; the recipe "
                        "half_minute takes 60 % of that"
                    )
            elif isinstance(event, Trained):
                progress.line(f"scoring {len(corpus.dev):,} held-out tokens ...")
            elif isinstance(event, Ended) and event.how == "done":
                found.append(write_results(opened.session, opened.folder, progress, prompt))

        train_in_folder(opened, progress, listen)
    return found[0]


def train_in_folder(opened: OpenRun, progress: Progress, *more: Listener) -> None:
    """Train to the end, and write the files of the run.

    The listeners do the writing: `rows` appends each line of metrics.jsonl; the Saver writes
    checkpoints and, after the last step, the weights.

    Args:
        opened: the run, from `open_run`.
        progress: shows the steps and notes.
        more: further listeners.

    Raises UserError for a run that ends early, after saving what can be saved. Its code is
    INTERRUPTED, TERMINATED or HANGUP if a signal ended the run.
    """
    habits = opened.habits
    folder = opened.folder
    session = opened.session
    saver = Saver(session, folder, habits.save_every, progress.line)
    listeners: list[Listener] = [
        step_lines(session, progress),
        rows(session, folder),
        saver,
        early_summary(session, folder, progress.line),
        *more,
    ]
    if habits.track == "tensorboard":
        fields = {"run": dump(session.run), "machine": session.machine.describe()}
        listeners.append(tracker(folder.path, fields, session.step, progress.line))
    ended = drive(opened.stream, *listeners)
    if ended.error is not None:
        raise explain(ended, opened, saver.has_weights, progress) from None
    if habits.save_every is None:
        folder.checkpoints.remove()  # no longer needed


def follow(run: Run, corpus: Corpus, world: World, eval_every: int) -> None:
    """Take part in a run that rank 0 leads, until the run ends. Write no files.

    Args:
        run: the run.
        corpus: its text.
        world: the processes that share the run.
        eval_every: as in rank 0's plan.

    Raises UserError with the code that rank 0 ends with.
    """
    with raise_on_signal():
        stream = events(run, corpus, None, world, eval_every, stoppable=True)
        ended = drive(stream)
    if ended.error is not None:
        raise ended.error


def explain(ended: Ended, opened: OpenRun, trained: bool, progress: Progress) -> BaseException:
    """Return the error to raise for a run that ended early, with what is kept and what to do.

    Args:
        ended: how the run ended.
        opened: the run.
        trained: True if the trained weights are in the folder, so that only the scores are
            missing.
        progress: shows what is kept if the error cannot say so.
    """
    error = ended.error
    assert error is not None
    where = opened.folder.path
    run = opened.session.run
    step = f"step {min(opened.session.step + 1, run.steps)} of {run.steps}"
    saved = opened.folder.checkpoints.steps()
    kept = f"metrics and run.json in {where}"
    fix: Text = ""
    if trained:
        kept = f"the trained weights, {kept}"
        fix = f"hectogpt check {where} --repair"
    elif ended.how == "stopped":
        kept = f"weights, {kept}"
        fix = SetTo("resume", where) if saved else ""
    elif ended.how == "diverged":
        assert isinstance(error, UserError)
        kept = f"{error.kept}, in {where}" if error.kept else str(where)
        diagnose = f"; `hectogpt check {where} --diagnose` finds where"
        return error.amended(fix=(*error.fix_parts, diagnose), kept=kept)
    elif saved:
        kept = f"the checkpoint of step {saved[-1]}, {kept}"
    if stop := stop_behind(error):
        what = f"stopped during {step}"
        why = "a second signal ended it at once"
        if trained:
            what = "stopped while the trained model was being scored"
            why = ""
        fix = fix or SetTo("resume", where)
        return UserError(what, why=why, fix=fix, kept=kept, code=code_of(stop))
    if trained and isinstance(error, OSError):
        return errors.unwritable(error.filename or where, error, fix=fix, kept=kept)
    if hardware.is_out_of_memory(error) and not trained:
        parts = SetTo("data.leaves", 2 * (run.data.leaves or 1))
        fix = parts, " for a new run; the batch stays the same"
        why = errors.first_line(error)
        error = UserError(f"out of memory in {step}", why=why, code=errors.MEMORY)
    if isinstance(error, UserError):
        return error.amended(fix="" if error.fix else fix, kept=error.kept or kept)
    progress.line(f"kept: {kept}" + (f"\nfix: {fix}" if fix else ""))
    return error


# --- after the last step: n-gram baselines, picture, continuations and summary ---


def write_results(
    session: Session, folder: RunFolder, progress: Progress, prompt: str | None
) -> FullRun:
    """Compare a scored run with n-gram models, draw its picture and write its summary."""
    # Imported late: loading matplotlib would delay the first step.
    from hectogpt.training.plot import plot_run

    run = session.run
    corpus = session.corpus
    modified = folder.modified
    found = session.scores["dev"]
    counted = setup.training_tokens(run, corpus)
    progress.line(f"counting n-grams of the {counted.size:,} tokens that were read ...")
    models = NgramModels(counted, run.model.vocab_size)
    ngrams = models.losses(corpus.dev)
    loss, weights = mix(score_both(models.order_5, corpus.dev, found))
    baseline = (
        None if run.recipe == "baseline" and not modified else find_baseline(corpus, run.steps)
    )
    behind = ("baseline", baseline["losses"], baseline["grad_norms"]) if baseline else None
    if folder.branch is not None:
        trunk = Path(folder.branch.run)
        steps = read_steps(trunk)
        behind = ("trunk", [step.loss for step in steps], [step.grad_norm for step in steps])
        with suppress(UserError):  # its folder may have been deleted
            about = {"trunk": str(trunk), "trunk_step": folder.branch.step}
            folder.facts["branch"] = about | {"trunk_loss": read_record(trunk).dev_loss}
    try:
        plot_run(
            folder.path / PICTURE,
            [step.loss for step in session.done],
            [step.grad_norm for step in session.done],
            f"{run.recipe}{' (modified)' if modified else ''} on {corpus.name}, seed {run.seed}",
            behind=behind,
            held_out=read_scores(folder.path / METRICS),
            levels={"unigram counts": ngrams["unigram"]},
        )
    except Exception as error:  # any error: a run must not fail for lack of a picture
        progress.line(f"note: no picture: {type(error).__name__}: {error}")
    prompt = default_prompt(corpus) if prompt is None else prompt
    summary = session.result().summary() | folder.facts
    summary |= {
        "dev_loss_with_ngrams": loss,
        "ngram_weights": list(weights),
        "ngrams": ngrams,
        "prompt": prompt,
        "samples": samples(session.model, corpus.tokenizer, prompt, run.seed),
        "state": "done",
    }
    folder.finish(summary)
    return FullRun(replace(session.result(), folder=folder.path), summary, baseline)


def default_prompt(corpus: Corpus) -> str:
    """A prompt that fits the corpus: SOTU_PROMPT for sotu, else the start of the held-out text."""
    if corpus.name == "sotu":
        return SOTU_PROMPT
    return beginning(corpus.dev, corpus.tokenizer, PROMPT_TOKENS)


def samples(model: Transformer, tokenizer: Tokenizer, prompt: str, seed: int) -> dict[str, str]:
    """A greedy and a sampled continuation of the prompt, 40 tokens each."""
    found = {}
    for name in ("greedy", "sampled"):
        how = Sampling(max_new_tokens=40, do_sample=name == "sampled")
        found[name] = prompt + complete(model, tokenizer, prompt, how, seed=seed)
    return found


# --- what a loss is compared with: recorded runs of the recipe, the baseline's curve on the text


def is_it_usual(recipe: str, corpus: str, steps: int | None, loss: float) -> str:
    """Say how a run's held-out loss compares with recorded ones.

    Returns "" if there are fewer than two. A loss within four SD, or within 0.01, of their mean is
    usual. bands.json holds the mean and the SD of n recorded losses, in nats per token;
    tools/report makes the file from results/ladder.jsonl.
    """
    bands = json.loads(
        (Path(__file__).parent / "baselines" / "bands.json").read_text(encoding="utf-8")
    )
    if (band := bands.get(f"{recipe} {corpus} {steps}")) is None:
        return ""
    mean, sd, n = band
    others = f"{n} runs on record: {mean:.3f} ± {sd:.3f}"
    apart = loss - mean
    if abs(apart) <= max(4 * sd, 0.01):
        return f"normal ({others})"
    return f"{abs(apart):.3f} {'above' if apart > 0 else 'below'} the usual ({others})"


def find_baseline(corpus: Corpus, steps: int) -> dict[str, Any] | None:
    """A finished baseline run on this training text with this number of steps, or None.

    It has `losses` and `grad_norms` of every step, and `dev_loss`. The package contains one such
    run, of 100 steps on the embedded corpus.
    """
    path = Path(__file__).parent / "baselines" / f"{corpus.sha256['train'][:16]}-{steps}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
