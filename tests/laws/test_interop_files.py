"""Weights in several files and in .bin files: read if they are whole and hold tensors, else one error."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from gpt2_folders import make_gpt2
from safetensors.torch import load_file, save_file

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.interop.hf_weights import load_gpt2


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    make_gpt2().save_pretrained(tmp_path)
    return tmp_path


def split(folder: Path, kind: str) -> dict[str, str]:
    """Move the weights into three files with an index. Returns the index's map."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    stem, ending = ("model", "safetensors") if kind == "safetensors" else ("pytorch_model", "bin")
    places = {name: f"{stem}-{n % 3 + 1:05d}-of-00003.{ending}" for n, name in enumerate(sorted(state))}
    for file in set(places.values()):
        part = {name: state[name] for name, place in places.items() if place == file}
        if kind == "safetensors":
            save_file(part, folder / file)
        else:
            torch.save(part, folder / file)
    index = "model.safetensors.index.json" if kind == "safetensors" else "pytorch_model.bin.index.json"
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": places}), encoding="utf-8")
    return places


def refused(folder: Path, *said: str) -> None:
    with pytest.raises(UserError) as caught:
        load_gpt2(folder)
    assert caught.value.code == errors.CHECKPOINT
    for text in said:
        assert text in str(caught.value)


@pytest.mark.parametrize("kind", ["safetensors", "bin", "one bin"])
def test_the_same_model_from_other_files(saved: Path, kind: str) -> None:
    expected = load_gpt2(saved).state_dict()
    if kind == "one bin":
        state = load_file(saved / "model.safetensors")
        torch.save({name.removeprefix("transformer."): t for name, t in state.items()}, saved / "pytorch_model.bin")
        (saved / "model.safetensors").unlink()
    else:
        split(saved, kind)
    got = load_gpt2(saved).state_dict()
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())


def test_safetensors_come_first(saved: Path) -> None:
    (saved / "pytorch_model.bin").write_bytes(b"PK\3\4 no archive")
    load_gpt2(saved)


def test_missing_parts_are_named_all_at_once(saved: Path) -> None:
    files = sorted(set(split(saved, "safetensors").values()))
    for file in files[:2]:
        (saved / file).unlink()
    refused(saved, "weights are missing", *files[:2])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"weight_map": {}}, "weight_map"),
        ({"weight_map": {"a": "../model-1.safetensors"}}, "weight_map"),
        ({"weight_map": {"a": "/etc/x.safetensors"}}, "weight_map"),
        ({"weight_map": {"a": "x.bin"}}, "weight_map"),
        ({"weight_map": {"a": 3}}, "weight_map"),
        ({"weight_map": ["a"]}, "weight_map"),
        ({"weight_map": {str(n): f"model-{n}.safetensors" for n in range(2000)}}, "2,000 files"),
    ],
)
def test_an_index_that_names_no_files_beside_it(saved: Path, content: dict[str, Any], said: str) -> None:
    (saved / "model.safetensors").unlink()
    (saved / "model.safetensors.index.json").write_text(json.dumps(content), encoding="utf-8")
    refused(saved, said)


def test_an_index_that_tells_otherwise(saved: Path) -> None:
    places = split(saved, "safetensors")
    name = min(places)
    file = saved / places[name]
    part = load_file(file)
    save_file({"other": torch.zeros(1)} | {n: t for n, t in part.items() if n != name}, file)
    refused(saved, "is not as", "and 1 more")


class Canary:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_no_bin_file_runs_code(saved: Path, tmp_path: Path) -> None:
    (saved / "model.safetensors").unlink()
    bomb, canary = saved / "pytorch_model.bin", tmp_path / "canary"
    torch.save({"wte.weight": torch.zeros(60, 32), "more": Canary(canary)}, bomb)
    refused(saved, "pickle")
    torch.save({"wte.weight": Canary(canary)}, bomb, _use_new_zipfile_serialization=False)
    refused(saved, "pickle of the old form")
    bomb.write_bytes(pickle.dumps(Canary(canary)))
    refused(saved, "pickle of the old form")
    assert not canary.exists()


@pytest.mark.parametrize("content", [b"", b"PK", b"PK\3\4", b"PK\3\4" + bytes(500)])
def test_damaged_bin_files(saved: Path, content: bytes) -> None:
    (saved / "model.safetensors").unlink()
    (saved / "pytorch_model.bin").write_bytes(content)
    refused(saved, "pytorch_model.bin")


def test_a_bin_file_that_would_fill_the_memory(saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10 << 20))
    (saved / "pytorch_model.bin").write_bytes(buffer.getvalue())
    refused(saved, "unpack")


@pytest.mark.parametrize("value", [[1, 2], {"a": 1}, {1: torch.zeros(2)}, torch.zeros(3)])
def test_a_bin_file_of_something_else(saved: Path, value: Any) -> None:
    (saved / "model.safetensors").unlink()
    torch.save(value, saved / "pytorch_model.bin")
    refused(saved, "tensors by name")


def test_half_precision_is_told(tmp_path: Path) -> None:
    make_gpt2(torch.float16).save_pretrained(tmp_path)
    told: list[str] = []
    assert load_gpt2(tmp_path, told.append).embeddings.weight.dtype == torch.float32
    assert len(told) == 1
    assert "float16" in told[0]
