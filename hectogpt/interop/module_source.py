"""A module's definitions by name, with their text, for the modelling file of remote_code.py.

What computing logits does not need is cut out of the package's own modules; a user's file stays as it is.
"""

from __future__ import annotations

import ast
import symtable
from collections.abc import Iterator

from hectogpt.serialization import IDEA_MODULE

# What computing logits does not need.
LEFT_OUT = {
    *("__post_init__", "old_names", "old_fields", "gone_parts", "min_parameters", "init_weights", "_initial_stds"),
    *(
        "loss",
        "losses",
        "token_losses",
        "_losses",
        "get_loss_on_batch",
        "gradient_norm",
        "generate",
        "fit_to",
        "weights",
        "mixture",
        "matrix",
        "_with_map",
    ),
    *("compact", "compact_like", "_counted_once", "full_gradient_norm"),
}
RULE = "# --- {} {}"  # a heading, 120 characters wide


class Source:
    """A module's definitions by name, with their text, after what inference does not need is cut out."""

    def __init__(self, module: str, text: str, heading: str) -> None:
        self.module, self.heading = module, heading
        self.is_idea = module.startswith(IDEA_MODULE)
        if not self.is_idea:
            text = _cut(text)
        self.lines = text.splitlines()
        self.nodes: dict[str, ast.stmt] = {}
        self.imports: dict[str, tuple[str, str | None]] = {}  # name -> (module, name in it; None: the module itself)
        self.order: list[ast.stmt] = []
        for node in ast.parse(text).body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                self._note_import(node)
                continue
            self.order.append(node)
            for name in _defined(node):
                self.nodes[name] = node
        self.own_names = {"__file__", "__name__"}

    def _note_import(self, node: ast.Import | ast.ImportFrom) -> None:
        for alias in node.names:
            if isinstance(node, ast.ImportFrom):
                self.imports[alias.asname or alias.name] = ("." * node.level + (node.module or ""), alias.name)
            else:
                name = alias.asname or alias.name.partition(".")[0]
                self.imports[name] = (alias.name if alias.asname else name, None)

    def text(self, names: set[str]) -> str:
        """The definitions of these names in their order, under the heading; "" if there are none."""
        wanted = {id(self.nodes[name]) for name in names}
        nodes = [node for node in self.order if id(node) in wanted]
        text = RULE.format(self.heading, "-" * max(3, 113 - len(self.heading)))
        for node, before in zip(nodes, [None, *nodes], strict=False):
            close = isinstance(node, ast.Assign) and isinstance(before, ast.Assign)
            text += ("\n" if close else "\n\n\n") + "\n".join(self.lines[self._first_line(node) : node.end_lineno])
        return text if nodes else ""

    def _first_line(self, node: ast.stmt) -> int:
        """Index of the first line of a definition, its decorators and the comment above it included."""
        decorators = getattr(node, "decorator_list", [])
        first = min([node.lineno, *(d.lineno for d in decorators)]) - 1
        while first and self.lines[first - 1].startswith("#") and not self.lines[first - 1].startswith("# ---"):
            first -= 1
        return first


# --- cutting out what inference does not need -------------------------------------------------------------------------


def _cut(text: str) -> str:
    """A module of the package without what LEFT_OUT names, its checks, its hooks and its calls of C++ kernels."""
    text = text.replace(", init: Init | None = None)", ")").replace("hectogpt.generation.cache has", "TextCache has")
    lines = text.splitlines(keepends=True)
    for first, end, instead in sorted(_cuts(ast.parse(text)), reverse=True):
        if not instead:
            while first and lines[first - 1].strip().startswith("#") and not lines[first - 1].startswith("# ---"):
                first -= 1  # the comment of what is cut
            if first and not lines[first - 1].strip() and (end == len(lines) or not lines[end].strip()):
                first -= 1
        lines[first:end] = [instead] if instead else []
    return _without_counting("".join(lines))


def _cuts(node: ast.AST) -> Iterator[tuple[int, int, str]]:
    """(first line, line after the last, text instead) of each statement that is cut, none inside another."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt) and _is_cut(child):
            first = min([child.lineno, *(d.lineno for d in getattr(child, "decorator_list", []))])
            yield first - 1, child.end_lineno or first, ""
        elif isinstance(child, ast.Return) and isinstance(child.value, ast.IfExp) and "native." in ast.unparse(child):
            indent = " " * child.col_offset
            yield child.lineno - 1, child.end_lineno or 0, f"{indent}return {ast.unparse(child.value.orelse)}\n"
        else:
            yield from _cuts(child)


def _is_cut(node: ast.AST) -> bool:
    """Whether a statement is left out."""
    if isinstance(node, (ast.FunctionDef, ast.AnnAssign)):
        name = node.name if isinstance(node, ast.FunctionDef) else ast.unparse(node.target)
        return name in LEFT_OUT
    if isinstance(node, ast.If) and not node.orelse:
        raises = len(node.body) == 1 and isinstance(node.body[0], ast.Raise)
        return "native." in ast.unparse(node.test) or (raises and "UserError" in ast.unparse(node))
    if isinstance(node, ast.Assign):
        return "hardware." in ast.unparse(node)
    if isinstance(node, ast.Expr):
        return ast.unparse(node).startswith(("self.register_state", "self.register_load", "self.init_weights"))
    return False


def _without_counting(text: str) -> str:
    """The text with `self._counted_once(x)`, which changes gradients alone, as `x`."""
    while "self._counted_once(" in text:
        before, _, after = text.partition("self._counted_once(")
        inside, _, rest = after.partition(")")
        text = before + inside + rest
    return text


# --- names ------------------------------------------------------------------------------------------------------------


def names_in(node: ast.stmt) -> set[str]:
    """The names of the module, or Python's own, that a definition uses, those of annotations among them."""
    tables, found = [symtable.symtable(ast.unparse(node), "definition", "exec")], set()
    while tables:
        table = tables.pop()
        at_top = table.get_type() == "module"
        found |= {s.get_name() for s in table.get_symbols() if s.is_referenced() and (at_top or s.is_global())}
        tables += table.get_children()
    return found


def _defined(node: ast.stmt) -> list[str]:
    """The names that a statement of a module defines."""
    if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [inner.id for target in targets for inner in ast.walk(target) if isinstance(inner, ast.Name)]
