"""Trackers get what metrics.jsonl gets, and neither their faults nor their pace reach the run."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from command import TINY, Here, assert_good_error, environment, hectogpt, wait_for, write_tokens

from hectogpt import errors
from hectogpt.api.tracking import rows_of, track_records
from hectogpt.lab.record import Record
from hectogpt.training import trackers as module
from hectogpt.training.trackers import Trackers, parse_names

LOCAL = ("http://127.0.0.1:", "data:", "blob:")
FIELDS = {"run": {"seed": 1, "model": {"d_model": 16}}}
STUB = """
import sys, time
class Run:
    url, dir = "stub", "."
    def log(self, values, step): {log}
    def finish(self): open({out!r}, "a").write("finished")
def init(**options):
    {init}
    return Run()
def Image(path): return path
"""


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a library of somebody else's that is called wandb in the children's way."""

    def write(init: str = "pass", log: str = "pass") -> Path:
        out = tmp_path / "told"
        (tmp_path / "wandb.py").write_text(STUB.format(init=init, log=log, out=str(out)))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        return out

    return write


def row(step: int) -> dict[str, Any]:
    return {"run": "x", "step": step, "train/loss": 5.0 / step, "train/lr": 0.5, "spike": True}


def test_names_are_checked_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert parse_names("") == ()
    here = Here(tmp_path, monkeypatch, capsys)
    assert_good_error(here("train", "--track", "tensorbord"), errors.USAGE, "no tracker 'tensorbord'", "trackio")
    monkeypatch.setitem(module.MODULES, "wandb", "no_such_module")
    assert_good_error(here("train", "--track", "wandb"), errors.USAGE, "pip install 'hectogpt[wandb]'")
    assert list(tmp_path.iterdir()) == []


STOP = "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)"  # not even what is sent to it is read


@pytest.mark.parametrize(
    ("place", "hang", "full"),
    [("init", "time.sleep(1000)", False), ("log", "time.sleep(1000)", False), ("init", STOP, True)],
)
def test_a_tracker_that_hangs_holds_nobody_up(
    stub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, hang: str, full: bool
) -> None:
    stub(**{place: hang})
    monkeypatch.setattr(module, "SECONDS_TO_END", 0.5)
    notes: list[str] = []
    begun = time.monotonic()
    trackers = Trackers(["wandb"], notes.append)
    trackers.begin(tmp_path, FIELDS)
    if full:
        time.sleep(2)  # until it has stopped
    for step in range(1, 20_001):
        trackers.add(row(step))
    trackers.end()
    trackers.end()
    assert time.monotonic() - begun < 10
    told = ["does not keep up" in note for note in notes]
    assert told in ([True, False], [False][: not full])  # rows may come faster than a child starts
    assert "given up" in notes[-1]


@pytest.mark.parametrize(
    "fault",
    [
        "raise ValueError('no key')",
        "sys.exit('no key')",
        "print('no key', file=sys.stderr, flush=True); import os; os._exit(9)",
    ],
)
def test_a_tracker_that_fails_is_given_up_with_one_note(stub: Any, tmp_path: Path, fault: str) -> None:
    stub(init=fault)
    notes: list[str] = []
    trackers = Trackers(["wandb"], notes.append)
    trackers.begin(tmp_path, FIELDS)
    wait_for(lambda: [trackers.add(row(1))] and bool(notes), 30)
    trackers.end()
    assert len(notes) == 1
    assert "no key" in notes[0]
    assert "the run goes on" in notes[0]


def test_a_slow_tracker_gets_everything(stub: Any, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    out = stub(log=f"time.sleep(0.01); open({str(seen)!r}, 'a').write(f'{{step}} ')")
    notes: list[str] = []
    trackers = Trackers(["wandb"], notes.append)
    trackers.begin(tmp_path, FIELDS)
    for step in range(1, 31):
        trackers.add(row(step))
    trackers.end()
    assert notes == []
    assert seen.read_text().split() == [str(step) for step in range(1, 31)]
    assert out.read_text() == "finished"
    assert trackers.links == {"wandb": "stub"}


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard itself reads."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


@pytest.mark.thorough
def test_tensorboard_reads_the_rows_and_a_resumed_run_replaces_later_ones(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    for first, last, value in ((1, 6, 1.0), (4, 8, 2.0)):  # the second process goes on after step 3
        trackers = Trackers(["tensorboard"], pytest.fail)
        trackers.begin(tmp_path, FIELDS, step=first - 1)
        for step in range(first, last):
            trackers.add({"step": step, "train/loss": value})
        trackers.end()
        time.sleep(1.1)  # event files are ordered by their second
    assert trackers.links["tensorboard"] == f"tensorboard --logdir {tmp_path}"
    steps = {"train/loss": [(1, 1.0), (2, 1.0), (3, 1.0), *((step, 2.0) for step in range(4, 8))]}
    assert scalars(tmp_path / "tensorboard") == steps


def record(seed: int) -> Record:
    more: dict[str, Any] = {"losses": [5.0, 4.0], "grad_norms": [1.0, 0.5], "dev_loss": 4.5, "seconds": 2.0}
    return Record(corpus="c", track="closed", recipe="muon", seed=seed, run={"seed": seed}, arm="/a.py:muon", **more)


def test_trials_become_runs_of_a_group(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    notes: list[str] = []
    track_records(["tensorboard"], [record(1), record(2)], tmp_path / "trials.jsonl", notes.append)
    assert notes == [f"tensorboard: tensorboard --logdir {tmp_path}"]
    for seed in (1, 2):
        found = scalars(tmp_path / "trials" / f"_a.py_muon, seed {seed}")
        assert found["train/loss"] == [(1, 5.0), (2, 4.0)]
        assert found["dev/loss"] == [(2, 4.5)]
    assert rows_of(record(1))[-1] == {"step": 2, "dev/loss": 4.5, "seconds": 2.0}


# --- whole runs with the real libraries -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run with all three, and what it said; a run without."""
    for name in module.MODULES:
        pytest.importorskip(name)
    here = tmp_path_factory.mktemp("tracked")
    options = ["baseline", *TINY, "--corpus", write_tokens(here / "t.bin")]
    more = {"WANDB_MODE": "offline", "TRACKIO_DIR": str(here / "trackio")}
    names = "tensorboard,trackio,wandb"
    done = hectogpt("train", *options, "--out", "one", "--track", names, cwd=here, **more)
    assert done.returncode == 0, done.stderr
    assert hectogpt("train", *options, "--out", "two", "--quiet", cwd=here).returncode == 0
    return here, done.stderr


@pytest.mark.thorough
def test_a_tracked_run_has_the_same_bits_and_all_of_it_is_tracked(tracked: tuple[Path, str]) -> None:
    here, told = tracked
    assert "given up" not in told
    for link in ("tensorboard --logdir", "trackio show", "wandb sync"):
        assert link in told
    assert (here / "one/model.safetensors").read_bytes() == (here / "two/model.safetensors").read_bytes()
    assert hectogpt("check", "one", cwd=here).returncode == 0
    rows = [json.loads(line) for line in (here / "one/metrics.jsonl").read_text().splitlines()]
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    found = scalars(here / "one" / "tensorboard")
    assert [value for _, value in found["train/loss"]] == pytest.approx(losses)
    assert found["val/loss"][0][1] == pytest.approx(rows[-1]["val/loss"])
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(here / "one" / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["images"]) == {"attention", "curves"}
    program = "import json, trackio; run, = trackio.Api().runs('hectogpt'); logs = trackio.SQLiteStorage.get_logs\n"
    program += "print(json.dumps([run.config, logs('hectogpt', run.name)], default=str))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(here, TRACKIO_DIR=str(here / "trackio")),
        capture_output=True,
        text=True,
        check=True,
    )
    config, history = json.loads(done.stdout.splitlines()[-1])
    assert config["run.model.d_model"] == 16
    assert [row["train/loss"] for row in history if row.get("train/loss") is not None] == pytest.approx(losses)
    assert list((here / "one" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert {p.name.split("_")[0] for p in (here / "one/wandb").glob("offline-run-*/files/media/images/*")} == {
        "attention",
        "curves",
    }


@pytest.mark.thorough
@pytest.mark.browser
def test_tensorboards_own_page_shows_the_run(tracked: tuple[Path, str], browser: Any) -> None:
    here, _ = tracked
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "tensorboard.main",
        "--logdir",
        here / "one",
        "--port",
        str(port),
        "--load_fast=false",
    ]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:

        def answers() -> bool:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
            except OSError:
                return False
            return True

        wait_for(answers)
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{port}/#timeseries")
        for text in ("attention", "curves", "Step 4", "5 cards"):  # the five columns of train/
            page.get_by_text(text, exact=True).first.wait_for(timeout=60_000)
        context.close()
    finally:
        server.terminate()
        server.wait(20)


@pytest.mark.thorough
@pytest.mark.browser
def test_trackios_own_page_shows_the_run_without_a_network(tracked: tuple[Path, str], browser: Any) -> None:
    here, _ = tracked
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    told = here / "trackio-show"
    settings = {"TRACKIO_DIR": str(here / "trackio"), "GRADIO_SERVER_PORT": str(port), "HF_HUB_OFFLINE": "1"}
    settings |= {"GRADIO_ANALYTICS_ENABLED": "False", "BROWSER": "true", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-c", "from trackio.cli import main; main()", "show", "--project", "hectogpt"]
    with open(told, "w", encoding="utf-8") as file:
        server = subprocess.Popen(command, env=environment(here, **settings), stdout=file, stderr=file)
    try:
        wait_for(
            lambda: re.search(r"launched at: (http://127\.0\.0\.1:\d+/\S+?)[\x1b\s]", told.read_text()) is not None
        )
        found = re.search(r"http://127\.0\.0\.1:\d+/[^\s\x1b]+", told.read_text())
        assert found is not None
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        page = context.new_page()
        foreign: list[str] = []
        page.on("request", lambda r: None if r.url.startswith(LOCAL) else foreign.append(r.url))
        page.goto(found[0])
        for text in ("train (5)", "grad_norm"):  # the five columns of train/
            page.get_by_text(text, exact=True).first.wait_for(timeout=60_000)
        page.get_by_text("Media & Tables", exact=True).click()
        for text in ("attention", "curves"):
            page.get_by_text(text).first.wait_for(timeout=60_000)
        assert foreign == []
        context.close()
    finally:
        server.terminate()
        server.wait(20)
