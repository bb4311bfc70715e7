"""`hectogpt verify RUN|CORPUS`: checks every hash of a run's folder, or of a corpus's token files."""

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
  hectogpt verify runs/minute
  hectogpt verify sotu"""


@dataclass(frozen=True)
class VerifyArguments:
    """Check that the files of a run, its checkpoints among them, or the token files of a corpus are as they were
    written. Nothing is changed."""

    what: Annotated[str, tyro.conf.Positional]
    """A run's folder, or a corpus as `hectogpt data` knows it."""
    json: bool = False
    """Print one JSON object."""


def main(argv: list[str]) -> None:
    """Run the command."""
    run(tyro.cli(VerifyArguments, args=argv, prog="hectogpt verify"))


def run(arguments: VerifyArguments) -> None:
    """Check and print a line for each file. Raises UserError: CHECKPOINT for a damaged run, DATA for a corpus."""
    folder = Path(arguments.what).expanduser()
    if not (folder / "run.json").is_file():
        verify_corpus(arguments)
        return
    from hectogpt.api.checking import verify_run

    checks = verify_run(folder)
    bad = [check for check in checks if check.problem]
    if arguments.json:
        told = {"run": str(folder), "checks": [check.as_json() for check in checks], "damaged": len(bad)}
        print(json.dumps(told, allow_nan=False))
    else:
        for check in checks:
            print(printable(f"{'damaged' if check.problem else 'ok':<8} {check.path}"))
        if not checks:
            print(printable(f"{folder} has no hashes to check: no checkpoint, and no manifest.json"))
    if bad:
        raise UserError(
            f"{bad[0].path} is damaged" + (f", and {len(bad) - 1} more" if len(bad) > 1 else ""),
            why=bad[0].problem,
            fix=advice(folder, [check.path for check in bad]),
            code=errors.CHECKPOINT,
        )


def advice(folder: Path, bad: list[Path]) -> str:
    """What to do about damaged files."""
    if any(path.parent.name == "checkpoints" for path in bad):
        return f"`hectogpt train --resume {folder}` goes on from the newest checkpoint that is whole"
    return f"`hectogpt finish {folder}` makes weights, score and picture again from the last checkpoint, if it is whole"


def verify_corpus(arguments: VerifyArguments) -> None:
    """The same for a corpus."""
    from hectogpt.cli import data

    if not arguments.json:
        data.run(data.DataArguments("verify", arguments.what))
        print("ok")
        return
    data.run(data.DataArguments("verify", arguments.what, json=True))
