"""hectogpt.compare from Python: labels, runs that cannot be compared, and the results of a real one."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from command import Here
from experiments import SMALL, make_corpus, small_command, small_run

import hectogpt as package
from hectogpt import ComparisonResult, Cosine, Schedule, UserError
from hectogpt.data import Corpus
from hectogpt.lab.plan import arms_of, check_classes, plan


@dataclass(frozen=True)
class Mine(Schedule):
    """A schedule of a test's own, in a module that no trial can import."""

    def factor(self, step: int, steps: int) -> float:
        return 0.5


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("records") / "compare.jsonl"


@pytest.fixture(scope="module")
def compared(corpus: Corpus, out: Path) -> ComparisonResult:
    runs = [arm.run for arm in plan(["baseline"], sweep=[*SMALL, "optim.lr=1e-5,1e-2"])]
    return package.compare(runs, seeds=1, corpus=corpus, steps=3, threads=1, out=out, quiet=True)


def test_labels_say_how_a_run_differs_from_the_first_of_its_name() -> None:
    run = package.recipe("baseline")
    runs = [run, replace(run, steps=50), replace(run, seed=7, schedule=Cosine(warmup=3)), "muon"]
    arms = arms_of(runs)
    assert [arm.label for arm in arms] == [
        "baseline",
        "baseline steps=50",
        "baseline schedule=Cosine(warmup=3, final=0.0)",
        "muon",
    ]
    assert [sorted(arm.overrides) for arm in arms] == [[], ["steps"], ["schedule"], []]
    same_name = arms_of([replace(run, recipe="a", steps=n) for n in (1, 2, 3)])
    assert len({arm.label for arm in same_name}) == 3


def test_a_class_without_a_file_is_refused_before_anything_runs() -> None:
    run = package.recipe("baseline")
    with pytest.raises(UserError) as caught:
        package.compare([run, replace(run, schedule=Mine())], quiet=True)
    assert caught.value.what == f"Mine is defined in the module {__name__}"
    assert "FILE.py:FUNCTION" in caught.value.fix
    cell = type("Cell", (Schedule,), {"factor": lambda self, step, steps: 1.0, "__module__": "__main__"})
    with pytest.raises(UserError, match="Cell is defined in a notebook or script"):
        check_classes(replace(run, schedule=cell()))


def test_the_results_are_those_of_the_command(
    compared: ComparisonResult, corpus: Corpus, out: Path, here: Here
) -> None:
    """The command finds the trials that Python recorded, and says the same of them."""
    lines = out.read_text().splitlines()
    assert [json.loads(line)["arm"] for line in lines] == [result.arm.label for result in compared.results]
    done = here("compare", *small_command(corpus, out, "--json", "--steps", "3"))
    assert done.returncode == 0, done.stderr
    assert out.read_text().splitlines() == lines
    told = json.loads(done.stdout)
    for arm, result in zip(told["arms"], compared.results, strict=True):
        assert {k: v for k, v in arm.items() if k != "arm"} == {
            k: v for k, v in json.loads(json.dumps(result.as_json())).items() if k != "arm"
        }
    assert len(compared.verdicts) == len(told["verdicts"]) == 1
    assert compared.verdicts[0].gain == told["verdicts"][0]["gain"]


def test_trials_side_by_side_have_the_same_bits(compared: ComparisonResult, corpus: Corpus, tmp_path: Path) -> None:
    runs = [result.arm.run for result in compared.results]
    both = package.compare(runs, seeds=1, corpus=corpus, workers=2, out=tmp_path / "both.jsonl", quiet=True)
    assert [record.losses for record in both.records] == [record.losses for record in compared.records]
    assert [result.dev.mean for result in both.results] == [result.dev.mean for result in compared.results]
    assert all(record.machine["workers"] == 2 for record in both.records)
    with pytest.raises(UserError, match="999 trials at a time"):
        package.compare(runs, seeds=1, corpus=corpus, workers=999)


def test_a_trial_that_crashes_is_told(corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = replace(small_run(), device="mars")
    with pytest.raises(UserError, match="none of 1 trials gave a result") as caught:
        package.compare([run], seeds=1, corpus=corpus)
    assert "mars" in caught.value.why
    assert "1 of 1: baseline" in capsys.readouterr().err
