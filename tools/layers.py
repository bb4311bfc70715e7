"""The picture of the layers, drawn from the imports that the code has: python -m tools.layers.

Writes docs/pictures/layers.svg. An arrow goes from a layer to one that it imports, and its number says how many of its
modules do. Imports inside functions count. tests/laws/test_layers.py fails if the committed picture is out of date.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path

from tools import ROOT

PICTURE = ROOT / "docs" / "pictures" / "layers.svg"

# The layers from top to bottom: what each is, and its colour, which is readable on white and on GitHub's dark page.
LAYERS: dict[str, tuple[str, str]] = {
    "cli": ("the command line, a module for each command", "#8250df"),
    "api": ("what Python users call; a run with its folder", "#0550ae"),
    "lab": ("recipes, the ladder, paired trials, reports", "#0969da"),
    "grade": ("submissions of the assignment: laws, mistakes", "#953800"),
    "assignment": ("the assignment as a kit", "#116329"),
    "training": ("a run: optimizers, schedules, loop, folder", "#1a7f37"),
    "explore": ("attention and positions, pages", "#bf3989"),
    "interop": ("models in Hugging Face's GPT-2 layout", "#bc4c00"),
    "generation": ("KV cache, sampling, smaller weights", "#1b7c83"),
    "data": ("text becomes batches of tokens, no torch", "#9a6700"),
    "model": ("the transformer, its head and loss", "#6e7781"),
}
# The ground: single files on the standard library that every layer may import, each after those that it imports.
GROUND = (
    "display",
    "errors",
    "json_files",
    "serialization",
    "files",
    "manifest",
    "hardware",
    "frames",
    "worker",
    "feed",
    "idea_file",
    "signals",
    "upward",
)
GROUND_COLOUR = "#57606a"
GROUND_COLUMNS = -(-len(GROUND) // -(-len(GROUND) // 6))  # rows of at most six, of about equal length

WIDTH, LEFT, RIGHT = 840, 216, 616  # of the picture, and the sides of the boxes
HEIGHT, GAP, TOP = 50, 26, 12  # of a box, between two, above the first
FONT = "font-family='system-ui, sans-serif'"

Edges = dict[tuple[str, str], int]


def read_imports(package: Path, in_functions: bool = True) -> dict[str, set[str]]:
    """Module -> the modules of the same package that it imports, by dotted name.

    `from p import name` imports p.name if that is a module, else p. in_functions: whether imports inside functions
    count, which happen only when the functions are called.
    """
    paths = {".".join(path.relative_to(package.parent).with_suffix("").parts): path for path in package.rglob("*.py")}
    modules = {name.removesuffix(".__init__"): path for name, path in sorted(paths.items())}
    found: dict[str, set[str]] = {}
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
    _, _, rest = module.partition(".")
    part = rest.partition(".")[0]
    return part if part not in ("", "__main__") else None


def count_edges(imports: Mapping[str, set[str]]) -> Edges:
    """(part, other part) -> number of modules of the first that import the second."""
    edges: Counter[tuple[str, str]] = Counter()
    for module, wanted in imports.items():
        part = part_of(module)
        others = {part_of(other) for other in wanted}
        edges.update((part, other) for other in others if part and other and other != part)
    return dict(sorted(edges.items()))


def find_faults(imports: Mapping[str, set[str]], edges: Edges) -> list[str]:
    """What is wrong, in words: parts without a place in the picture, and arrows that do not point down."""
    places = {name: place for place, name in enumerate([*LAYERS, *reversed(GROUND)])}
    parts = {part for module in imports if (part := part_of(module))}
    faults = [f"{part} has no place in tools/layers.py" for part in sorted(parts - set(places))]
    known = {edge: n for edge, n in edges.items() if set(edge) <= set(places)}
    return faults + [f"{a} imports {b}, which is not below it" for a, b in known if places[a] >= places[b]]


# --- drawing ----------------------------------------------------------------------------------------------------------


def draw(imports: Mapping[str, set[str]]) -> str:
    """The SVG: a box for each layer, a row for the ground. Arrows of the first layer are on the left, others right."""
    edges = count_edges(imports)
    sizes = Counter(part_of(module) for module in imports)
    arrows = {edge: n for edge, n in edges.items() if set(edge) <= set(LAYERS)}
    tops = {name: TOP + place * (HEIGHT + GAP) for place, name in enumerate(LAYERS)}
    bottom = TOP + len(LAYERS) * (HEIGHT + GAP)
    listed = "; ".join(f"{a} to {b}: {n}" for (a, b), n in edges.items())
    size = f"0 0 {WIDTH} {bottom_of_ground(bottom) + 40}"
    lines = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='{size}' role='img' {FONT}>",
        "<!-- drawn by `python -m tools.layers`; do not edit -->",
        "<title>The layers of hectogpt and their imports</title>",
        f"<desc>Number of modules that import: {listed}</desc>",
    ]
    lines += draw_arrows(arrows, tops)
    for name, top in tops.items():
        lines += draw_layer(name, top, sizes[name])
    lines += draw_ground(edges, bottom)
    return "\n".join([*lines, "</svg>", ""])


def draw_layer(name: str, top: int, modules: int) -> list[str]:
    """The box of a layer."""
    text, colour = LAYERS[name]
    x = LEFT + 16
    return [
        f"<rect x='{LEFT}' y='{top}' width='{RIGHT - LEFT}' height='{HEIGHT}' rx='8' fill='{colour}'/>",
        f"<text x='{x}' y='{top + 21}' fill='#fff' font-size='16' font-weight='600'>{name}</text>",
        f"<text x='{RIGHT - 16}' y='{top + 21}' fill='#fff' font-size='13' text-anchor='end'>{modules} modules</text>",
        f"<text x='{x}' y='{top + 40}' fill='#fff' font-size='14'>{escape(text)}</text>",
    ]


def draw_arrows(arrows: Edges, tops: Mapping[str, int]) -> list[str]:
    """The arrows as arcs beside the boxes. On each side of a box their ends keep apart, those from far above lowest,
    those to far below highest, so that arcs are nested and seldom cross."""
    names = list(LAYERS)
    sides: dict[tuple[str, bool], list[tuple[str, str]]] = {}
    for edge in arrows:
        for end in edge:
            sides.setdefault((end, edge[0] == names[0]), []).append(edge)

    def end_of(edge: tuple[str, str], name: str) -> float:
        """The height at which an arrow leaves or reaches a box: on the way up, arrivals; below them, departures."""
        ends = sides[name, edge[0] == names[0]]
        ends = sorted(ends, key=lambda e: (e[0] == name, -names.index(e[0] if e[1] == name else e[1])))
        return tops[name] + HEIGHT * (ends.index(edge) + 1) / (len(ends) + 1)

    curves, labels = [], []
    for (a, b), n in arrows.items():
        sign, x = (-1, LEFT) if a == names[0] else (1, RIGHT)
        start, stop = end_of((a, b), a), end_of((a, b), b)
        bulge = x + sign * (28 + 0.42 * (stop - start))
        tip, colour, width = x + sign * 9, LAYERS[a][1], 1.2 + 0.35 * n
        curve = f"M{x},{start:.1f} C{bulge:.1f},{start:.1f} {bulge:.1f},{stop:.1f} {tip},{stop:.1f}"
        head = f"M{x},{stop:.1f} l{sign * 11},-5.5 v11 z"
        middle, height = x + 0.75 * (bulge - x), (start + stop) / 2
        chip = f"x='{middle - 11:.1f}' y='{height - 9:.1f}' width='22' height='18' rx='9'"
        curves += [
            f"<path d='{curve}' fill='none' stroke='{colour}' stroke-width='{width:.2f}'/>",
            f"<path d='{head}' fill='{colour}'/>",
        ]
        labels += [
            f"<rect {chip} fill='{colour}'/>",
            f"<text x='{middle:.1f}' y='{height + 4.5:.1f}' fill='#fff' font-size='13' text-anchor='middle'>{n}</text>",
        ]
    return curves + labels


def draw_ground(edges: Edges, top: int) -> list[str]:
    """The ground's files in rows, each with the number of modules that import it."""
    users: Counter[str] = Counter()
    for (_, other), n in edges.items():
        users[other] += n
    step = (WIDTH - 20) / GROUND_COLUMNS
    lines = []
    for number, name in enumerate(GROUND):
        row, column = divmod(number, GROUND_COLUMNS)
        x, middle, y = 10 + column * step + 4, 10 + (column + 0.5) * step, top + row * (HEIGHT + 8)
        lines += [
            f"<rect x='{x:.1f}' y='{y}' width='{step - 8:.1f}' height='{HEIGHT}' rx='8' fill='{GROUND_COLOUR}'/>",
            f"<text x='{middle:.1f}' y='{y + 21}' fill='#fff' font-size='15' font-weight='600' "
            f"text-anchor='middle'>{name}</text>",
            f"<text x='{middle:.1f}' y='{y + 40}' fill='#fff' font-size='13' text-anchor='middle'>"
            f"imported by {users[name]}</text>",
        ]
    note = "The ground: standard library only, and every layer may import it. Numbers count importing modules."
    place = f"x='{WIDTH // 2}' y='{bottom_of_ground(top) + 24}' font-size='14' text-anchor='middle'"
    return [*lines, f"<text {place} fill='#768390'>{note}</text>"]


def bottom_of_ground(top: int) -> int:
    """Where the last row of the ground ends, if the first begins at `top`."""
    return top + -(-len(GROUND) // GROUND_COLUMNS) * (HEIGHT + 8) - 8


def main() -> int:
    """Write the picture, unless the imports are wrong; returns the exit code."""
    imports = read_imports(ROOT / "hectogpt")
    if faults := find_faults(imports, count_edges(imports)):
        print("\n".join(faults), file=sys.stderr)
        return 1
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    PICTURE.write_text(draw(imports), encoding="utf-8")
    print(PICTURE.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
