"""hectogpt from Python: the names, training with the command's bits, models asked and looked into, what is shown."""

from __future__ import annotations

import ast
import inspect
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command import TINY, Here, environment, hectogpt, write_tokens

import hectogpt as package
from hectogpt import RunResult, UserError
from hectogpt.lab import recipes
from hectogpt.training.run import Run

PACKAGE = Path(package.__file__).parent
PROGRAMS = Path(__file__).parents[1] / "programs"


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokens(tmp_path_factory.mktemp("corpus") / "stories.bin")


def tiny_run(tokens: Path, **changes: object) -> Run:
    """The run of the command's TINY options."""
    run = recipes.recipe("adamw_128")
    model = replace(run.model, d_model=16, n_heads=2, n_layers=1, context_length=64)
    data = replace(run.data, seq_len=64, batch_size=4)
    run = replace(run, model=model, data=data, corpus=str(tokens), threads=1, steps=4)
    return replace(run, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def result(tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """A trained run with its folder."""
    return package.train(tiny_run(tokens), out=tmp_path_factory.mktemp("runs") / "mine", quiet=True)


def python(program: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program]
    return subprocess.run(command, cwd=cwd, env=environment(cwd), capture_output=True, text=True)


# --- names ------------------------------------------------------------------------------------------------------------


def test_importing_is_quick_until_something_is_used(tmp_path: Path) -> None:
    program = "import sys, hectogpt\nhectogpt.UserError\ndir(hectogpt)\nhectogpt.__version__\n"
    program += "print(sorted({'torch', 'numpy', 'tyro', 'rich', 'scipy'} & set(sys.modules)))"
    done = python(program, tmp_path)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_the_docstring_the_stub_and_all_list_the_same_names() -> None:
    assert package.__doc__ is not None
    table = re.findall(r"^(?:[a-z][a-z ]{10}| {11})(\S.*)$", package.__doc__, re.MULTILINE)
    listed = [name for line in table for name in line.split()]
    stub = ast.parse((PACKAGE / "__init__.pyi").read_text(encoding="utf-8"))
    imported = {alias.name for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    exported = next(ast.literal_eval(node.value) for node in stub.body if isinstance(node, ast.Assign))
    assert len(listed) == len(set(listed))
    assert sorted(listed) == package.__all__ == sorted(exported) == sorted(imported)
    for name in package.__all__:
        assert callable(getattr(package, name)), name
    assert set(package.__all__) <= set(dir(package))
    assert all(inspect.isfunction(function) for function in (package.train, package.generate)), "help() is theirs"
    with pytest.raises(AttributeError, match="trian"):
        package.trian  # noqa: B018


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_the_command_and_python_give_the_same_bits(tokens: Path, tmp_path: Path, result: RunResult) -> None:
    done = hectogpt("train", "adamw_128", *TINY, "--corpus", tokens, "--out", "theirs", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    theirs, mine = tmp_path / "theirs", result.folder
    assert mine is not None
    assert {path.name for path in mine.iterdir()} == {path.name for path in theirs.iterdir()}
    rows = [json.loads(line) for line in (theirs / "metrics.jsonl").read_text().splitlines()]
    assert result.losses == tuple(row["train/loss"] for row in rows[:-1])
    assert result.grad_norms == tuple(row["train/grad_norm"] for row in rows[:-1])
    summary = json.loads(done.stdout)
    assert result.dev_loss == summary["dev_loss"]
    assert (mine / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()
    assert json.loads((mine / "run.json").read_text()) == json.loads((theirs / "run.json").read_text())
    own = json.loads((mine / "summary.json").read_text())
    apart = {"folder", "seconds", "peak_mb"}
    assert {k: v for k, v in own.items() if k not in apart} == {k: v for k, v in summary.items() if k not in apart}
    assert own["modified"] is True


def test_without_a_folder_nothing_is_written(tokens: Path, here: Here, tmp_path: Path, result: RunResult) -> None:
    before = sorted(path for path in tmp_path.rglob("*") if "cache" not in path.parts)
    again = package.train(tiny_run(tokens))
    assert sorted(path for path in tmp_path.rglob("*") if "cache" not in path.parts) == before
    assert again.folder is None
    assert (again.losses, again.dev_loss) == (result.losses, result.dev_loss)
    told = here.capsys.readouterr()
    assert told.out == ""
    assert [line[:10] for line in told.err.splitlines() if line.startswith("step ")] == [
        f"step 0000{i}" for i in "1234"
    ]
    package.train(tiny_run(tokens, steps=1), quiet=True)
    assert here.capsys.readouterr().err == ""
    package.train(tiny_run(tokens, steps=40))
    assert here.capsys.readouterr().err.count("\nstep ") == 11  # ten lines and the first step's


# --- models -----------------------------------------------------------------------------------------------------------


def test_generate_continues_as_the_command_does(result: RunResult, here: Here) -> None:
    sources = [result, result.folder, str(result.folder), package.load(str(result.folder))]
    texts = {package.generate(source, "The state of", max_new_tokens=5) for source in sources}  # type: ignore[arg-type]
    command = ["generate", result.folder, "The state of", "--quiet", "--max-new-tokens", 5]
    assert texts == {here(*command).stdout.removesuffix("\n")}
    drawn = package.generate(result, "The state of", max_new_tokens=5, temperature=2.0, top_k=0, seed=3)
    assert drawn == here(*command, "--temperature", "2", "--top-k", 0, "--seed", "3").stdout.removesuffix("\n")
    assert drawn not in texts
    likeliest = package.generate(result, "The state of", max_new_tokens=5, greedy=True)
    assert likeliest == here(*command, "--greedy").stdout.removesuffix("\n")
    assert likeliest == package.generate(result, "The state of", max_new_tokens=5, temperature=0.0)
    assert package.generate(result, "Once", max_new_tokens=0) == "Once"


def test_attention_maps_of_a_result_and_of_its_folder(result: RunResult) -> None:
    maps = package.attention_maps(result, "Once upon a time, there was a house")
    layers, heads, t, s = maps.shape
    assert (layers, heads) == (result.model.config.n_layers, result.model.config.n_heads)
    assert t == s == 8 + 1
    np.testing.assert_allclose(maps.sum(-1), 1, atol=1e-5)
    assert (np.triu(maps, 1) == 0).all()
    assert result.model.training  # as training left it
    assert result.folder is not None
    np.testing.assert_array_equal(maps, package.attention_maps(result.folder, "Once upon a time, there was a house"))
    assert package.attention_maps(result, "word " * 200).shape[-1] == result.model.config.context_length
    with pytest.raises(UserError, match="empty"):
        package.attention_maps(result, "")


# --- what is shown ----------------------------------------------------------------------------------------------------


def test_a_run_is_shown_by_its_fields(tokens: Path) -> None:
    """What differs from its recipe, which only the lab knows, is what `hectogpt show` says."""
    run = replace(package.recipe("top"), steps=50, schedule=package.Cosine(warmup=5))
    lines = str(run).splitlines()
    assert lines[0] == f"Run {run.recipe}"
    assert [line for line in lines if line.split() == ["steps", "50"]]
    assert [line for line in lines if "Cosine(warmup=5" in line]
    html = replace(run, recipe="<b>mine", corpus="a&b")._repr_html_()
    assert "&lt;b&gt;mine" in html
    assert "a&amp;b" in html
    assert "<b>" not in html
