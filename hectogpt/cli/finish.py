"""`hectogpt finish RUN`: scores a trained run whose process ended before its score, its picture or its summary."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from hectogpt.errors import UserError

EXAMPLES = """\
  hectogpt finish runs/minute"""


@dataclass(frozen=True)
class FinishArguments:
    """Score a run that has taken all its steps: held-out loss, picture, samples and summary, as after training.

    Weights that were damaged are made again, if the checkpoint of the last step is whole.
    """

    run: Annotated[Path, tyro.conf.Positional]
    """The run's folder."""
    prompt: str | None = None
    """What the trained model continues (default: the beginning of a held-out document)."""
    idea: tuple[Path, ...] = ()
    """Your own file that made the run; it is imported."""
    json: bool = False
    """Print the summary as JSON on stdout."""
    quiet: bool = False
    """Print errors only."""


def main(argv: list[str]) -> None:
    """Run the command."""
    run(tyro.cli(FinishArguments, args=argv, prog="hectogpt finish"))


def run(arguments: FinishArguments) -> None:
    """Score the run and print it. Raises UserError for one that is not trained to its end."""
    from hectogpt.api.full_run import find_corpus, run_to_folder
    from hectogpt.api.progress import Progress
    from hectogpt.api.resuming import named_folder
    from hectogpt.cli.train_run import print_result
    from hectogpt.display import printable
    from hectogpt.lab import ideas
    from hectogpt.training.run_folder import read_run, read_state, read_steps

    where = named_folder(str(arguments.run))
    ideas.load_files(arguments.idea)
    trained = read_run(where.folder)
    ideas.check_loaded(trained, where.folder)
    progress = Progress(arguments.quiet)
    damage = damage_of(where.folder)
    if read_state(where.folder) == "done" and not damage:
        print(printable(f"already complete ({trained.steps}/{trained.steps}): {where.folder}"))
        return
    taken = len(read_steps(where.folder))
    if taken < trained.steps:
        raise UserError(
            f"the run in {where.folder} has taken {taken} of {trained.steps} steps",
            why="it is scored after the last one",
            fix=f"hectogpt train --resume {where.folder}",
            kept="the run, untouched",
        )
    if damage:
        progress.line(f"{damage}: it is made again from the last checkpoint")
    corpus = find_corpus(trained, progress)
    done = run_to_folder(
        trained, corpus, progress, name="", modified=False, prompt=arguments.prompt, save_every=0, resume=where
    )
    print_result(done, arguments.json, arguments.quiet)


def damage_of(folder: Path) -> str:
    """What is wrong with a run's weights, in words; "" if nothing is known to be."""
    from hectogpt.model.weights import check_manifest

    try:
        check_manifest(folder)
    except UserError as error:
        return f"{error.what} ({error.why})"
    return ""
