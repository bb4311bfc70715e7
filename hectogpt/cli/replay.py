"""`hectogpt replay RUN`: computes a step of a run again from its checkpoint, and compares every bit."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from hectogpt import errors
from hectogpt.display import printable
from hectogpt.errors import UserError

EXAMPLES = """\
  hectogpt replay runs/baseline
  hectogpt replay runs/baseline --step 40"""


@dataclass(frozen=True)
class ReplayArguments:
    """Compute the step after a checkpoint again and compare loss, gradient norm and, if the next step has a checkpoint
    too, all weights with what the run has recorded. A difference tells of another program or machine, or of a fault of
    the hardware."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run's folder."""
    step: int | None = None
    """How many steps the checkpoint has done (default: the newest one before the last step)."""
    idea: tuple[Path, ...] = ()
    """Your own file that made the run; it is imported."""
    json: bool = False
    """Print one JSON object."""


def main(argv: list[str]) -> None:
    """Run the command."""
    run(tyro.cli(ReplayArguments, args=argv, prog="hectogpt replay"))


def run(arguments: ReplayArguments) -> None:
    """Compute, compare, print. Raises UserError: EXACTNESS if anything differs."""
    from hectogpt.api.checking import replay_step
    from hectogpt.api.progress import Progress

    found = replay_step(arguments.run, arguments.step, arguments.idea, Progress(arguments.json))
    if arguments.json:
        print(json.dumps(found.as_json(), allow_nan=False))
    else:
        for name, before, again in zip(("loss", "gradient norm"), found.before, found.again, strict=True):
            print(f"{'equal' if before == again else 'differs':<8} {name}: {before!r}, again {again!r}")
        if found.weights is not None:
            print(f"{'equal' if found.weights else 'differs':<8} weights and optimizer after the step")
    if not found.equal:
        raise UserError(
            printable(f"step {found.step} of {arguments.run} is not the same again"),
            why=", ".join(found.differences) or "machine and program are those that trained it",
            fix="" if found.differences else "run it again: if it differs from itself, suspect memory or processor",
            code=errors.EXACTNESS,
        )
