"""`hectogpt train [RECIPE]`: one run, shown while it happens and kept in its folder.

Progress and the live line go to stderr, the final table (or --json) to stdout.
"""

from __future__ import annotations

import json
import signal
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro

from hectogpt import errors
from hectogpt.cli.show import Say, final_table, stop_on_signal
from hectogpt.data import Corpus, open_corpus, tokens_read
from hectogpt.errors import UserError
from hectogpt.lab import baselines, recipes
from hectogpt.lab.anchors import anchors
from hectogpt.model import Transformer
from hectogpt.model.folder import save_model
from hectogpt.model.generate import Sampling, complete
from hectogpt.train import loop, machine, picture
from hectogpt.train.folder import RunFolder, choose_folder
from hectogpt.train.run import Run
from hectogpt.values import diff, dump

# Overriding these does not make a run another recipe: they choose text, luck and machine.
UNMARKED = {"corpus", "seed", "device", "dtype", "head_dtype", "threads", "compile"}


@dataclass(frozen=True)
class TrainArguments:
    """Train a recipe. Every field of the run can be overridden, as in --model.d-model 64 --optim.lr 3e-3."""

    run: Annotated[Run, tyro.conf.arg(name="")]
    out: Path | None = None
    """The run's folder (default: runs/RECIPE, runs/RECIPE-2 ...)."""
    prompt: str = "The state of our"
    """What the trained model continues at the end."""
    encoding: str = "utf-8"
    """Encoding of a text corpus."""
    force: bool = False
    """Accept text that looks binary."""
    json: bool = False
    """Print the summary as JSON on stdout."""
    quiet: bool = False
    """Print errors only."""
    dry_run: bool = False
    """Show the run, its size and its corpus; train nothing."""


def parse(argv: list[str]) -> tuple[TrainArguments, Run]:
    """Split off the recipe's name and read the rest as overrides. Returns the arguments and the unmodified recipe."""
    named = bool(argv) and not argv[0].startswith("-")
    base = recipes.recipe(argv[0] if named else recipes.DEFAULT)
    listing = "\n".join(f"  {name}: {recipes.describe(name)}" for name in recipes.names())
    arguments = tyro.cli(
        TrainArguments,
        args=argv[1:] if named else argv,
        default=TrainArguments(base),
        prog="hectogpt train [RECIPE]",
        description=f"{TrainArguments.__doc__}\n\nRecipes (default {recipes.DEFAULT}):\n{listing}",
        config=(tyro.conf.AvoidSubcommands,),
    )
    return arguments, base


def main(argv: list[str]) -> None:
    """Run the command."""
    arguments, base = parse(argv)
    run = arguments.run
    modified = bool({field.split(".")[0] for field in diff(base, run)} - UNMARKED)
    say = Say(quiet=arguments.quiet or arguments.json)
    machine.check_memory(run.model, torch.device("cpu"))
    corpus = open_corpus(run.corpus, encoding=arguments.encoding, force=arguments.force)
    for problem in corpus.problems:
        say.line(f"note: {problem}")
    loop.check_corpus(run, corpus)
    if arguments.dry_run:
        dry_run(run, corpus, modified)
        return
    folder = choose_folder(arguments.out, run.recipe)
    chosen = machine.choose(run)
    model = loop.build_model(run, chosen, corpus)
    optimizer = run.optim.build(model)
    head = loop.compile_head(run, model, chosen)
    label = run.recipe + (" (modified)" if modified else "")
    facts = chosen.describe()
    threads = f"{facts['threads']} thread{'' if facts['threads'] == 1 else 's'}"
    say.line(
        f"{label}: {sum(p.numel() for p in model.parameters()):,} parameters, {run.steps} steps of "
        f"{run.data.batch_size} x {run.data.window} tokens from {corpus.name}; {facts['device']}, "
        f"{threads}, {facts['dtype']} blocks, {facts['head_dtype']} head, {head}"
    )
    done: list[loop.Step] = []
    with RunFolder(folder, run, chosen, modified) as kept:
        with stop_on_signal() as signals:
            for step in say.steps(loop.steps(run, model, optimizer, corpus, chosen), run):
                kept.add(step)
                done.append(step)
                if signals:
                    break
            save_model(model, folder)
        summary = summarize(run, modified, corpus, model, folder, done, facts)
        if signals and len(done) < run.steps:
            kept.finish(summary | {"state": "interrupted"})
            raise UserError(
                f"stopped by a signal after step {len(done)} of {run.steps}",
                kept=f"weights, metrics and run.json in {folder}",
                code=errors.INTERRUPTED if signals[0] == signal.SIGINT else errors.TERMINATED,
            )
        say.line(f"scoring {len(corpus.dev):,} held-out tokens ...")
        score = loop.evaluate(model, corpus.dev, corpus.tokenizer.token_bytes)
        kept.add_score(len(done), score)
        counted = tokens_read(corpus.train, run.data.window, run.data.batch_size, run.seed, run.steps)
        levels = anchors(counted, corpus.dev, run.model.vocab_size)
        summary |= {"dev_loss": score.loss, "dev_bpb": score.bits_per_byte, "anchors": asdict(levels)}
        is_baseline = run.recipe == "baseline" and not modified
        if is_baseline:
            baselines.keep(baselines.curve_of(run, corpus, done, score))
        reference = None if is_baseline else baselines.find(corpus, run.steps)
        picture.plot_run(
            folder / "losses_and_grad_norms.png",
            [s.loss for s in done],
            [s.grad_norm for s in done],
            f"{label} on {corpus.name}, seed {run.seed}",
            baseline=(reference.losses, reference.grad_norms) if reference else None,
            levels={"unigram counts": levels.unigram},
        )
        summary |= {"samples": samples(model, corpus, arguments.prompt, run.seed), "state": "done"}
        kept.finish(summary)
    if arguments.json:
        print(json.dumps(summary, allow_nan=False))
    elif not arguments.quiet:
        final_table(summary, reference)


def summarize(
    run: Run,
    modified: bool,
    corpus: Corpus,
    model: Transformer,
    folder: Path,
    done: list[loop.Step],
    facts: dict[str, Any],
) -> dict[str, Any]:
    """What is known when the last step is done."""
    losses = [step.loss for step in done]
    return {
        "recipe": run.recipe,
        "modified": modified,
        "corpus": corpus.name,
        "corpus_sha256": corpus.sha256,
        "tokenizer_sha256": corpus.tokenizer.sha256,
        "seed": run.seed,
        "steps": len(done),
        "train_tokens": done[-1].tokens,
        "params": sum(p.numel() for p in model.parameters()),
        "train_loss_first": losses[0],
        "train_loss_last": losses[-1],
        "train_loss_last10": float(np.mean(losses[-10:])),
        "seconds": sum(step.seconds for step in done),
        "peak_mb": machine.peak_memory_mb(),
        "machine": facts,
        "folder": str(folder),
    }


def samples(model: Transformer, corpus: Corpus, prompt: str, seed: int) -> dict[str, str]:
    """A greedy and a sampled continuation of the prompt, 40 tokens each."""
    how = {"greedy": Sampling(max_new_tokens=40), "sampled": Sampling(max_new_tokens=40, do_sample=True)}
    return {
        name: prompt + complete(model, corpus.tokenizer, prompt, sampling, seed=seed) for name, sampling in how.items()
    }


def dry_run(run: Run, corpus: Corpus, modified: bool) -> None:
    """Print the run and what it would read."""
    tokens = run.steps * run.data.batch_size * run.data.window
    print(json.dumps(dump(run), indent=2))
    print(f"{run.recipe}{' (modified)' if modified else ''}: {loop.count_parameters(run, corpus):,} parameters")
    epochs = tokens / len(corpus.train)
    print(f"{tokens:,} training tokens of {len(corpus.train):,} in {corpus.name} ({epochs:.2f} epochs)")
