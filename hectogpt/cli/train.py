"""`hectogpt train [RECIPE]`: the help, and the reading of the options. train_run.py does the work.

Loads neither torch nor tyro for --help.
"""

from __future__ import annotations

import os
import shutil
import textwrap
from dataclasses import field, make_dataclass
from pathlib import Path
from typing import Annotated, Any

from hectogpt.cli.console import note
from hectogpt.errors import UserError

DEFAULT = "minute"

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
  --track NAMES      also send it to tensorboard, trackio or wandb
  --json, --quiet    the summary as JSON on stdout; errors only
  --dry-run          show size and fields only; --help-all explains the fields

Every field of the run is an option: --model.n-layers 6 --optim.lr 0.003.
Examples
  hectogpt train adamw_128 --corpus stories.txt --steps 300 --out runs/mine

Recipes: the ladder from the baseline up, each with what it adds; then others
"""


def main(argv: list[str]) -> None:
    """Train. Raises UserError."""
    if {"-h", "--help"} & set(argv):
        print(help_text())
        return
    if "RANK" in os.environ:  # what torch writes about broken connections, with its own stack, hides what broke them
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from hectogpt.cli.train_run import Asked, train
    from hectogpt.training.trackers import parse_names

    options, run, recipe, name = parse(argv)
    parse_names(options.track)  # before anything is done
    if options.extend is not None and options.resume is None:
        raise UserError("--extend without --resume", why="it adds steps to a run that is there", fix="--resume RUN")
    if options.resume is None and run.recipe == "finetune" and run.first_weights is None:
        fix = "--init MODEL: a run's folder, a folder in Hugging Face's layout, or a name on the hub"
        raise UserError("nothing to fine-tune", why="the recipe finetune starts from another model", fix=fix)
    train(Asked(options, run, recipe, name, lambda base: parse(argv, base)[1]))


def parse(argv: list[str], base: Any = None) -> tuple[Any, Any, Any, str | None]:
    """Read a command line. Returns the options, the Run with its overrides, the recipe's own Run, and a name for the
    run's folder, None if the command line names no recipe. base: what the overrides are applied to, instead of the
    recipe's own Run."""
    import tyro

    from hectogpt.cli.options import TrainOptions
    from hectogpt.lab import ideas, recipes
    from hectogpt.training.run import Run

    named = bool(argv) and not argv[0].startswith("-")
    given, argv = (argv[0], argv[1:]) if named else (DEFAULT, argv)
    name = recipes.current_recipe(given)
    if name != given:
        note(f"note: the recipe {given} is now called {name}", "--quiet" in argv)
    recipe = ideas.find_run(name)
    if source := value_of("--init", argv):
        from hectogpt.lab.fine_tuning import start_from

        own = [idea] if (idea := value_of("--idea", argv)) else []
        recipe = start_from(recipe, source, own, lambda text: note(f"note: {text}", "--quiet" in argv))
        base = None if base is None else start_from(base, source, own)
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
        args=["--help" if word == "--help-all" else word for word in argv],
        prog=f"hectogpt train {name}",
        description=recipes.describe(base.recipe) if base.recipe in recipes.names() else "",
        config=(tyro.conf.AvoidSubcommands,),
    )
    return parsed.options, parsed.run, recipe, ideas.folder_name(name) if named else None


def value_of(option: str, argv: list[str]) -> str | None:
    """The value of an option that has to be known before the others are read."""
    for argument, following in zip(argv, [*argv[1:], None], strict=False):
        if argument == option or argument.startswith(f"{option}="):
            return argument.partition("=")[2] or following
    return None


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
