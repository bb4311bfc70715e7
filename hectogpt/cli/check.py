"""`hectogpt check RUN`: every hash of a run, its repair, a step again, and where its numbers went wrong.

check_run.py does the work, which loads torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from hectogpt.cli.options import read_options
from hectogpt.errors import UserError


@dataclass(frozen=True)
class CheckArguments:
    """Check that the files of a run, its checkpoints among them, are as they were written; nothing is changed. With one
    of --repair, --replay and --diagnose do that instead.

    Examples
      hectogpt check runs/minute
      hectogpt check runs/minute --repair
      hectogpt check runs/baseline --replay --step 40
    """

    run: Annotated[Path, tyro.conf.Positional]
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
    idea: tuple[Path, ...] = ()
    """Your own file that made the run; it is imported."""
    json: bool = False
    """Print one JSON object."""
    quiet: bool = False
    """Print errors only."""


def main(argv: list[str]) -> None:
    """Run the command."""
    run(read_options(CheckArguments, argv, "check"))


def run(arguments: CheckArguments) -> None:
    """Check, print a line for each file. Raises UserError: CHECKPOINT for damage, EXACTNESS for another step."""
    from hectogpt.cli import check_run

    asked = [name for name in ("repair", "replay", "diagnose") if getattr(arguments, name)]
    if len(asked) > 1:
        raise UserError(f"{' and '.join(asked)} at once", why="each is a command of its own", fix="name one of them")
    {
        "": check_run.check_files,
        "repair": check_run.repair,
        "replay": check_run.replay,
        "diagnose": check_run.diagnose,
    }[asked[0] if asked else ""](arguments)
