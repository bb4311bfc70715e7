"""The options of train, compare, judge and idea, and the --help of train. Loads neither torch nor the recipes."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from hectogpt.cli.help import Corpus, Json, Quiet, Silent, about, lines_of, rows_of, width
from hectogpt.run_records import KEEP


@dataclass(frozen=True)
class TrainOptions:
    """Train a recipe (minute takes about one; top reaches the lowest loss), or one changed by a function of your own,
    score it, and keep all in runs/RECIPE. Every field of the run is an option: --model.n-layers 6 --optim.lr 0.003.

    Examples
      hectogpt train adamw_128 --corpus stories.txt --steps 300 --out runs/mine
    """

    encoding: str = "utf-8"
    """Of text files."""
    force: bool = False
    """Read odd files too: tables, some that look binary."""
    eval_every: int = 0
    """Steps between held-out scores; 0 for none."""
    init: str | None = None
    """Start from the weights of a run, folder or hub name."""
    idea: Path | None = None
    """Your own file, if the model of --init has its classes."""
    save_every: int | None = None
    """Steps between checkpoints; 0 for none (default: by time, and none stays in the end)."""
    keep_checkpoints: int = KEEP
    """How many checkpoints stay, the newest."""
    resume: Annotated[str | None, arg(metavar="auto|RUN")] = None
    """Go on with the recipe's newest run, or with a folder."""
    extend: int | None = None
    """With --resume: steps to add to a run that is done."""
    require_exact: bool = False
    """With --resume: refuse if bits may differ."""
    dist_timeout: float = 120.0
    """Seconds that processes wait for each other (torchrun)."""
    out: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """The run's folder (default runs/RECIPE, RECIPE-2 ...)."""
    prompt: str | None = None
    """What the trained model continues at the end."""
    track: Annotated[str, arg(metavar="NAMES")] = ""
    """Send metrics to tensorboard, trackio or wandb too."""
    json: Json = False
    quiet: Silent = False
    dry_run: bool = False
    """Show the run, its size and its corpus; no training."""


# Fields of the run that --help names beside the options: how they are written, and their texts.
RUN_FIELDS = {
    "corpus": ("--corpus NAME", "sotu (default), tinystories, hf:NAME, or a file, a folder, .jsonl or .bin"),
    "steps": ("--steps N", "Gradient steps. (default 100)"),
    "seed": ("--seed N", "Draws the first weights and the data's order. (default 0)"),
    "device": ("--device NAME", "auto, cpu, cuda, cuda:1 or mps."),
    "dtype": ("--dtype NAME", "auto, float32, bfloat16 or float64; so --head-dtype."),
    "threads": ("--threads N", "0 for one on each physical core."),
    "compile": ("--compile", "Generate code for the blocks; pays for long runs."),
}
# The options of `hectogpt train --help`, in its order.
TRAIN_GROUPS = {
    "Text": ("corpus", "encoding", "force"),
    "Run": ("steps", "eval_every", "seed", "init", "idea"),
    "Going on": ("save_every", "keep_checkpoints", "resume", "extend", "require_exact"),
    "Machine": ("device", "dtype", "threads", "compile", "dist_timeout"),
    "Output": ("out", "prompt", "track", "json", "quiet", "dry_run"),
}

USAGE = "usage: hectogpt train [RECIPE | FILE.py:FUNCTION[@BASE]] [options]"


def train_help() -> str:
    """The text of `hectogpt train --help`."""
    rows, columns = RUN_FIELDS | rows_of(TrainOptions), width()
    text, examples = about(TrainOptions, columns)
    lines = [USAGE, "", text]
    for title, names in TRAIN_GROUPS.items():
        lines += [title, *(line for name in names for line in lines_of(*rows[name], columns))]
    lines += ["", examples, "", "Recipes: the ladder from the baseline up, each with what it adds; then others"]
    for name, sentence in recipe_lines():
        lines.append(f"  {name:<22}{textwrap.shorten(sentence, columns - 24, placeholder=' ...')}")
    return "\n".join(lines)


def recipe_lines() -> list[tuple[str, str]]:
    """Every recipe's name and the first sentence about it, from a file that tools/recipes.py writes: importing the
    recipes would load torch."""
    text = (Path(__file__).parent.parent / "lab" / "recipes.txt").read_text(encoding="utf-8")
    return [(name, sentence) for name, _, sentence in (line.partition("\t") for line in text.splitlines())]


@dataclass(frozen=True)
class CompareOptions:
    """Run recipes over the same seeds, test the differences and give a verdict. A seed changes the first weights and
    the data order.

    Examples
      hectogpt compare baseline muon --seeds 3
      hectogpt compare top my_idea.py:muon --until decided --html verdict.html
      hectogpt compare top my_idea.py:muon --budget 60m
      hectogpt compare top --without all --seeds 5 --json
      hectogpt compare adamw_128 --sweep optim.lr=0.001,0.003 --steps 50
    """

    recipes: Positional[tuple[str, ...]] = ()
    """Names of recipes; the first is what the others are compared to. `top` is the ladder's last rung."""
    seeds: int | None = None
    """How many seeds: 5; with budget or until the most of them, 1000."""
    first_seed: int = 0
    """The seeds are first-seed, first-seed + 1, ..."""
    budget: str | None = None
    """Run as many seeds as fit into this time, as in 90s, 60m or 2h; at least one. A seed is started only if it fits
    by the time that the slowest one took."""
    until: Literal["decided"] | None = None
    """decided: go on seed by seed until each recipe is better than the first, worse, or within 0.02 of it. The test
    stays valid although it looks after every seed; it is wrong about a recipe in 5 of 100 comparisons at most."""
    corpus: Corpus = "sotu"
    track: str = "closed"
    """Whose rules to check: closed is 100 steps, 819,200 fresh tokens, 60 M parameters, 10 minutes on 2 cores. An
    unknown name lists the others."""
    steps: int | None = None
    """Another number of steps; such trials are marked modified."""
    without: tuple[str, ...] = ()
    """Rungs of the top recipe to leave out, one at a time ("all": each of them)."""
    sweep: tuple[str, ...] = ()
    """FIELD=VALUE,VALUE as in optim.lr=0.001,0.003; several make a grid. Such trials are marked modified."""
    out: Path = Path("runs/compare.jsonl")
    """Where the records go, a line a trial. Trials recorded there are not run again, unless they crashed."""
    test: bool = False
    """Score the test text too and compare by it; without, by the dev text."""
    threads: int = 0
    """Threads a trial (0: as many as the track allows, at most one on each core)."""
    workers: int | None = None
    """Trials at a time: 1; with an engine as many as there is room for. Each has a GPU where there are several."""
    engine: Literal["local", "ray", "slurm"] = "local"
    """ray: tasks of a Ray cluster. slurm: writes the script of an array, or follows one that runs."""
    dry_run: bool = False
    """Show what would be run; with slurm the script."""
    html: Path | None = None
    """Write a page with verdicts, curves, table and the source of ideas to this file; it works offline."""
    json: Json = False
    quiet: Silent = False


@dataclass(frozen=True)
class JudgeOptions:
    """Judge an idea: train it and its base with seeds that nobody chose, on both corpora, and check what it says.

    The verdict is better, worse, tie or unproven; refused if it breaks a rule of its base (steps, tokens, parameters,
    time) or cannot be run; dishonest if a check fails. Exit codes: 0 better, 1 not better, 2 refused, 3 dishonest. The
    idea's file is run, in processes that can open no other file of data.

    Examples
      hectogpt judge my_idea.py:idea
      hectogpt judge my_idea.py:idea@top --minutes 60 --json
      hectogpt judge my_idea.py:idea --replay judgements/my_idea-idea-20261128-101500-7.jsonl
      hectogpt judge --queue ideas --hours 8
    """

    idea: Positional[str] = ""
    """FILE.py:FUNCTION, or FILE.py:FUNCTION@BASE for another base."""
    base: str = "minute"
    """What ideas are applied to and compared with: a recipe, or a function of another file."""
    corpus: tuple[str, ...] = ("sotu", "tinystories")
    """Texts to judge on; tinystories is left out where it cannot be had."""
    minutes: float = 30.0
    """Start no further seed that would not fit into this time."""
    seeds: int = 12
    """The most seeds; the judge stops as soon as they decide."""
    threads: int = 0
    """Threads of a training (0: two, or one on a processor with one core)."""
    out: Path = Path("judgements")
    """Folder for the records, one file for each judgement."""
    html: Path | None = None
    """Write a page of the verdict to this file; it works offline."""
    replay: Path | None = None
    """Do the judgement of this record again, with its seeds, and say whether it holds (exit code 0 or 1)."""
    queue: Path | None = None
    """Judge each function `idea` of the files in this folder that has no verdict yet, in the order of their names."""
    hours: float = 8.0
    """Of a queue: start no further idea after this time."""
    json: Json = False
    quiet: Quiet = False


@dataclass(frozen=True)
class IdeaOptions:
    """Write an example of an idea: a function that takes a run and returns a changed one, with what it needs.

    The file works as it is; change it, and try it with `hectogpt train` and `hectogpt compare`.

    Examples
      hectogpt idea
      hectogpt idea window.py --kind attention
    """

    file: Positional[Path] = Path("my_idea.py")
    """File to write. A file that exists is never overwritten."""
    kind: Literal["schedule", "optimizer", "attention", "input", "data", "rates", "loss", "literature"] = "schedule"
    """What the example changes: the schedule of the learning rate, the optimizer, attention, what is added to the
    token embeddings, the order of the data, the learning rates of single kinds of parameters, or the loss. literature:
    a file with many, from SwiGLU to distillation."""
