"""The options of every command, one class each: `hectogpt COMMAND --help` prints its docstring.

The string below a field is the help of that option. The classes are separate from the commands,
which load torch, so that --help and errors about options appear at once.
"""

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
    str, arg(help="sotu, tinystories, hf:NAME, or a file, a folder, .jsonl or .bin")
]
Step = Annotated[
    int | None, arg(help="For a run: the weights after this step (default: the newest weights).")
]
IDEA = (
    "Your own file with classes that the model uses; naming it runs it. Not needed if you ran it "
    "here and have not changed it."
)
Idea = Annotated[tuple[Path, ...], arg(help=IDEA)]
Folder = Annotated[Path | None, arg(metavar="FOLDER")]
View = Literal["train", "attention", "positions", "model"]  # pages that can be saved


@dataclass(frozen=True)
class TrainOptions(Habits):
    """The options of `hectogpt train`, without the fields of the run."""

    init: str | None = None
    """Start from the weights of a run, a folder or a name on the hub."""
    idea: Path | None = None
    """Your own file, if the model of --init needs its classes."""
    branch: Annotated[str | None, arg(metavar="RUN@N")] = None
    """Continue a run from its state after step N, with the options that you change."""
    resume: Annotated[str | None, arg(metavar="auto|RUN")] = None
    """Resume the run in a folder, or (auto) the newest run below runs/; with a recipe, the newest
    in runs/RECIPE, runs/RECIPE-2 ..."""
    dist_timeout: float = 120.0
    """Seconds that processes started by torchrun wait for each other."""
    json: Json = False
    quiet: Silent = False
    dry_run: bool = False
    """Show the run, its size and its corpus, without training."""


# Only for --help: steps, seed and dtype are read as fields of the run.
@dataclass(frozen=True)
class TrainHelp(TrainOptions):
    """Train a recipe, score it, and keep everything in runs/RECIPE.

    `minute` takes one to two minutes; `top` reaches the lowest loss. FILE.py:FUNCTION is a recipe
    changed by your own function. The ladder of recipes, from the baseline up:

    baseline, learning_rate, embedding_lr, width_128_shared_row, muon, rotary, head_lr, smear,
    bigram_hash, value_embeddings, copying, width_256, linear_decay, smear_3, layers_4,
    lower_lr_long_hold, soap_rare_tokens, where_to_copy, own_document,
    induction_spelling, width_384.

    Others: minute, half_minute, browser, finetune, adamw_gpt2, adamw_128.

    Every field of the run is an option: --model.n-layers 6 --optim.lr 0.003. `hectogpt train
    RECIPE --help-all` says what a recipe does, and lists its fields.

    Examples
      hectogpt train adamw_128 --corpus stories.txt --steps 300 --out runs/mine
      hectogpt train --branch runs/mine@37 --optim.lr 0.01
    """

    recipe: Positional[Annotated[str, arg(metavar="[RECIPE|FILE.py:FUNCTION[@BASE]]")]] = "minute"
    """A recipe."""
    corpus: Corpus = "sotu"
    steps: int = 100
    """Gradient steps."""
    seed: int = 0
    """Decides the initial weights and the order of the data."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:1."""
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    """Format of the blocks' matrix products; --head-dtype takes the same values."""
    threads: int = 0
    """0: one for each physical core."""


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
    """Text to continue, in quotes; without one, a new text is started."""
    step: Step = None
    idea: Idea = ()
    max_new_tokens: int = 100
    """Maximum number of tokens to add."""
    greedy: bool = False
    """Take the most probable token each time instead of drawing one."""
    temperature: float = 0.8
    """Divide the logits by this before sampling; 0 takes the most probable token."""
    top_k: int = 50
    """Draw from the k most probable tokens; 0: from all."""
    top_p: float = 1.0
    """Draw from the smallest set of most probable tokens whose total reaches p."""
    min_p: float = 0.0
    """Drop tokens less probable than min_p times the most probable one."""
    num_return_sequences: int = 1
    """Number of continuations."""
    stop_strings: tuple[str, ...] = ()
    """End the text after any of these."""
    eos_token_id: int | None = None
    """Id of the token that ends a text; -1: none (default: end-of-text)."""
    seed: int = 0
    """Seed of the draws; continuation number i, counted from 0, uses seed + i."""
    precision: Literal["float32", "bfloat16", "int8"] = "float32"
    """Format of the weights; bfloat16 and int8 are faster and slightly inexact."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to compute on."""
    json: Json = False
    quiet: Quiet = False


@dataclass(frozen=True)
class ExportOptions:
    """Write a model as a folder that transformers opens offline, or as a GGUF file for llama.cpp.

    A GPT-2 becomes a GPT2LMHeadModel. Any other model comes with its code in one file, for
    trust_remote_code=True. See docs/interop.md.

    Examples
      hectogpt export runs/minute exported
      hectogpt export runs/baseline exported --to gguf
      hectogpt export runs/minute steps --series 0,10,20
    """

    model: Positional[str]
    """A run's folder, a folder in Hugging Face's layout, or a name on the hub."""
    folder: Positional[Path]
    """Folder to write; created if it is missing."""
    to: Literal["hf", "gguf"] = "hf"
    """hf: a folder for transformers. gguf: model.gguf for llama.cpp, only for a GPT-2."""
    step: Step = None
    idea: Idea = ()
    series: str | None = None
    """Steps of a run, separated by commas: one export for each, in FOLDER/step-N."""
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
    """Run folders, folders in Hugging Face's layout, or names on the hub."""
    corpus: Corpus = "sotu"
    split: Literal["dev", "test"] = "dev"
    """The held-out text to score; keep test for the final comparison."""
    max_tokens: int | None = None
    """Score only the first N tokens; GPT-2 small takes a few seconds per thousand on two cores."""
    step: Step = None
    idea: Idea = ()
    json: Json = False
    quiet: Quiet = False


@dataclass(frozen=True)
class VerdictOptions:
    """Test whether the losses in B are lower than those in A.

    The runs may come from any program, and the result stays valid if you test again after every
    new seed.

    A and B are CSV files with a header, or .jsonl files, with a row for each run: its seed and its
    loss. FILE:COLUMN takes the loss from the column with this name, so two columns of one file can
    be compared.

    Examples
      hectogpt verdict base.csv idea.csv
      hectogpt verdict runs.csv:base runs.csv:idea --margin 0.005 --json
    """

    a: Positional[Annotated[str, arg(metavar="A")]]
    """Losses of the base."""
    b: Positional[Annotated[str, arg(metavar="B")]]
    """Losses of the change."""
    margin: float = 0.02
    """Differences below this count as a tie; in the unit of the losses."""
    unpaired: bool = False
    """Ignore the seeds: the runs of A and B are independent."""
    picture: Annotated[Path | None, arg(metavar="FILE.png")] = None
    """Draw the gains and their interval into this PNG file."""
    json: Json = False


@dataclass(frozen=True)
class YardstickOptions:
    """Report the losses of counting models on a text, and where any model's loss lies among them.

    The counting models range from a uniform guess to the best mixture of n-grams. The last tenth
    of the text is held out, and n-grams counted in the rest predict it.

    Examples
      hectogpt yardstick input.txt --loss 3.1
      hectogpt yardstick input.txt --tokenizer bytes --loss 1.6 --per byte
      hectogpt yardstick input.txt --tokenizer my_model --log train.log --picture yardstick.png
    """

    text: Positional[str]
    """A text: a file, a folder, .jsonl, hf:NAME, sotu or tinystories."""
    tokenizer: str = "gpt2"
    """gpt2, bytes, or a tokenizer.json of Hugging Face or its folder."""
    train_tokens: int | None = None
    """Count only N tokens, spread evenly, for a run that reads no more (default: all)."""
    loss: tuple[float, ...] = ()
    """Your model's losses, to place among those of the counting models."""
    per: Literal["token", "byte", "character"] = "token"
    """Unit of the losses: nats per token, bits per byte or bits per character."""
    log: Annotated[str | None, arg(metavar="FILE[:COLUMN]")] = None
    """Place a run's curve: a file of printed lines, .csv, .jsonl, or TensorBoard events."""
    picture: Annotated[Path | None, arg(metavar="FILE.png")] = None
    """Draw the scale with everything placed on it."""
    json: Json = False


@dataclass(frozen=True)
class BisectOptions:
    """Find where two runs or two models begin to differ. Exit codes: 0 equal, 1 different.

    Two runs are trained again side by side, to find the first step, tensor and row that differ,
    and within that step the first module whose output, gradient or update differs. Two models get
    the same tokens, to find the first module whose output differs, in float32 and float64. A model
    is a folder, a name on the hub, a model_solution.py (which gets the other model's weights), or
    textbook.

    Examples
      hectogpt bisect runs/minute runs/minute-2
      hectogpt bisect model_solution.py textbook
      hectogpt bisect runs/baseline exported --json
    """

    a: Positional[Annotated[str, arg(metavar="A")]]
    """A run, or a model."""
    b: Positional[Annotated[str, arg(metavar="B")]]
    """The run or model to compare it with."""
    models: bool = False
    """Compare the models of two runs instead of their training."""
    idea: Idea = ()
    json: Json = False


@dataclass(frozen=True)
class CompareOptions:
    """Run recipes over the same seeds, test the differences and give a verdict.

    A seed decides the initial weights and the order of the data.

    Examples
      hectogpt compare baseline muon --seeds 3
      hectogpt compare top my_idea.py:muon --until decided
      hectogpt compare top --without all --seeds 5 --json
      hectogpt compare adamw_128 --sweep optim.lr=0.001,0.003 --steps 50
    """

    recipes: Positional[tuple[str, ...]] = ()
    """Recipes; the others are compared with the first. `top` is the ladder's last rung."""
    seeds: int | None = None
    """Number of seeds (default: 5); with --until, the maximum (default: 1000)."""
    first_seed: int = 0
    """Use the seeds first-seed, first-seed + 1, ..."""
    until: Literal["decided"] | None = None
    """decided: add seeds until each recipe is better, worse, or within 0.02 of the first."""
    corpus: Corpus = "sotu"
    track: str = "closed"
    """Rules to check; closed: 100 steps, 819,200 fresh tokens, 60 M parameters, 600 s, 2 cores."""
    steps: int | None = None
    """A different number of steps; such trials are marked modified."""
    without: tuple[str, ...] = ()
    """Rungs to leave out of the top recipe, one at a time (all: each of them)."""
    sweep: tuple[str, ...] = ()
    """FIELD=VALUE,VALUE: optim.lr=0.001,0.003. Several make a grid. Trials are marked modified."""
    out: Path = Path("runs/compare.jsonl")
    """File for the records, a line per trial; recorded trials are skipped unless they crashed."""
    test: bool = False
    """Also score the test text, and compare the recipes on it instead of the dev text."""
    threads: int = 0
    """Threads per trial; 0: as many as the track allows, at most one per core."""
    workers: int | None = None
    """Trials at a time (default: 1; with ray or slurm, as many as there is room for)."""
    engine: Literal["local", "ray", "slurm"] = "local"
    """ray: run on a Ray cluster. slurm: write a job array's script, or follow a running one."""
    dry_run: bool = False
    """Show the trials that would run; with slurm, the script."""
    json: Json = False
    quiet: Silent = False


@dataclass(frozen=True)
class JudgeOptions:
    """Judge an idea: train it and its base in sealed processes, on both corpora.

    Nobody can choose the seeds. The verdict is better, worse, tie or unproven. It is refused if
    the idea breaks a rule of its base (steps, tokens, parameters, time) or cannot be run, and
    dishonest if a check fails. Exit codes: 0 better, 1 not better or not sealed, 2 refused, 3
    dishonest. The idea's file runs in sandboxes without access to data files, the network or other
    processes.

    Examples
      hectogpt judge my_idea.py:idea
      hectogpt judge my_idea.py:idea@top --minutes 180 --json
      hectogpt judge --replay judgements/my_idea-idea-20261128-101500-7.jsonl
      hectogpt judge --queue ideas --hours 8
    """

    idea: Positional[str] = ""
    """FILE.py:FUNCTION, or FILE.py:FUNCTION@BASE for a different base."""
    on: str = "minute"
    """Base that ideas change and are compared with: a recipe, or a function of another file."""
    corpus: tuple[str, ...] = ("sotu", "tinystories")
    """Texts to judge on; tinystories is left out if it is not available."""
    minutes: float = 30.0
    """Start no seed that would not finish within this time."""
    seeds: int = 12
    """Maximum number of seeds; the judge stops as soon as they decide."""
    threads: int = 0
    """Threads per training run; 0: two, or one on a CPU with one core."""
    out: Path = Path("judgements")
    """Folder for the records, one file per judgement; or NAME.jsonl, the file of this one."""
    replay: Path | None = None
    """Repeat this recorded judgement, and report whether it holds (exit code 0) or not (1)."""
    commit: bool = False
    """Print the record's commitment hash before anything runs, even with --quiet."""
    queue: Path | None = None
    """Judge the function `idea` in each file of this folder that has no verdict yet."""
    hours: float = 8.0
    """With --queue: start nothing after this time."""
    json: Json = False
    quiet: Quiet = False


@dataclass(frozen=True)
class IdeaOptions:
    """Write an example of an idea: a function that takes a run and returns a changed one.

    It works as it is. docs/literature/ has ideas for every part of a run.

    Examples
      hectogpt idea
      hectogpt idea mine.py
    """

    file: Positional[Path] = Path("my_idea.py")
    """File to write; an existing file is never overwritten."""


@dataclass(frozen=True)
class AssignmentOptions:
    """Write a folder to work in: three files with parts to fill in, tests, questions and a text.

    The folder does not need hectoGPT: its tests run with pytest. With --check, run them in an
    existing folder.

    Examples
      hectogpt assignment my_gpt            stubs, tests, questions and a text
      hectogpt assignment --check my_gpt    each part: not started, passed, failed
      hectogpt assignment small --parts mlp,attention
      hectogpt assignment class --parts scored --solution
    """

    folder: Positional[Path]
    """Folder to write, or to check; it must be new or empty to be written."""
    check: bool = False
    """Report which parts of the folder pass; the exit code is 0 if all do, else 1."""
    parts: str = "all"
    """Parts to write: all, scored (those with points), or names separated by commas: gelu, mlp,
    attention, block, init, forward, generate, loss, converter, pretrained, chunks, train, plot."""
    solution: bool = False
    """Also write the textbook's files and the answers to the folder `solution`, for teachers."""


@dataclass(frozen=True)
class AssignmentDrillOptions:
    """Ask questions about mistakes in a transformer, one at a time; you answer with a letter.

    Which mistake gives these numbers? What does this mistake give? Which input tells two programs
    apart? The right answers come from running every choice. With --code, write a wrong program to
    repair; with --check, report whether the repaired one is right.

    Examples
      hectogpt assignment drill
      hectogpt assignment drill --seed 7 --level 2 --questions 5
      hectogpt assignment drill --code wrong
      hectogpt assignment drill --check wrong --hints 2
    """

    seed: int | None = None
    """One seed always asks the same questions (default: drawn at random, and printed)."""
    level: Literal[1, 2, 3] | None = None
    """1: easy, 3: hard (default: rising)."""
    questions: int = 10
    """How many questions to ask."""
    first: int = 1
    """Number of the first question, to resume a drill."""
    code: Folder = None
    """Write a wrong model_solution.py to this new folder."""
    check: Folder = None
    """Grade the program in this folder; the exit code is 0 if it is right, else 1."""
    hints: Literal[1, 2, 3] = 1
    """With --check, 1: the symptom; 2: also where it is; 3: also the mistake."""


@dataclass(frozen=True)
class AssignmentExamOptions:
    """Make an exam on mistakes in a transformer, with a sheet for each student, or mark it.

    Every sheet is different. The roster is a CSV file with a column `name`. The folder gets
    sheets.pdf, page.html for answers on a screen, and answers.csv to fill in; keep its key.csv and
    exam.json to yourself.

    Examples
      hectogpt assignment exam class.csv
      hectogpt assignment exam class.csv --questions 8 --seed "spring 2027" --out midterm
      hectogpt assignment exam --mark exam exam/answers.csv
    """

    file: Positional[Path]
    """The roster, or with --mark the answers."""
    questions: int = 5
    """Questions on each sheet, 1 to 12."""
    seed: Annotated[str, arg(metavar="SECRET")] = ""
    """Your secret: with the same roster it gives the same sheets (default: a random one, kept)."""
    out: Annotated[Path, arg(metavar="FOLDER")] = Path("exam")
    """New folder to write."""
    mark: Folder = None
    """Mark the answers in FILE to the exam in this folder."""


@dataclass(frozen=True)
class ExploreOptions:
    """Open a page in the browser that trains on your text, or shows a model.

    For a model's folder, the page shows its attention and the effect of each head. Without one,
    the pages train, attention and positions are written, and the first is opened.

    Examples
      hectogpt explore
      hectogpt explore runs/minute --prompt "The state of the Union"
    """

    model: Positional[str | None] = None
    """Folder of a run, or of a GPT-2 in Hugging Face's layout."""
    prompt: str | None = None
    """With a model: the text that it reads."""
    step: Step = None
    idea: Idea = ()
    no_browser: bool = False
    """Print the page's address without opening it."""


@dataclass(frozen=True)
class ExploreExportOptions:
    """Save a page as one HTML file that opens offline: train, attention, positions, or model.

    The page `train` trains in the browser.

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
    """The file to write, given as an option."""
    text: Path | None = None
    """For train: text file to start with. For model: text on which to measure effects of heads."""
    weights: Path | None = None
    """For train: the folder of a run whose weights the page starts from."""
    model: str | None = None
    """For model: its folder (default: the run below ./runs that finished last)."""
    prompt: str | None = None
    """For model: the text to read."""
    step: Step = None
    idea: Idea = ()


@dataclass(frozen=True)
class DataOptions:
    """Tokenise a corpus into its cache, or check an existing one against its hashes.

    With --vocab, train a vocabulary on the training part of the text, and write the tokens to a
    folder. That folder is then the corpus.

    Examples
      hectogpt data build stories.txt
      hectogpt data build stories.txt --vocab 1000      makes stories-vocab-1000
      hectogpt data build sotu --json
    """

    action: Positional[Literal["build"]]
    """build: tokenise the corpus, or check the tokens that exist"""
    source: Positional[str] = "sotu"
    """sotu, tinystories, hf:NAME, a text file, a folder, .jsonl, FILE.jsonl:COLUMN, or .bin"""
    vocab: int | None = None
    """Train a vocabulary of this many tokens."""
    out: Path | None = None
    """With --vocab: the folder for tokens and vocabulary (default: SOURCE-vocab-N)."""
    json: Json = False


@dataclass(frozen=True)
class ShowOptions:
    """Show a run: its numbers, picture, samples, and the fields that differ from its recipe.

    Without a name, list the runs below ./runs.

    Examples
      hectogpt show
      hectogpt show runs/minute --step 37
    """

    run: Positional[str] = ""
    """Run folder that `hectogpt train` wrote, or its name below runs/."""
    step: int | None = None
    """Show the run after this step, and continue its prompt with the weights of that step."""
    idea: Idea = ()
    json: Json = False


@dataclass(frozen=True)
class WatchOptions:
    """Show runs in the browser while they train: loss, gradient norm, seconds per step.

    The page also shows a sample from the newest checkpoint, and the attention on that sample. It
    only reads files, so it does not change the runs. Ctrl-C ends it.

    Examples
      hectogpt watch             while `hectogpt train` runs in another terminal
      hectogpt watch runs/minute runs/minute-2
      hectogpt watch copied-from-elsewhere --no-browser --port 4000
    """

    runs: Positional[tuple[str, ...]] = ()
    """Run folders, or names below runs/ (default: the newest one, running ones, and new ones)."""
    prompt: str | None = None
    """Text for the newest checkpoint to continue; the page shows the attention on it."""
    idea: Idea = ()
    port: int = 0
    """Port on 127.0.0.1; 0: a free one."""
    no_browser: bool = False
    """Print the address without opening it."""


@dataclass(frozen=True)
class CheckOptions:
    """Check that all files of a run, with its checkpoints, are as they were written.

    Nothing is changed. With --repair, --replay or --diagnose, the command does that instead.

    Examples
      hectogpt check runs/minute
      hectogpt check runs/minute --repair
      hectogpt check runs/baseline --replay --step 40
    """

    run: Positional[Path]
    """The run's folder."""
    repair: bool = False
    """Restore what a trained run lacks: weights from a checkpoint, scores, picture, summary."""
    replay: bool = False
    """Repeat the step after a checkpoint, and compare every bit with the run's records."""
    diagnose: bool = False
    """Repeat that step without its update, and name the module and rows that are not finite."""
    step: int | None = None
    """Step of the checkpoint for --replay and --diagnose (default: the newest usable one)."""
    idea: Idea = ()
    json: Json = False
    quiet: Silent = False


@dataclass(frozen=True)
class GradeOptions:
    """Grade submissions of the assignment: files, folders or .zip archives with model_solution.py.

    A folder may hold several submissions. A utils.py and a train.py next to model_solution.py are
    graded too. Exit codes: 0 all correct, 1 something is wrong, 2 wrong usage, 5 the grader itself
    does not work.

    Examples
      hectogpt grade model_solution.py
      hectogpt grade my_folder --hints 1
      hectogpt grade submissions/ --html grades/ --csv grades.csv
    """

    paths: Positional[tuple[Path, ...]] = ()
    """Submissions, or folders of them."""
    hints: Literal[1, 2, 3] = 3
    """1: the symptom; 2: also where it is; 3: also the mistake."""
    strict: bool = False
    """Also fail submissions with notes, such as one about reading past the context."""
    csv: Path | None = None
    """Write a line for each submission to this file."""
    html: Folder = None
    """Write a page for each submission, and an overview; they work offline."""
    out: Path | None = None
    """File for the records (default for a class: grades.jsonl); recorded ones are skipped."""
    jobs: int = 0
    """Submissions to grade at the same time; 0: one per core."""
    timeout: float = 10.0
    """Time limit for each check of a submission, in seconds."""
    memory: float = 2.0
    """Memory limit for a submission in GiB, in addition to torch's."""
    make_autograder: Annotated[Path | None, arg(metavar="ZIP")] = None
    """Write the autograder for Gradescope to this file, and grade nothing."""
    gradescope: Path | None = None
    """Write Gradescope's results.json for one submission to this file."""
    json: Json = False
    quiet: Quiet = False


@dataclass(frozen=True)
class DoctorOptions:
    """Report what this machine and installation can do, and what is missing.

    The exit code is 0 unless `hectogpt train` cannot run.

    Examples
      hectogpt doctor
      hectogpt doctor --json
    """

    json: Json = False


@dataclass(frozen=True)
class CompletionOptions:
    """Print a completion script for a shell: commands, options, values and files.

    Repeat this after an update.

    Examples
      hectogpt completion bash > ~/.local/share/bash-completion/completions/hectogpt
      hectogpt completion zsh > ~/.zfunc/_hectogpt
    """

    shell: Positional[Literal["bash", "zsh"]]
    """bash or zsh"""
