"""The pages of the documentation do what they say: every block that a reader types runs, in order; the notebooks too.

A block ```sh or ```python is what a reader types. `hectogpt train` and `compare` of a recipe get the options of a small
run here (programs/page_command.py), so that a page can show the commands that people use; python blocks that follow
each other are one program. A block that no test can run has a comment before it: <!-- not run: REASON -->.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest
from command import environment, wait_for
from helpers import ROOT
from markdown_it import MarkdownIt

import hectogpt
from hectogpt import errors
from hectogpt.cli import COMMANDS
from tools import notebooks, site

# Why a block is not run -> in how many blocks. A new one must be worth a line of the commit's message.
NOT_RUN = {
    "an image builder": 2,
    "a part of a file": 1,
    "a third-party server": 6,
    "a stage of CI": 3,
    "a package index": 5,
    "hours of training": 2,
    "several machines": 2,
    "the address of a clone": 1,
    "what a student writes": 5,
}
MARK = re.compile(r"<!-- not run: (.*) -->\n")
COMMAND = re.compile(r"^ *(\$ )?(hectogpt|make|pip|python3?|pytest|torchrun|bash|curl|\.venv/\S+) ", re.MULTILINE)
SMALL_RUN = """\
from hectogpt import replace

def small(run):
    model = replace(run.model, d_model=16, n_heads=1, n_layers=1)
    return replace(run, model=model, data=replace(run.data, batch_size=2, seq_len=64), steps=3)
"""
STORIES = "\n\n".join(" ".join(f"Anna walked to the mill on day {n * d}." for d in range(20)) for n in range(200))
CLOSE = r"differ by at most (0\.0e\+00|\d\.\de-(0[5-9]|1\d))\n"  # less than 1e-4
# page -> what it prints, in this order, as regular expressions
PRINTED = {
    "README": ["My fellow", r"attention\.html", r"stories\.txt", r"learning_rate .* is\s+unproven"],
    "CONTRIBUTING": [r"1 failed.*the law of causality is broken", r"\d\d passed"],
    "docs/start": [
        "held-out loss after 2 steps",
        "Kneser-Ney trigram",
        "My fellow citizens",
        "done: trained and scored",
    ],
    "docs/own-text": ["train", "dev", "Anna walked to", "bits/byte"],
    "docs/add-an-idea": [r"\nmy_idea\.py:idea@small\.py:small (is|against) .*small\.py:small", "nats per token"],
    "docs/compare": ["verdict", r"\nlearning_rate .* is\s+(better|worse|unproven|a tie|tied)"],
    "docs/judge": [r"my_idea\.py:idea .*small\.py:small", r"\d+ of \d+ checks passed", "exit code 1", "holds"],
    "docs/verdict": ["idea.csv is better", "better 0.04"],
    "docs/yardstick": ["is below unigram", "unigram since step 250", "bits per byte is below"],
    "docs/bisect": ["equal to the last bit", "first update that differs: embeddings", "up to rounding", "last bit"],
    "docs/resume": ["ok +runs/long", "equal +loss"],
    "docs/time-machine": ["weights_hash", "branch +of ", "hash of the weights"],
    "docs/watch": [*["http://127.0.0.1"] * 3, "tensorboard --logdir"],
    "docs/fine-tune": ["before training", "runs/walks"],
    "docs/interop": ["GPT2LMHeadModel", "My fellow citizens", "The capital of France is", "bits/byte", "bits/byte"],
    "docs/transformer-lens": [f"logits: {CLOSE}", f"effects: {CLOSE}"],
    "docs/nnsight": [f"logits: {CLOSE}", f"effects: {CLOSE}", f"exported logits: {CLOSE}"],
    "docs/serving": ["served: GPT2LMHeadModel", "HectoGPTForCausalLM", "My fellow citizens"],
    "docs/parallel": ["held-out loss after 2 steps", "equal to the last bit"],
    "docs/scale": ["verdict", "sbatch"],
    "docs/python": [r"Run \w+", r"\nAnna walked to", r"my_idea\.py:half_way", "already holds a run"],
    "docs/grading": ["my_folder: 0 of 30", "exit code 1"],
    "docs/grading-teacher": ["anna: 0/30", "ben: 30/30", "exit code 1"],
    "docs/drill": ["resume:  hectogpt assignment drill --seed 7", "one mistake", "where:", "exit code 1"],
    "docs/exam": ["3 sheets of 5 questions; guessing gives 1.0", r"sheets: 3; 0\.\d\d points"],
    "docs/assignment-student": ["0 of 14 tests passed", "submission.zip"],
}
# page -> what has happened before a reader types its first block
BEFORE = {
    "README": "make train",
    "docs/bisect": "python -c 'from hectogpt.assignment import kit; import shutil; "
    'shutil.copy(kit.folder_of("reference") / "model_solution.py", ".")\'',
    "docs/interop": "hectogpt train adamw_128 --out runs/before && hectogpt export runs/before gpt2",  # small
    "docs/judge": "hectogpt idea my_idea.py && cat > small.py <<'END'\n" + SMALL_RUN + "END",
    "docs/watch": "hectogpt train && hectogpt train && mkdir -p copied/from && cp -r runs/minute copied/from/elsewhere",
}
# what is longer on a page than its test needs
TINY = "data=hectogpt.Data(batch_size=2, seq_len=64), steps=2, corpus='stories.txt'"
SHORTER = {
    'train("minute")': f'train(hectogpt.replace(hectogpt.recipe("baseline"), {TINY}))',
    "documents(), 40)": "documents(), 12)",
    "--data.seq-len 64": "--data.seq-len 16",
    "seeds=3": "seeds=1",
    "seeds=2": "seeds=1",
    "steps=20,": "steps=4,",
}
# packages that .ci/run installs for these pages
NEEDED = {
    "docs/watch": ["tensorboard"],
    "docs/transformer-lens": ["transformer_lens"],
    "docs/nnsight": ["nnsight"],
}


def read_blocks(page: str) -> list[tuple[str, str, str]]:
    """Each block of a page: its language ("" if it is indented), why it is not run ("" if it is), its text."""
    text = (ROOT / f"{page}.md").read_text(encoding="utf-8")
    blocks, before = [], ""
    for token in MarkdownIt().parse(text):
        if token.type in ("fence", "code_block"):
            found = MARK.fullmatch(before)
            blocks.append((token.info, found[1] if found else "", token.content))
        before = token.content if token.type == "html_block" else ""
    return blocks


def all_pages() -> list[str]:
    """The Markdown files of the repository that have blocks, but for the log, which says what was run once."""
    folders = (ROOT, *(ROOT / name for name in ("docs", "answers", "assignment", "results")))
    paths = [path.relative_to(ROOT).with_suffix("") for folder in folders for path in sorted(folder.glob("*.md"))]
    return [str(path) for path in paths if str(path) != "results/LOG" and read_blocks(str(path))]


def test_every_block_is_run_or_says_why_not() -> None:
    found = dict.fromkeys(NOT_RUN, 0)
    for page in all_pages():
        for language, reason, text in read_blocks(page):
            assert language in ("sh", "python", "text"), f"{page}: say what this is, ```sh, python or text:\n{text}"
            assert language != "text" or not COMMAND.search(text), f"{page}: this is typed, so ```sh:\n{text}"
            if reason:
                found[reason] += 1
            assert reason or language == "text" or page in PRINTED, f"{page}: nothing runs this:\n{text}"
    assert found == NOT_RUN


def test_lines_of_pages_fit_120_columns() -> None:
    pages = [path for path in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")) if path.stem != "CHANGELOG"]
    lines = [(path.name, line) for path in pages for line in path.read_text(encoding="utf-8").splitlines()]
    assert [(name, line) for name, line in lines if len(line) > 120 and not line.startswith(("|", "$$"))] == []


def make_checkout(folder: Path) -> None:
    """A clone in `folder`, with files as they are now, and an environment in which everything is installed."""
    subprocess.run(["git", "clone", "--quiet", "--shared", ROOT, folder], check=True)
    changed = subprocess.run(["git", "ls-files", "-mo", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    for name in changed.stdout.split():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copy(ROOT / name, folder / name) if (ROOT / name).exists() else (folder / name).unlink())
    subprocess.run(["git", "add", "--all"], cwd=folder, check=True)
    (folder / ".venv" / "bin").mkdir(parents=True)
    for name in (".pip", ".torch", ".install", ".test"):
        (folder / ".venv" / name).touch()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The socket of a process that runs commands: it has torch loaded, which takes seconds for each."""
    path = tmp_path_factory.mktemp("server") / "socket"
    program = [sys.executable, str(ROOT / "tests" / "programs" / "fork_server.py"), str(path)]
    with subprocess.Popen(program, env=environment(path.parent, PYTHONPATH=str(ROOT), MPLBACKEND="Agg")) as process:
        wait_for(lambda: path.exists() or process.poll() is not None)
        assert process.poll() is None, "it has ended"
        yield str(path)
        process.kill()


@pytest.mark.thorough
# test_judge_command.py does what the page of the judge says, with less text.
@pytest.mark.parametrize("page", [pytest.param(p, marks=pytest.mark.slow) if p == "docs/judge" else p for p in PRINTED])
def test_a_page_does_what_it_says(page: str, tmp_path: Path, server: str) -> None:
    for name in NEEDED.get(page, ()):
        pytest.importorskip(name)
    typed = [(language, text) for language, reason, text in read_blocks(page) if language != "text" and not reason]
    blocks = [(kind, "\n".join(text for _, text in found)) for kind, found in groupby(typed, lambda block: block[0])]
    assert blocks
    programs, work, corpus = tmp_path / "bin", tmp_path / "work", tmp_path / "small.txt"
    programs.mkdir()
    source = ROOT
    if page in ("README", "CONTRIBUTING"):
        make_checkout(source := work)
    if page == "CONTRIBUTING":
        server = ""  # which has the code of this checkout, and that page changes the code
    work.mkdir(exist_ok=True)
    (tmp_path / "cache").mkdir()
    for name in ("kernels", "grader"):  # compiled, and the reference graded, already
        (made := Path(os.environ["HECTOGPT_CACHE"], name)).mkdir(exist_ok=True)
        (tmp_path / "cache" / name).symlink_to(made)
    corpus.write_text("\n\n".join(f"My fellow citizens, this is address {n}. " * 12 for n in range(200)))
    (work / "stories.txt").write_text(STORIES)
    for name in ("hectogpt", "torchrun", "python"):
        command = f'exec "{sys.executable}" "{ROOT}/tests/programs/page_command.py" "{corpus}" {name} "$@"\n'
        (programs / name).write_text(f"#!/bin/sh\n{command}")
    for program in programs.iterdir():
        program.chmod(0o755)
        if source == work:
            (work / ".venv" / "bin" / program.name).symlink_to(program)
    paths = {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(source), "MPLBACKEND": "Agg"}
    printed = ""
    for kind, block in [("sh", BEFORE.get(page, "true")), *blocks]:
        for long, short in SHORTER.items():
            block = block.replace(long, short)
        python = sys.executable if page in NEEDED else str(programs / "python")  # nnsight reads the program's source
        line = ["sh", "-e", "-c", block] if kind == "sh" else [python, "-c", block]
        settings = environment(tmp_path, **paths, BROWSER="true", FORK_SERVER=server)
        done = subprocess.run(line, cwd=work, env=settings, capture_output=True, text=True)
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
        printed += done.stdout + done.stderr
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
    assert site.fill("<!-- made: textbook MLP.forward -->\nrest").endswith("```\nrest")


# --- the notebooks ----------------------------------------------------------------------------------------------------

NOTEBOOKS = sorted(notebooks.FOLDER.glob("*.py"))
EXECUTE = """
import json, sys, nbformat
from nbclient import NotebookClient
text = open(sys.argv[1]).read()
for long, short in json.loads(sys.argv[2]).items():
    text = text.replace(long, short)
print(nbformat.writes(NotebookClient(nbformat.reads(text, 4), timeout=400).execute()))
"""
# notebook -> what its outputs hold
SHOWN = {
    "attention_by_hand": ["0 [0.333 0.333 0.333]", "1.0000", "(1, 2, 6, 6)"],
    "first_idea": ["Run adamw_128", "'Anna walked to", "my_idea.py:half_way@adamw_128"],
    "grading_a_class": ["clara: 24/30", "('ben', '30', '30')", "scale by d_model"],
}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_two_forms_of_a_notebook_are_one(path: Path) -> None:
    made = notebooks.as_jupyter(notebooks.read_cells(path))
    assert path.with_suffix(".ipynb").read_text(encoding="utf-8") == made, "run `python -m tools.notebooks`"


@pytest.mark.thorough
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_in_a_jupyter_kernel(path: Path, tmp_path: Path) -> None:
    paths = environment(tmp_path, PYTHONPATH=str(ROOT), HECTOGPT_CACHE=os.environ["HECTOGPT_CACHE"])
    command = [sys.executable, "-c", EXECUTE, str(path.with_suffix(".ipynb")), json.dumps(SHORTER)]
    done = subprocess.run(command, cwd=tmp_path, env=paths, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    cells = json.loads(done.stdout)["cells"]
    assert max(len(cell.get("outputs", ())) for cell in cells) <= 3, "progress is one output, beside what is printed"
    outputs = [out for cell in cells for out in cell.get("outputs", ())]
    texts = [text for out in outputs for text in (out.get("text", ""), *out.get("data", {}).values())]
    shown = "\n".join("".join(text) for text in texts if not isinstance(text, dict))
    assert [text for text in SHOWN[path.stem] if text not in shown] == [], shown[:5000]
