"""`hectogpt idea [FILE.py]`: writes an example of an idea in a file of one's own."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from hectogpt import errors
from hectogpt.display import printable
from hectogpt.errors import UserError

FOLDER = Path(__file__).parent.parent / "lab" / "examples"


@dataclass(frozen=True)
class Options:
    """Write an example of an idea: a function that takes a run and returns a changed one, with what it needs.

    The file works as it is; change it, and try it with `hectogpt train` and `hectogpt compare`.

    Examples
      hectogpt idea
      hectogpt idea window.py --kind attention
    """

    file: Positional[Path] = Path("my_idea.py")
    """File to write. A file that exists is never overwritten."""
    kind: Literal["schedule", "optimizer", "attention", "input", "data", "rates", "loss", "literature"] = "schedule"
    """What the example changes: the schedule of the learning rate, the optimizer, attention, what is added to the
    token embeddings, the order of the data, the learning rates of single kinds of parameters, or the loss. literature:
    a file with many, from SwiGLU to distillation."""


def main(options: Options) -> None:
    """Write the file and print what to type next. Raises UserError."""
    if (file := options.file).suffix != ".py":
        raise UserError(f"{file} is no name for Python source", why="it does not end in .py", fix=f"{file}.py")
    text = (FOLDER / f"{options.kind}.py").read_text(encoding="utf-8")
    try:
        with open(file, "x", encoding="utf-8") as target:
            target.write(text)
    except FileExistsError:
        raise UserError(
            f"{file} exists", why="it may hold work of yours", fix="another name", kept="the file, untouched"
        ) from None
    except OSError as error:
        raise errors.unwritable(file, error) from None
    many = options.kind == "literature"
    name = printable(shlex.quote(f"{file}:{'swiglu' if many else 'idea'}"))
    what = "examples, a function each" if many else f"an example that changes the {options.kind}"
    print(f"{printable(str(file))}: {what}. Read it, change it, then try it:\n")
    print(f"  hectogpt train {name}")
    print(f"  hectogpt compare top {name}")
