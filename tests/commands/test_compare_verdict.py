"""What `hectogpt compare` ends with: verdicts in print and JSON, a page, and seeds by budget or until decided."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from experiments import SMALL, make_corpus, small_command
from made_up import record_of

from hectogpt import cli, errors
from hectogpt.data import Corpus
from hectogpt.lab.plan import plan
from hectogpt.lab.record import append_record, read_records


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("tiny"))


def compare(arguments: Sequence[str]) -> str:
    """What `hectogpt compare` prints to stdout."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        cli.main(["compare", *arguments])
    return printed.getvalue()


def made_up(corpus: Corpus, out: Path, *losses: Sequence[float]) -> list[str]:
    """Arguments of a comparison of arms with these losses, which are recorded; without the number of seeds."""
    sweep = [*SMALL, f"optim.lr={','.join(str(place / 10) for place in range(1, len(losses) + 1))}"]
    for arm, values in zip(plan(["baseline"], sweep=sweep), losses, strict=True):
        for seed, loss in enumerate(values):
            append_record(out, replace(record_of(corpus, arm, seed, loss), modified=True))
    return ["baseline", "--corpus", corpus.name, "--out", str(out), "--sweep", *sweep]


def test_verdicts_are_printed_and_in_json(tiny: Corpus, tmp_path: Path) -> None:
    given = made_up(tiny, tmp_path / "r.jsonl", [5.0, 5.1, 5.2], [4.9, 5.01, 5.09], [5.0, 5.1, 5.2])
    printed = compare([*given, "--seeds", "3"]).replace("\n", " ")
    assert "optim.lr=0.2 is better than baseline" in printed
    assert "optim.lr=0.3 ties with baseline" in printed
    answer = json.loads(compare([*given, "--seeds", "3", "--json", "--quiet"]))
    better, tie = answer["verdicts"]
    assert (better["word"], tie["word"]) == ("better", "tie")
    assert better["gain"] == pytest.approx(0.1)
    assert better["gain"] == answer["arms"][1]["to_first"]["gain"]
    assert better["sequential"] is False
    assert answer["ended"] is None


def test_until_decided_looks_seed_by_seed(tiny: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The recorded seeds decide after three of five; interval and p are those of the sequential test."""
    first = [5.0, 5.1, 5.2, 5.3, 5.4]
    given = made_up(tiny, tmp_path / "r.jsonl", first, [value - 0.1 - 0.001 * value for value in first])
    answer = json.loads(compare([*given, "--until", "decided", "--json"]))
    assert answer["seeds"] == [0, 1, 2]
    assert answer["ended"] == "decided after 3 seeds"
    (verdict,) = answer["verdicts"]
    assert (verdict["word"], verdict["sequential"], verdict["seeds"]) == ("better", True, [0, 1, 2])
    fixed = json.loads(compare([*given, "--seeds", "3", "--json"]))["verdicts"][0]
    assert verdict["gain"] == pytest.approx(fixed["gain"])
    assert verdict["low"] < fixed["low"] < fixed["high"] < verdict["high"], "the price of looking"
    pair = answer["arms"][1]["to_first"]
    assert (pair["low"], pair["high"], pair["p"]) == (verdict["low"], verdict["high"], verdict["p"])
    assert "seed by seed, at most 1000 seeds, until decided" in capsys.readouterr().err
    printed = compare([*given, "--until", "decided"])
    assert "Intervals and p are valid at every look" in printed
    assert "Seeds: decided after 3 seeds." in printed
    undecided = json.loads(compare([*given, "--until", "decided", "--seeds", "2", "--json"]))
    assert undecided["verdicts"][0]["word"] == "unproven"
    assert undecided["ended"] == "all of 2 seeds are run, not decided"


@pytest.mark.thorough
def test_a_small_budget_runs_one_seed_and_tells(
    tiny: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With real trials: the first seed is run, the second would not fit."""
    given = small_command(tiny, tmp_path / "r.jsonl", "--budget", "1s", "--html", str(tmp_path / "new" / "v.html"))
    del given[given.index("--seeds") : given.index("--seeds") + 2]
    answer = json.loads(compare([*given, "--json"]))
    assert answer["seeds"] == [0]
    assert answer["ended"].startswith("budget of 1.0 s: 1 seed in ")
    assert [verdict["word"] for verdict in answer["verdicts"]] == ["unproven"]
    assert answer["verdicts"][0]["text"].endswith("One seed proves nothing: run at least 3.")
    assert len(read_records(tmp_path / "r.jsonl")) == 2
    told = capsys.readouterr().err
    assert "seed by seed, at most 1000 seeds, 1.0 s" in told
    assert "1: baseline" in told
    page = (tmp_path / "new" / "v.html").read_text(encoding="utf-8")
    assert "One seed proves nothing" in page
    assert page.count('"points"') >= 3
    assert f"page: {tmp_path / 'new' / 'v.html'}" in told


def test_a_dry_run_of_open_seeds_runs_nothing(tiny: Corpus, tmp_path: Path) -> None:
    given = small_command(tiny, tmp_path / "r.jsonl", "--dry-run", "--budget", "2h", "--html", str(tmp_path / "v.html"))
    printed = compare(given)
    assert "1 a seed" in printed
    assert "at most 1 seed, 2.0 h" in printed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("more", "code", "told"),
    [
        (["--budget", "60"], errors.USAGE, "fix: --budget 60m"),
        (["--budget", "1h", "--engine", "slurm"], errors.USAGE, "fix: --seeds 10"),
        (["--html", "."], errors.STORAGE, "Is a directory"),
        (["--seeds", "0"], errors.USAGE, "at least one seed"),
    ],
)
def test_usage(
    tiny: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], code: int, told: str
) -> None:
    given = made_up(tiny, tmp_path / "r.jsonl", [5.0], [5.1])
    with pytest.raises(SystemExit) as caught:
        compare([*given, *more])
    assert caught.value.code == code
    printed = capsys.readouterr()
    assert told in printed.err + printed.out
