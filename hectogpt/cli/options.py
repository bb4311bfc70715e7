"""The options of commands: a class for each. A command whose class is in OPTIONS gets a value of it; train, grade,
explore, assignment, check and watch read their command lines themselves.

Modules of commands load torch; this one does not, so that --help and a wrong option are answered at once.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro
from tyro.conf import Positional, arg

from hectogpt.cli.help import command_help
from hectogpt.run_records import KEEP

T = TypeVar("T")
Json = Annotated[bool, arg(help="Print one JSON object.", help_behavior_hint="")]
Quiet = Annotated[bool, arg(help="Print results and errors only.", help_behavior_hint="")]
Corpus = Annotated[str, arg(help="sotu, tinystories, hf:NAME, or a file, a folder, .jsonl or .bin")]
Step = Annotated[
    int | None,
    arg(
        metavar="INT",
        help="Of runs: the weights of their checkpoint of this step. Without, those at their end; of a run that is not "
        "finished those of its newest checkpoint.",
        help_behavior_hint="",
    ),
]
Idea = Annotated[
    tuple[Path, ...],
    arg(
        metavar="FILE ...",
        help="Your own file, FILE.py, if a model has classes of it; it is imported. A file that you ran here and that "
        "has not changed since need not be named.",
        help_behavior_hint="",
    ),
]


def read_options(kind: type[T], argv: list[str], command: str) -> T:
    """The options in a command's arguments. --help prints them below the class's docstring, and leaves."""
    if {"--help", "-h"} & set(argv):
        print(command_help(kind, command))
        raise SystemExit(0)
    return tyro.cli(
        kind,
        args=argv,
        prog=f"hectogpt {command}",
        description=inspect.getdoc(kind),
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.PositionalMetavarFromFieldName),
    )


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
class CompletionOptions:
    """Print a completion script for a shell: commands, options, values, files. Make it again after an update.

    Examples
      hectogpt completion bash > ~/.local/share/bash-completion/completions/hectogpt
      hectogpt completion zsh > ~/.zfunc/_hectogpt
    """

    shell: Positional[Literal["bash", "zsh"]]
    """bash or zsh"""


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
    quiet: bool = False
    """Print errors only."""


@dataclass(frozen=True)
class DataOptions:
    """Tokenise a corpus into its cache (build), check the cache against its hashes (verify), or rebuild it (repair).

    Examples
      hectogpt data build stories.txt
      hectogpt data verify sotu --json
    """

    action: Positional[Literal["build", "verify", "repair"]]
    source: Positional[str] = "sotu"
    """sotu, tinystories, hf:NAME, a text file, a folder, .jsonl, FILE.jsonl:COLUMN, or .bin"""
    encoding: str = "utf-8"
    """Of text files."""
    force: bool = False
    """Read a file that looks binary, or a table, as plain text; leave out files of a folder that cannot be decoded."""
    json: Json = False


@dataclass(frozen=True)
class DoctorOptions:
    """Say what this machine and installation can do, what is missing, and which feature needs it. The exit code is 0
    unless something is missing that `hectogpt train` needs.

    Examples
      hectogpt doctor
      hectogpt doctor --json
    """

    json: Json = False


@dataclass(frozen=True)
class ExportOptions:
    """Write a model as a folder that transformers opens offline, or as a GGUF file for llama.cpp.

    A model that is GPT-2 becomes a GPT2LMHeadModel. Any other comes with its code in one file, which transformers runs
    with trust_remote_code=True. docs/interop.md says more, docs/serving.md how to serve either.

    Examples
      hectogpt export runs/minute exported
      hectogpt export runs/baseline exported --to gguf
      hectogpt export runs/mine exported --overwrite
    """

    model: Positional[str]
    """A run's folder, a folder in Hugging Face's layout, or a name on the hub."""
    folder: Positional[Path]
    """Where to write; made if it is missing."""
    to: Literal["hf", "gguf"] = "hf"
    """hf: for transformers. gguf: model.gguf for llama.cpp, of a GPT-2 only."""
    step: Step = None
    overwrite: bool = False
    """Replace an earlier export in the folder."""
    json: Json = False
    quiet: bool = False
    """Print errors only."""


@dataclass(frozen=True)
class GenerateOptions:
    """Continue one prompt or several.

    The model is a folder that `hectogpt train` wrote, a folder in Hugging Face's GPT-2 layout, or a name on the hub.
    Texts come in the order of the prompts, all continuations of one before those of the next.

    Examples
      hectogpt generate runs/minute "My fellow citizens" --max-new-tokens 40
      hectogpt generate runs/minute "First" "Second" --temperature 0.5 --json
      hectogpt generate gpt2 --prompts prompts.txt > texts.txt
    """

    model: Positional[str]
    """Folder or hub name, such as runs/minute or gpt2."""
    prompt: Positional[tuple[str, ...]] = ()
    """Texts to continue. Quote each: unquoted words are a prompt each. - reads one from standard input; without a
    prompt a new text is started."""
    prompts: Path | None = None
    """File with a prompt on each line, after those above; empty lines are skipped. - is standard input."""
    step: Step = None
    idea: Idea = ()
    max_new_tokens: int = 100
    """Tokens to add at most."""
    greedy: bool = False
    """Take the likeliest token each time, instead of drawing one."""
    temperature: float = 0.8
    """Divides the logits before a draw; 0 takes the likeliest token."""
    top_k: int = 50
    """Draw among the k likeliest tokens; 0: among all."""
    top_p: float = 1.0
    """Draw among the likeliest tokens whose probabilities reach p."""
    min_p: float = 0.0
    """Drop tokens less likely than min_p times the likeliest."""
    repetition_penalty: float = 1.0
    """Above 1: tokens already in the text become less likely."""
    num_return_sequences: int = 1
    """Continuations of each prompt."""
    stop_strings: tuple[str, ...] = ()
    """End the text after one of these."""
    eos_token_id: int | None = None
    """Token that ends a text. Without, end-of-text; -1: none."""
    seed: int = 0
    """Of the draws; text number i, counted from 0 through all prompts, uses seed + i."""
    precision: Literal["float32", "bfloat16", "int8"] = "float32"
    """Format of the weights: float32, or bfloat16 or int8, which are faster and slightly inexact."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    threads: int | None = None
    """Processor threads. Without, torch's choice."""
    strict: bool = False
    """Refuse a prompt longer than the model's context instead of using its end."""
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
    kind: Literal["schedule", "optimizer", "attention", "input", "data", "rates"] = "schedule"
    """What the example changes: the schedule of the learning rate, the optimizer, attention, what is added to the
    token embeddings, the order of the data, or the learning rates of single kinds of parameters."""


@dataclass(frozen=True)
class ScoreOptions:
    """Score models on the held-out text of a corpus.

    Every token after the first is predicted once, in rows of up to 512 tokens, in float32. Bits per byte compare models
    with different tokenizers.

    Examples
      hectogpt score runs/minute
      hectogpt score gpt2 runs/top --corpus stories.txt
      hectogpt score exported --corpus sotu --max-tokens 20000 --json
    """

    models: Positional[tuple[str, ...]]
    """Runs' folders, folders in Hugging Face's layout, or names on the hub."""
    corpus: Corpus = "sotu"
    split: Literal["dev", "test"] = "dev"
    """The held-out text; test is for the last word."""
    max_tokens: int | None = None
    """Score only the first tokens; GPT-2 small takes some seconds per thousand on two cores."""
    step: Step = None
    idea: Idea = ()
    json: Json = False
    quiet: Quiet = False


@dataclass(frozen=True)
class ShowOptions:
    """Show a run: its numbers, its picture's path, its samples, and the fields that differ from its recipe. Without a
    name list the runs below ./runs, the recipes and the corpora.

    Examples
      hectogpt show
      hectogpt show runs/minute --json
    """

    run: Positional[str] = ""
    """Folder that `hectogpt train` wrote, or its name below runs/."""
    json: Json = False


@dataclass(frozen=True)
class TrainOptions:
    """Train a recipe. Every field of the run can be overridden, as in --model.d-model 64 --optim.lr 3e-3."""

    out: Path | None = None
    """The run's folder (default: runs/RECIPE, runs/RECIPE-2 ...)."""
    save_every: int | None = None
    """Steps between checkpoints; 0 for none (default: by time, about every 10 s, and none once the run is done)."""
    keep_checkpoints: int = KEEP
    """How many checkpoints stay, the newest; all of them are the slider of `hectogpt explore RUN`."""
    eval_every: int = 0
    """Steps between held-out scores on the way; 0 for none."""
    resume: str | None = None
    """Go on with a run: its folder, one of its checkpoints, or "auto"."""
    init: str | None = None
    """Start from the weights of a model: a run, a folder in Hugging Face's layout, or a name on the hub."""
    idea: Path | None = None
    """The file of a user's own whose classes the model of --init has; it is imported."""
    extend: int | None = None
    """Steps to add to a run that is done; with --resume."""
    require_exact: bool = False
    """With --resume: refuse if the machine or the program differs, so that bits may differ."""
    dist_timeout: float = 120.0
    """Seconds that one process waits for another."""
    prompt: str | None = None
    """What the trained model continues at the end (default: the beginning of a held-out document)."""
    encoding: str = "utf-8"
    """Encoding of a text corpus."""
    force: bool = False
    """Read a file that looks binary, or a table, as plain text; leave out files of a folder that cannot be decoded."""
    track: str = ""
    """Trackers that get what metrics.jsonl gets, such as tensorboard,trackio,wandb."""
    json: Json = False
    quiet: bool = False
    """Print errors only."""
    dry_run: bool = False
    """Show the run, its size and its corpus; train nothing."""


OPTIONS: dict[str, Any] = {
    "compare": CompareOptions,
    "completion": CompletionOptions,
    "data": DataOptions,
    "doctor": DoctorOptions,
    "export": ExportOptions,
    "generate": GenerateOptions,
    "idea": IdeaOptions,
    "judge": JudgeOptions,
    "score": ScoreOptions,
    "show": ShowOptions,
}
