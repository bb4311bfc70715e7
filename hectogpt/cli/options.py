"""The options of commands: a class for each. A command whose class is in OPTIONS gets a value of it; train, grade,
explore and assignment read their command lines themselves.

Modules of commands load torch; this one does not, so that --help and a wrong option are answered at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from hectogpt.cli.help import Corpus, Idea, Json, Quiet, Silent, Step
from hectogpt.cli.lab_options import CompareOptions, IdeaOptions, JudgeOptions


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
class CompletionOptions:
    """Print a completion script for a shell: commands, options, values, files. Make it again after an update.

    Examples
      hectogpt completion bash > ~/.local/share/bash-completion/completions/hectogpt
      hectogpt completion zsh > ~/.zfunc/_hectogpt
    """

    shell: Positional[Literal["bash", "zsh"]]
    """bash or zsh"""


@dataclass(frozen=True)
class DataOptions:
    """Tokenise a corpus into its cache (build), check the cache against its hashes (verify), or rebuild it (repair).

    Tokens are those of GPT-2. With --vocab a vocabulary is trained on the training part of the text, and the tokens go
    into a folder, which is the corpus from then on.

    Examples
      hectogpt data build stories.txt
      hectogpt data build stories.txt --vocab 1000      makes stories-vocab-1000
      hectogpt data verify sotu --json
    """

    action: Positional[Literal["build", "verify", "repair"]]
    source: Positional[str] = "sotu"
    """sotu, tinystories, hf:NAME, a text file, a folder, .jsonl, FILE.jsonl:COLUMN, or .bin"""
    encoding: str = "utf-8"
    """Of text files."""
    force: bool = False
    """Read a file that looks binary, or a table, as plain text; leave out files of a folder that cannot be decoded."""
    vocab: int | None = None
    """For build: train a vocabulary of so many tokens."""
    out: Path | None = None
    """With --vocab: the folder for tokens and vocabulary (default: SOURCE-vocab-N)."""
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
    quiet: Silent = False


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
class WatchOptions:
    """Show runs in the browser while they train: loss, gradient norm, seconds a step; what their newest checkpoint
    writes and looks at. Only reads: a run is neither slowed nor changed. Ctrl-C ends it.

    Examples
      hectogpt watch             while `hectogpt train` runs in another terminal
      hectogpt watch runs/minute runs/minute-2
      hectogpt watch copied-from-elsewhere --no-browser --port 4000
    """

    runs: Positional[tuple[str, ...]] = ()
    """Folders of runs, or names below runs/ (default: the newest there, those in training, and those that begin)."""
    prompt: str | None = None
    """Text that the newest checkpoint continues, and whose attention is drawn."""
    idea: Idea = ()
    port: int | None = None
    """Port on 127.0.0.1 (default: a free one)."""
    no_browser: bool = False
    """Print the address and open nothing."""


OPTIONS: dict[str, Any] = {
    "check": CheckOptions,
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
    "watch": WatchOptions,
}
