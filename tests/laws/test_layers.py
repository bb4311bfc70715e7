"""The layers as they are: arrows point down, nothing is imported in a circle, picture and documents are of today."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tools import ROOT
from tools.layers import PICTURE, count_edges, draw, find_faults, read_imports


def write_package(folder: Path, files: dict[str, str]) -> Path:
    """A package hectogpt with these files."""
    package = folder / "hectogpt"
    for name, text in {"__init__.py": "", **files}.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text, encoding="utf-8")
    return package


def test_every_arrow_points_down() -> None:
    imports = read_imports(ROOT / "hectogpt")
    assert find_faults(imports, count_edges(imports)) == []


def test_nothing_is_imported_in_a_circle() -> None:
    layers: dict[str, set[str]] = {}
    for part, other in count_edges(read_imports(ROOT / "hectogpt")):
        layers.setdefault(part, set()).add(other)
    TopologicalSorter(layers).prepare()  # raises CycleError, which names the circle
    TopologicalSorter(read_imports(ROOT / "hectogpt", in_functions=False)).prepare()


def test_the_committed_picture_is_of_todays_imports() -> None:
    drawn = draw(read_imports(ROOT / "hectogpt"))
    assert PICTURE.read_text(encoding="utf-8") == drawn, "the imports have changed: run `python -m tools.layers`"


def test_the_picture_can_be_read() -> None:
    root = ElementTree.fromstring(PICTURE.read_text(encoding="utf-8"))
    texts = {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"cli", "lab", "training", "model", "errors"} <= texts
    assert "#" not in "".join(text for text in texts if text)


def test_imports_are_found_wherever_they_stand(tmp_path: Path) -> None:
    files = {
        "errors.py": "import os",
        "data/__init__.py": "",
        "data/text.py": "from hectogpt import errors",
        "training/__init__.py": "from hectogpt.training.loop import steps",
        "training/loop.py": "import hectogpt.data.text\ndef steps():\n    from hectogpt.data import text, unknown",
    }
    imports = read_imports(write_package(tmp_path, files))
    assert imports["hectogpt.training"] == {"hectogpt.training.loop"}
    assert imports["hectogpt.training.loop"] == {"hectogpt.data.text", "hectogpt.data"}
    assert count_edges(imports) == {("data", "errors"): 1, ("training", "data"): 1}
    assert read_imports(tmp_path / "hectogpt", in_functions=False)["hectogpt.training.loop"] == {"hectogpt.data.text"}


def test_an_arrow_that_points_up_is_named(tmp_path: Path) -> None:
    files = {
        "model/__init__.py": "from hectogpt.training import loop",
        "training/__init__.py": "",
        "training/loop.py": "",
    }
    imports = read_imports(write_package(tmp_path, files))
    assert find_faults(imports, count_edges(imports)) == ["model imports training, which is not below it"]


def test_a_layer_without_a_place_is_named(tmp_path: Path) -> None:
    imports = read_imports(write_package(tmp_path, {"nowhere/__init__.py": "import hectogpt.errors", "errors.py": ""}))
    assert find_faults(imports, count_edges(imports)) == ["nowhere has no place in tools/layers.py"]


# --- what the documents say -------------------------------------------------------------------------------------------

PACKAGE = ROOT / "hectogpt"


def list_files(text: str) -> set[str]:
    """The files of the first code block of docs/architecture.md that are below hectogpt/, by path."""
    found, folders = set(), [""]
    for line in text.split("```")[1].splitlines():
        indent, name = (len(line) - len(line.lstrip())) // 2, line.split()[0] if line.strip() else ""
        folders[indent + 1 :] = []
        if name.endswith("/"):
            folders.append(folders[indent] + name)
        elif name.endswith(".py"):
            found.add(folders[indent] + name)
    return {path.removeprefix("hectogpt/") for path in found if path.startswith("hectogpt/")}


def test_the_architecture_lists_every_file() -> None:
    named = list_files((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"))
    files = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")}
    assert named == {file for file in files if Path(file).name not in ("__init__.py", "__main__.py")}


DOCUMENTS = ["README.md", "CONTRIBUTING.md"]
DOCUMENTS += [f"docs/{name}.md" for name in ("architecture", "performance", "interop", "serving")]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_links_to_files_that_exist_and_fits_120_columns(name: str) -> None:
    path = ROOT / name
    text = path.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+)\)", text) + re.findall(r"^\[[^\]]+\]: (\S+)$", text, re.MULTILINE)
    missing = [link for link in links if "://" not in link and not (path.parent / link).exists()]
    missing += [file for file in re.findall(r"`(\w+/[\w/]*\w+\.(?:py|md|jsonl))`", text) if not exists(file)]
    assert missing == []
    assert [line for line in text.splitlines() if len(line) > 120 and not line.startswith("|")] == []


def exists(file: str) -> bool:
    """Whether a file is there, below the checkout or below the package; NAME stands for any name."""
    return "NAME" in file or (ROOT / file).exists() or (PACKAGE / file).exists()
