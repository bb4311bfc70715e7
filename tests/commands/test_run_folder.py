"""Run folders: taken by one process only, never over another run, and read back as the run that was written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import small_run

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.lab import recipes
from hectogpt.training import precision
from hectogpt.training.evaluate import EvalResult
from hectogpt.training.loop import Step
from hectogpt.training.run_folder import RunFolder, read_run

OLD = Path(__file__).parents[1] / "data" / "run_of_7b14102"


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- taking a folder ----------------------------------------------------------------------------------------------


def test_names_are_counted_up(tmp_path: Path) -> None:
    made = [RunFolder.create(small_run(), False, "mine", root=tmp_path / "runs").path.name for _ in range(3)]
    assert made == ["mine", "mine-2", "mine-3"]
    (tmp_path / "runs" / "mine-4").mkdir()  # a folder that holds no run, or a file, is somebody's too
    (tmp_path / "runs" / "mine-5").write_text("")
    assert RunFolder.create(small_run(), False, "mine", root=tmp_path / "runs").path.name == "mine-6"


def test_a_place_that_cannot_be_written_is_storage(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    for given in ({"out": tmp_path / "file"}, {"root": tmp_path / "file" / "runs"}):
        with pytest.raises(UserError, match="cannot write") as caught:
            RunFolder.create(small_run(), False, "mine", **given)
        assert (caught.value.code, caught.value.fix) == (errors.STORAGE, "set out to a folder you may write to")
    assert (tmp_path / "file").read_text() == "kept"


def test_leftovers_of_a_killed_process_go_when_the_folder_is_taken_again(tmp_path: Path) -> None:
    """Ours, and what safetensors writes beside its target; a user's own hidden file stays."""
    with RunFolder.create(small_run(), False, "x", out=tmp_path) as folder:
        folder.begin(precision.choose(folder.run))
    before = files_below(tmp_path)
    for name in (".tmpeuXl5r", ".summary.json.123"):
        (tmp_path / name).write_text("half")
    (tmp_path / ".tmp").write_text("mine")
    with RunFolder.reopen(tmp_path, small_run()):
        pass
    assert files_below(tmp_path) == before | {".tmp": b"mine"}


# --- what is in it ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["baseline", "top"])
def test_a_run_is_read_back(tmp_path: Path, name: str) -> None:
    run = replace(recipes.recipe(name), device="cpu", dtype="float32", head_dtype="float32", threads=1)
    with RunFolder.create(run, True, name, root=tmp_path) as folder:
        assert read_run(folder.path) == run, "from the moment it is taken"
        folder.begin(precision.choose(run))
    assert read_run(folder.path) == run
    record = json.loads((folder.path / "run.json").read_text())
    assert record["modified"] is True
    assert record["machine"] == precision.choose(run).describe()


def test_steps_and_scores_are_on_disk_as_they_come(tmp_path: Path) -> None:
    with RunFolder.create(small_run(), False, "mine", root=tmp_path) as folder:
        folder.begin(precision.choose(folder.run))
        folder.add(Step(1, 256, 10.5, 2.0, 0.001, 0.5, 256), {})
        rows = [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]
        assert (rows[0]["step"], rows[0]["tokens"], rows[0]["train/loss"]) == (1, 256, 10.5)
        assert rows[0]["train/tok_per_sec"] == 512
        folder.add_score(1, EvalResult(9.0, 3.0, 100))
        assert not (folder.path / "summary.json").exists(), "its presence means done"
        folder.finish({"state": "done"})
    last = json.loads((folder.path / "metrics.jsonl").read_text().splitlines()[-1])
    assert last == {"run": "mine", "step": 1, "dev/loss": 9.0, "dev/bpb": 3.0}
    assert json.loads((folder.path / "summary.json").read_text()) == {"state": "done"}
