"""`hectogpt train [RECIPE]`: the options, the help, and the reading of both. train_run.py does the work.

Imports neither torch nor tyro, so that --help is quick.
"""

from __future__ import annotations

import os
import shutil
import textwrap
from dataclasses import dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from hectogpt.cli.console import note
from hectogpt.errors import UserError
from hectogpt.run_records import KEEP

DEFAULT = "minute"


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
    parallel: Literal["ddp", "fsdp"] | None = None
    """Under torchrun: every process has all weights (ddp)."""
    dist_timeout: float = 120.0
    """Seconds that one process waits for another."""
    prompt: str | None = None
    """What the trained model continues at the end (default: the beginning of a held-out document)."""
    encoding: str = "utf-8"
    """Encoding of a text corpus."""
    force: bool = False
    """Read a file that looks binary, or a table, as plain text; leave out files of a folder that cannot be decoded."""
    track: str = ""
    """Trackers that hear of the run, such as tensorboard,trackio,wandb."""
    json: bool = False
    """Print the summary as JSON on stdout."""
    quiet: bool = False
    """Print errors only."""
    dry_run: bool = False
    """Show the run, its size and its corpus; train nothing."""


HELP = """\
usage: hectogpt train [RECIPE | FILE.py:FUNCTION[@BASE]] [options]

Trains a recipe (minute takes about one; `top` reaches the lowest loss), or one
changed by a function of your own, scores it, and keeps all in runs/RECIPE.

Text
  --corpus NAME      sotu, tinystories, hf:NAME, a text file, a folder, .bin,
                     .jsonl or FILE.jsonl:COLUMN (default sotu)
  --encoding NAME    of text files (default utf-8); --force: read odd ones too
Run
  --steps N          gradient steps (default 100)
  --eval-every N     held-out loss every N steps, in metrics.jsonl and picture
  --seed N           draws the first weights and the order of the data (0)
  --init MODEL       start from a run, folder or hub name; --idea FILE: its code
Going on
  --save-every N     checkpoint every N steps, 0 for none (default: by time, and
                     none stays in the end); --keep-checkpoints N: how many
  --resume auto|RUN  go on with the newest run of this recipe, or with a folder
  --extend STEPS     with --resume: steps to add to a run that is done
  --require-exact    with --resume: refuse if bits may differ
Machine
  --device NAME      auto, cpu, cuda, cuda:1 or mps
  --dtype, --head-dtype NAME  auto, float32, bfloat16 or float64
  --threads N        0 for one on each physical core (default)
  --compile          generate code for the blocks; pays for long runs
Under torchrun (docs/parallel.md)
  --dist-timeout S   seconds that one process waits for another (120)
Output
  --out FOLDER       the run's folder (default runs/RECIPE, runs/RECIPE-2 ...)
  --prompt TEXT      what the trained model continues at the end
  --track NAMES      also tell tensorboard, trackio or wandb
  --json, --quiet    the summary as JSON on stdout; errors only
  --dry-run          show size and fields only; --help-all explains the fields

Every field of the run is an option: --model.n-layers 6 --optim.lr 0.003.
Examples
  hectogpt train adamw_128 --corpus stories.txt --steps 300 --out runs/mine

Recipes: the ladder from the baseline up, each with what it adds; then others
"""


def main(argv: list[str]) -> None:
    """Run the command."""
    if {"-h", "--help"} & set(argv):
        print(help_text())
        return
    from hectogpt.training.trackers import parse_names

    if "RANK" in os.environ:  # what torch writes about broken connections, with its own stack, hides what broke them
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    options, run, base, name = parse(argv)
    parse_names(options.track)  # before anything is done
    if options.extend is not None and options.resume is None:
        raise UserError("--extend without --resume", why="it adds steps to a run that is there", fix="--resume RUN")
    if options.resume is None and run.recipe == "finetune" and run.first_weights is None:
        fix = "--init MODEL: a run's folder, a folder in Hugging Face's layout, or a name on the hub"
        raise UserError("nothing to fine-tune", why="the recipe finetune starts from another model", fix=fix)
    from hectogpt.cli.train_run import resume, train, train_shared
    from hectogpt.training.launch import find_launch
    from hectogpt.training.run import is_modified

    launch = find_launch()
    if launch is not None:
        train_shared(launch, run, name, base, argv, options)
        return
    if options.parallel is not None:
        raise UserError(
            f"--parallel {options.parallel} without torchrun",
            why="one process has nobody to share the run with",
            fix="torchrun --standalone --nproc-per-node 2 -m hectogpt train ...",
        )
    if options.resume is not None:
        resume(run, name, base, argv, options)
    else:
        train(run, name or DEFAULT, is_modified(base, run), options)


def parse(argv: list[str], base: Any = None) -> tuple[TrainOptions, Any, Any, str | None]:
    """Read a command line. Returns the options, the Run with its overrides, the recipe's own Run, and a name for the
    run's folder, None if the command line names no recipe. base: what the overrides are applied to, instead of the
    recipe's own Run."""
    import tyro

    from hectogpt.lab import ideas, recipes
    from hectogpt.training.run import Run

    quiet = "--quiet" in argv
    named = bool(argv) and not argv[0].startswith("-")
    name, argv = (argv[0], argv[1:]) if named else (DEFAULT, argv)
    current = recipes.current_recipe(name)
    if current != name:
        note(f"note: the recipe {name} is now called {current}", quiet)
    recipe = ideas.find_run(current)
    if source := value_of("--init", argv):
        idea = value_of("--idea", argv)
        recipe = started_from(source, recipe, idea, quiet)
        base = None if base is None else started_from(source, base, idea, quiet)
    base = recipe if base is None else base
    arguments = make_dataclass(
        "Arguments",
        [
            ("options", Annotated[TrainOptions, tyro.conf.arg(name="")], field(default=TrainOptions())),
            ("run", Annotated[Run, tyro.conf.arg(name="")], field(default=base)),
        ],
        frozen=True,
    )
    parsed: Any = tyro.cli(
        arguments,
        args=["--help" if a == "--help-all" else a for a in rename_options(argv, base, quiet)],
        prog=f"hectogpt train {current}",
        description=recipes.describe(base.recipe) if base.recipe in recipes.names() else "",
        config=(tyro.conf.AvoidSubcommands,),
    )
    return parsed.options, parsed.run, recipe, ideas.folder_name(current) if named else None


def value_of(option: str, argv: list[str]) -> str | None:
    """The value of an option that has to be known before the others are read."""
    for argument, following in zip(argv, [*argv[1:], None], strict=False):
        if argument == option or argument.startswith(f"{option}="):
            return argument.partition("=")[2] or following
    return None


def started_from(source: str, run: Any, idea: str | None, quiet: bool) -> Any:
    """The run that starts from a model's weights. Raises UserError."""
    from hectogpt.lab.fine_tuning import start_from

    return start_from(run, source, [idea] if idea else [], note=lambda text: note(f"note: {text}", quiet))


def has_option(path: str) -> bool:
    """Whether an option sets this field: one of the command's own, or a field of the run ("data.seq_len")."""
    from hectogpt.training.run import Run

    return path in {f.name for f in fields(TrainOptions)} or path.split(".")[0] in {f.name for f in fields(Run)}


def rename_options(argv: list[str], run: Any, quiet: bool) -> list[str]:
    """The arguments with today's names of the run's fields; a note for each one that had an older name."""
    from hectogpt.serialization import current_path

    result = []
    for argument in argv:
        option, equals, value = argument.partition("=")
        if option.startswith("--"):
            section, dot, name = option[2:].replace("-", "_").rpartition(".")
            negated = "no_" if name.startswith("no_") else ""
            path = section + dot + name.removeprefix(negated)
            now = current_path(run, path)
            if now != path:
                section, dot, name = now.rpartition(".")
                new = "--" + (section + dot + negated + name).replace("_", "-")
                note(f"note: {option} is now called {new}", quiet)
                option = new
        result.append(option + equals + value)
    return result


def help_text() -> str:
    """The text of `hectogpt train --help`."""
    width = max(60, min(shutil.get_terminal_size().columns, 120))
    shortened = [(name, textwrap.shorten(text, width - 24, placeholder=" ...")) for name, text in recipe_lines()]
    return HELP + "\n".join(f"  {name:<22}{text}" for name, text in shortened)


def recipe_lines() -> list[tuple[str, str]]:
    """Every recipe's name and the first sentence about it, from a file that tools/recipes.py writes: importing the
    recipes would load torch."""
    text = (Path(__file__).parent.parent / "lab" / "recipes.txt").read_text(encoding="utf-8")
    return [(name, sentence) for name, _, sentence in (line.partition("\t") for line in text.splitlines())]
