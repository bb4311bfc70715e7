"""The sentences and exit codes of the package's errors, read from its syntax trees; tests/data/errors.txt lists them.

`python -m tools.layers` writes the list. tests/laws/test_house.py compares it, and holds every error to the law: it
says what failed, and why or how to mend it. A change of wording or of a code is seen there alone, and no other test
asks for it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tools import ROOT

LIST = ROOT / "tests" / "data" / "errors.txt"
PARTS = ("what", "why", "fix", "kept", "code")


def read_errors(package: Path = ROOT / "hectogpt") -> list[tuple[str, int, dict[str, str]]]:
    """Every construction of a UserError: file below the package, line, and the text of each part that it is given."""
    found = []
    for path in sorted(package.rglob("*.py")):
        for scope in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(scope, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Module)):
                continue
            nodes = list(within(scope))
            values = {ast.unparse(n.targets[0]): n.value for n in nodes if isinstance(n, ast.Assign)}
            for node in nodes:
                if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "UserError":
                    given = {"what": node.args[0]} if node.args else {}
                    given |= {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg in PARTS}
                    texts = {part: text_of(values.get(ast.unparse(e), e)) for part, e in given.items()}
                    found.append((path.relative_to(package).as_posix(), node.lineno, texts))
    return found


def within(scope: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a function or module, those of functions inside it not."""
    for child in ast.iter_child_nodes(scope):
        yield child
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from within(child)


def text_of(node: ast.expr) -> str:
    """The text of an expression: literals as they are, the two sides of a choice, and `{}` for any other value."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return text_of(node.left) + text_of(node.right)
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "set_to":
        field, value = ["{}" if isinstance(value, ast.BinOp) else text_of(value) for value in node.args]
        return f"set {field} to {value}"
    if isinstance(node, ast.IfExp):
        return f"{text_of(node.body)} or {text_of(node.orelse)}"
    # An exit code; text has no such name outside f-strings.
    return node.attr if isinstance(node, ast.Attribute) and node.attr.isupper() else "{}"


def list_errors() -> str:
    """A line for each error of the package: its file, what, why, fix, kept, exit code (USAGE is left out)."""
    lines = [f"{file}: " + " | ".join(f"{p}: {t}" for p, t in texts.items()) for file, _, texts in read_errors()]
    return "\n".join([*sorted(" ".join(line.split()) for line in lines), ""])
