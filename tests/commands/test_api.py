"""hectogpt from Python: the names, training with the command's bits, models asked and looked into, comparisons."""

from __future__ import annotations

import ast
import inspect
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import Here
from experiments import SMALL, record_of, small_command
from helpers import shrunk

import hectogpt as package
from hectogpt import Cosine, RunResult, Schedule, UserError
from hectogpt.data import Corpus
from hectogpt.lab import recipes
from hectogpt.lab.plan import arms_of, check_classes, plan
from hectogpt.lab.record import append_record
from hectogpt.training.run import Run

PACKAGE = Path(package.__file__).parent


def tiny_run(tokens: Path, **changes: Any) -> Run:
    """Four steps of the plainest recipe."""
    return replace(shrunk(recipes.recipe("adamw_128"), 4, layers=1), corpus=str(tokens), **changes)


@pytest.fixture(scope="module")
def result(tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """A trained run with its folder."""
    return package.train(tiny_run(tokens), out=tmp_path_factory.mktemp("runs") / "mine", quiet=True)


# --- names ------------------------------------------------------------------------------------------------------------


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
        package.trian  # type: ignore[attr-defined]  # noqa: B018


# --- training ---------------------------------------------------------------------------------------------------------


def test_without_a_folder_nothing_is_written(tokens: Path, here: Here, tmp_path: Path, result: RunResult) -> None:
    before = sorted(path for path in tmp_path.rglob("*") if "cache" not in path.parts)
    again = package.train(tiny_run(tokens))
    assert sorted(path for path in tmp_path.rglob("*") if "cache" not in path.parts) == before
    assert again.folder is None
    assert (again.losses, again.dev_loss) == (result.losses, result.dev_loss)
    said = here.capsys.readouterr()
    assert said.out == ""
    shown = [line[:10] for line in said.err.splitlines() if line.startswith("step ")]
    assert shown == [f"step 0000{i}" for i in "1234"]
    package.train(tiny_run(tokens, steps=1), quiet=True)
    package.train(tiny_run(tokens, steps=20))
    assert here.capsys.readouterr().err.count("\nstep ") == 11  # ten lines and the first step's


# --- models -----------------------------------------------------------------------------------------------------------


def test_generate_continues_as_the_command_does(result: RunResult, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    assert result.folder is not None
    monkeypatch.setenv("HOME", str(result.folder.parent))
    sources = [result, result.folder, "~/mine", package.load(str(result.folder))]
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
    assert maps.shape == (result.model.config.n_layers, result.model.config.n_heads, 8 + 1, 8 + 1)
    np.testing.assert_allclose(maps.sum(-1), 1, atol=1e-5)
    assert (np.triu(maps, 1) == 0).all()
    assert result.model.training  # as training left it
    assert result.folder is not None
    np.testing.assert_array_equal(maps, package.attention_maps(result.folder, "Once upon a time, there was a house"))
    assert package.attention_maps(result, "word " * 200).shape[-1] == result.model.config.context_length
    with pytest.raises(UserError, match="empty"):
        package.attention_maps(result, "")


def test_a_run_is_shown_by_its_fields() -> None:
    """What differs from its recipe, which only the lab knows, is what `hectogpt show` says."""
    run = replace(package.recipe("top"), steps=50, schedule=package.Cosine(warmup=5))
    lines = str(run).splitlines()
    assert lines[0] == f"Run {run.recipe}"
    assert [line for line in lines if line.split() == ["steps", "50"] or "Cosine(warmup=5" in line][1:]


# --- comparisons ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mine(Schedule):
    """A schedule of a test's own, in a module that no trial can import."""

    def factor(self, step: int, steps: int) -> float:
        return 0.5


def test_labels_say_how_a_run_differs_from_the_first_of_its_name() -> None:
    run = package.recipe("baseline")
    arms = arms_of([run, replace(run, steps=50), replace(run, seed=7, schedule=Cosine(warmup=3)), "muon"])
    labels = ["baseline", "baseline steps=50", "baseline schedule=Cosine(warmup=3, final=0.0)", "muon"]
    assert [arm.label for arm in arms] == labels
    assert [sorted(arm.overrides) for arm in arms] == [[], ["steps"], ["schedule"], []]
    same_name = arms_of([replace(run, recipe="a", steps=n) for n in (1, 2, 3)])
    assert len({arm.label for arm in same_name}) == 3


def test_a_class_without_a_file_is_refused_before_anything_runs() -> None:
    run = package.recipe("baseline")
    with pytest.raises(UserError, match=rf"Mine is defined in the module {__name__}(.|\n)*FILE\.py:FUNCTION"):
        package.compare([run, replace(run, schedule=Mine())], quiet=True)
    cell = type("Cell", (Schedule,), {"factor": lambda self, step, steps: 1.0, "__module__": "__main__"})
    with pytest.raises(UserError, match="Cell is defined in a notebook or script"):
        check_classes(replace(run, schedule=cell()))


def test_the_results_are_those_of_the_command(corpus: Corpus, tmp_path: Path, here: Here) -> None:
    """Both find the trials that are recorded, and say the same of them."""
    out, arms = tmp_path / "r.jsonl", plan(["baseline"], sweep=[*SMALL, "steps=3", "threads=1", "optim.lr=1e-5,1e-2"])
    for arm, loss in zip(arms, (5.0, 4.9), strict=True):
        append_record(out, replace(record_of(corpus, arm, 0, loss), modified=True))
    runs, before = [arm.run for arm in arms], out.read_bytes()
    compared = package.compare(runs, seeds=1, corpus=corpus, threads=1, out=out, quiet=True)
    answer = json.loads(here.ok("compare", *small_command(corpus, out, "--json", "--steps", "3")).stdout)
    assert out.read_bytes() == before
    ours = [json.loads(json.dumps(result.as_json())) for result in compared.results]
    assert [arm | {"arm": ""} for arm in answer["arms"]] == [arm | {"arm": ""} for arm in ours]
    assert [verdict["gain"] for verdict in answer["verdicts"]] == [verdict.gain for verdict in compared.verdicts]
