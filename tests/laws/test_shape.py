"""The shape of code: shapes that cost the reader a second look are not written."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from helpers import ROOT

from tools import layers

MOST_PARAMETERS = 7
PUBLIC = {"hectogpt/python.py": ["more than seven parameters"] * 2}  # keywords that help(hectogpt.train) lists


def shapes(tree: ast.AST) -> Iterator[str]:
    """The name of a shape for each place that has one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and is_unrelated(node):
            yield "a, b = x, y"
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult) and is_text_times_condition(node):
            yield "text * condition"
        if isinstance(node, ast.Return) and isinstance(node.value, ast.Call) and name_of(node.value) == "print":
            yield "return print(...)"
        if isinstance(node, ast.NamedExpr) and any(isinstance(n, ast.NamedExpr) for n in ast.walk(node.value)):
            yield "a walrus within a walrus"
        if isinstance(node, ast.FunctionDef):
            a = node.args
            given = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
            if sum(argument.arg not in ("self", "cls") for argument in given) > MOST_PARAMETERS:
                yield "more than seven parameters"


def is_unrelated(node: ast.Assign) -> bool:
    """Whether a tuple of targets gets a tuple of values that do not depend on each other, as a swap's do."""
    targets, value = node.targets[0], node.value
    if not (isinstance(targets, ast.Tuple) and isinstance(value, ast.Tuple)):
        return False
    written = {ast.unparse(target) for target in targets.elts}
    read = {ast.unparse(n) for part in value.elts for n in ast.walk(part) if isinstance(n, ast.Name | ast.Attribute)}
    return not written & read


def is_text_times_condition(node: ast.BinOp) -> bool:
    """Whether one side is a text or a list, and the other a comparison, a negation or a bool operator."""
    sides = (node.left, node.right)
    is_text = any(isinstance(n, ast.List | ast.JoinedStr) or isinstance(getattr(n, "value", 0), str) for n in sides)
    return is_text and any(isinstance(n, ast.Compare | ast.BoolOp | ast.UnaryOp) for n in sides)


def name_of(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else ""


def test_no_shape_that_is_read_twice() -> None:
    paths = sorted((ROOT / "hectogpt").rglob("*.py"))
    found = {path.relative_to(ROOT).as_posix(): list(shapes(layers.tree_of(path))) for path in paths}
    assert {path: names for path, names in found.items() if names} == PUBLIC


def test_lines_are_short() -> None:
    long = [str(path) for path in (ROOT / "hectogpt").rglob("*.py") if "noqa: E501" in path.read_text(encoding="utf-8")]
    assert not long
