"""Comparisons: the statistics against scipy and by hand, records that survive kill -9, trials through the real loop."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hectogpt import errors
from hectogpt.cli.lab import compare
from hectogpt.data import Corpus, open_corpus, tokens_read
from hectogpt.errors import UserError
from hectogpt.lab import recipes
from hectogpt.lab.anchors import anchors
from hectogpt.lab.compare import Arm, Comparison, best_of, broken_rules, override, plan, short_name
from hectogpt.lab.statistics import LEAST_DIFFERENCE, paired, selection_bias, summarize
from hectogpt.lab.trials import append_row, perform, read_rows
from hectogpt.train.optim import AdamW
from hectogpt.train.run import Run
from hectogpt.values import dump, load

# --- statistics -------------------------------------------------------------------------------------------------------

losses = st.floats(0, 12, allow_nan=False)


@given(st.lists(st.tuples(losses, losses), min_size=2, max_size=9))
@settings(deadline=None)
def test_paired_is_scipys_paired_test(pairs: list[tuple[float, float]]) -> None:
    new, old = ([pair[i] for pair in pairs] for i in (0, 1))
    differences = np.subtract(new, old)
    ours = paired(dict(enumerate(new)), dict(enumerate(old)))
    assert ours is not None
    assert ours.difference == pytest.approx(differences.mean(), abs=1e-12)
    if differences.std() < 1e-6:
        return
    assert ours.p == pytest.approx(stats.ttest_1samp(differences, 0, alternative="less").pvalue)
    assert ours.low is not None
    assert ours.high is not None
    assert (ours.low + ours.high) / 2 == pytest.approx(ours.difference, abs=1e-9)
    if ours.verdict == "better":
        assert ours.difference <= -LEAST_DIFFERENCE
        assert ours.p is not None
        assert ours.p < 0.01


def test_paired_by_hand() -> None:
    ours = paired({0: 3.0, 1: 3.1, 2: 3.2, 7: 9.9}, {0: 3.2, 1: 3.4, 2: 3.3, 8: 0.0})
    assert ours is not None
    # Differences -.2, -.3, -.1: mean -.2, SD .1, SE .1/sqrt(3); t(2) at 97.5 % is 4.3027.
    assert (ours.n, ours.difference, ours.sd) == (3, pytest.approx(-0.2), pytest.approx(0.1))
    assert ours.noise_floor == pytest.approx(0.2 / math.sqrt(3))
    assert ours.low == pytest.approx(-0.2 - 4.30265 * 0.1 / math.sqrt(3), abs=1e-5)
    assert ours.high == pytest.approx(-0.2 + 4.30265 * 0.1 / math.sqrt(3), abs=1e-5)
    # Student's t with 2 degrees of freedom: p = 1/2 - t / (2 sqrt(2 + t^2)), t = 2 sqrt(3).
    assert ours.p == pytest.approx(0.5 - 2 * math.sqrt(3) / (2 * math.sqrt(14)))
    assert ours.verdict == "unproven"


@pytest.mark.parametrize(
    ("new", "verdict"),
    [
        ([2.9, 2.91, 2.89, 2.9, 2.9], "better"),
        ([3.1, 3.11, 3.09, 3.1, 3.1], "worse"),
        ([2.99, 2.99, 2.99, 2.991, 2.989], "tie"),  # certain, and too small to matter
        ([2.5, 3.4, 2.6, 3.3, 2.9], "tie"),  # large, and within the noise
        ([2.9, 2.9, 2.9, 2.9, 2.9], "better"),
        ([3.0, 3.0, 3.0, 3.0, 3.0], "tie"),
        ([2.5], "unproven"),
        ([3.5], "worse"),
        ([2.99], "tie"),
    ],
)
def test_verdicts(new: list[float], verdict: str) -> None:
    result = paired(dict(enumerate(new)), dict.fromkeys(range(5), 3.0))
    assert result is not None
    assert result.verdict == verdict


def test_small_samples() -> None:
    assert paired({0: 1.0}, {1: 1.0}) is None
    assert summarize([2.0]).sd is None
    summary = summarize([1.0, 2.0, 3.0])
    assert (summary.mean, summary.sd, summary.least, summary.most) == (2.0, 1.0, 1.0, 3.0)
    assert selection_bias(0.01, 300) == pytest.approx(0.034, abs=5e-4)
    assert selection_bias(0.01, 1) == 0


# --- plans ------------------------------------------------------------------------------------------------------------


def test_a_sweep_is_a_grid_of_overrides() -> None:
    arms = plan(["baseline"], sweep=["optim.lr=.001,3e-3", "model.d_model=6,9"], steps=7)
    assert [(a.run.optim.lr, a.run.model.d_model) for a in arms if isinstance(a.run.optim, AdamW)] == [
        (1e-3, 6),
        (1e-3, 9),
        (3e-3, 6),
        (3e-3, 9),
    ]
    assert all(arm.run.steps == 7 and arm.overrides["steps"] == 7 for arm in arms)
    assert len({arm.label for arm in arms}) == 4
    assert plan(["baseline"], steps=100)[0].overrides == {}, "the recipe's own number of steps is no change"


@pytest.mark.parametrize("sweep", ["optim.learning=1", "optimum.lr=1", "optim.lr", "optim.lr=fast", "steps.n=2"])
def test_a_sweep_of_nothing_is_refused(sweep: str) -> None:
    with pytest.raises(UserError):
        plan(["baseline"], sweep=[sweep])


def test_override_keeps_the_rest() -> None:
    run = recipes.baseline()
    assert override(run, {}) == run
    assert override(run, {"gradient_clipping": None}) == replace(run, gradient_clipping=None)


def test_rules(tiny: Corpus) -> None:
    run = replace(small(), steps=100)
    row = {"params": 61_000_000, "seconds": 601.0, "machine": {"kind": "cpu", "threads": 3}}
    assert broken_rules("closed", run, tiny, {}) == []
    assert len(broken_rules("closed", run, tiny, row)) == 3
    assert len(broken_rules("open-cpu", run, tiny, row)) == 2
    assert broken_rules("open-gpu", run, tiny, row) == []
    assert broken_rules("closed", replace(run, steps=99), tiny, {}) == ["99 steps, not 100"]
    big = replace(run, data=replace(run.data, batch_size=1025))
    assert len(broken_rules("closed", big, tiny, {})) == 2, "too many tokens, and windows shown twice"


def test_corpus_names_carry_no_path() -> None:
    names = ["sotu", "hf:a/b", "../shared/data/tinystories", "/data/tinystories/train.bin", "a/b.txt"]
    assert [short_name(name) for name in names] == ["sotu", "hf:a/b", "tinystories", "tinystories", "b.txt"]


# --- trials -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Token files in which the next id mostly follows from the last."""
    folder = tmp_path_factory.mktemp("tiny")
    draw = np.random.default_rng(0)
    for split, n in (("train", 20_000), ("dev", 700), ("test", 700)):
        ids = [0]
        for noise in draw.random(n - 1):
            ids.append((7 * ids[-1] + 3) % 50 if noise < 0.8 else int(noise * 1e6) % 50)
        np.array(ids, dtype="<u2").tofile(folder / f"{split}.bin")
    return open_corpus(str(folder))


def small(lr: float = 1e-2) -> Run:
    """The smallest transformer over GPT-2's ids."""
    base = recipes.baseline()
    return replace(
        base,
        model=replace(base.model, d_model=4, n_heads=1, n_layers=1, context_length=16),
        data=replace(base.data, batch_size=2, window=16),
        optim=AdamW(lr=lr),
        head_dtype="float32",
        steps=3,
        device="cpu",
    )


def arms(*rates: float) -> list[Arm]:
    return [Arm(f"lr {lr}", small(lr), {"optim.lr": lr}) for lr in rates]


def comparison(corpus: Corpus, out: Path, *rates: float, seeds: int = 2, test: bool = False) -> Comparison:
    return Comparison(arms(*rates), range(seeds), corpus, "closed", test, 1, out)


FIELDS = {
    *("corpus", "track", "recipe", "seed", "steps", "train_tokens", "params", "train_loss_last", "train_loss_last10"),
    *("dev_loss", "test_loss", "test_bpb", "anchor_unigram", "anchor_kn2", "anchor_kn3", "seconds", "peak_mb", "run"),
    *("commit", "dirty", "machine"),
}


@pytest.fixture(scope="module")
def performed(tiny: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """A sound arm and one that diverges, on one seed of two."""
    this = comparison(tiny, tmp_path_factory.mktemp("records") / "r.jsonl", 1e-2, 1e38)
    for trial in this.missing()[:2]:
        this.perform(trial)
    return this


def test_records_say_everything(performed: Comparison, tiny: Corpus) -> None:
    rows = read_rows(performed.out)
    assert [(row["arm"], row["seed"]) for row in rows] == [(t.arm.label, t.seed) for t in performed.trials()[:2]]
    for row in rows:
        assert row.keys() >= FIELDS
        run = load(Run, row["run"])
        assert run == replace(run, seed=row["seed"], steps=row["steps"], recipe=row["recipe"])
        assert row["corpus"] == tiny.folder.name
        assert row["modified"] is True
        assert row["train_tokens"] == 3 * 2 * 16
        assert row["rules_broken"] == ["3 steps, not 100"]
    counted = anchors(tokens_read(tiny.train, 16, 2, 0, 3), tiny.dev, tiny.n_vocab)
    assert (rows[0]["anchor_split"], rows[0]["anchor_kn3"]) == ("dev", counted.kn3)


def test_a_trial_is_the_loop_itself(performed: Comparison, tiny: Corpus) -> None:
    """The numbers from the child process are those of the same run in this one, seed by seed."""
    torch.set_num_threads(1)
    row = read_rows(performed.out)[0]
    *steps, result = perform(load(Run, row["run"]), tiny, test=False)
    assert [s["step"] for s in steps] == [1, 2, 3]
    for name in ("dev_loss", "dev_bpb", "train_loss_last", "train_loss_last10", "losses", "grad_norms", "params"):
        assert result[name] == row[name], name
    assert row["train_loss_last"] == steps[-1]["loss"]


def test_diverged_seeds_stay(performed: Comparison) -> None:
    row = performed.rows["lr 1e+38", 0]
    assert row["status"] == "diverged"
    assert row["dev_loss"] == pytest.approx(math.log(50_257))
    assert row["dev_bpb"] > 0
    sound, diverged = performed.results()
    assert (sound.dev.n, diverged.dev.n) == (1, 1)
    assert diverged.to_first is not None
    assert diverged.to_first.difference == pytest.approx(math.log(50_257) - sound.rows[0]["dev_loss"])
    assert best_of([sound, diverged])[0] is sound


def test_nothing_is_run_twice(performed: Comparison, tiny: Corpus) -> None:
    assert comparison(tiny, performed.out, 1e-2, 1e38, seeds=1).missing() == []
    more = comparison(tiny, performed.out, 1e-2, 2e-2).missing()
    assert [(t.arm.label, t.seed) for t in more] == [("lr 0.02", 0), ("lr 0.01", 1), ("lr 0.02", 1)]
    untested = comparison(tiny, performed.out, 1e-2, seeds=1, test=True)
    assert len(untested.missing()) == 1, "no test score is recorded"
    other = replace(tiny, sha256=tiny.sha256 | {"dev": "0"})
    assert len(comparison(other, performed.out, 1e-2, seeds=1).missing()) == 1, "another text is another trial"
    assert Comparison(arms(1e-2), range(1), tiny, "closed", False, 2, performed.out).missing() == [], "threads"
    assert len(Comparison(arms(1e-2), range(1), tiny, "open-cpu", False, 1, performed.out).missing()) == 1


def test_a_field_newer_than_the_record_has_its_default(performed: Comparison, tiny: Corpus, tmp_path: Path) -> None:
    for row in read_rows(performed.out):
        del row["run"]["init"]["residual"]
        append_row(tmp_path / "old.jsonl", row)
    assert comparison(tiny, tmp_path / "old.jsonl", 1e-2, seeds=1).missing() == []


def test_a_crash_costs_one_trial(tiny: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    this = comparison(tiny, tmp_path / "r.jsonl", 1e-2, seeds=1, test=True)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONHASHSEED", "not a number")  # no interpreter starts like this
    row = this.perform(this.trials()[0])
    assert row["status"] == "failed"
    assert "exit code 1" in row["error"]
    assert row["test_loss"] == row["dev_loss"] == pytest.approx(math.log(50_257))
    assert this.missing() == []


# --- records ----------------------------------------------------------------------------------------------------------


def record(seed: int) -> dict[str, object]:
    return {"corpus": "c", "track": "closed", "recipe": "r", "seed": seed, "dev_loss": 3.0, "run": dump(small())}


def test_half_a_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    append_row(path, record(0))
    whole = path.read_bytes()
    append_row(path, record(1))
    for cut in (len(whole) + 1, len(whole) + 40, path.stat().st_size - 1):
        os.truncate(path, cut)
        assert [row["seed"] for row in read_rows(path)] == [0]
        append_row(path, record(2))
        assert [row["seed"] for row in read_rows(path)] == [0, 2]


@pytest.mark.parametrize("damage", ["{", "[]", '{"corpus": "c"}', '{"seed": "one"}'])
def test_a_damaged_line_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "r.jsonl"
    append_row(path, record(0))
    path.write_text(path.read_text() + damage + "\n")
    with pytest.raises(UserError, match="line 2") as caught:
        read_rows(path)
    assert caught.value.code == errors.DATA


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/r\.jsonl") as caught:
        append_row(tmp_path / "file" / "r.jsonl", record(0))
    assert caught.value.code == errors.STORAGE


# --- the command ------------------------------------------------------------------------------------------------------


def command(corpus: Corpus, out: Path, *more: str) -> list[str]:
    """Arguments that make the baseline small."""
    sizes = "model.d_model=4 model.n_heads=1 model.n_layers=1 data.batch_size=2 data.window=16 head_dtype=float32"
    swept = [*sizes.split(), "optim.lr=1e-5,1e-2"]
    given = ["--corpus", corpus.name, "--threads", "1", "--out", str(out), "--seeds", "1"]
    return ["baseline", *given, *more, "--sweep", *swept]


def test_kill_minus_nine_and_again(tiny: Corpus, tmp_path: Path) -> None:
    """Killed in the second trial, the command started again does the second only and ends as if nothing happened."""
    out = tmp_path / "r.jsonl"
    line = [sys.executable, "-m", "hectogpt", "compare", *command(tiny, out, "--steps", "20")]
    first = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while not (out.exists() and out.read_bytes().endswith(b"\n")) and time.monotonic() < until:
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    before = out.read_bytes()
    assert before.count(b"\n") == 1
    with open(out, "ab") as file:
        file.write(before[:99])  # what an append cut short would leave
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        compare(command(tiny, out, "--steps", "20", "--json"))
    assert out.read_bytes().startswith(before)
    assert [row["run"]["optim"]["lr"] for row in read_rows(out)] == [1e-5, 1e-2]
    answer = json.loads(printed.getvalue())
    assert [arm["dev"]["n"] for arm in answer["arms"]] == [1, 1]
    assert answer["arms"][1]["to_first"]["difference"] < 0
    assert answer["best"]["of"] == 2
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        compare(command(tiny, out, "--steps", "20"))
    assert "kn3" in printed.getvalue()
    assert "20 steps, not 100 (seed 0)" in printed.getvalue()


def test_dry_run_runs_nothing(tiny: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare(command(tiny, tmp_path / "r.jsonl", "--dry-run"))
    assert not (tmp_path / "r.jsonl").exists()
    assert "2 trials, 0 recorded" in capsys.readouterr().out


def test_no_recipe_is_an_error() -> None:
    with pytest.raises(UserError, match="no recipe"):
        compare([])
    with pytest.raises(UserError, match="basline"):
        compare(["basline"])
