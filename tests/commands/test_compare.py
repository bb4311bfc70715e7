"""Comparisons: each trial once, crashes again, kill -9 costs one trial; the command's table, notes and exit codes."""

from __future__ import annotations

import contextlib
import io
import json
import math
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from experiments import SMALL, make_corpus, perform, small_arms, small_command, small_comparison

from hectogpt import cli, errors
from hectogpt.data import Corpus, tokens_read
from hectogpt.errors import UserError
from hectogpt.files import lock
from hectogpt.lab.compare import Comparison, best_of
from hectogpt.lab.ngram import NgramModels
from hectogpt.lab.plan import plan
from hectogpt.lab.record import Record, append_record, read_records
from hectogpt.lab.tracks import TRACKS
from hectogpt.serialization import dump, load
from hectogpt.training.run import Run


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def performed(tiny: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """A sound arm and one that diverges, on one seed of two."""
    this = small_comparison(tiny, tmp_path_factory.mktemp("records") / "r.jsonl", 1e-2, 1e38)
    for trial in this.missing()[:2]:
        perform(this, trial)
    return this


# --- trials and records -----------------------------------------------------------------------------------------------

FIELDS = {
    *("corpus", "track", "recipe", "seed", "steps", "train_tokens", "params", "train_loss_last", "train_loss_last10"),
    *("dev_loss", "test_loss", "test_bpb", "ngram_unigram", "ngram_kn2", "ngram_kn3", "seconds", "peak_mb", "run"),
    *("commit", "dirty", "machine", "wall_seconds", "losses", "grad_norms"),
}


def test_records_say_everything(performed: Comparison, tiny: Corpus) -> None:
    for line in performed.out.read_text().splitlines():
        assert json.loads(line).keys() >= FIELDS
    records = read_records(performed.out)
    assert [(r.arm, r.seed) for r in records] == [(t.arm.label, t.seed) for t in performed.trials()[:2]]
    for record in records:
        run = load(Run, record.run)
        assert run == replace(run, seed=record.seed, steps=record.steps or 0, recipe=record.recipe)
        assert record.corpus == run.corpus == tiny.folder.name
        assert record.corpus_sha256 == tiny.sha256
        assert record.modified is True
        assert record.train_tokens == 3 * 2 * 16
        assert record.rules_broken == ["3 steps, not 100"]
        assert record.params
        assert record.machine
        assert record.machine["threads"] == 1
    counted = NgramModels(tokens_read(tiny.train, 16, 2, 0, 3), tiny.n_vocab).losses(tiny.dev)
    assert (records[0].ngram_split, records[0].ngram_kn3) == ("dev", counted.kn3)


def test_diverged_seeds_stay(performed: Comparison) -> None:
    record = performed.records["lr 1e+38", 0]
    assert record.status == "diverged"
    assert record.dev_loss == pytest.approx(math.log(50_257))
    assert record.dev_bpb
    sound, diverged = performed.results()
    assert (sound.dev.n, diverged.dev.n) == (1, 1)
    assert diverged.to_first is not None
    assert diverged.to_first.gain == pytest.approx(sound.dev.mean - math.log(50_257))
    assert best_of([sound, diverged])[0] is sound


def test_nothing_is_run_twice(performed: Comparison, tiny: Corpus) -> None:
    assert small_comparison(tiny, performed.out, 1e-2, 1e38, seeds=1).missing() == []
    more = small_comparison(tiny, performed.out, 1e-2, 2e-2).missing()
    assert [(t.arm.label, t.seed) for t in more] == [("lr 0.02", 0), ("lr 0.01", 1), ("lr 0.02", 1)]
    untested = small_comparison(tiny, performed.out, 1e-2, seeds=1, test=True)
    assert len(untested.missing()) == 1, "no test score is recorded"
    other = replace(tiny, sha256=tiny.sha256 | {"dev": "0"})
    assert len(small_comparison(other, performed.out, 1e-2, seeds=1).missing()) == 1, "another text is another trial"
    faster = [replace(arm, run=replace(arm.run, threads=2)) for arm in small_arms(1e-2)]
    assert len(Comparison(faster, range(1), tiny, TRACKS["closed"], performed.out).missing()) == 1, "threads"
    open_cpu = Comparison(small_arms(1e-2), range(1), tiny, TRACKS["open-cpu"], performed.out)
    assert len(open_cpu.missing()) == 1


def test_what_is_left_of_a_recorded_trial_is_removed(performed: Comparison) -> None:
    """A process may be killed after the record and before its checkpoints are gone."""
    scratch = performed.scratch(performed.trials()[0])
    (scratch / "step-3").mkdir(parents=True)
    with lock(scratch / ".lock", "running this trial", remove=True):
        performed.missing()
        assert scratch.exists()
    performed.missing()
    assert not scratch.parent.exists()


# --- the command ------------------------------------------------------------------------------------------------------


def compare(*arguments: str) -> str:
    """What `hectogpt compare` prints to stdout."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        cli.main(["compare", *arguments])
    return printed.getvalue()


@pytest.mark.thorough
def test_kill_minus_nine_and_again(tiny: Corpus, tmp_path: Path) -> None:
    """Killed in the second trial, the command started again does the second only and ends as if nothing happened."""
    out = tmp_path / "r.jsonl"
    given = small_command(tiny, out, "--steps", "20")
    first = subprocess.Popen(
        [sys.executable, "-m", "hectogpt", "compare", *given], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    until = time.monotonic() + 60
    while not (out.exists() and out.read_bytes().endswith(b"\n")) and time.monotonic() < until:
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    before = out.read_bytes()
    assert before.count(b"\n") == 1
    with open(out, "ab") as file:
        file.write(before[:99])  # what an append cut short would leave
    answer = json.loads(compare(*given, "--json"))
    assert out.read_bytes().startswith(before)
    assert [record.run["optim"]["lr"] for record in read_records(out)] == [1e-5, 1e-2]
    assert [arm["dev"]["n"] for arm in answer["arms"]] == [1, 1]
    assert answer["arms"][1]["to_first"]["gain"] > 0
    assert answer["best"]["of"] == 2
    printed = compare(*given)
    assert "Kneser-Ney trigram" in printed
    assert "20 steps, not 100 (seed 0)" in printed


@pytest.mark.thorough
def test_a_crash_ends_with_code_1_and_the_whole_message(
    tiny: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["compare", *small_command(tiny, tmp_path / "r.jsonl")]
    with monkeypatch.context() as broken:
        broken.setenv("PYTHONHASHSEED", "not a number")
        with pytest.raises(SystemExit) as caught:
            cli.main([*given, "--quiet"])
    assert caught.value.code == 1
    told = capsys.readouterr().err
    assert "2 of 2 trials crashed" in told
    assert "PYTHONHASHSEED must be" in told
    assert "the same command runs them again" in told
    cli.main([*given, "--quiet"])
    assert capsys.readouterr().err == ""
    assert [record.status for record in read_records(tmp_path / "r.jsonl")] == ["failed", "failed", "ok", "ok"]


def recorded(corpus: Corpus, out: Path, losses: dict[float, list[float]], **more: Any) -> list[str]:
    """Arguments of a comparison whose trials are recorded: learning rate -> dev loss of each seed."""
    sweep = [*SMALL, f"optim.lr={','.join(map(str, losses))}"]
    arms = plan(["baseline"], sweep=sweep)
    for arm, (lr, values) in zip(arms, losses.items(), strict=True):
        assert arm.overrides["optim.lr"] == lr
        for seed, loss in enumerate(values):
            run = dump(replace(arm.run, seed=seed, threads=1))
            numbers = {"dev_loss": loss, "seconds": 12.3, "peak_mb": 456.7, "ngram_kn3": 5.0} | more
            record = Record("tiny", "closed", "baseline", seed, run, corpus.sha256, arm.label, **numbers)
            append_record(out, record)
    seeds = len(next(iter(losses.values())))
    return [
        "baseline",
        "--corpus",
        corpus.name,
        "--out",
        str(out),
        "--seeds",
        str(seeds),
        "--threads",
        "1",
        "--sweep",
        *sweep,
    ]


def test_only_divergence_is_an_error(tiny: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = recorded(tiny, tmp_path / "r.jsonl", {0.1: [10.8], 0.2: [10.8]}, status="diverged", error="loss nan")
    with pytest.raises(SystemExit) as caught:
        compare(*given)
    assert caught.value.code == errors.DIVERGED
    assert "why: loss nan" in capsys.readouterr().err


@pytest.fixture(scope="module")
def three_arms(tiny: Corpus, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments of a comparison of three arms at two seeds, recorded."""
    losses = {1e-05: [10.821, 10.825], 0.001: [10.123, 10.3], 0.01: [9.1, 9.25]}
    return recorded(tiny, tmp_path_factory.mktemp("three") / "r.jsonl", losses)


def test_the_table_fits_80_columns(three_arms: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    narrow = compare(*three_arms)
    assert max(map(len, narrow.splitlines())) <= 80
    for text in ("9.1750 ± 0.1061", "+1.6480 ["):
        assert text in narrow
    monkeypatch.delenv("COLUMNS")
    wide = compare(*three_arms)
    assert 80 < max(map(len, wide.splitlines())) <= 160
    headers = narrow.splitlines()[0], wide.splitlines()[0]
    for column in ("arm", "n", "dev mean ± SD", "gain over the first [95 %]", "p", "verdict"):
        assert all(f" {column} " in f" {header} " for header in headers)
    for column in ("min - max", "noise", "s", "MiB"):
        assert [f" {column} " in f" {header} " for header in headers] == [False, True]
    monkeypatch.setenv("COLUMNS", "200")
    assert "MiB" in compare(*three_arms)


def test_json_does_not_silence_progress(three_arms: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["compare", *three_arms, "--json"])
    printed = capsys.readouterr()
    answer = json.loads(printed.out)
    assert "6 trials, 6 recorded" in printed.err
    assert any("700 tokens" in note for note in answer["notes"])
    assert answer["ngrams"] == {"kn3": 5.0}
    cli.main(["compare", *three_arms, "--json", "--quiet"])
    assert capsys.readouterr().err == ""


def test_dry_run_runs_nothing(tiny: Corpus, tmp_path: Path) -> None:
    printed = compare(*small_command(tiny, tmp_path / "r.jsonl", "--dry-run"))
    assert not (tmp_path / "r.jsonl").exists()
    assert "2 trials, 0 recorded" in printed
    assert "100" in printed


def test_errors_name_options(tiny: Corpus, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, fix in ((["muon", "--sweep", "lr"], "--sweep optim.lr=0.001,0.003"), ([], "hectogpt compare")):
        with pytest.raises(SystemExit) as caught:
            cli.main(["compare", *arguments])
        assert caught.value.code == errors.USAGE
        assert fix in capsys.readouterr().err
    with pytest.raises(UserError, match="at least one seed"):
        Comparison(small_arms(1e-2), [], tiny, TRACKS["closed"], Path("r.jsonl"))
