"""What happens when a process of a shared run fails, hangs, leaves, or has another run than the rest."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import forks
import psutil
import pytest
from command import wait_for
from experiments import make_corpus
from helpers import ROOT

from hectogpt.cli import main
from hectogpt.training import checkpoint
from hectogpt.training.parallel import find_launch

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]
PROGRAMS = ROOT / "tests" / "programs"
FAULTY = ["train", "fault.py:faulty@baseline"]  # its part does what $FAULT says
SIZES = ["--model.d-model", "8", "--model.n-heads", "2", "--model.n-layers", "1", "--model.context-length", "16"]
SIZES += ["--data.seq-len", "16", "--data.batch-size", "4", "--threads", "1", "--head-dtype", "float32", "--quiet"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus in data/, and the user's file."""
    found = tmp_path_factory.mktemp("faults")
    (found / "data").mkdir()
    make_corpus(found / "data")
    shutil.copy(PROGRAMS / "fault.py", found)
    return found


def in_two(
    cwd: list[Path], argv: list[list[str]], hung: int | None = None, package: Path | None = None, **environment: str
) -> list[forks.Ended]:
    """How a command ends in two processes that share a run, forked from this one: torch is loaded once. The one that
    hangs is killed when the other has ended, as by torchrun. package: where rank 1 has its code from."""
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(forks.free_port())} | environment

    def work(rank: int) -> None:
        os.chdir(cwd[rank])
        own = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
        os.environ.update(own | environment)
        checkpoint.code_hash.cache_clear()
        checkpoint.PACKAGE = package if rank == 1 and package else checkpoint.PACKAGE
        main([*argv[rank], *SIZES, "--steps", "4", "--save-every", "2"])

    children = [forks.Child(lambda rank=rank: work(rank)) for rank in (0, 1)]
    ended: dict[int, forks.Ended] = {}
    for rank in (1, 0) if hung == 0 else (0, 1):
        if rank == hung:
            children[rank].send(signal.SIGKILL)
        ended[rank] = children[rank].wait()
    return [ended[0], ended[1]]


@pytest.mark.parametrize(
    ("fault", "rank", "code", "cause"),
    [
        ("killed", 1, -9, ""),
        ("raised", 1, 2, "ValueError: the idea fell over"),
        ("hung", 1, -9, ""),
        ("hung", 0, -9, ""),
    ],
)
def test_a_failed_process_ends_the_others(fault: str, rank: int, code: int, cause: str, folder: Path) -> None:
    """It says why, if it can; rank 0 says what is kept."""
    hung, out = (rank if fault == "hung" else None), f"{fault}-{rank}"
    argv = [*FAULTY, "--corpus", "data", "--out", out, "--dist-timeout", "60" if hung is None else "15"]
    ended = in_two([folder] * 2, [argv] * 2, hung, FAULT=f"{fault} {rank} 6")
    teller, failed = ended[1 - rank], ended[rank]
    assert (teller.code, failed.code) == (10, code)
    assert "error: another of the run's 2 processes failed in step 3\nwhy: the sum of gradients: " in teller.said
    if rank == 1:
        assert f"kept: the checkpoint of step 2, metrics and run.json in {out}\n" in teller.said
        assert cause in failed.said
        assert [path.name for path in (folder / out / "checkpoints").glob("*")] == ["step-00000002"]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ("", "in the configuration\nwhy: seed: 0 at rank 0, 1 at rank 1"),
        ("fault.py", "in the idea file\nwhy: idea file: "),
        ("data/train.bin", "in the data\nwhy: train: "),
        ("package/training/losses.py", "in the code\nwhy: hectogpt: "),
    ],
)
def test_processes_with_different_runs_do_not_begin(changed: str, named: str, folder: Path, tmp_path: Path) -> None:
    """changed: a file of rank 1."""
    own = [tmp_path / "rank0", tmp_path / "rank1"]
    for path in own:
        shutil.copytree(folder / "data", path / "data")
        shutil.copy(folder / "fault.py", path)
    package = own[1] / "package"
    shutil.copytree(ROOT / "hectogpt", package, ignore=shutil.ignore_patterns("__pycache__"))
    if changed:
        with (own[1] / changed).open("ab") as file:
            file.write(b"\n#")
    train = FAULTY if changed == "fault.py" else ["train", "baseline"]
    argv = [[*train, "--corpus", "data", "--out", str(tmp_path / "run"), "--seed", seed] for seed in ("0", "1")]
    first, other = in_two(own, argv if not changed else [argv[0]] * 2, package=package)
    assert (first.code, other.code, other.said) == (2, 2, ""), first.said
    assert first.said.startswith("error: rank 1 differs from rank 0 " + named)
    assert "kept: nothing was written" in first.said
    assert not (tmp_path / "run").exists()


def test_a_busy_port_is_told_at_every_rank(folder: Path) -> None:
    """A program that listens there and says nothing holds nobody up."""
    argv = ["train", "baseline", "--corpus", "data", "--out", "port", "--dist-timeout", "3"]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        first, other = in_two([folder] * 2, [argv] * 2, MASTER_PORT=str(taken.getsockname()[1]))
    assert (first.code, other.code) == (10, 10)
    for said in (first.said, other.said):
        assert said.startswith("error: the 2 processes of the run did not find each other at 127.0.0.1:")
        assert "no other program" in said


# --- torchrun itself --------------------------------------------------------------------------------------------------


def torchrun(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    split = arguments.index("train")
    command += [*arguments[:split], "-m", "hectogpt", *arguments[split:], "--corpus", "data", *SIZES]
    env = os.environ | {"HECTOGPT_CACHE": str(folder / "cache")} | environment
    return subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def end(running: subprocess.Popen[str], fails: bool = False) -> str:
    """What it wrote to stderr until its end."""
    _, err = running.communicate(timeout=120)
    assert (running.returncode != 0) == fails, err
    return err


def test_torchrun_starts_a_killed_process_again_and_the_run_goes_on_exactly(folder: Path) -> None:
    end(torchrun(folder, *FAULTY, "--steps", "6", "--out", "whole"))
    record = json.loads((folder / "whole" / "run.json").read_text())
    assert (record["sharing"], record["run"]["data"]["leaves"]) == ({"processes": 2}, 4)
    argv = ["--max-restarts", "1", *FAULTY, "--steps", "6", "--save-every", "2"]
    end(torchrun(folder, *argv, "--out", "again", FAULT="killed 1 8"))
    record = json.loads((folder / "again" / "run.json").read_text())
    assert [entry["step"] for entry in record["resumed"]] == [3]
    assert (folder / "again/model.safetensors").read_bytes() == (folder / "whole/model.safetensors").read_bytes()


def test_processes_whose_torchrun_was_killed_end_in_order(folder: Path) -> None:
    """They would train on as nobody's. Rank 0 saves the step that is done."""
    running = torchrun(folder, *FAULTY, "--steps", "100000", "--save-every", "0", "--out", "orphans")
    metrics = folder / "orphans" / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.stat().st_size > 0)
    workers = psutil.Process(running.pid).children()
    assert len(workers) == 2
    running.kill()
    assert "error: another of the run's 2 processes failed in step" in end(running, fails=True)
    assert psutil.wait_procs(workers, 60)[1] == []


def test_sigterm_to_torchrun_saves_once_and_the_run_goes_on_alone(folder: Path) -> None:
    argv = [*FAULTY, "--steps", "6", "--save-every", "0", "--out", "ended"]
    err = end(torchrun(folder, *argv, FAULT="stopped 1 6"), fails=True)
    summary = json.loads((folder / "ended" / "summary.json").read_text())
    assert (summary["state"], 3 <= summary["steps"] < 6) == ("interrupted", True)
    assert err.count("stopped: by a signal after step") == 1


def test_without_torchrun_a_process_is_alone() -> None:
    assert find_launch({"RANK": "0", "WORLD_SIZE": "2"}) is None
    launch = find_launch({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "here", "MASTER_PORT": "7"})
    assert launch is not None
    assert (launch.rank, launch.size, launch.port, launch.agent) == (1, 2, 7, False)
