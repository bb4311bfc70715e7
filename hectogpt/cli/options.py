"""The options of the commands whose work is in a module of its own, which loads torch.

`train` has its options in train.py, since most of them are the fields of a Run.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class CompareArguments:
    """Run recipes over the same seeds, test the differences and give a verdict. A seed changes the first weights and
    the data order."""

    recipes: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
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
    corpus: str = "sotu"
    """sotu, tinystories, hf:NAME, or a file, a folder, .jsonl or .bin"""
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
    json: bool = False
    """Print the results as JSON on stdout."""
    html: Path | None = None
    """Write a page with verdicts, curves, table and the source of ideas to this file; it works offline."""
    quiet: bool = False
    """Print errors only."""


@dataclass(frozen=True)
class GenerateArguments:
    """Continue one prompt or several.

    The model is a folder that `hectogpt train` wrote, a folder in Hugging Face's GPT-2 layout, or a name on the hub.
    Texts come in the order of the prompts, all continuations of one before those of the next.
    """

    model: Annotated[str, tyro.conf.Positional]
    """Folder or hub name, such as runs/minute or gpt2."""
    prompt: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Texts to continue. Quote each: unquoted words are a prompt each. - reads one from standard input; without a
    prompt a new text is started."""
    prompts: Path | None = None
    """File with a prompt on each line, after those above; empty lines are skipped. - is standard input."""
    step: int | None = None
    """Of a run: the weights of its checkpoint of this step (default: those at its end; of a run that is not finished
    those of its newest checkpoint)."""
    idea: tuple[Path, ...] = ()
    """Your own file, FILE.py, if the model has classes of it; it is imported. A file that you ran here and that has
    not changed since need not be named."""
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
    """Token that ends a text. Default: end-of-text; -1: none."""
    seed: int = 0
    """Of the draws; text number i, counted from 0 through all prompts, uses seed + i."""
    precision: Literal["float32", "bfloat16", "int8"] = "float32"
    """Format of the weights: float32, or bfloat16 or int8, which are faster and slightly inexact."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    threads: int | None = None
    """Processor threads. Default: torch's choice."""
    strict: bool = False
    """Refuse a prompt longer than the model's context instead of using its end."""
    json: bool = False
    """Print one JSON object: prompts, texts, ids, log-probabilities, seconds."""
    quiet: bool = False
    """Print the texts and errors only."""
