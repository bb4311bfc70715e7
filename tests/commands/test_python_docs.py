"""docs/python.md and the notebook, run as their readers run them."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from command import environment

from hectogpt.lab.ladder import TOP

DOCS = Path(__file__).resolve().parents[2] / "docs"
NOTEBOOK = DOCS / "notebooks" / "first_idea.py"
EXPORTED = NOTEBOOK.with_suffix(".ipynb")


def run(command: list[object], cwd: Path, text: str = "") -> str:
    """What a child process prints."""
    paths = environment(cwd, MPLBACKEND="Agg")
    done = subprocess.run([*map(str, command)], cwd=cwd, env=paths, input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.thorough
def test_the_page_runs_from_top_to_bottom(tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / "python.md").read_text(encoding="utf-8"), re.M | re.S)
    assert len(blocks) > 9
    program = "\n".join(blocks).replace("seeds=3", "seeds=1")
    (tmp_path / "page.py").write_text(program, encoding="utf-8")
    told = run([sys.executable, "page.py"], tmp_path)
    assert f"Run {TOP}\n" in told
    assert re.search(r"^Anna walked to the", told, re.M)
    assert "my_idea.py:half_way" in told
    assert "already holds a run" in told
    assert (tmp_path / "runs" / "mine" / "summary.json").exists()
    assert len((tmp_path / "compare.jsonl").read_text().splitlines()) == 3  # two of five trials were recorded already


def test_the_exported_notebook_is_the_marimo_one() -> None:
    """To export: marimo export ipynb first_idea.py -o first_idea.ipynb, then remove the cell that imports marimo."""
    text = NOTEBOOK.read_text(encoding="utf-8")
    cells = []
    for function in [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]:
        body = [node for node in function.body if not isinstance(node, ast.Return)]
        start = min(node.lineno for node in (body[0], *getattr(body[0], "decorator_list", [])))
        cells.append(textwrap.dedent("\n".join(text.splitlines()[start - 1 : body[-1].end_lineno])))
    exported = [
        cell for cell in json.loads(EXPORTED.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"
    ]
    assert ["".join(cell["source"]) for cell in exported] == [
        cell for cell in cells if not cell.startswith(("mo.md", "import marimo"))
    ]
