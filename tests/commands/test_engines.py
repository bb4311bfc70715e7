"""Trials handed out to several workers and to engines elsewhere; seed by seed until a decision ends them."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from command import HECTOGPT, wait_for
from experiments import numbered_arms, small_command, small_comparison

from hectogpt.data import Corpus
from hectogpt.display import Progress
from hectogpt.errors import UserError
from hectogpt.lab.compare import Comparison
from hectogpt.lab.engines import Engine, local_engine, perform
from hectogpt.lab.record import Record, read_records
from hectogpt.lab.tracks import TRACKS
from hectogpt.lab.trial import OnStep

CLOCKS = ("seconds", "wall_seconds", "peak_mb", "dirty")  # the tree may be edited while the tests run


class Threads:
    """Trials without processes: each takes a random time, and `loss` says what it comes to, by arm's learning rate and
    seed: a number, or None for a crash."""

    def __init__(self, workers: int, loss: Callable[[float, int], float | None]) -> None:
        self.engine, self.loss = Engine(workers, self.do), loss
        self.done: list[tuple[float, int]] = []
        self.most = self.now = 0
        self.lock, self.chance = threading.Lock(), random.Random(0)

    def do(self, request: dict[str, Any], on_step: OnStep, cancelled: threading.Event) -> dict[str, Any]:
        lr, seed = request["run"]["optim"]["lr"], request["run"]["seed"]
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
            seconds = self.chance.random() / 100
        try:
            on_step(1, 10.0)
            cancelled.wait(seconds)
            self.done.append((lr, seed))
            loss = self.loss(lr, seed)
            if loss is None:
                return {"status": "failed", "error": "killed"}
            return {"status": "ok", "dev_loss": loss, "machine": {"kind": "cpu"}, "seconds": 1.0}
        finally:
            self.now -= 1


def losses(lr: float, seed: int) -> float:
    """What arm `lr` comes to: the third is better than the first, the second is a tie."""
    noise = random.Random(f"{lr} {seed}").gauss(0, 0.004)
    return 5.0 + seed - 0.1 * (lr == 3.0) + noise


def plain(records: list[Record]) -> list[dict[str, Any]]:
    """Records without what clocks have measured and without their order."""
    found = [{k: v for k, v in vars(record).items() if k not in CLOCKS} for record in records]
    for row in found:
        row["machine"] = {k: v for k, v in (row["machine"] or {}).items() if k != "workers"}
    return sorted(found, key=lambda row: (row["arm"], row["seed"]))


def compared(corpus: Corpus, out: Path, arms: int = 3, seeds: Sequence[int] = range(4), **options: Any) -> Comparison:
    return Comparison(numbered_arms(arms), seeds, corpus, TRACKS["closed"], out, **options)


# --- rounds -----------------------------------------------------------------------------------------------------------


def run_rounds(
    corpus: Corpus, out: Path, made: Threads, arms: int = 3, seeds: Sequence[int] = range(1000)
) -> Comparison:
    """A sequential comparison that is over."""
    this = compared(corpus, out, arms, seeds, sequential=True)
    for trials in this.rounds(made.engine.workers):
        perform(this, trials, made.engine, Progress(quiet=True))
    return this


def test_decisions_do_not_depend_on_workers(corpus: Corpus, tmp_path: Path) -> None:
    """The same is said of each arm, however many trials run at a time and whichever ends first."""
    said = []
    for workers in (1, 5, 16):
        made = Threads(workers, losses)
        this = run_rounds(corpus, tmp_path / f"{workers}.jsonl", made, seeds=range(40))
        assert len(made.done) == len(set(made.done)), "no trial is run twice"
        assert made.most <= workers
        assert this.ended.startswith("decided after")
        said.append([result.to_first for result in this.results()])
    assert said[0] == said[1] == said[2]
    assert [pair and pair.verdict for pair in said[0]] == [None, "tie", "better"]
    counts = [sum(record.arm == f"lr {n}" for record in read_records(tmp_path / "1.jsonl")) for n in (1, 2, 3)]
    assert counts[2] < counts[1] == counts[0], "a decided arm is not run further"


def test_what_ends_rounds(corpus: Corpus, tmp_path: Path) -> None:
    undecided = run_rounds(corpus, tmp_path / "r.jsonl", Threads(1, losses), seeds=(5, 6))
    assert (undecided.seeds, "not decided" in undecided.ended) == ([5, 6], True)
    crashing = Threads(1, lambda lr, seed: None if lr == 2.0 else 5.0)
    ended = run_rounds(corpus, tmp_path / "c.jsonl", crashing, arms=2).ended
    assert ended == "lr 2 crashed twice in a row"
    once = Threads(1, lambda lr, seed: None if (lr, seed) == (1.0, 1) else losses(2 * lr - 1, seed))
    assert run_rounds(corpus, tmp_path / "o.jsonl", once, arms=2).ended.startswith("decided after")
    with pytest.raises(UserError, match="nothing to decide"):
        compared(corpus, tmp_path / "n.jsonl", arms=1, sequential=True)


# --- cores ------------------------------------------------------------------------------------------------------------


def test_trials_do_not_share_cores(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hectogpt.hardware.usable_cores", lambda: 4)
    this = small_comparison(corpus, tmp_path / "r.jsonl", 1e-2)
    for threads, most, more, fix in ((1, 4, 5, "set workers to 4"), (2, 2, 3, "set workers to 2"), (1, 4, 0, "")):
        this.arms = [replace(arm, run=replace(arm.run, threads=threads)) for arm in this.arms]
        local_engine(this, most)
        with pytest.raises(UserError, match=f"trials at a time(.|\n)*{fix}" if more else "workers = 0"):
            local_engine(this, more)


# --- real processes ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The records of two arms at two seeds, one trial after another."""
    out = tmp_path_factory.mktemp("alone") / "r.jsonl"
    done = run_command(corpus, out)
    assert done.returncode == 0, done.stderr
    return plain(read_records(out))


def command(corpus: Corpus, out: Path, *more: str, steps: int = 20) -> list[str]:
    return [*HECTOGPT, "compare", *small_command(corpus, out, "--steps", str(steps), *more, seeds=2)]


def run_command(corpus: Corpus, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(corpus, out, *more), capture_output=True, text=True, timeout=300, cwd=out.parent)


def start(corpus: Corpus, out: Path, *more: str, **options: Any) -> subprocess.Popen[str]:
    """The command, some trials of which have begun."""
    given = command(corpus, out, *more, **options)
    running = subprocess.Popen(given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: bool(trials_below(running.pid)) or running.poll() is not None, 300)
    assert running.poll() is None
    return running


@pytest.mark.thorough
def test_a_kill_costs_the_trials_under_way(corpus: Corpus, tmp_path: Path, alone: list[dict[str, Any]]) -> None:
    """Of the command, by Ctrl-C and by SIGKILL, and of a worker: no record is lost or made twice; the same command goes
    on, and two workers give the bits of one."""
    out = tmp_path / "r.jsonl"
    with start(corpus, out, "--workers", "2", steps=99_999) as running:
        found = trials_below(running.pid)
        running.send_signal(signal.SIGINT)
        assert "interrupted, 4 of 4 trials missing" in running.communicate(timeout=30)[1]
        assert running.returncode == 130
        assert not any(Path(f"/proc/{pid}/cmdline").exists() for pid in found)
    with start(corpus, out, "--workers", "1") as running:
        wait_for(lambda: bool(out.exists() and read_records(out)))
        running.kill()
        running.communicate()
    kept = plain(read_records(out))
    with start(corpus, out, "--workers", "2") as running:
        os.kill(trials_below(running.pid)[0], signal.SIGKILL)
        said = running.communicate(timeout=300)[1]
        assert running.returncode == 1
    assert "1 of 4 trials crashed" in said
    assert "SIGKILL" in said
    assert run_command(corpus, out, "--workers", "2").returncode == 0
    found_all = plain([record for record in read_records(out) if record.counts])
    assert (found_all, [row for row in kept if row not in found_all]) == (alone, [])


@pytest.mark.thorough
def test_an_array_has_a_task_for_each_trial(corpus: Corpus, tmp_path: Path, alone: list[dict[str, Any]]) -> None:
    """The script that `--engine slurm` writes, run by processes that play the tasks."""
    out = tmp_path / "r.jsonl"
    shown = run_command(corpus, out, "--engine", "slurm", "--workers", "3", "--dry-run").stdout
    assert list(tmp_path.iterdir()) == []
    assert "#SBATCH --array=0,1,2,3%3\n" in shown
    assert "#SBATCH --cpus-per-task=1\n" in shown
    asked = run_command(corpus, out, "--engine", "slurm", "--workers", "3")
    assert asked.returncode == 0, asked.stderr
    script = tmp_path / "r.sbatch.sh"
    assert "submit it with" in asked.stderr
    assert script.read_text() == shown
    for number in (3, 0):
        variables = os.environ | {"SLURM_ARRAY_TASK_ID": str(number)}
        done = subprocess.run(["bash", str(script)], env=variables, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    assert [record.seed for record in read_records(out)] == [1, 0], "each its own"
    assert plain(read_records(out)) == [row for row in alone if row in plain(read_records(out))]
    assert "--array=1,2%3\n" in run_command(corpus, out, "--engine", "slurm", "--workers", "3", "--dry-run").stdout


@pytest.mark.thorough
def test_ray_gives_the_bits_of_one_process(corpus: Corpus, tmp_path: Path, alone: list[dict[str, Any]]) -> None:
    """Real Ray workers; one is killed, and its trial is given to another."""
    pytest.importorskip("ray")
    out = tmp_path / "r.jsonl"
    os.environ["RAY_ADDRESS"] = "local"
    with start(corpus, out, "--engine", "ray", "--workers", "2", "--json") as running:
        parent = Path(f"/proc/{trials_below(running.pid)[0]}/stat").read_text().rpartition(")")[2].split()[1]
        os.kill(int(parent), signal.SIGKILL)
        answer, said = running.communicate(timeout=200)
    assert running.returncode == 0, said
    assert [arm["dev"]["n"] for arm in json.loads(answer)["arms"]] == [2, 2]
    assert plain(read_records(out)) == alone


def trials_below(pid: int) -> list[int]:
    """Processes of trials that this process or its descendants have started."""
    found = []
    for child in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.Error):  # it has ended
            found += [child.pid] if "hectogpt.process" in child.cmdline() else []
    return found
