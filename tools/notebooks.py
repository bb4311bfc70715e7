"""Make the Jupyter notebooks of docs/notebooks from the marimo notebooks next to them: python -m tools.notebooks.

A marimo notebook is a Python file whose cells are functions. Here each becomes a cell: text as Markdown, the rest as
code; the cell that imports marimo is left out.
"""

from __future__ import annotations

import ast
import json
import textwrap
from pathlib import Path
from typing import Any

from tools import ROOT

FOLDER = ROOT / "docs" / "notebooks"


def read_cells(path: Path) -> list[tuple[str, str]]:
    """("markdown" or "code", text) of each cell of a marimo notebook."""
    text = path.read_text(encoding="utf-8")
    cells = []
    for function in [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]:
        body = [node for node in function.body if not isinstance(node, ast.Return)]
        first = min(node.lineno for node in (body[0], *getattr(body[0], "decorator_list", [])))
        code = textwrap.dedent("\n".join(text.splitlines()[first - 1 : body[-1].end_lineno]))
        if code.startswith("mo.md("):
            said = ast.literal_eval(code.removeprefix("mo.md(").removesuffix(")").strip())
            cells.append(("markdown", textwrap.dedent(said).strip()))
        elif code != "import marimo as mo":
            cells.append(("code", code))
    return cells


def as_jupyter(cells: list[tuple[str, str]]) -> str:
    """The text of an .ipynb file with these cells and no outputs."""
    made: list[dict[str, Any]] = []
    for number, (kind, text) in enumerate(cells):
        cell: dict[str, Any] = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}}
        if kind == "code":
            cell |= {"execution_count": None, "outputs": []}
        made.append(cell | {"source": text.splitlines(keepends=True)})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = {"cells": made, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for path in sorted(FOLDER.glob("*.py")):
        path.with_suffix(".ipynb").write_text(as_jupyter(read_cells(path)), encoding="utf-8")
        print(path.with_suffix(".ipynb").relative_to(ROOT))
