"""What happens when a process of a shared run fails, hangs, leaves, or has another run than the rest."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from experiments import make_corpus
from helpers import ROOT

from hectogpt.training.launch import find_launch

pytestmark = pytest.mark.thorough
PROGRAMS = ROOT / "tests" / "programs"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("faults")
    make_corpus(found)
    shutil.copy(PROGRAMS / "fault.py", found)
    return found


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    environment = os.environ | {"HECTOGPT_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(PROGRAMS / "shared_faults.py"), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


@pytest.mark.parametrize(
    ("fault", "codes", "cause"),
    [
        ("killed", [10, -9], "its process has ended without a word"),
        ("raised", [10, 1], "ValueError: the idea fell over"),
        ("hung", [10, -9], "it did not come to the sum of gradients of step 3 in 3 s; its last sign: computes, step 3"),
    ],
)
def test_a_failed_process_is_named_with_its_cause(
    found: dict[str, Any], fault: str, codes: list[int], cause: str
) -> None:
    """Rank 0 tells it, with what is kept; the others say nothing of their own."""
    run = found[fault]
    assert run["codes"] == codes
    first, other = run["told"]
    assert first.startswith("error: rank 1 of the run's 2 processes failed in step 3\nwhy: ")
    assert cause in first
    assert f"kept: the checkpoint of step 2, metrics and run.json in {fault}\n" in first
    assert other == ""
    assert run["seconds"] < 10 + 3 * (fault == "hung")
    assert run["checkpoints"] == ["step-00000002"]


@pytest.mark.parametrize(
    ("what", "named"),
    [
        ("configuration", "in the configuration\nwhy: seed: 0 at rank 0, 1 at rank 1"),
        ("idea", "in the idea file\nwhy: idea file: "),
        ("data", "in the data\nwhy: dev: "),
    ],
)
def test_processes_with_different_runs_do_not_begin(found: dict[str, Any], what: str, named: str) -> None:
    run = found[what]
    assert run["codes"] == [2, 2], run["told"]
    assert run["told"][0].startswith("error: rank 1 differs from rank 0 " + named)
    assert "kept: nothing was written" in run["told"][0]
    assert run["folder"] == []


def test_a_hung_rank_0_is_named_by_rank_1(found: dict[str, Any]) -> None:
    run = found["hung-first"]
    assert run["codes"] == [-9, 10]
    assert run["told"][1].startswith("error: rank 0 of the run's 2 processes failed in step 3\nwhy: ")
    assert run["seconds"] < 20


def test_a_busy_port_is_told_at_every_rank(found: dict[str, Any]) -> None:
    """A program that listens there and says nothing holds nobody up."""
    run = found["port"]
    assert run["codes"] == [2, 10]
    first, other = run["told"]
    assert first.startswith("error: port ")
    assert "MASTER_PORT" in first
    assert other.startswith("error: the 2 processes of the run did not find each other at 127.0.0.1:")
    assert "GLOO_SOCKET_IFNAME" in other
    assert run["seconds"] < 30


# --- torchrun itself --------------------------------------------------------------------------------------------------


def torchrun(
    folder: Path, *arguments: str, program: tuple[str, ...] = ("-m", "hectogpt"), **environment: str
) -> subprocess.Popen[str]:
    sizes = ["--model.d-model", "8", "--model.n-heads", "2", "--model.n-layers", "1", "--model.context-length", "16"]
    sizes += ["--data.seq-len", "16", "--data.batch-size", "4", "--threads", "1", "--head-dtype", "float32", "--quiet"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    split = arguments.index("train")
    command += [*arguments[:split], *program, *arguments[split:], "--corpus", str(folder), *sizes]
    env = os.environ | {"HECTOGPT_CACHE": str(folder / "cache")} | environment
    return subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """The run that others are compared with, by torchrun and with nothing in its way."""
    done = torchrun(folder, "train", "fault.py:faulty@baseline", "--steps", "6", "--out", "whole")
    told = done.communicate(timeout=120)
    assert done.returncode == 0, told
    record = json.loads((folder / "whole" / "run.json").read_text())
    assert record["sharing"] == {"processes": 2}
    assert record["run"]["data"]["leaves"] == 4
    return folder / "whole"


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_torchrun_starts_a_killed_process_again_and_the_run_goes_on_exactly(folder: Path, whole: Path) -> None:
    argv = ["--max-restarts", "1", "train", "fault.py:faulty@baseline", "--steps", "6", "--save-every", "2"]
    done = torchrun(folder, *argv, "--out", "again", FAULT="killed 1 8")
    told = done.communicate(timeout=120)
    assert done.returncode == 0, told
    record = json.loads((folder / "again" / "run.json").read_text())
    assert [entry["step"] for entry in record["resumed"]] == [3]
    assert weights(folder / "again") == weights(whole)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the workers in /proc")
def test_processes_whose_torchrun_was_killed_end_in_order(folder: Path, whole: Path) -> None:
    """They would train on as nobody's. Rank 0 saves the step that is done."""
    argv = ["train", "fault.py:faulty@baseline", "--steps", "100000", "--save-every", "0", "--out", "orphans"]
    done = torchrun(folder, *argv)
    metrics, children = folder / "orphans" / "metrics.jsonl", Path(f"/proc/{done.pid}/task/{done.pid}/children")
    deadline = time.monotonic() + 60
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.1)
    workers = [Path("/proc", pid) for pid in children.read_text().split()]
    assert len(workers) == 2
    done.kill()
    _, err = done.communicate(timeout=60)
    while any(worker.exists() for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [worker for worker in workers if worker.exists()]
    assert "error: a process of the run's 2 processes failed in step" in err


def test_sigterm_to_torchrun_saves_once_and_the_run_goes_on_alone(folder: Path, whole: Path) -> None:
    argv = ["train", "fault.py:faulty@baseline", "--steps", "6", "--save-every", "0", "--out", "ended"]
    begun = time.monotonic()
    done = torchrun(folder, *argv, FAULT="stopped 1 6")
    told = done.communicate(timeout=120)
    assert done.returncode != 0, told
    assert time.monotonic() - begun < 60
    summary = json.loads((folder / "ended" / "summary.json").read_text())
    assert summary["state"] == "interrupted"
    assert 3 <= summary["steps"] < 6
    assert told[1].count("stopped: by a signal after step") == 1


def test_a_process_with_other_code_is_named_and_nothing_is_lost(folder: Path, whole: Path) -> None:
    """Rank 1 has a copy of the package with one line more; the run that it was to go on with stays as it is."""
    copy = folder / "copies" / "rank1" / "hectogpt"
    shutil.copytree(ROOT / "hectogpt", copy, ignore=shutil.ignore_patterns("__pycache__"))
    with open(copy / "training" / "schedules.py", "a", encoding="utf-8") as file:
        file.write("# of rank 1\n")
    before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    program = (str(PROGRAMS / "own_copy.py"), str(folder / "copies"))
    argv = ["train", "fault.py:faulty@baseline", "--steps", "8", "--resume", "whole"]
    done = torchrun(folder, *argv, program=program)
    _, err = done.communicate(timeout=120)
    assert done.returncode == 1, err
    told = err[err.index("error: ") :].splitlines()
    assert told[0] == "error: rank 1 differs from rank 0 in the code"
    assert re.fullmatch(r"why: training/schedules\.py: \w{12} at rank 0, \w{12} at rank 1", told[1]), told
    assert "kept: nothing was written" in told
    assert len(re.findall("^error: ", err, re.MULTILINE)) == 1, "rank 0 alone; torchrun repeats it in its report"
    assert re.search(r"exitcode *: 2\b", err), err
    assert {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()} == before


def test_without_torchrun_a_process_is_alone() -> None:
    assert find_launch({"RANK": "0", "WORLD_SIZE": "2"}) is None
    launch = find_launch({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "here", "MASTER_PORT": "7"})
    assert launch is not None
    assert (launch.rank, launch.size, launch.port, launch.agent) == (1, 2, 7, False)
