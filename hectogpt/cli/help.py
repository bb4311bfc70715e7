"""The text of `hectogpt COMMAND --help`, from the dataclass of the command's options."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import shutil
import textwrap

COLUMN = 26  # where the texts of options begin
NAMES = {"int": "N", "float": "X", "Path": "FILE", "str": "TEXT"}


def command_help(command: str, kind: type, examples: str) -> str:
    """Usage, what the command does, its arguments, its options with their defaults, examples."""
    width = max(60, min(shutil.get_terminal_size().columns, 100))
    described, arguments, options = read_texts(kind), [], []
    usage = [f"usage: hectogpt {command}"]
    for field in dataclasses.fields(kind):
        text = described.get(field.name, "")
        if "Positional" in str(field.type):
            name, required = field.name.upper(), field.default is dataclasses.MISSING
            usage.append(name if required else f"[{name}]")
            arguments.append((name, text))
        else:
            options.append((spelling(field), text + default_of(field, text)))
    paragraphs = [textwrap.fill(" ".join(p.split()), width) for p in inspect.cleandoc(kind.__doc__ or "").split("\n\n")]
    lines = [" ".join([*usage, "[options]"]), "", "\n\n".join(paragraphs), ""]
    for name, text in [*arguments, *options]:
        body = textwrap.wrap(text, width - COLUMN) or [""]
        if len(name) > COLUMN - 4:
            lines.append(f"  {name}")
            name = ""
        lines += [f"  {name:<{COLUMN - 2}}{body[0]}".rstrip(), *(" " * COLUMN + line for line in body[1:])]
    return "\n".join([*lines, "", "Examples", examples])


def read_texts(kind: type) -> dict[str, str]:
    """Field -> the string below it in the class, on one line."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(tree, ast.ClassDef)
    texts = {}
    for before, after in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(before, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            texts[ast.unparse(before.target)] = " ".join(str(after.value.value).split())
    return texts


def spelling(field: dataclasses.Field[object]) -> str:
    """An option and its value: "--top-k N"."""
    name, kind = field.name.replace("_", "-"), str(field.type)
    if kind.startswith("bool"):
        return f"--{name}, --no-{name}" if "None" in kind else f"--no-{name}" if field.default is True else f"--{name}"
    if words := re.search(r"Literal\[(.*?)\]", kind):
        return f"--{name} {'|'.join(str(word) for word in ast.literal_eval(f'[{words[1]}]'))}"
    value = next((NAMES[word] for word in re.findall(r"\w+", kind) if word in NAMES), "VALUE")
    return f"--{name} {value}" + (" ..." if kind.startswith("tuple") else "")


def default_of(field: dataclasses.Field[object], text: str) -> str:
    """ " (default 0.8)" where an option has a value that its text does not name."""
    hidden = field.default in (None, "", (), dataclasses.MISSING) or isinstance(field.default, bool)
    return "" if hidden or "efault" in text else f" (default {field.default})"
