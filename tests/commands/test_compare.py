"""Comparisons: each trial once, crashes again, kill -9 costs one trial; the command's table, verdicts, exit codes."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from command import Here, assert_good_error
from experiments import SMALL, record_of, small_command, small_comparison

from hectogpt import errors
from hectogpt.data import Corpus
from hectogpt.lab.compare import Comparison
from hectogpt.lab.ngram import NgramModels
from hectogpt.lab.plan import plan
from hectogpt.lab.record import append_record, read_records
from hectogpt.lab.trial import train_and_score
from hectogpt.serialization import load
from hectogpt.training.run import Run
from hectogpt.training.setup import training_tokens


@pytest.fixture(scope="module")
def performed(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """A sound arm and one that diverges, on one seed of two; in this process, which loads torch once."""
    this = small_comparison(corpus, tmp_path_factory.mktemp("records") / "r.jsonl", 1e-2, 1e38)
    origin = {"version": "0", "commit": None, "dirty": False}
    for one in this.missing()[:2]:
        this.add(one, origin | list(train_and_score(this.request(one)))[-1])
    return this


# --- trials and records -----------------------------------------------------------------------------------------------


def test_records_say_everything(performed: Comparison, corpus: Corpus) -> None:
    known = {"steps", "params", "train_loss_last10", "test_bpb", "ngram_kn2", "seconds", "peak_mb", "commit", "dirty"}
    for line in performed.out.read_text().splitlines():
        assert json.loads(line).keys() >= known | {"wall_seconds", "losses", "grad_norms"}
    records = read_records(performed.out)
    assert [(r.arm, r.seed) for r in records] == [(t.arm.label, t.seed) for t in performed.trials()[:2]]
    for record in records:
        run = load(Run, record.run)
        assert run == replace(run, seed=record.seed, steps=record.steps or 0, recipe=record.recipe)
        assert record.corpus == run.corpus == corpus.folder.name
        assert record.corpus_sha256 == corpus.sha256
        assert record.modified is True
        assert record.train_tokens == 3 * 2 * 16
        assert record.rules_broken == ["3 steps, not 100"]
        assert (record.machine or {})["threads"] == 1
    read = training_tokens(load(Run, records[0].run), corpus)
    counted = NgramModels(read, corpus.n_vocab).losses(corpus.dev)
    assert (records[0].ngram_split, records[0].ngram_kn3) == ("dev", counted["kn3"])


def test_diverged_seeds_stay_as_a_uniform_guess(performed: Comparison, corpus: Corpus) -> None:
    record = performed.records["lr 1e+38", 0]
    assert (record.status, "finite" in (record.error or "")) == ("diverged", True)
    assert record.dev_loss == record.train_loss_last == record.train_loss_last10 == pytest.approx(math.log(50_257))
    n_bytes = corpus.tokenizer.token_bytes[corpus.dev[1:]].sum()
    assert record.dev_bpb == pytest.approx(math.log2(50_257) * (len(corpus.dev) - 1) / n_bytes)
    assert 0 < len(record.losses) < 3, "the curve up to there is kept"
    sound, diverged = performed.results()
    assert (sound.dev.n, diverged.dev.n) == (1, 1)
    assert diverged.to_first is not None
    assert diverged.to_first.gain == pytest.approx(sound.dev.mean - math.log(50_257))


def test_nothing_is_run_twice(performed: Comparison, corpus: Corpus) -> None:
    assert small_comparison(corpus, performed.out, 1e-2, 1e38, seeds=1).missing() == []
    more = small_comparison(corpus, performed.out, 1e-2, 2e-2).missing()
    assert [(t.arm.label, t.seed) for t in more] == [("lr 0.02", 0), ("lr 0.01", 1), ("lr 0.02", 1)]
    untested = small_comparison(corpus, performed.out, 1e-2, seeds=1, test=True)
    assert len(untested.missing()) == 1, "no test score is recorded"


# --- the command ------------------------------------------------------------------------------------------------------


def made_up(corpus: Corpus, out: Path, *losses: Sequence[float], **more: object) -> list[str]:
    """The command of a comparison of arms with these losses, which are recorded; without the number of seeds."""
    sweep = [*SMALL, f"optim.lr={','.join(str(place / 10) for place in range(1, len(losses) + 1))}"]
    for arm, values in zip(plan(["baseline"], sweep=sweep), losses, strict=True):
        for seed, loss in enumerate(values):
            append_record(out, replace(record_of(corpus, arm, seed, loss, **more), modified=True))
    return ["compare", "baseline", "--corpus", corpus.name, "--out", str(out), "--sweep", *sweep]


def test_crashes_end_with_code_1_and_will_be_run_again_and_divergence_is_an_error(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: Here
) -> None:
    given = ["compare", *small_command(corpus, tmp_path / "r.jsonl")]
    with monkeypatch.context() as broken:
        broken.setenv("PYTHONHASHSEED", "not a number")
        done = here(*given, "--quiet")
    assert_good_error(done, 1, "2 of 2 trials crashed", "PYTHONHASHSEED must be", "the same command")
    assert [record.status for record in read_records(tmp_path / "r.jsonl")] == ["failed", "failed"]
    assert "2 to run" in here(*given, "--dry-run").stdout
    diverged = made_up(corpus, tmp_path / "d.jsonl", [10.8], [10.8], status="diverged", error="loss nan")
    done = here(*diverged, "--seeds", "1")
    assert (done.returncode, "why: loss nan" in done.stderr) == (errors.DIVERGED, True)


def test_table_verdicts_and_json(corpus: Corpus, tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    given = made_up(corpus, tmp_path / "r.jsonl", [5.0, 5.1, 5.2], [4.9, 5.01, 5.09], [5.0, 5.1, 5.2])
    given += ["--seeds", "3"]
    monkeypatch.setenv("COLUMNS", "80")
    lines = here(*given).stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split("  ")[1:2] == ["arm"]
    printed = " ".join(lines)
    for part in ("5.0000 ± 0.0954", "+0.1000 [", "optim.lr=0.2 is better than baseline", "ties with baseline"):
        assert part in printed
    done = here(*given, "--json")
    assert "9 trials, 9 recorded" in done.stderr, "--quiet alone hides progress"
    answer = json.loads(done.stdout)
    better, tie = answer["verdicts"]
    assert (better["word"], tie["word"], better["sequential"], answer["ended"]) == ("better", "tie", False, None)
    assert better["gain"] == pytest.approx(0.1)
    assert better["gain"] == answer["arms"][1]["to_first"]["gain"]
    assert any("700 tokens" in note for note in answer["notes"])
    assert answer["ngrams"] == pytest.approx({"unigram": 6.4, "kn3": 4.9})


def test_until_decided_looks_seed_by_seed(corpus: Corpus, tmp_path: Path, here: Here) -> None:
    """The recorded seeds decide after three of five. What looking costs: laws/test_statistics.py."""
    first = [5.0, 5.1, 5.2, 5.3, 5.4]
    given = made_up(corpus, tmp_path / "r.jsonl", first, [value - 0.1 - 0.001 * value for value in first])
    answer = json.loads(here(*given, "--until", "decided", "--json").stdout)
    assert answer["seeds"] == [0, 1, 2]
    assert answer["ended"] == "decided after 3 seeds"
    (verdict,) = answer["verdicts"]
    assert (verdict["word"], verdict["sequential"], verdict["seeds"]) == ("better", True, [0, 1, 2])
    undecided = json.loads(here(*given, "--until", "decided", "--seeds", "2", "--json").stdout)
    assert undecided["verdicts"][0]["word"] == "unproven"
    assert "not decided" in undecided["ended"]
