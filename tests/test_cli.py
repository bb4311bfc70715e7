"""The door, used as from a shell: exit codes, one clear error, what a run leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from hectogpt.cli import COMMANDS, main
from hectogpt.errors import UserError

TINY = ["--model.d-model", "16", "--model.n-heads", "2", "--model.n-layers", "1", "--model.context-length", "64"]
TINY += ["--data.window", "64", "--data.batch-size", "4", "--threads", "1", "--steps", "4"]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eighty documents of repeating words, as GPT-2 ids."""
    folder = tmp_path_factory.mktemp("corpus")
    generator = np.random.default_rng(1)
    words = generator.integers(0, 50000, 50)
    documents = [np.append(words[generator.integers(0, 50, 120)], 50256) for _ in range(80)]
    np.concatenate(documents).astype("<u2").tofile(folder / "stories.bin")
    return folder / "stories.bin"


def hectogpt(*arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hectogpt", *map(str, arguments)]
    env = os.environ | {"HECTOGPT_CACHE": str(cwd / "cache"), "NO_COLOR": "1"} | environment
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)


def assert_good_error(done: subprocess.CompletedProcess[str], code: int, *named: str) -> None:
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ")
    for text in named:
        assert text in done.stderr


def test_a_run_and_what_it_leaves(tokens: Path, tmp_path: Path) -> None:
    done = hectogpt("train", "baseline", *TINY, "--corpus", tokens, "--out", "here", "--optim.lr", "1e-2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("step ")]
    assert len(lines) == 4  # plain lines where there is no terminal
    assert "loss" in lines[0]
    assert "eta" in lines[0]
    for word in ("unigram", "uniform", "baseline (modified)", "greedy", "sampled", "losses_and_grad_norms.png"):
        assert word in done.stdout
    folder = tmp_path / "here"
    expected = {"run.json", "metrics.jsonl", "losses_and_grad_norms.png", "model.safetensors", "config.json"}
    assert {p.name for p in folder.iterdir()} == expected | {"summary.json"}
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 4]
    columns = {"run", "recipe", "seed", "step", "tokens", "train/loss", "train/grad_norm", "train/lr", "train/dt"}
    assert columns | {"train/tok_per_sec", "mem_mb"} == set(rows[0])
    assert {"val/loss", "val/bpb"} <= set(rows[-1])
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["state"] == "done"
    assert summary["modified"] is True
    assert summary["dev_loss"] == rows[-1]["val/loss"]
    assert json.loads((folder / "run.json").read_text())["machine"]["threads"] == 1
    assert "backbone.0.attention.W_k.weight" in load_file(folder / "model.safetensors")
    again = hectogpt("train", "baseline", *TINY, "--corpus", tokens, "--out", "here", cwd=tmp_path)
    assert_good_error(again, 2, "already holds a run", "fix: ", "kept: ")
    assert json.loads((folder / "summary.json").read_text()) == summary


def test_quiet_json_and_dry_run(tokens: Path, tmp_path: Path) -> None:
    quiet = hectogpt("train", "baseline", *TINY, "--corpus", tokens, "--quiet", "--out", "a", cwd=tmp_path)
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    machine = hectogpt("train", "baseline", *TINY, "--corpus", tokens, "--json", cwd=tmp_path)
    assert json.loads(machine.stdout)["steps"] == 4
    assert Path(tmp_path, json.loads(machine.stdout)["folder"], "model.safetensors").exists()
    same = [load_file(tmp_path / name / "model.safetensors") for name in ("a", "runs/baseline")]
    assert all((same[0][name] == same[1][name]).all() for name in same[0])
    dry = hectogpt("train", "baseline", "--dry-run", "--corpus", tokens, cwd=tmp_path)
    assert "3,374,415 parameters" in dry.stdout
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["baseline"]


def test_ctrl_c_keeps_what_was_learned(tokens: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hectogpt", "train", "baseline", *TINY[:-1], "100000", "--out", "stopped"]
    env = os.environ | {"HECTOGPT_CACHE": str(tmp_path / "cache")}
    child = subprocess.Popen([*command, "--corpus", tokens], cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "stopped" / "metrics.jsonl"
    until = time.monotonic() + 60
    while time.monotonic() < until and not (metrics.exists() and metrics.read_text().count("\n") >= 3):
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    _, stderr = child.communicate(timeout=60)
    assert child.returncode == 130, stderr
    assert "kept: weights, metrics and run.json" in stderr
    assert "Traceback" not in stderr
    summary = json.loads((tmp_path / "stopped" / "summary.json").read_text())
    assert summary["state"] == "interrupted"
    assert summary["steps"] == metrics.read_text().count("\n") >= 3
    assert (tmp_path / "stopped" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (["trian"], 2, "did you mean `hectogpt train`?"),
        (["train", "basline"], 2, "did you mean 'baseline'?"),
        (["train", "baseline", "--model.n-heads", "4"], 2, "n_heads among 1, 3, 11, 33"),
        (["train", "baseline", "--steps", "0"], 2, "steps"),
        (["train", "baseline", "--model.d-model", "3300000", "--model.n-heads", "1"], 8, "GiB"),
        (["train", "baseline", "--device", "tpu"], 2, "--device auto"),
        (["train", "baseline", "--corpus", "nowhere.txt"], 3, "nowhere.txt"),
        (["train", "baseline", "--optim.lr", "nan"], 2, "optim.lr"),
    ],
)
def test_errors_say_what_why_and_what_to_do(
    arguments: list[str], code: int, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        main([*arguments, "--debug"])
    assert caught.value.code == code
    assert named in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_an_unknown_field_is_answered_with_the_nearest(tmp_path: Path) -> None:
    done = hectogpt("train", "baseline", "--optim.lrr", "3", cwd=tmp_path)
    assert done.returncode == 2
    assert "--optim.lr" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unwritable_folder_is_found_before_step_one(tokens: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    done = hectogpt("train", "baseline", *TINY, "--corpus", tokens, "--out", "file/run", "--quiet", cwd=tmp_path)
    assert_good_error(done, 7, "cannot write", "fix: --out")


def test_errors_reach_a_shell_without_traceback(tmp_path: Path) -> None:
    assert_good_error(hectogpt("train", "basline", "--quiet", cwd=tmp_path), 2, "why: ", "fix: ")


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert not caught.value.code
    text = capsys.readouterr().out
    assert all(name in text for name in COMMANDS)
    main(["--version"])
    assert "hectogpt " in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2
