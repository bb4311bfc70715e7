"""`hectogpt idea [FILE.py]`: write an example of an idea to a file."""

from __future__ import annotations

import shlex
from pathlib import Path

from hectogpt import errors
from hectogpt.cli.options import IdeaOptions
from hectogpt.display import printable
from hectogpt.errors import UserError

EXAMPLE = Path(__file__).parent.parent / "lab" / "examples" / "schedule.py"


def main(options: IdeaOptions) -> None:
    """Write the file and print what to type next. Raises UserError."""
    if (file := options.file).suffix != ".py":
        raise UserError(
            f"{file} is not a name for Python source",
            why="it does not end in .py",
            fix=f"hectogpt idea {shlex.quote(str(file.with_suffix('.py')))}",
        )
    try:
        with open(file, "x", encoding="utf-8") as target:
            target.write(EXAMPLE.read_text(encoding="utf-8"))
    except FileExistsError:
        raise UserError(
            f"{file} exists",
            why="it may hold your work",
            fix=f"hectogpt idea {shlex.quote(str(file.with_stem(file.stem + '_2')))}",
            kept="the file, untouched",
        ) from None
    except OSError as error:
        raise errors.unwritable(file, error) from None
    name = printable(shlex.quote(f"{file}:idea"))
    print(f"{printable(str(file))} is ready. Read it, change it, then try it:\n")
    print(f"  hectogpt train {name}")
    print(f"  hectogpt compare top {name}")
