"""Files from strangers: no code runs, nothing but a UserError comes of them, and they cost little memory.

tests/faults/hostile.py makes the files; `python tests/faults hostile` tries more of them, and measures the time."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import hostile
import pytest
import torch
from safetensors.torch import load_file, save_file

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.interop import open_model
from hectogpt.model.safetensors_header import check_header


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run and a GPT-2, to be copied and spoilt."""
    folder = tmp_path_factory.mktemp("sound")
    hostile.write_run(folder / "run")
    hostile.write_gpt2(folder / "gpt2")
    return folder


@pytest.fixture(autouse=True)
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Types are checked at run time here, and the machine is shared: the proof measures the time."""
    monkeypatch.setattr(hostile, "SECONDS", 60.0)


def copy(sound: Path, kind: str, tmp_path: Path) -> Path:
    return shutil.copytree(sound / kind, tmp_path / kind)


# --- the proof's checks, with fewer tries (rows H1, H3, H4, F1 to F8 of the faults) -----------------------------------


def test_no_pickle_runs(tmp_path: Path) -> None:
    line = hostile.check_pickles(tmp_path / "a")
    assert (line.failures, line.tries >= 200) == (0, True), line.detail


def test_crafted_headers_are_refused(tmp_path: Path) -> None:
    line = hostile.check_headers(tmp_path / "a")
    assert (line.failures, line.tries) == (0, 32), line.detail


def test_headers_with_a_changed_byte_are_refused_or_say_the_same(tmp_path: Path) -> None:
    line = hostile.check_mutations(tmp_path / "a", 200)
    assert (line.failures, line.tries) == (0, 200), line.detail


def test_configs_that_are_no_models(tmp_path: Path) -> None:
    """D5: sizes beyond all models, types that cannot be hashed, nesting, a pipe, a device without end, and D6: HF."""
    line = hostile.check_configs(tmp_path / "a")
    assert (line.failures, line.tries) == (0, 76), line.detail


def test_odd_corpora(tmp_path: Path) -> None:
    """D6: long names, homes of nobody, data sets without a name, encodings that are none."""
    line = hostile.check_corpora(tmp_path / "a")
    assert (line.failures, line.tries) == (0, 60), line.detail


def test_the_proof_notices_what_it_looks_for() -> None:
    tally = hostile.Tally()
    tally.attempt("accepted", lambda: None, must_refuse=True)
    tally.attempt("a traceback", lambda: json.loads("{"))
    assert [failure.partition(":")[0] for failure in tally.failures] == ["accepted", "a traceback"]
    tally.measure("greedy", lambda: bytearray(hostile.FLOOR + 3000), 1000)
    assert "greedy" in tally.failures[-1]


# --- the header's own check -------------------------------------------------------------------------------------------


def test_a_sound_header_gives_what_the_library_reads(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    dtypes = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
    state = {f"t{i}": torch.zeros(i, 3).to(dtype) for i, dtype in enumerate(dtypes)} | {"scalar": torch.tensor(1.0)}
    save_file(state, path, metadata={"format": "pt", "more": "text"})
    found = check_header(path)
    assert {name: shape for name, (_, shape) in found.items()} == {
        n: tuple(t.shape) for n, t in load_file(path).items()
    }
    assert [found[f"t{i}"][0] for i in range(7)] == ["F64", "F32", "F16", "BF16", "I64", "U8", "BOOL"]
    with pytest.raises(UserError, match="its header should have") as caught:
        check_header(path, most_tensors=2)
    assert caught.value.code == errors.CHECKPOINT


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path: Path) -> None:
    for path, why in ((tmp_path / "none", "no such file"), (tmp_path, "not a regular file")):
        with pytest.raises(UserError) as caught:
            check_header(path)
        assert why in caught.value.why


# --- dtypes (D10) -----------------------------------------------------------------------------------------------------

OTHERS = ["float16", "bfloat16", "int8", "bool", "complex64", "float8_e4m3fn"]


@pytest.mark.parametrize("dtype", OTHERS)
def test_a_run_s_weights_of_another_dtype_are_refused(dtype: str, sound: Path, tmp_path: Path) -> None:
    """D10: no number is converted in silence. Float64, which a run in float64 saves, is read as it is."""
    weights = copy(sound, "run", tmp_path) / "model.safetensors"
    state = load_file(weights)
    save_file({name: tensor.to(getattr(torch, dtype)) for name, tensor in state.items()}, weights)
    with pytest.raises(UserError, match=f"has the dtype {dtype}, expected float32") as caught:
        open_model(weights.parent)
    assert caught.value.code == errors.CHECKPOINT


def test_weights_of_two_dtypes_are_refused(sound: Path, tmp_path: Path) -> None:
    """D10."""
    weights = copy(sound, "run", tmp_path) / "model.safetensors"
    state = load_file(weights)
    save_file({name: tensor.double() for name, tensor in state.items()}, weights)
    assert open_model(weights.parent)[0].embeddings.weight.dtype == torch.float64
    save_file(state | {"lm_head.weight": state["lm_head.weight"].double()}, weights)
    with pytest.raises(UserError, match=r"lm_head\.weight has the dtype float64, expected float32"):
        open_model(weights.parent)


@pytest.mark.parametrize("dtype", OTHERS)
def test_a_gpt2_s_half_precision_is_widened_with_a_note(dtype: str, sound: Path, tmp_path: Path) -> None:
    """D10, D6: whole, boolean, complex and float8 numbers are no weights."""
    weights = copy(sound, "gpt2", tmp_path) / "model.safetensors"
    save_file({name: tensor.to(getattr(torch, dtype)) for name, tensor in load_file(weights).items()}, weights)
    told: list[str] = []
    if "float" in dtype and "8" not in dtype:
        model, _ = open_model(weights.parent, note=told.append)
        assert model.embeddings.weight.dtype == torch.float32
        assert told == [f"the weights in {weights.parent} are {dtype}; they were converted to float32"]
        return
    with pytest.raises(UserError, match="no weights that can be used") as caught:
        open_model(weights.parent, note=told.append)
    assert (caught.value.code, told) == (errors.CHECKPOINT, [])


# --- tokenizers of Hugging Face folders -------------------------------------------------------------------------------


def test_a_tokenizer_of_another_size_than_the_model_is_refused(sound: Path, tmp_path: Path) -> None:
    """D20: a model with more ids would write some that no text belongs to, in the middle of a text."""
    folder = copy(sound, "gpt2", tmp_path)
    state = load_file(folder / "model.safetensors")
    table = state["transformer.wte.weight"]
    save_file(state | {"transformer.wte.weight": torch.cat((table, table[:40]))}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | {"vocab_size": 297}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UserError, match="no usable tokenizer") as caught:
        open_model(folder)
    assert "it has 257 ids, the model 297" in caught.value.why


@pytest.mark.parametrize("merges", [[1, 2], ["\ud800 a"], [["a", 1]], [["\udfff", "a"]], [None], [[]], {}, "a b"])
def test_merges_of_other_types_are_refused(merges: object, sound: Path, tmp_path: Path) -> None:
    """D6."""
    folder = copy(sound, "gpt2", tmp_path)
    content = {"model": {"type": "BPE", "vocab": {}, "merges": merges}, "pre_tokenizer": {"type": "ByteLevel"}}
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        open_model(folder)
    assert caught.value.code == errors.DATA


@pytest.mark.parametrize("size", [30, 5000])
def test_merges_that_double_are_refused(size: int, sound: Path, tmp_path: Path) -> None:
    """Row H6: thirty lines would make a token of a gigabyte."""
    folder = copy(sound, "gpt2", tmp_path)
    lines = [f"{'a' * 2**i} {'a' * 2**i}" for i in range(min(size, 20))]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        open_model(folder)
    assert "at most 4,096 bytes" in caught.value.why
    (folder / "merges.txt").write_bytes(b"a b\n" * (2 << 20))
    with pytest.raises(UserError, match=r"merges\.txt") as caught:
        open_model(folder)
    assert "bytes" in caught.value.why


def test_names_of_models_that_cannot_be_paths() -> None:
    """D6."""
    for name in ("a" * 5000, "a\0b", "\udc80", "~nosuchuser/x", "/dev/zero"):
        for download in (False, True):
            with pytest.raises(UserError):
                open_model(name, download=download)


def test_what_a_folder_says_of_its_ideas_is_read_with_care(sound: Path, tmp_path: Path) -> None:
    folder = copy(sound, "run", tmp_path)
    os.mkfifo(folder / "run.json")
    open_model(folder)
