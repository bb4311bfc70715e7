"""The rules of the layers, and what is made from the code: `python -m tools.layers`.

The command writes docs/pictures/layers.svg (the rules below as a picture), the list of files in docs/files.md (the
first line of each module's docstring) and tests/data/errors.txt (the sentences of errors, tools/errors.py). What a
merge has left between the marks of a file is written again. tests/laws/test_house.py holds the code to the rules, and
fails if one of the three files is not what this command writes.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import NamedTuple

from tools import ROOT
from tools.errors import LIST, list_errors

PACKAGE = ROOT / "hectogpt"
PICTURE = ROOT / "docs" / "pictures" / "layers.svg"
PAGE = ROOT / "docs" / "files.md"
BEGIN, END = "<!-- files: begin (python -m tools.layers) -->", "<!-- files: end -->"


class Layer(NamedTuple):
    """A folder of the package: what it is, a colour that is readable on white and on dark, the layers it imports."""

    text: str
    colour: str
    imports: str = ""


# From top to bottom. A layer imports exactly the layers that it names, all of them below it, and any of the ground.
LAYERS: dict[str, Layer] = {
    "cli": Layer(
        "the command line, a module for each command",
        "#8250df",
        "lab grade assignment training web interop generation data model kernels",
    ),
    "python": Layer("what Python users call", "#0550ae", "lab training interop generation data model"),
    "web": Layer(
        "pages that are one file, with the engine that trains",
        "#9333a0",
        "interop generation data model",
    ),
    "lab": Layer("recipes, the ladder, paired trials, scores", "#0969da", "training generation data model kernels"),
    "grade": Layer("submissions of the assignment: laws, mistakes", "#953800", "assignment"),
    "assignment": Layer("the assignment as a kit", "#116329", "data"),
    "training": Layer("a run: optimizers, schedules, loop, folder", "#1a7f37", "interop data model kernels"),
    "interop": Layer("models in Hugging Face's GPT-2 layout", "#bc4c00", "data model"),
    "generation": Layer("KV cache, sampling, smaller weights, heads", "#1b7c83", "data model kernels"),
    "data": Layer("text becomes batches of tokens, no torch", "#9a6700"),
    "model": Layer("the transformer, its head and loss", "#6e7781", "kernels"),
    "kernels": Layer("C++ for every processor, dtypes of devices", "#57606a"),
}
# The ground: single files that every layer may import. Each imports only those before it.
GROUND = (
    *("display", "errors", "serialization", "files", "json_files", "run_records"),
    *("hardware", "process", "idea_file", "signals", "torch_private"),
)
GROUND_COLOUR = "#57606a"

WIDTH, LEFT, RIGHT = 840, 216, 616  # of the picture, and the sides of the boxes
HEIGHT, GAP, TOP = 50, 26, 12  # of a box, between two, above the first
ROW = 6  # files of the ground in a row
FONT = "font-family='system-ui, sans-serif'"

Imports = dict[str, set[str]]


# --- the code ---------------------------------------------------------------------------------------------------------


def read_imports(package: Path = PACKAGE, in_functions: bool = True) -> Imports:
    """Module -> the modules of the same package that it imports, by dotted name.

    `from p import name` imports p.name if that is a module, else p. in_functions: whether imports inside functions
    count, which happen only when the functions are called.
    """
    paths = {".".join(path.relative_to(package.parent).with_suffix("").parts): path for path in package.rglob("*.py")}
    modules = {name.removesuffix(".__init__"): path for name, path in sorted(paths.items())}
    found: Imports = {}
    for name, path in modules.items():
        wanted = set()
        for node in walk(ast.parse(path.read_text(encoding="utf-8")), in_functions):
            if isinstance(node, ast.Import):
                wanted |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                parts = [f"{node.module}.{alias.name}" for alias in node.names]
                wanted |= {part if part in modules else node.module for part in parts}
        found[name] = {other for other in wanted if other in modules} - {name}
    return found


def walk(node: ast.AST, in_functions: bool) -> Iterator[ast.AST]:
    """The nodes below a node, those of functions' bodies only if asked for."""
    for child in ast.iter_child_nodes(node):
        if in_functions or not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield child
            yield from walk(child, in_functions)


def part_of(module: str) -> str | None:
    """The layer or file of the ground of a module: "hectogpt.training.loop" -> "training". None for the package itself
    and its __main__."""
    part = module.split(".")[1] if "." in module else ""
    return part if part not in ("", "__main__") else None


def find_faults(imports: Imports, layers: Mapping[str, Layer] = LAYERS, ground: tuple[str, ...] = GROUND) -> list[str]:
    """Where code and rules differ, a sentence each."""
    order = [*layers, *reversed(ground)]
    allowed = {(name, other) for name, layer in layers.items() for other in layer.imports.split()}
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
    faults += [f"no module of {a} imports {b}: take it out of tools/layers.py" for a, b in allowed - used]
    return sorted(faults)


def closure(start: str, imports: Imports) -> set[str]:
    """A module and all that it needs by these imports, the packages that they are in among them."""
    found, todo = set(), [start]
    while todo:
        module = todo.pop()
        if module not in found:
            found.add(module)
            todo += [*imports[module], *(parent for parent in imports if module.startswith(f"{parent}."))]
    return found


# --- the list of files ------------------------------------------------------------------------------------------------


def list_files(package: Path = PACKAGE) -> str:
    """Every module of the package with the first line of its docstring, in folders."""
    lines = [f"{package.name}/"]

    def add(folder: Path, depth: int) -> None:
        entries = [path for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
        for path in sorted(entries, key=lambda path: (path.is_dir(), path.name)):
            if path.name in ("__init__.py", "__main__.py"):
                continue
            name = "  " * depth + path.name + ("/" if path.is_dir() else "")
            text = first_line(path / "__init__.py" if path.is_dir() else path)
            lines.append(f"{name:<26} {shortened(text, 120 - 27)}".rstrip())
            if path.is_dir():
                add(path, depth + 1)

    add(package, 1)
    return "\n".join(lines)


def first_line(path: Path) -> str:
    """The first paragraph of a module's docstring in one line; "" if there is none."""
    return " ".join((ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n\n")[0].split())


def shortened(text: str, columns: int) -> str:
    """The first sentence of a text without its full stop; of a longer one what fits, up to a comma, colon or word."""
    text = text.split(". ")[0].removesuffix(".")
    if len(text) <= columns:
        return text
    cuts = [text.rfind(mark, columns // 3, columns) for mark in (":", ";", ",")]
    return text[: max(cuts)] if max(cuts) > 0 else text[:columns].rpartition(" ")[0]


def with_list(page: str) -> str:
    """A page with today's list between its marks. Raises ValueError if a mark is missing."""
    before, rest = page[: page.index(BEGIN)], page[page.index(END) :]
    return f"{before}{BEGIN}\n\n```text\n{list_files()}\n```\n\n{rest}"


# --- the picture ------------------------------------------------------------------------------------------------------


def draw() -> str:
    """The SVG of the rules: a box for each layer, a row for the ground. Arrows of the first layer are on the left."""
    arrows = [(name, other) for name, layer in LAYERS.items() for other in LAYERS if other in layer.imports.split()]
    tops = {name: TOP + place * (HEIGHT + GAP) for place, name in enumerate(LAYERS)}
    bottom = TOP + len(LAYERS) * (HEIGHT + GAP)
    end = bottom + -(-len(GROUND) // ROW) * (HEIGHT - 10) - 8
    lines = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {end + 40}' role='img' {FONT}>",
        "<!-- drawn by `python -m tools.layers`; do not edit -->",
        "<title>The layers of hectogpt and their imports</title>",
        *draw_arrows(arrows, tops),
    ]
    for name, top in tops.items():
        lines += draw_layer(name, top)
    lines += draw_ground(bottom)
    note = f"x='{WIDTH // 2}' y='{end + 24}' font-size='14' text-anchor='middle' fill='#768390'"
    return "\n".join([*lines, f"<text {note}>The ground: every layer may import it.</text>", "</svg>", ""])


def draw_layer(name: str, top: int) -> list[str]:
    """The box of a layer."""
    layer, x = LAYERS[name], LEFT + 16
    return [
        f"<rect x='{LEFT}' y='{top}' width='{RIGHT - LEFT}' height='{HEIGHT}' rx='8' fill='{layer.colour}'/>",
        f"<text x='{x}' y='{top + 21}' fill='#fff' font-size='16' font-weight='600'>{name}</text>",
        f"<text x='{x}' y='{top + 40}' fill='#fff' font-size='14'>{escape(layer.text)}</text>",
    ]


def draw_arrows(arrows: list[tuple[str, str]], tops: Mapping[str, int]) -> list[str]:
    """The arrows as arcs beside the boxes. On each side of a box their ends keep apart, those from far above lowest,
    those to far below highest, so that arcs are nested and seldom cross."""
    names = list(LAYERS)
    sides: dict[tuple[str, bool], list[tuple[str, str]]] = {}
    for arrow in arrows:
        for end in arrow:
            sides.setdefault((end, arrow[0] == names[0]), []).append(arrow)

    def end_of(arrow: tuple[str, str], name: str) -> float:
        """The height at which an arrow leaves or reaches a box: on the way up, arrivals; below them, departures."""
        ends = sides[name, arrow[0] == names[0]]
        ends = sorted(ends, key=lambda e: (e[0] == name, -names.index(e[0] if e[1] == name else e[1])))
        return tops[name] + HEIGHT * (ends.index(arrow) + 1) / (len(ends) + 1)

    lines = []
    for a, b in arrows:
        sign, x = (-1, LEFT) if a == names[0] else (1, RIGHT)
        start, stop = end_of((a, b), a), end_of((a, b), b)
        bulge = x + sign * (28 + 0.25 * (stop - start))  # three quarters of it stay in the picture
        tip, colour = x + sign * 9, LAYERS[a].colour
        curve = f"M{x},{start:.1f} C{bulge:.1f},{start:.1f} {bulge:.1f},{stop:.1f} {tip},{stop:.1f}"
        lines += [
            f"<path d='{curve}' fill='none' stroke='{colour}' stroke-width='2'/>",
            f"<path d='M{x},{stop:.1f} l{sign * 11},-5.5 v11 z' fill='{colour}'/>",
        ]
    return lines


def draw_ground(top: int) -> list[str]:
    """The ground's files in rows."""
    step, height, lines = (WIDTH - 20) / ROW, HEIGHT - 18, []
    for number, name in enumerate(GROUND):
        row, column = divmod(number, ROW)
        x, y = 10 + column * step + 4, top + row * (HEIGHT - 10)
        text = f"x='{x + step / 2 - 4:.1f}' y='{y + 21}' fill='#fff' font-size='15' font-weight='600'"
        lines += [
            f"<rect x='{x:.1f}' y='{y}' width='{step - 8:.1f}' height='{height}' rx='8' fill='{GROUND_COLOUR}'/>",
            f"<text {text} text-anchor='middle'>{name}</text>",
        ]
    return lines


def main() -> int:
    """Write the three files; returns the exit code, 1 if code and rules differ."""
    PICTURE.write_text(draw(), encoding="utf-8")
    PAGE.write_text(with_list(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    LIST.write_text(list_errors(), encoding="utf-8")
    faults = find_faults(read_imports())
    print("\n".join(faults), file=sys.stderr, end="\n" if faults else "")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
