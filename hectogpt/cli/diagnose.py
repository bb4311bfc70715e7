"""`hectogpt diagnose RUN`: computes the step at which a run went wrong again, and tells where."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

EXAMPLES = """\
  hectogpt diagnose runs/mine
  hectogpt diagnose runs/mine --step 40"""


@dataclass(frozen=True)
class DiagnoseArguments:
    """Compute the step after a checkpoint again, without its update, and name the first module whose numbers are not
    finite, and the sequences of the batch that cause it."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run's folder."""
    step: int | None = None
    """How many steps the checkpoint has done (default: the newest one, at which a run that diverged has stopped)."""
    idea: tuple[Path, ...] = ()
    """Your own file that made the run; it is imported."""
    json: bool = False
    """Print one JSON object."""


def main(argv: list[str]) -> None:
    """Run the command."""
    run(tyro.cli(DiagnoseArguments, args=argv, prog="hectogpt diagnose"))


def run(arguments: DiagnoseArguments) -> None:
    """Compute and print. Raises UserError for a run without a checkpoint or without a step left."""
    from hectogpt.api.checking import diagnose_run
    from hectogpt.api.progress import Progress

    found = diagnose_run(arguments.run, arguments.step, arguments.idea, Progress(arguments.json))
    if arguments.json:
        print(json.dumps(found.as_json(), allow_nan=False))
        return
    print(f"step {found.step}: loss {found.loss:.6g}, gradient norm {found.grad_norm:.6g}")
    print(f"first number that is not finite: {place(found)}")
    kind = "rows whose loss is not finite" if found.stage == "forward" else "rows with the largest losses"
    told = zip(found.rows, found.sequences, found.row_losses, strict=True)
    print(f"{kind}: " + ", ".join(f"row {row} (sequence {seq}, loss {loss:.4g})" for row, seq, loss in told))
    print("largest outputs: " + ", ".join(f"{name} {value:.4g}" for name, value in found.largest))


def place(found: Any) -> str:
    """Where it is, in words. found: a train.diagnose.Finding, whose module loads torch."""
    words = {"weights": "the weights", "forward": "the output", "backward": "the gradient of the output"}
    return "there is none" if found.stage is None else f"{words[found.stage]} of {found.module}"
