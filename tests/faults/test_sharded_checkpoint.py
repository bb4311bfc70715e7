"""Checkpoints in parts: read as the whole, every damage found, and a run of several processes saves and goes on by
them bit for bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from experiments import ask
from helpers import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.files import remove_folder
from hectogpt.manifest import read_manifest, write_manifest
from hectogpt.training.checkpoint import SHARDED, Checkpoint, Checkpoints, describe
from hectogpt.training.checkpoint_parts import PartFiles
from hectogpt.training.state import State

PROGRAM = ROOT / "tests" / "programs" / "sharded_checkpoints.py"
FILES = tuple(f"shard-0000{number}-model-00001-of-00001.safetensors" for number in (1, 2, 3))
File = dict[str, tuple[Any, Tensor]]  # name -> place of its first number, rows

# --- on disk ----------------------------------------------------------------------------------------------------------


def made(step: int = 2) -> Checkpoint:
    """A checkpoint with tensors of every kind of shape."""
    chance = torch.Generator().manual_seed(step)
    tensors = {
        "model.a": torch.randn(5, 3, generator=chance),
        "model.b": torch.randn(4, generator=chance, dtype=torch.float64),
        "model.c": torch.randn(2, 2, 2, generator=chance).bfloat16(),
        "optimizer.0.state.a.step": torch.tensor(2.0),
        "optimizer.0.state.a.none": torch.zeros(0, 6),
        "model.map": torch.arange(7),
        "model.used": torch.tensor([True, False, True]),
    }
    history = torch.randn(step, 6, generator=chance, dtype=torch.float64)
    return Checkpoint(step, State(tensors, {"optimizers": []}), history, {"machine": {"threads": 1}})


def cut(checkpoint: Checkpoint, places: dict[str, list[int]]) -> list[File]:
    """The tensors in three files, each tensor's rows cut at two places; what has no rows is in the last."""
    files: list[File] = [{}, {}, {}]
    for name, tensor in (checkpoint.state.tensors | {"history": checkpoint.history}).items():
        if not tensor.dim() or not len(tensor):
            files[2][name] = ([0] * tensor.dim(), tensor)
            continue
        first, second = places.get(name, [1, 2])
        for file, (begin, end) in zip(files, ((0, first), (first, second), (second, len(tensor))), strict=True):
            if begin < end:
                file[name] = ([begin, *[0] * (tensor.dim() - 1)], tensor[begin:end].contiguous())
    return files


def write(folder: Path, checkpoint: Checkpoint, files: list[File], **manifest: Any) -> Checkpoints:
    """Write the files with a manifest that has their hashes, so that only what they hold can be wrong."""
    checkpoints = Checkpoints(folder)
    path = checkpoints.path(checkpoint.step)
    path.mkdir(parents=True)
    for name, file in zip(FILES, files, strict=False):
        places = {tensor: {"saved_offsets": place} for tensor, (place, _) in file.items() if place is not None}
        metadata = {"DCP_SHARDING_INFO": json.dumps(places), "DCP_VERSION": "1.0", "format": "pt"}
        save_file({tensor: rows for tensor, (_, rows) in file.items()}, path / name, metadata=metadata)
    write_manifest(path, FILES[: len(files)], describe(checkpoint, SHARDED) | manifest)
    return checkpoints


def assert_equal(found: Checkpoint, expected: Checkpoint) -> None:
    assert found.state.tensors.keys() == expected.state.tensors.keys()
    for name, tensor in (expected.state.tensors | {"history": expected.history}).items():
        other = found.history if name == "history" else found.state.tensors[name]
        assert (other.dtype, other.shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(other, tensor), name
    assert (found.step, found.state.values, found.facts) == (expected.step, expected.state.values, expected.facts)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=5, max_size=5))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_parts_are_read_as_the_whole_however_they_are_cut(tmp_path: Path, drawn: list[tuple[int, int]]) -> None:
    checkpoint = made()
    tensors = checkpoint.state.tensors | {"history": checkpoint.history}
    names = [name for name, tensor in tensors.items() if tensor.dim() and len(tensor)]
    places = {n: sorted(min(p, len(tensors[n])) for p in pair) for n, pair in zip(names, drawn, strict=False)}
    checkpoints = write(tmp_path / "cut", checkpoint, cut(checkpoint, places))
    try:
        assert not checkpoints.problem(2)
        assert_equal(checkpoints.load(2), checkpoint)
        path = checkpoints.path(2)
        files = PartFiles(path, read_manifest(path), sound=False)
        for name, (first, second) in places.items():
            assert torch.equal(files.read(name, first, second), tensors[name][first:second]), name
    finally:
        remove_folder(tmp_path / "cut")


DAMAGED: dict[str, tuple[Callable[[list[File]], Any], str]] = {
    "no part": (lambda f: f[1].pop("model.a"), "the parts of 'model.a' lack rows 1 to 2"),
    "no last part": (lambda f: f[2].pop("model.a"), "the parts of 'model.a' have 2 of its 5 rows"),
    "no tensor": (lambda f: [file.pop("model.b", None) for file in f], "the parts of 'model.b' have 0 of its 4 rows"),
    "no number": (lambda f: f[2].pop("optimizer.0.state.a.step"), "'optimizer.0.state.a.step' have 0 of its 1 rows"),
    "no empty": (lambda f: f[2].pop("optimizer.0.state.a.none"), "'optimizer.0.state.a.none' have 0 of its 0 rows"),
    "overlap": (lambda f: f[1].update({"model.a": ([0, 0], f[1]["model.a"][1])}), "'model.a' overlap"),
    "twice": (lambda f: f[0].update({"model.map": ([0], torch.arange(7))}), "'model.map' overlap"),
    "number twice": (lambda f: f[0].update({"optimizer.0.state.a.step": ([], torch.tensor(2.0))}), "a.step' overlap"),
    "empty twice": (lambda f: f[0].update({"optimizer.0.state.a.none": ([0, 0], torch.zeros(0, 6))}), "0 of its 0"),
    "beyond": (lambda f: f[2].update({"model.a": ([2, 0], torch.zeros(9, 3))}), "'model.a' have 11 of its 5 rows"),
    "columns": (lambda f: f[0].update({"model.a": ([0, 0], torch.zeros(1, 2))}), "shape [1, 2] at [0, 0]"),
    "other columns": (lambda f: f[0].update({"model.a": ([0, 1], f[0]["model.a"][1])}), "shape [1, 3] at [0, 1]"),
    "dimensions": (lambda f: f[0].update({"model.a": ([0], torch.zeros(1))}), "shape [1] at [0]"),
    "dtype": (lambda f: f[0].update({"model.a": ([0, 0], torch.zeros(1, 3, dtype=torch.float16))}), "torch.float16"),
    "unknown": (lambda f: f[0].update({"model.z": ([0], torch.zeros(1))}), "'model.z' that its manifest does not name"),
    "no place": (lambda f: f[0].update({"model.a": (None, f[0]["model.a"][1])}), "does not say of each of its tensors"),
    "odd place": (lambda f: f[0].update({"model.a": ([-1, 0], f[0]["model.a"][1])}), "which part of 'model.a'"),
    "float place": (lambda f: f[0].update({"model.a": ([0.0, 0], f[0]["model.a"][1])}), "which part of 'model.a'"),
    "text place": (lambda f: f[0].update({"model.a": ("ab", f[0]["model.a"][1])}), "which part of 'model.a'"),
    "huge place": (lambda f: f[0].update({"model.a": ([2**70, 0], f[0]["model.a"][1])}), "which part of 'model.a'"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_parts_that_do_not_cover_each_tensor_once_are_refused(tmp_path: Path, kind: str) -> None:
    """Although all hashes are right."""
    act, why = DAMAGED[kind]
    files = cut(made(), {})
    act(files)
    checkpoints = write(tmp_path, made(), files)
    with pytest.raises(UserError, match="the checkpoint of step 2 cannot be read") as caught:
        checkpoints.load(2)
    assert why in caught.value.why
    assert caught.value.code == errors.CHECKPOINT


@pytest.mark.parametrize(
    "manifest",
    [
        {"tensors": {}},
        {"tensors": []},
        {"tensors": {"model.a": ["float32", [5, 3]]}},
        {"tensors": describe(made(), 2)["tensors"] | {"model.a": ["float32", [6, 3]]}},
        {"tensors": describe(made(), 2)["tensors"] | {"model.a": ["float33", [5, 3]]}},
        {"tensors": describe(made(), 2)["tensors"] | {"model.a": ["nn", [5, 3]]}},
        {"tensors": describe(made(), 2)["tensors"] | {"model.a": ["float32", [5, "3"]]}},
        {"tensors": describe(made(), 2)["tensors"] | {"model.a": ["float32", [5, -3]]}},
        {"tensors": describe(made(), 2)["tensors"] | {"model.a": None}},
        {"tensors": describe(made(), 2)["tensors"] | {"model.new": ["float32", [1]]}},
        {"format": 1},
        {"format": 3},
        {"step": 4},
        {"values": 7},
    ],
    ids=str,
)
def test_a_manifest_that_does_not_fit_the_parts_is_refused(tmp_path: Path, manifest: dict[str, Any]) -> None:
    checkpoints = write(tmp_path, made(), cut(made(), {}), **manifest)
    with pytest.raises(UserError) as caught:
        checkpoints.load(2)
    assert caught.value.code == errors.CHECKPOINT


def swapped(path: Path) -> None:
    (path / FILES[0]).rename(path / "x")
    (path / FILES[1]).rename(path / FILES[0])
    (path / "x").rename(path / FILES[1])


def flipped(path: Path) -> None:
    content = bytearray((path / FILES[1]).read_bytes())
    content[-2] ^= 1
    (path / FILES[1]).write_bytes(content)


def plain(path: Path) -> None:
    """A file that does not say where its parts are, as other programs write them."""
    save_file(load_file(path / FILES[1]), path / FILES[1])
    write_manifest(path, FILES, describe(made(3), SHARDED))


def cut_off(path: Path) -> None:
    (path / FILES[2]).write_bytes((path / FILES[2]).read_bytes()[:-9])


@pytest.mark.parametrize(
    "damage",
    [swapped, flipped, cut_off, plain, lambda path: (path / FILES[1]).unlink(), shutil.rmtree],
    ids=["swapped", "flipped", "cut off", "plain", "one file gone", "all gone"],
)
def test_the_checkpoint_before_a_damaged_one_is_taken(tmp_path: Path, damage: Callable[[Path], Any]) -> None:
    """One file of the newest is damaged, or stands in another's place."""
    checkpoints = write(tmp_path, made(2), cut(made(2), {}))
    write(tmp_path, made(3), cut(made(3), {}))
    damage(checkpoints.path(3))
    notes: list[str] = []
    found = checkpoints.newest(notes.append)
    assert found is not None
    assert_equal(found, made(2))
    assert damage is shutil.rmtree or "1 step is computed again" in notes[0]


def test_a_process_that_reads_its_own_parts_checks_their_files(tmp_path: Path) -> None:
    """Where rank 0 has checked the hashes of files that this process sees on another disk."""
    path = write(tmp_path, made(), cut(made(), {})).path(2)
    files = PartFiles(path, read_manifest(path), sound=False)
    flipped(path)
    assert torch.equal(files.read("model.a", 0, 1), made().state.tensors["model.a"][:1])
    with pytest.raises(UserError, match="is damaged") as caught:
        files.read("model.a")
    assert FILES[1] in caught.value.why
    assert caught.value.code == errors.CHECKPOINT


def test_both_forms_of_checkpoints_stand_beside_each_other(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(made(1))
    write(tmp_path, made(2), cut(made(2), {}))
    checkpoints.save(made(2))  # a valid one of this step stays as it is
    assert (checkpoints.path(2) / FILES[0]).exists()
    checkpoints.save(made(3))
    assert checkpoints.steps() == [2, 3]
    assert_equal(checkpoints.load(2), made(2))
    assert_equal(checkpoints.load(3), made(3))


# --- processes --------------------------------------------------------------------------------------------------------


def test_two_processes_save_the_same_state_in_parts_and_go_on_by_it(tmp_path: Path) -> None:
    """What is read is, name by name and bit by bit, what one file of the same moment has; torch's own reader finds the
    same tensors."""
    found = ask(PROGRAM, "parts", tmp_path)
    several, one = found["several"][0], found["one"][0]
    assert several["files"] == ["manifest.json", *FILES[:2]]
    assert one["files"] == ["manifest.json", "state.safetensors"]
    assert several["state"] == one["state"]
    assert without_files(found["gone on"]) == without_files(found["whole"])
    assert found["gone on"][0]["read"] < 10_000, "rank 0 has only its part of the optimizer's state, which has 10 MB"
    of_torch = {name: told for name, told in found["torch"].items() if name not in ("values", "history")}
    assert of_torch == {name: told for name, told in one["state"].items() if name not in ("values", "history")}


def without_files(answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in told.items() if key not in ("files", "read")} for told in answers]


@pytest.mark.thorough
def test_a_checkpoint_in_parts_goes_on_however_the_run_is_shared(tmp_path: Path) -> None:
    """Under none, ddp and fsdp, and from four processes to two, to one: as from one file, bit for bit."""
    found = ask(PROGRAM, "grid", tmp_path)
    assert found["parts"].keys() == {"none", "ddp", "fsdp", "4 processes", "2 processes", "1 processes"}
    for name, told in found["parts"].items():
        (one,), (other,) = without_files([told]), without_files([found["file"][name]])
        assert one == other, name
    assert [len(found["parts"][f"{count} processes"]["files"]) for count in (4, 2, 1)] == [5, 3, 2]


@pytest.mark.thorough
def test_every_kind_of_state_is_saved_in_parts(tmp_path: Path) -> None:
    """By four processes, some of which have no row of small parameters."""
    found = ask(PROGRAM, "kinds", tmp_path)
    for name in ("baseline", "top", "tied"):
        parts, one = found[f"{name} parts"], found[f"{name} file"]
        assert parts["files"] == ["manifest.json", *FILES, "shard-00004-model-00001-of-00001.safetensors"], name
        assert one["files"] == ["manifest.json", "state.safetensors"], name
        assert parts["state"] == one["state"], name


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    found: dict[str, Any] = ask(PROGRAM, "faults", tmp_path_factory.mktemp("faults"))
    return found


def steps(*numbers: int) -> list[str]:
    return [f"step-{number:08d}" for number in numbers]


KILLED = "its process has ended without a word"
HUNG = "it did not come to the end of the checkpoint of step 3 in 3 s; its last sign: writes its parts of the"


@pytest.mark.thorough
@pytest.mark.parametrize(("fault", "cause"), [("killed", KILLED), ("hung", HUNG)])
def test_a_process_that_fails_in_saving_leaves_the_checkpoint_before(
    faults: dict[str, Any], fault: str, cause: str
) -> None:
    """While the checkpoint of step 3 is written; rank 0 names it."""
    run = faults[fault]
    assert run["codes"] == [10, -9]
    assert run["told"][0].startswith("error: rank 1 of the run's 2 processes failed in step 3\nwhy: ")
    assert cause in run["told"][0]
    assert f"kept: the checkpoint of step 2, metrics and run.json in {fault}\n" in run["told"][0]
    assert run["checkpoints"] == steps(1, 2)
    assert run["seconds"] < 40


@pytest.mark.thorough
def test_rank_0_killed_before_the_manifest_leaves_the_checkpoint_before(faults: dict[str, Any]) -> None:
    run = faults["late"]
    assert run["codes"] == [-9, 10]
    assert [name for name in run["checkpoints"] if name[0] != "."] == steps(1, 2)


@pytest.mark.thorough
def test_runs_that_were_killed_or_stopped_go_on_to_the_same_weights(faults: dict[str, Any]) -> None:
    for name in ("killed", "late", "stopped"):
        assert faults[f"{name} again"]["codes"] == [0, 0], name
        assert faults[f"{name} again"]["checkpoints"] == steps(2, 3, 4), name  # what was half written is gone
        assert faults["weights"][name] == faults["weights"]["whole"], name


@pytest.mark.thorough
def test_a_signal_to_any_process_saves_one_checkpoint(faults: dict[str, Any]) -> None:
    run = faults["stopped"]
    assert run["codes"] == [143, 143]
    assert "stopped by a signal after step 3 of 4" in run["told"][0]
    assert run["checkpoints"] == steps(1, 2, 3)


@pytest.mark.thorough
def test_a_full_disk_of_any_process_is_told_and_the_run_tries_again(faults: dict[str, Any]) -> None:
    run = faults["full"]
    assert run["codes"] == [0, 0]
    assert run["checkpoints"] == steps(1, 3, 4)
    told = " ".join(run["told"][0].split())
    assert "the checkpoint of step 2 could not be saved in full/checkpoints: rank 1: File too large: it takes " in told
    assert "training goes on and tries again" in told
    assert faults["weights"]["full"] == faults["weights"]["whole"]


@pytest.mark.thorough
def test_a_last_checkpoint_that_cannot_be_saved_is_an_error(faults: dict[str, Any]) -> None:
    run = faults["ended"]
    assert run["codes"] == [errors.STORAGE, 143]
    assert run["told"][0].startswith("error: the checkpoint of step 3 could not be saved in ended/checkpoints\n")
    assert "kept: the checkpoint of step 1\n" in run["told"][0]
    assert run["checkpoints"] == steps(1)


@pytest.mark.thorough
def test_processes_that_see_other_folders_do_not_begin(faults: dict[str, Any]) -> None:
    """If they are to save parts there; below the limit rank 0 saves one file as ever."""
    run = faults["blind"]
    assert run["codes"] == [2, 10]
    assert run["told"][0].startswith("error: not all processes of the run see ")
    assert "why: every process is to save its parts of checkpoints there; rank 1 on " in run["told"][0]
    assert "--shard-checkpoints-above 1" in run["told"][0]
    assert faults["below"]["codes"] == [0, 0]
    assert faults["weights"]["disk/below"] == faults["weights"]["whole"]


@pytest.mark.thorough
def test_a_process_that_does_not_see_the_parts_gets_them_from_rank_0(faults: dict[str, Any]) -> None:
    assert faults["unseen again"]["codes"] == [0, 0], faults["unseen again"]["told"]
    assert faults["weights"]["disk/seen"] == faults["weights"]["whole"]
