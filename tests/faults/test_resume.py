"""`hectogpt train --resume`, `hectogpt check`, and checkpoints as models."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command import TINY, Here, assert_good_error
from helpers import ROOT, write_tokens
from runs import rows_of

import hectogpt
from hectogpt.cli import main
from hectogpt.data import open_corpus
from hectogpt.display import Progress
from hectogpt.errors import UserError
from hectogpt.files import lock
from hectogpt.interop import open_model
from hectogpt.lab import recipes
from hectogpt.lab.full_run import Plan, open_run
from hectogpt.run_records import read_record
from hectogpt.training.checkpoint import Checkpoints, weights_in
from hectogpt.training.run_folder import RunFolder, read_run, read_steps

SIX = [*TINY[:-1], "6", "--save-every", "2", "--quiet"]
OWN_SCHEDULE = """
from dataclasses import dataclass, replace
from hectogpt.training.run import Constant
@dataclass(frozen=True)
class Own(Constant): pass
def idea(run): return replace(run, schedule=Own())
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus and a run of six steps that nothing has interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    write_tokens(folder / "tokens")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HECTOGPT_CACHE", str(folder / "cache"))
        main(["train", "baseline", *SIX, "--corpus", str(folder / "tokens"), "--out", str(folder / "run")])
    return folder


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(whole / "run", tmp_path / "run"))


def rows(folder: Path) -> list[dict[str, Any]]:
    return [row | {"run": ""} for row in rows_of(folder)]  # the folder's name


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def back_to(run: Path, step: int) -> None:
    """As a run is that was killed after this checkpoint: later ones, weights and scores were never written."""
    for name in ("summary.json", "manifest.json", "model.safetensors", "config.json", "losses_and_grad_norms.png"):
        (run / name).unlink()
    for path in (run / "checkpoints").iterdir():
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)


def assert_as_whole(run: Path, whole: Path) -> None:
    assert (run / "model.safetensors").read_bytes() == (whole / "run" / "model.safetensors").read_bytes()
    assert rows(run) == rows(whole / "run")
    state = Path("checkpoints", "step-00000006", "state.safetensors")
    assert (run / state).read_bytes()[-10000:] == (whole / "run" / state).read_bytes()[-10000:]
    assert json.loads((run / "summary.json").read_text())["state"] == "done"


def assert_found(done: subprocess.CompletedProcess[str], code: int, *named: str) -> None:
    """A report on stdout, and what is wrong on stderr."""
    assert done.returncode == code, done.stderr
    assert "\nwhy: " in done.stderr
    for text in named:
        assert text in done.stderr


# --- going on ---------------------------------------------------------------------------------------------------------


def test_a_resumed_run_is_as_if_nothing_had_happened(whole: Path, run: Path, here: Here) -> None:
    """Rows after the checkpoint, and half a row, go. What is complete is left alone. The folder is all that it needs:
    moved, from a checkpoint that is named, with damaged rows, by Python."""
    back_to(run, 4)
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:5]) + '{"step": 6, "train/lo')
    done = here.ok("train", "baseline", *SIX[:-1], "--corpus", whole / "tokens", "--out", run, "--resume", "auto")
    assert f"resuming after step 4 of 6 in {run}; exact: yes" in done.stderr
    assert_as_whole(run, whole)
    assert json.loads((run / "run.json").read_text())["resumed"] == [{"step": 4, "differences": []}]
    before = files(run)
    assert here.ok("train", "--resume", run).stdout == f"already complete (6/6): {run}\n"
    for command in (("train", "--resume", run), ("check", "--repair", run)):
        assert here.ok(*command, "--quiet").stdout == ""
        assert json.loads(here.ok(*command, "--json").stdout)["state"] == "done"
    assert files(run) == before
    (run / "metrics.jsonl").write_text("".join([lines[0], "garbage\n", *lines[2:]]))
    moved = run.rename(run.with_name("a new name"))
    plan = Plan(read_run(moved), resume=moved, step=4)
    with open_run(plan, open_corpus(str(whole / "tokens")), Progress(quiet=True)) as opened:
        assert opened.folder.checkpoints.steps() == [2, 4], "a kill here goes on from step 4"
    here.ok("train", "--resume", moved / "checkpoints" / "step-00000002")  # it keeps what the first command kept
    assert_as_whole(moved, whole)
    back_to(moved, 4)
    assert len(hectogpt.train(read_run(moved), out=moved, resume=True, save_every=2, quiet=True).losses) == 6
    assert_as_whole(moved, whole)
    with pytest.raises(UserError, match="holds a different run"):
        hectogpt.train(recipes.recipe("muon"), out=moved, resume=True, corpus=str(whole / "tokens"), quiet=True)


@pytest.mark.thorough
def test_auto_takes_the_newest_run_that_fits_and_else_begins_one(whole: Path, tmp_path: Path, here: Here) -> None:
    common = ["train", "baseline", *SIX[:-1], "--corpus", str(whole / "tokens"), "--resume", "auto"]
    done = here(*common)
    assert "nothing to resume below runs: starting a new run" in done.stderr
    assert here(*common).stdout == "already complete (6/6): runs/baseline\n"
    here.ok(*common, "--seed", "1")
    write_tokens(tmp_path / "other", 100)
    here.ok(*common, "--corpus", tmp_path / "other")
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["baseline", "baseline-2", "baseline-3"]
    back_to(tmp_path / "runs" / "baseline", 2)
    done = here(*common)
    assert "resuming after step 2 of 6 in runs/baseline; exact: yes" in done.stderr
    assert "already complete" in here("train", "--resume", "auto").stdout


def test_what_is_not_gone_on_with(whole: Path, run: Path, tmp_path: Path, here: Here) -> None:
    """Another run; and of two that want one folder, the second is refused at once."""
    before, corpus = files(run), ["--corpus", whole / "tokens"]
    for arguments, code, named in (
        (["baseline", "--optim.lr", "0.5", "--resume", run], 2, "optim.lr was 1e-05, now 0.5"),
        (["muon", "--resume", run], 2, "holds a run of baseline, not of muon"),
        (["--resume", run / "checkpoints" / "step-00000002", "--out", "no"], 2, f"--branch {run}@2 --out no"),
        (["--resume", tmp_path / "none"], 4, "no run in"),
        (["baseline", "--save-every", "-1", *TINY, *corpus], 2, "--save-every -1"),
    ):
        assert_good_error(here("train", *arguments), code, named)
    assert files(run) == before
    back_to(run, 4)
    before = files(run)
    with lock(run / ".lock", run, "training in it"):
        assert_good_error(here("train", "--resume", run), 9, "is in use", f"process {os.getpid()}", "kept: what")
        assert_good_error(here("train", "baseline", *TINY, *corpus, "--out", run), 9, "is in use")
        assert json.loads(here("show", run, "--json").stdout)["state"] == "running"
    assert files(run) == before


def test_weights_of_another_text_are_not_scored(run: Path, tmp_path: Path, here: Here) -> None:
    """With checkpoints, and without."""
    write_tokens(tmp_path / "other", 100)
    for _ in range(2):
        before = files(run)
        done = here("train", "--resume", run, "--corpus", tmp_path / "other", "--quiet")
        assert_good_error(done, 3, "the text is not the one")
        with pytest.raises(UserError, match="the text is not the one"):
            hectogpt.train(read_run(run), out=run, corpus=tmp_path / "other", resume=True, quiet=True)
        assert files(run) == before
        shutil.rmtree(run / "checkpoints", ignore_errors=True)


def test_a_run_that_goes_on_is_no_longer_what_it_was(run: Path, here: Here) -> None:
    """Killed again, or with more steps planned, it is unfinished."""
    before = read_run(run)
    for longer, summary in ((before, "interrupted"), (replace(before, steps=9), "done")):
        path = run / "summary.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"state": summary}))
        with RunFolder.reopen(run, longer) as folder:
            folder.resume(read_steps(run)[:6], [])
            assert read_record(run).state == "running"
        assert read_record(run).state == "unfinished"
        assert path.exists() == (summary == "done")
        assert json.loads(here("show", run, "--json").stdout)["state"] == "unfinished"
        assert here("check", run).returncode == 0
        path.write_text(json.dumps({"state": "done", "steps": 6}))


@pytest.mark.thorough
def test_a_run_that_cannot_go_on_exactly_says_so(run: Path, here: Here) -> None:
    back_to(run, 4)
    try:
        done = here("train", "--resume", run, "--threads", "2")
    finally:
        torch.set_num_threads(1)
    assert "exact: no (threads 1 -> 2)" in done.stderr
    assert json.loads((run / "run.json").read_text())["resumed"][0]["differences"] == ["threads 1 -> 2"]


@pytest.mark.thorough
def test_a_file_that_has_changed_is_another_idea(whole: Path, tmp_path: Path, here: Here) -> None:
    """One that has not changed need not be named."""
    (tmp_path / "mine.py").write_text(OWN_SCHEDULE)
    common = ["train", "mine.py:idea@baseline", *SIX, "--corpus", str(whole / "tokens")]
    here.ok(*common, "--out", "one")
    back_to(tmp_path / "one", 2)
    shutil.copytree("one", "two")
    here.ok("train", "--resume", "two", "--quiet")
    here.ok("train", "--branch", "two@4", "--quiet", "--out", "branch")
    with (tmp_path / "mine.py").open("a") as file:
        file.write("# changed\n")
    assert_good_error(here(*common, "--resume", "one"), 4, "has changed since", "fix: the file as it was: one/idea.py")
    assert_good_error(here("train", "--resume", "one"), 4, "uses classes from mine.py", "--idea one/idea.py")
    here.ok("train", "--resume", "one", "--idea", "one/idea.py", "--quiet")


# --- check: hashes, repair, replay, diagnose --------------------------------------------------------------------------


def test_repair_scores_again(whole: Path, run: Path, here: Here) -> None:
    """What was killed while it was scored."""
    repair = ("check", "--repair", run, "--quiet")
    for name in ("summary.json", "losses_and_grad_norms.png"):
        (run / name).unlink()
    done = here.ok(*repair, "--json")
    assert_as_whole(run, whole)
    assert json.loads(done.stdout)["dev_loss"] == json.loads((whole / "run" / "summary.json").read_text())["dev_loss"]
    assert here("check", "--repair", run).stdout == f"already complete (6/6): {run}\n"
    back_to(run, 4)
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:4]))
    assert_good_error(here("check", "--repair", run), 2, "has taken 4 of 6 steps", f"hectogpt train --resume {run}")


@pytest.mark.thorough
def test_every_file_that_is_lost_is_made_again_or_named(whole: Path, run: Path, here: Here) -> None:
    """Removed or empty, as after a loss of power; with checkpoints, and without."""
    bare = Path(shutil.copytree(run, run.with_name("bare"), ignore=shutil.ignore_patterns("checkpoints")))
    for source, path, way in itertools.product((run, bare), sorted(run.rglob("*.*")), ("removed", "empty")):
        folder = Path(shutil.copytree(source, run.with_name(f"{source.name}-{path.name}-{way}"), dirs_exist_ok=True))
        file = folder / path.relative_to(run)
        if file.exists():
            file.write_bytes(b"") if way == "empty" else file.unlink()
            assert here("check", folder).returncode == 4
            done = here("check", "--repair", folder, "--quiet")
            if source == bare and (file.name == "run.json" or (file.name, way) == ("model.safetensors", "empty")):
                assert_good_error(done, 4, file.name)
            elif source == bare and file.name == "metrics.jsonl":
                assert "steps 1 to 6" in here.ok("check", folder).stdout
            else:
                assert (done.returncode, here("check", folder).returncode) == (0, 0), f"{file}: {done.stderr}"
                assert rows(folder) == rows(whole / "run")


def test_check_says_what_is_whole_and_what_is_not(run: Path, here: Here) -> None:
    told = json.loads(here("check", run, "--json").stdout)
    assert (told["damaged"], len(told["checks"])) == (0, 9), "six files and three checkpoints"
    (run / "checkpoints" / "step-00000004" / "manifest.json").write_text("{}")
    assert_found(here("check", run), 4, "step-00000004 is damaged", f"hectogpt check {run} --repair")
    shutil.rmtree(run / "checkpoints")
    content = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").write_bytes(content[:-5] + bytes(5))  # as a loss of power can leave it
    assert here("generate", run, "--max-new-tokens", "2").returncode == 4
    named = ("model.safetensors", "the SHA-256 does not match", f"hectogpt check {run} --repair")
    assert_found(here("check", run), 4, *named)
    assert_good_error(here("train", "--resume", run), 4, *named[:2], f"hectogpt check {run}")
    (run / "manifest.json").unlink()
    assert_found(here("check", run), 4, "its hashes are lost", f"hectogpt check {run} --repair")
    for command in (("generate", run, "--max-new-tokens", "2"), ("export", run, run.with_name("out"))):
        assert "its hashes are lost" in here.ok(*command).stderr
    assert "its hashes are lost" in here.ok("show", run).stdout
    with pytest.warns(UserWarning, match="its hashes are lost"):
        open_model(run, step=6)
    assert here("check", run / "nothing").returncode == 4


def test_replay_compares_every_bit(run: Path, here: Here) -> None:
    told = json.loads(here("check", "--replay", run, "--step", "2", "--json").stdout)
    assert (told["equal"], told["step"]) == (True, 3)
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    assert told["weights_hash"] == json.loads(lines[2])["weights_hash"]
    assert not told["optimizer_compared"], "step 3 has no checkpoint"
    assert json.loads(here.ok("check", "--replay", run, "--step", "3", "--json").stdout)["optimizer_compared"]
    row = json.loads(lines[4])
    row["train/loss"] = float(torch.nextafter(torch.tensor(row["train/loss"]), torch.tensor(99.0)))
    (run / "metrics.jsonl").write_text("".join([*lines[:4], json.dumps(row) + "\n", *lines[5:]]))
    named = ("step 5", "suspect memory")
    assert_good_error(here("check", "--replay", run, "--quiet"), 5, *named)
    assert_good_error(here("check", "--replay", run, "--step", "6"), 4, "step 6", "--step 5")
    shutil.rmtree(run / "checkpoints")
    assert_good_error(here("check", "--replay", run, "--quiet"), 5, *named)
    assert "equal" in here.ok("check", "--replay", run, "--step", "3").stdout


def test_diagnose_names_module_and_text(whole: Path, run: Path, here: Here, tmp_path: Path) -> None:
    common = ["train", "baseline", *SIX, "--corpus", str(whole / "tokens"), "--optim.lr", "1e30", "--out", "d"]
    assert_good_error(here(*common), 6, "`hectogpt check d --diagnose` finds where")
    found = json.loads(here("check", "--diagnose", "d", "--json").stdout)
    assert json.loads((tmp_path / "d" / "summary.json").read_text())["state"] == "diverged"
    assert (found["step"], found["stage"], found["module"]) == (2, "forward", "backbone.0.pre_layer_norm")
    assert found["rows"] == [0, 1, 2, 3]
    assert len(found["sequences"]) == 4
    assert_good_error(here("train", "--resume", "d"), 6, "has diverged")
    assert "not finite: there is none" in here("check", "--diagnose", run).stdout
    assert_good_error(here("check", "--diagnose", run, "--step", "6"), 4, "has no next step", "--step 5")


def test_every_checkpoint_of_any_run_can_be_opened(run: Path, here: Here) -> None:
    """Of a finished run by its step; of one that is not finished the newest that is whole, which is said."""
    saved = Checkpoints(run / "checkpoints")
    notes: list[str] = []

    def is_step(step: int, asked: int | None) -> bool:
        state = open_model(run, step=asked, note=notes.append)[0].state_dict()
        return all(torch.equal(state[name], tensor) for name, tensor in weights_in(saved.load(step).tensors).items())

    assert (is_step(2, 2), is_step(6, 6), is_step(6, None), notes) == (True, True, True, [])
    with pytest.raises(UserError, match="has no checkpoint of step 5") as caught:
        open_model(run, step=5)
    assert "steps 2, 4, 6" in caught.value.why
    shutil.rmtree(saved.path(6))
    assert open_model(run, step=6)[0].config == open_model(run)[0].config, "the weights at the end"
    back_to(run, 4)
    assert is_step(4, None)
    here.ok("export", run, "out")
    assert "| steps | 4 of 6 |" in Path("out", "README.md").read_text()
    (saved.path(4) / "state.safetensors").write_bytes(b"")
    assert is_step(2, None)
    assert [re.sub(r".*(is damaged|step \d).*", r"\1", note) for note in notes] == ["step 4", "is damaged", "step 2"]
    with pytest.raises(UserError, match="the checkpoint of step 4 is damaged"):
        open_model(run, step=4)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(UserError, match="has no model yet"):
        open_model(run)


@pytest.mark.thorough
def test_a_disk_without_room_is_told_before_the_first_step(
    whole: Path, tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the bytes needed and free; nothing is left of the folder."""
    usage = shutil._ntuple_diskusage(10**12, 10**12 - 1000, 1000)  # what the operating system says
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    done = here("train", "baseline", *SIX, "--corpus", whole / "tokens", "--out", "full")
    assert_good_error(done, 7, "the weights take 6,450,240 bytes, 1,000 are free")
    assert not (tmp_path / "full").exists()


@pytest.mark.thorough
def test_memory_that_is_used_up_keeps_the_checkpoint(whole: Path, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAULT", "memory 0 5")
    idea = f"{ROOT / 'tests' / 'programs' / 'fault.py'}:faulty@baseline"
    command = ["train", idea, *SIX, "--corpus", str(whole / "tokens"), "--out", "greedy"]
    done = here(*command)
    assert_good_error(done, 8, "out of memory in step 5 of 6", "--data.leaves 2", "the checkpoint of step 4")
    here.ok(*command, "--resume", "greedy")
