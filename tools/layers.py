"""The rules of the layers: `python -m tools.layers` writes their list in docs/architecture.md.

It replaces whatever is between the marks of the page, such as a merge conflict. tests/laws/test_house.py checks the
code against the rules, and fails if the list on the page is not what this command writes.
"""

from __future__ import annotations

import ast
import sys
import textwrap
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from tools import ROOT

PACKAGE = ROOT / "hectogpt"
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- list: begin (python -m tools.layers) -->", "<!-- list: end -->"


# Layer -> the layers that it imports, from top to bottom. A layer imports exactly the layers that it names, all of them
# below it, and any of the ground.
LAYERS = {
    "cli": "lab exam grade assignment training web interop generation data model kernels",
    "python": "lab training interop generation data model",
    "web": "interop generation data model",
    "lab": "training generation data model kernels",
    "exam": "grade assignment",
    "grade": "assignment",
    "assignment": "data",
    "training": "interop data model kernels",
    "interop": "data model",
    "generation": "data model kernels",
    "data": "",
    "model": "kernels",
    "kernels": "",
}
# The ground: single files that every layer may import. Each imports only those before it.
GROUND = (
    *("display", "errors", "serialization", "files", "run_records"),
    *("hardware", "sandbox", "process", "idea_file", "signals", "torch_private"),
)

Imports = dict[str, set[str]]


# --- the code ---------------------------------------------------------------------------------------------------------


@cache
def read_imports(package: Path = PACKAGE, in_functions: bool = True) -> Imports:
    """Module -> the modules of the same package that it imports, by dotted name.

    `from p import name` imports p.name if that is a module, else p. in_functions: also count the imports inside
    functions, which run only when the functions are called.
    """
    paths = {".".join(path.relative_to(package.parent).with_suffix("").parts): path for path in package.rglob("*.py")}
    modules = {name.removesuffix(".__init__"): path for name, path in sorted(paths.items())}
    found: Imports = {}
    for name, path in modules.items():
        wanted = set()
        for node in walk(tree_of(path), in_functions):
            if isinstance(node, ast.Import):
                wanted |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                parts = [f"{node.module}.{alias.name}" for alias in node.names]
                wanted |= {part if part in modules else node.module for part in parts}
        found[name] = {other for other in wanted if other in modules} - {name}
    return found


@cache
def tree_of(path: Path) -> ast.Module:
    """The source of a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


def walk(node: ast.AST, in_functions: bool) -> Iterator[ast.AST]:
    """The nodes below a node; those inside functions only with `in_functions`."""
    for child in ast.iter_child_nodes(node):
        if in_functions or not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield child
            yield from walk(child, in_functions)


def part_of(module: str) -> str | None:
    """The layer or file of the ground of a module: "hectogpt.training.loop" -> "training". None for the package itself
    and its __main__."""
    part = module.split(".")[1] if "." in module else ""
    return part if part not in ("", "__main__") else None


def find_faults(imports: Imports, layers: Mapping[str, str] = LAYERS, ground: tuple[str, ...] = GROUND) -> list[str]:
    """The differences between code and rules, as sentences."""
    order = [*layers, *reversed(ground)]
    allowed = {(name, other) for name, below in layers.items() for other in below.split()}
    faults = [f"{a} may import {b}, which is not below it" for a, b in allowed if order.index(a) >= order.index(b)]
    used = set()
    for module, others in imports.items():
        part = part_of(module)
        if part is not None and part not in order:
            faults.append(f"{module}: {part} has no place in tools/layers.py")
            continue
        for other in others:
            below = part_of(other)
            if part is None or below is None or below == part or below not in order:
                continue
            used.add((part, below))
            down = order.index(part) < order.index(below) and (below in ground or (part, below) in allowed)
            if not down:
                faults.append(f"{module} imports {other}: tools/layers.py does not let {part} import {below}")
    faults += [f"no module of {a} imports {b}: remove it from tools/layers.py" for a, b in allowed - used]
    return sorted(faults)


def closure(start: str, imports: Imports) -> set[str]:
    """A module and everything that it imports, directly or indirectly, with the packages that contain it."""
    found, todo = set(), [start]
    while todo:
        module = todo.pop()
        if module not in found:
            found.add(module)
            todo += [*imports[module], *(parent for parent in imports if module.startswith(f"{parent}."))]
    return found


# --- the list of the page ---------------------------------------------------------------------------------------------


def list_layers() -> str:
    """A line for each layer with what it imports, and one for the ground."""
    parts = {**LAYERS, "the ground": " ".join(GROUND)}.items()
    lines = [f"{name + ':':<12} {below}".rstrip() for name, below in parts]
    return "\n".join(textwrap.fill(line, 100, subsequent_indent=" " * 13) for line in lines)


def with_list(page: str, listed: str) -> str:
    """A page with a list between its marks. Raises ValueError if a mark is missing."""
    before, rest = page[: page.index(BEGIN)], page[page.index(END) :]
    return f"{before}{BEGIN}\n\n```text\n{listed}\n```\n\n{rest}"


def main() -> int:
    """Write the list, and return the exit code, 1 if code and rules differ."""
    PAGE.write_text(with_list(PAGE.read_text(encoding="utf-8"), list_layers()), encoding="utf-8")
    faults = find_faults(read_imports())
    print("\n".join(faults), file=sys.stderr, end="\n" if faults else "")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
