"""The pages of docs/ do what they say: every block of theirs runs, in order, in an empty folder; the notebooks too.

A block ```sh or ```python is what a reader types. `hectogpt train` and `compare` of a recipe get the options of a small
run here, so that a page can show the commands that people use; python blocks that follow each other are one program.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from itertools import groupby
from pathlib import Path

import pytest
from command import environment
from helpers import ROOT

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
    (programs / "hectogpt").chmod(0o755)
    paths = {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"}
    printed = ""
    for kind, block in blocks:
        block = block.replace("seeds=3", "seeds=1")
        command = ["sh", "-e", "-c", block] if kind == "sh" else [sys.executable, "-c", block]
        done = subprocess.run(command, cwd=work, env=environment(tmp_path, **paths), capture_output=True, text=True)
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
        printed += done.stdout
    assert re.search(".*".join(PRINTED[page]), printed, re.DOTALL), printed
