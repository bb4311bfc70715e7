"""The end of a run: held-out score, n-gram baselines, picture, continuations and summary."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hectogpt.data import Corpus, Tokenizer
from hectogpt.data.corpus import beginning
from hectogpt.display import Progress
from hectogpt.errors import UserError
from hectogpt.generation import Sampling, complete
from hectogpt.lab.mixing import mix, score_both
from hectogpt.lab.ngram import NgramModels
from hectogpt.lab.recipes import DEFAULT
from hectogpt.model import Transformer
from hectogpt.run_records import METRICS, PICTURE, read_record, read_scores
from hectogpt.signals import raise_on_signal
from hectogpt.training import setup
from hectogpt.training.evaluate import RunResult
from hectogpt.training.events import Ended, Event, Stepped, Trained
from hectogpt.training.full_run import Plan, begin, train_in_folder
from hectogpt.training.leaves import ALONE, World
from hectogpt.training.run_folder import RunFolder, read_steps
from hectogpt.training.session import Session

LONG = 90.0  # seconds of training from which a quicker recipe is suggested
SOTU_PROMPT = "The state of our"
PROMPT_TOKENS = 6  # of the held-out text, for other corpora


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


def run_and_score(plan: Plan, corpus: Corpus, progress: Progress, world: World = ALONE) -> FullRun:
    """Train a run in its folder, score it, draw its picture, write its summary.

    world: the processes that share the run, of which this is rank 0.

    Raises UserError as `train_in_folder` does.
    """
    prompt = plan.habits.prompt
    corpus.tokenizer.encode(prompt or "")  # refuses what is no text before training
    is_default = plan.run.recipe == DEFAULT and plan.resume is None and not plan.modified
    found = []
    with raise_on_signal(), begin(plan, corpus, progress, world) as begun:

        def finish(event: Event) -> None:
            if isinstance(event, Stepped) and event.step.number == 5 and is_default:
                seconds = sum(step.seconds for step in begun.session.done) / 5 * plan.run.steps
                if seconds > LONG:
                    progress.line(
                        f"note: this run takes about {seconds / 60:.1f} minutes here; the recipe "
                        "half_minute takes six tenths of that"
                    )
            elif isinstance(event, Trained):
                progress.line(f"scoring {len(corpus.dev):,} held-out tokens ...")
            elif isinstance(event, Ended) and event.how == "done":
                found.append(summarise(begun.session, begun.folder, progress, prompt))

        train_in_folder(begun, progress, finish)
    return found[0]


def summarise(
    session: Session, folder: RunFolder, progress: Progress, prompt: str | None
) -> FullRun:
    """Compare a run that is scored with n-gram models, draw its picture, write its summary."""
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
        with suppress(UserError):  # its folder may be gone
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
    except Exception as error:  # any error: a picture is not worth a run
        progress.line(f"note: no picture: {type(error).__name__}: {error}")
    prompt = default_prompt(corpus) if prompt is None else prompt
    summary = session.result().summary() | folder.facts
    summary |= {"dev_loss_with_ngrams": loss, "ngram_weights": list(weights)}
    summary |= {
        "ngrams": ngrams,
        "prompt": prompt,
        "samples": samples(session.model, corpus.tokenizer, prompt, run.seed),
        "state": "done",
    }
    folder.finish(summary)
    return FullRun(replace(session.result(), folder=folder.path), summary, baseline)


def default_prompt(corpus: Corpus) -> str:
    """A prompt that fits the corpus: except for sotu, the beginning of the held-out text."""
    if corpus.name == "sotu":
        return SOTU_PROMPT
    return beginning(corpus.dev, corpus.tokenizer, PROMPT_TOKENS)


def samples(model: Transformer, tokenizer: Tokenizer, prompt: str, seed: int) -> dict[str, str]:
    """A greedy and a sampled continuation of the prompt, 40 tokens each."""
    how = {
        "greedy": Sampling(max_new_tokens=40),
        "sampled": Sampling(max_new_tokens=40, do_sample=True),
    }
    return {
        name: prompt + complete(model, tokenizer, prompt, sampling, seed=seed)
        for name, sampling in how.items()
    }


# --- what a loss is compared with: recorded runs of the recipe, the baseline's curve on the text


def is_it_usual(recipe: str, corpus: str, steps: int | None, loss: float) -> str:
    """Compare a run's held-out loss with recorded ones, in words; "" if there are fewer than two.

    A loss within four SD, or within 0.01, is usual. tools/report writes bands.json from
    results/ladder.jsonl: mean and SD of n losses, in nats per token.
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
        return f"as usual ({others})"
    return f"{abs(apart):.3f} {'above' if apart > 0 else 'below'} the usual ({others})"


def find_baseline(corpus: Corpus, steps: int) -> dict[str, Any] | None:
    """A finished baseline run on this training text with this number of steps, or None.

    It has `losses` and `grad_norms` of every step, and `dev_loss`. The package contains one, of
    100 steps on the embedded corpus.
    """
    path = Path(__file__).parent / "baselines" / f"{corpus.sha256['train'][:16]}-{steps}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
