"""Trials handed out to several workers, to several processes that share a file of records, and to engines elsewhere:
each is run once, the records are those of one process after another, and nothing depends on which ends first."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from experiments import SMALL, make_corpus, small_comparison
from made_up import numbered_arms
from test_compare import children_of, is_running

from hectogpt import process
from hectogpt.data import Corpus
from hectogpt.errors import UserError
from hectogpt.lab.compare import Comparison
from hectogpt.lab.engines import Engine, LocalEngine, LostError, OnStep, check_cores, gpus_for, run_trials
from hectogpt.lab.record import Record, read_records
from hectogpt.lab.rounds import Rounds
from hectogpt.lab.slurm import job_name
from hectogpt.lab.tracks import TRACKS

CLOCKS = ("seconds", "wall_seconds", "peak_mb")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("tiny"))


class Threads(Engine):
    """An engine without processes: a trial takes a random time, and `loss` says what it comes to, by arm's learning
    rate and seed: a number, None for a crash, or an exception."""

    def __init__(self, workers: int, loss: Callable[[float, int], Any], longest: float = 0.01) -> None:
        self.workers, self.loss, self.longest = workers, loss, longest
        self.done: list[tuple[float, int]] = []
        self.most = self.now = 0
        self.lock, self.chance = threading.Lock(), random.Random(0)

    def do(self, request: dict[str, Any], slot: int, on_step: OnStep, cancelled: threading.Event) -> dict[str, Any]:
        name = (request["run"]["optim"]["lr"], request["run"]["seed"])
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
            seconds = self.chance.random() * self.longest
        try:
            on_step(1, 10.0)
            if cancelled.wait(seconds):
                raise process.CancelledError
            loss = self.loss(*name)
            if isinstance(loss, Exception):
                raise loss
            self.done.append(name)
            known = {"machine": {"kind": "cpu"}}
            return (
                {"status": "failed", "error": "killed"} if loss is None else {"status": "ok", "dev_loss": loss} | known
            )
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


def compared(corpus: Corpus, out: Path, arms: int = 3, seeds: int = 4) -> Comparison:
    return Comparison(numbered_arms(arms), range(seeds), corpus, TRACKS["closed"], out)


def test_several_workers_write_what_one_writes(tiny: Corpus, tmp_path: Path) -> None:
    records = {}
    for workers in (1, 4):
        this, engine = compared(tiny, tmp_path / f"{workers}.jsonl"), Threads(workers, losses, 0.2)
        news = list(run_trials(this, this.missing(), engine))
        assert sorted(engine.done) == [(lr, seed) for lr in (1.0, 2.0, 3.0) for seed in range(4)]
        assert engine.most == workers
        assert this.missing() == []
        records[workers] = plain(read_records(this.out))
        assert [sum(n.record is not None for n in news), sum(n.step == 1 for n in news)] == [12, 12]
        assert not list(tmp_path.glob(".*")), "no claim is left"
    assert records[1] == records[4]
    assert read_records(tmp_path / "4.jsonl")[0].machine == {"kind": "cpu", "workers": 4}


def test_processes_share_the_trials_of_one_file(tiny: Corpus, tmp_path: Path) -> None:
    """Three of them at once: each trial is run once, and all three end with all records."""
    done: list[tuple[float, int]] = []

    def work() -> None:
        this, engine = compared(tiny, tmp_path / "r.jsonl"), Threads(1, losses, 0.03)
        list(run_trials(this, this.missing(), engine))
        done.extend(engine.done)
        assert this.missing() == []

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(done) == [(lr, seed) for lr in (1.0, 2.0, 3.0) for seed in range(4)]
    assert len(read_records(tmp_path / "r.jsonl")) == 12


def test_a_claimed_trial_is_left_alone_and_taken_when_its_holder_is_gone(tiny: Corpus, tmp_path: Path) -> None:
    this, other = (compared(tiny, tmp_path / "r.jsonl", arms=1, seeds=2) for _ in range(2))
    engine = Threads(1, losses)
    with other.claim(other.trials()[0]) as mine:
        assert mine
        assert this.is_claimed(this.trials()[0])
        list(run_trials(this, this.missing(), engine, wait_for_others=False))
        assert engine.done == [(1.0, 1)], "without waiting"
    list(run_trials(this, this.missing(), engine))
    assert engine.done == [(1.0, 1), (1.0, 0)]
    assert not this.is_claimed(this.trials()[0])


def test_a_trial_lost_with_its_machine_is_run_once_more(tiny: Corpus, tmp_path: Path) -> None:
    tries: list[tuple[float, int]] = []

    def loss(lr: float, seed: int) -> Any:
        tries.append((lr, seed))
        first = tries.count((lr, seed)) == 1
        return LostError("node gone") if seed == 1 or (seed == 0 and first) else 5.0

    this = compared(tiny, tmp_path / "r.jsonl", arms=1, seeds=3)
    list(run_trials(this, this.missing(), Threads(1, loss)))
    assert sorted(tries) == [(1.0, 0)] * 2 + [(1.0, 1)] * 2 + [(1.0, 2)]
    (failed,) = this.failed
    assert (failed.seed, failed.error) == (1, "lost twice with the process that ran it: node gone")
    assert [trial.seed for trial in this.missing()] == [1]


def test_a_crash_is_not_tried_again_by_another_process(tiny: Corpus, tmp_path: Path) -> None:
    this, other = (compared(tiny, tmp_path / "r.jsonl", arms=1, seeds=2) for _ in range(2))
    waiting = run_trials(this, this.missing(), crashing := Threads(1, lambda lr, seed: None))
    assert next(waiting).trial.seed == 0
    list(run_trials(other, [other.trials()[1]], Threads(1, lambda lr, seed: None)))
    list(waiting)
    assert crashing.done == [(1.0, 0)]
    assert len(read_records(this.out)) == 2


def test_leaving_ends_what_is_under_way(tiny: Corpus, tmp_path: Path) -> None:
    this, engine = compared(tiny, tmp_path / "r.jsonl"), Threads(3, losses, longest=1e4)
    news = run_trials(this, this.missing(), engine)
    next(news)
    news.close()  # type: ignore[attr-defined]
    assert engine.now == 0
    assert not this.out.exists()
    assert not any(this.is_claimed(trial) for trial in this.trials())
    this.out = tmp_path / "a folder" / "none"
    (tmp_path / "a folder").write_text("a file")
    with pytest.raises(UserError, match="cannot write"):
        list(run_trials(this, [this.trials()[0]], Threads(1, losses)))


# --- rounds -----------------------------------------------------------------------------------------------------------


def rounds_of(corpus: Corpus, out: Path, workers: int, chance: int = 0, **options: Any) -> tuple[Rounds, Threads]:
    this, engine = compared(corpus, out, seeds=1), Threads(workers, losses)
    engine.chance = random.Random(chance)
    rounds = Rounds(this, workers=workers, **options)
    for trials in rounds:
        list(run_trials(this, trials, engine))
        this.missing()
    return rounds, engine


def test_decisions_do_not_depend_on_workers(tiny: Corpus, tmp_path: Path) -> None:
    """The same seeds are looked at and the same is said, however many run at a time and whichever ends first."""
    said = []
    for number, (workers, chance) in enumerate([(1, 0), (5, 2), (16, 4)]):
        rounds, engine = rounds_of(tiny, tmp_path / f"{number}.jsonl", workers, chance, until_decided=True, most=40)
        said.append((rounds.ended, rounds.comparison.seeds, [result.to_first for result in rounds.results()]))
        needed = {(t.arm.run.optim.lr, t.seed) for t in rounds.comparison.trials()}  # type: ignore[attr-defined]
        assert len(engine.done) == len(set(engine.done)), "no trial is run twice"
        assert len(set(engine.done) - needed) < workers
    assert all(word == said[0] for word in said)
    assert said[0][0].startswith("decided after")
    assert [pair and pair.verdict for pair in said[0][2]] == [None, "tie", "better"]


@pytest.mark.thorough
def test_the_tasks_of_an_array_decide_together(tiny: Corpus, tmp_path: Path) -> None:
    """Three processes over one file, each with the rounds of its own: each trial is run once, and all say the same."""
    said, done = [], []

    def work(chance: int) -> None:
        this, engine = compared(tiny, tmp_path / "r.jsonl", seeds=1), Threads(1, losses)
        engine.chance = random.Random(chance)
        rounds = Rounds(this, workers=3, until_decided=True, most=40)
        for trials in rounds:
            list(run_trials(this, trials, engine))
            this.missing()
        said.append((rounds.ended, this.seeds, [result.to_first for result in rounds.results()]))
        done.extend(engine.done)

    threads = [threading.Thread(target=work, args=(chance,)) for chance in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    alone, _ = rounds_of(tiny, tmp_path / "alone.jsonl", 1, until_decided=True, most=40)
    assert said == [(alone.ended, alone.comparison.seeds, [r.to_first for r in alone.results()])] * 3
    assert len(done) == len(set(done))


def test_idle_workers_begin_the_next_seeds(tiny: Corpus, tmp_path: Path) -> None:
    this = compared(tiny, tmp_path / "r.jsonl", arms=2, seeds=1)
    rounds, engine = Rounds(this, most=3, workers=5), Threads(5, losses)
    shares = []
    for trials in rounds:
        shares.append([(trial.arm.label, trial.seed) for trial in trials])
        list(run_trials(this, trials, engine))
        this.missing()
    assert shares == [[("lr 1", 0), ("lr 2", 0), ("lr 1", 1), ("lr 2", 1), ("lr 1", 2)], [], [("lr 2", 2)]]


# --- cores and GPUs ---------------------------------------------------------------------------------------------------


def test_trials_do_not_share_cores(tiny: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hectogpt.hardware.usable_cores", lambda: 4)
    this = small_comparison(tiny, tmp_path / "r.jsonl", 1e-2)
    check_cores(this, 4)
    with pytest.raises(UserError, match="5 trials at a time of 1 thread each do not fit 4 cores") as caught:
        check_cores(this, 5)
    assert caught.value.fix == "set workers to 4"

    this.arms = [replace(arm, run=replace(arm.run, threads=2)) for arm in this.arms]
    check_cores(this, 2)
    with pytest.raises(UserError) as caught:
        check_cores(this, 3)
    assert caught.value.fix.startswith("set threads to 1")
    with pytest.raises(UserError, match="workers = 0"):
        LocalEngine(0)


def test_each_slot_has_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    arms = numbered_arms(1)
    assert gpus_for(arms, 4) == [], "the arm trains on the CPU"

    for device in ("auto", "cuda"):
        anywhere = [replace(arm, run=replace(arm.run, device=device)) for arm in arms]
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        assert gpus_for(anywhere, 2) == ["0", "1"]
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-abc,5")
        assert gpus_for(anywhere, 3) == ["3", "GPU-abc", "5"]
    assert gpus_for([replace(arm, run=replace(arm.run, device="cuda:1")) for arm in arms], 2) == []


# --- real processes ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone(tiny: Corpus, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The records of two arms at two seeds, one trial after another."""
    out = tmp_path_factory.mktemp("alone") / "r.jsonl"
    done = run_command(tiny, out)
    assert done.returncode == 0, done.stderr
    return plain(read_records(out))


def command(tiny: Corpus, out: Path, *more: str, steps: int = 20) -> list[str]:
    given = ["--corpus", tiny.name, "--threads", "1", "--out", str(out), "--seeds", "2", "--steps", str(steps), *more]
    return [sys.executable, "-m", "hectogpt", "compare", "baseline", *given, "--sweep", *SMALL, "optim.lr=1e-5,1e-2"]


def run_command(tiny: Corpus, out: Path, *more: str, **environment: str) -> subprocess.CompletedProcess[str]:
    line, variables = command(tiny, out, *more), os.environ | environment
    return subprocess.run(line, capture_output=True, text=True, timeout=120, env=variables, cwd=out.parent)


@pytest.mark.thorough
def test_two_workers_give_the_bits_of_one(tiny: Corpus, tmp_path: Path, alone: list[dict[str, Any]]) -> None:
    done = run_command(tiny, tmp_path / "r.jsonl", "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert "4 of 4" in done.stderr
    assert plain(read_records(tmp_path / "r.jsonl")) == alone


@pytest.mark.thorough
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children are found in /proc")
def test_ctrl_c_ends_all_workers(tiny: Corpus, tmp_path: Path) -> None:
    line = command(tiny, tmp_path / "r.jsonl", "--workers", "2", steps=99_999)
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as running:
        for _ in until(lambda: len(children(running.pid)) == 2, 60):
            assert running.poll() is None
        found = children(running.pid)
        running.send_signal(signal.SIGINT)
        assert running.stderr is not None
        assert "interrupted, 4 of 4 trials missing" in running.stderr.read()
        assert running.wait(20) == 130
        assert not any(map(is_running, found))


@pytest.mark.thorough
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children are found in /proc")
def test_a_killed_worker_costs_its_trial(tiny: Corpus, tmp_path: Path, alone: list[dict[str, Any]]) -> None:
    out = tmp_path / "r.jsonl"
    line = command(tiny, out, "--workers", "2")
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as running:
        for _ in until(lambda: len(children(running.pid)) == 2, 60):
            assert running.poll() is None
        os.kill(children(running.pid)[0], signal.SIGKILL)
        assert running.stderr is not None
        told = running.stderr.read()
        assert running.wait(20) == 1
    assert "1 of 4 trials crashed" in told
    assert "SIGKILL" in told
    assert "the same command runs them again" in told
    assert run_command(tiny, out, "--workers", "2").returncode == 0
    assert plain([record for record in read_records(out) if record.counts]) == alone


@pytest.mark.thorough
def test_the_tasks_of_an_array_share_the_trials(tiny: Corpus, tmp_path: Path, alone: list[dict[str, Any]]) -> None:
    """The script that `--engine slurm` writes, run by processes that play the tasks; one of them is killed."""
    out = tmp_path / "r.jsonl"
    shown = run_command(tiny, out, "--engine", "slurm", "--workers", "3", "--dry-run").stdout
    assert not out.exists()
    assert "#SBATCH --array=0-2\n" in shown
    assert "#SBATCH --cpus-per-task=1\n" in shown
    assert run_command(tiny, out, "--engine", "slurm", "--workers", "3").returncode == 0
    script = tmp_path / "r.sbatch.sh"
    assert script.read_text() == shown
    tasks = [start_task(script, number) for number in range(2)]
    for _ in until(lambda: bool(list(tmp_path.glob(".r.jsonl.trials/*.claim"))), 60):
        pass
    followed = run_command(tiny, out, "--engine", "slurm", "--workers", "3")
    assert followed.returncode == 0
    # A quick machine has done all four before the command that follows has begun.
    assert "the array is under way" in followed.stderr or "4 recorded" in followed.stderr
    assert [task.wait(60) for task in tasks] == [0, 0]
    assert plain(read_records(out)) == alone
    assert start_task(script, 2).wait(60) == 0, "a late task finds nothing to do"
    assert len(read_records(out)) == 4


def test_an_array_that_waits_in_the_queue_is_followed(tiny: Corpus, tmp_path: Path) -> None:
    """A `squeue` that knows the array three times, by the name of its file of records, and then no more."""
    out = tmp_path / "r.jsonl"
    assert run_command(tiny, out, "--engine", "slurm", "--steps", "3").returncode == 0
    script = (
        f"#!/bin/sh\n[ $5 = {job_name(out)} ] && cd {tmp_path} && echo >> asked && [ $(wc -l < asked) -lt 3 ] && echo 7"
    )
    (tmp_path / "squeue").write_text(script + "\nexit 0\n")
    (tmp_path / "squeue").chmod(0o755)
    assert f"--job-name={job_name(out)}" in (tmp_path / "r.sbatch.sh").read_text()
    followed = run_command(tiny, out, "--engine", "slurm", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert "the array is under way" in followed.stderr
    assert "submit it" not in followed.stderr
    assert (tmp_path / "asked").read_text().count("\n") == 3


def start_task(script: Path, number: int) -> subprocess.Popen[bytes]:
    variables = os.environ | {"SLURM_ARRAY_TASK_ID": str(number)}
    return subprocess.Popen(["bash", str(script)], env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.mark.thorough
def test_ray_gives_the_bits_of_one_process(tiny: Corpus, tmp_path: Path, alone: list[dict[str, Any]]) -> None:
    """Real Ray workers; one is killed, and its trial is given to another."""
    pytest.importorskip("ray")
    out = tmp_path / "r.jsonl"
    line = command(tiny, out, "--engine", "ray", "--workers", "2", "--json")
    variables = os.environ | {"RAY_ADDRESS": "local"}
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables) as running:
        for _ in until(lambda: bool(trials_below(running.pid)), 120):
            assert running.poll() is None
        os.kill(parent_of(trials_below(running.pid)[0]), signal.SIGKILL)
        answer, told = running.communicate(timeout=120)
    assert running.returncode == 0, told
    assert [arm["dev"]["n"] for arm in json.loads(answer)["arms"]] == [2, 2]
    assert plain(read_records(out)) == alone


def until(condition: Callable[[], bool], seconds: float) -> Iterator[None]:
    """Wait for a condition."""
    last = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < last
        time.sleep(0.01)
        yield


def children(pid: int) -> list[int]:
    """Processes of trials that the process has started."""
    return [child for child in children_of(pid) if "hectogpt.process" in command_line(child)]


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def trials_below(pid: int) -> list[int]:
    """Processes of trials that this process or its descendants have started."""
    found, waiting = [], [pid]
    while waiting:
        at = waiting.pop()
        found += children(at)
        waiting += children_of(at)
    return found
