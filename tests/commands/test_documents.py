"""The pages of docs/ do what they say: every block of theirs runs, in order, in an empty folder; the notebooks too.

A block ```sh or ```python is what a reader types. `hectogpt train` and `compare` of a recipe get the options of a small
run here, so that a page can show the commands that people use; python blocks that follow each other are one program.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from itertools import groupby
from pathlib import Path

import pytest
from command import environment
from helpers import ROOT

import hectogpt
from hectogpt import errors
from hectogpt.cli import COMMANDS
from tools import notebooks, site

DOCS = ROOT / "docs"
SIZES = {"model.d_model": 16, "model.n_heads": 2, "model.n_layers": 1, "data.batch_size": 4, "data.seq_len": 64}
PROGRAM = f"""#!{sys.executable}
import sys
from hectogpt.cli import main
arguments, sizes = sys.argv[1:], {SIZES}
given = " ".join(arguments)
if arguments[0] in ("train", "compare") and not any(s in given for s in (".py:", "--resume", "--init", "--model")):
    arguments += ["--threads", "1"] + (["--steps", "2"] if "--steps" not in given else [])
    arguments += ["--corpus", CORPUS] if "--corpus" not in given else []
    options = [("--" + n.replace("_", "-"), str(v)) for n, v in sizes.items()]
    swept = ["--sweep", *(f"{{n}}={{v}}" for n, v in sizes.items())] if "--sweep" not in given else []
    arguments += swept if arguments[0] == "compare" else [word for option in options for word in option]
sys.exit(main(arguments))
"""

# page -> what it prints, in this order, as regular expressions
PRINTED = {
    "start": ["held-out loss after 2 steps", "Kneser-Ney trigram", "My fellow citizens", "done: trained and scored"],
    "all-of-hectogpt": ["lr=0.01", r"stories\.txt", r"torch\.Size|\(2, 2, ", r"my_idea\.py:twice"],
    "own-text": ["train", "dev", "Anna walked to", "bits/byte"],
    "add-an-idea": [r"\nmy_idea\.py:idea@small\.py:small (is|against) .*small\.py:small", "nats per token"],
    "compare": ["verdict", r"\nlearning_rate .* is (better|worse|unproven|a tie|tied)"],
    "resume": ["ok +runs/long", "equal +loss"],
    "fine-tune": ["before training|held-out loss", "runs/tuned"],
    "interop": ["GPT2LMHeadModel", "My fellow citizens"],
    "parallel": ["held-out loss after 2 steps"],
    "python": ["Run soap_rare_tokens", r"\nAnna walked to the", r"my_idea\.py:half_way", "already holds a run"],
    "grading-teacher": ["anna: 0/30", "ben: 30/30", "exit code 1"],
}


def read_blocks(page: str) -> list[tuple[str, str]]:
    """The kind and the text of each block that a reader types; python blocks that follow each other as one."""
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(sh|python)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(kind, "\n".join(block for _, block in found)) for kind, found in groupby(blocks, lambda block: block[0])]


@pytest.mark.thorough
@pytest.mark.parametrize("page", PRINTED)
def test_a_page_does_what_it_says(page: str, tmp_path: Path) -> None:
    blocks = read_blocks(page)
    assert blocks
    programs, work, corpus = tmp_path / "bin", tmp_path / "work", tmp_path / "small.txt"
    programs.mkdir()
    work.mkdir()
    corpus.write_text("\n\n".join(f"My fellow citizens, this is address {n}. " * 12 for n in range(200)))
    (programs / "hectogpt").write_text(PROGRAM.replace("CORPUS", repr(str(corpus))))
    small = f"--steps 2 --threads 1 --data.batch-size 4 --data.seq-len 64 --model.d-model 16 --corpus {corpus}"
    (programs / "torchrun").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m torch.distributed.run "$@" {small}\n')
    for program in programs.iterdir():
        program.chmod(0o755)
    paths = {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"}
    printed = ""
    for kind, block in blocks:
        block = block.replace("seeds=3", "seeds=1")
        command = ["sh", "-e", "-c", block] if kind == "sh" else [sys.executable, "-c", block]
        done = subprocess.run(command, cwd=work, env=environment(tmp_path, **paths), capture_output=True, text=True)
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
        printed += done.stdout
    assert re.search(".*".join(PRINTED[page]), printed, re.DOTALL), printed


def test_what_pages_take_from_the_code_is_there() -> None:
    """Commands, public names, exit codes, mistakes: the site has all that there are."""
    assert all(f"## hectogpt {name}\n" in site.commands() for name in COMMANDS)
    named = re.findall(r"auto\w+:: hectogpt\.(\w+)", site.names())
    assert sorted(named) == [name for name in hectogpt.__all__ if name != "replace"]
    codes = {value for name, value in vars(errors).items() if name.isupper() and isinstance(value, int)}
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", site.exit_codes(), re.MULTILINE)} == {0, *codes}
    assert site.traps().count("\n| ") > 200
    assert "| `baseline` | 10.7" in site.usual_losses()
    assert site.fill("<!-- made: textbook MLP.forward -->\n![picture](x.png)\nrest").endswith("```\nrest")


def test_the_list_for_programs_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)]+)\)", (ROOT / "llms.txt").read_text(encoding="utf-8"))
    assert [link for link in links if not (ROOT / link).exists()] == []


# --- the notebooks ----------------------------------------------------------------------------------------------------

NOTEBOOKS = sorted(notebooks.FOLDER.glob("*.py"))
EXECUTE = """
import sys, nbformat
from nbclient import NotebookClient
print(nbformat.writes(NotebookClient(nbformat.read(sys.argv[1], 4), timeout=400).execute()))
"""
# notebook -> what its outputs hold
SHOWN = {
    "attention_by_hand": ["0 [0.333 0.333 0.333]", "1.0000", "(1, 2, 6, 6)"],
    "first_idea": ["<caption>Run adamw_128</caption>", "'Anna walked to", "my_idea.py:half_way@adamw_128"],
    "grading_a_class": ["clara: 24/30", "('ben', '30', '30')", "scale by d_model"],
}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_two_forms_of_a_notebook_are_one(path: Path) -> None:
    made = notebooks.as_jupyter(notebooks.read_cells(path))
    assert path.with_suffix(".ipynb").read_text(encoding="utf-8") == made, "run `python -m tools.notebooks`"


@pytest.mark.thorough
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_in_a_jupyter_kernel(path: Path, tmp_path: Path) -> None:
    paths = environment(tmp_path, PYTHONPATH=str(ROOT))
    command = [sys.executable, "-c", EXECUTE, path.with_suffix(".ipynb")]
    done = subprocess.run(command, cwd=tmp_path, env=paths, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    outputs = [out for cell in json.loads(done.stdout)["cells"] for out in cell.get("outputs", ())]
    shown = "\n".join(
        "".join(text)
        for out in outputs
        for text in [out.get("text", ""), *out.get("data", {}).values()]
        if not isinstance(text, dict)
    )
    assert [text for text in SHOWN[path.stem] if text not in shown] == [], shown[:5000]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_as_a_marimo_one(path: Path, tmp_path: Path) -> None:
    """As in a Jupyter kernel, whose cells are the same; here in the order of what they need."""
    done = subprocess.run([sys.executable, path], cwd=tmp_path, env=environment(tmp_path, PYTHONPATH=str(ROOT)))
    assert done.returncode == 0
