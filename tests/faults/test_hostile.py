"""Files from strangers: no code runs, nothing but a UserError comes of them, and they cost little memory.

tests/faults/hostile.py makes the files; `python tests/faults hostile` tries more of them, and measures the time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import hostile
import pytest
import torch
from promises import Line
from safetensors.torch import load_file, save_file

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.interop import open_model
from hectogpt.model.weights import check_header


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run and a GPT-2, to be copied and spoilt."""
    folder = tmp_path_factory.mktemp("sound")
    hostile.write_run(folder / "run")
    hostile.write_gpt2(folder / "gpt2")
    return folder


def copy(sound: Path, kind: str, tmp_path: Path) -> Path:
    return shutil.copytree(sound / kind, tmp_path / kind)


CHECKS: dict[str, tuple[Callable[[Path], Line], int]] = {
    "pickles": (hostile.check_pickles, 200),
    "headers": (hostile.check_headers, 32),
    "changed headers": (lambda folder: hostile.check_mutations(folder, 200), 200),
    "configs": (hostile.check_configs, 75),
    "corpora": (hostile.check_corpora, 60),
}


@pytest.mark.parametrize("name", CHECKS)
def test_strangers_files_are_refused_or_read_as_they_are(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Types are checked at run time here, and the machine is shared: `make proof` measures the time."""
    monkeypatch.setattr(hostile, "SECONDS", 60.0)
    check, tries = CHECKS[name]
    line = check(tmp_path / "a")
    assert (line.failures, line.tries >= tries) == (0, True), line.detail


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


# --- dtypes -----------------------------------------------------------------------------------------------------------


def convert(weights: Path, dtype: str) -> None:
    """Give all weights of a file this dtype."""
    save_file({name: tensor.to(getattr(torch, dtype)) for name, tensor in load_file(weights).items()}, weights)


@pytest.mark.parametrize("dtype", ["float16", "bool", "complex64"])
def test_a_run_s_weights_of_another_dtype_are_refused(dtype: str, sound: Path, tmp_path: Path) -> None:
    """No number is converted in silence. Float64, which a run in float64 saves, is read as it is."""
    weights = copy(sound, "run", tmp_path) / "model.safetensors"
    convert(weights, "float64")
    state = load_file(weights)
    assert open_model(weights.parent)[0].embeddings.weight.dtype == torch.float64
    save_file(state | {"lm_head.weight": state["lm_head.weight"].float()}, weights)
    with pytest.raises(UserError, match=r"has the dtype float(32|64), expected float"):
        open_model(weights.parent)
    convert(weights, dtype)
    with pytest.raises(UserError, match=f"has the dtype {dtype}, expected float32") as caught:
        open_model(weights.parent)
    assert caught.value.code == errors.CHECKPOINT


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8", "float8_e4m3fn"])
def test_a_gpt2_s_half_precision_is_widened_with_a_note(dtype: str, sound: Path, tmp_path: Path) -> None:
    """Whole, boolean, complex and float8 numbers are no weights."""
    weights = copy(sound, "gpt2", tmp_path) / "model.safetensors"
    convert(weights, dtype)
    notes: list[str] = []
    if dtype.endswith("float16"):
        model, _ = open_model(weights.parent, note=notes.append)
        assert model.embeddings.weight.dtype == torch.float32
        assert notes == [f"the weights in {weights.parent} are {dtype}; they were converted to float32"]
        return
    with pytest.raises(UserError, match="no weights that can be used") as caught:
        open_model(weights.parent, note=notes.append)
    assert (caught.value.code, notes) == (errors.CHECKPOINT, [])


# --- tokenizers of Hugging Face folders -------------------------------------------------------------------------------


def test_a_tokenizer_of_another_size_than_the_model_is_refused(sound: Path, tmp_path: Path) -> None:
    """A model with more ids would write some that no text belongs to, in the middle of a text."""
    folder = copy(sound, "gpt2", tmp_path)
    state = load_file(folder / "model.safetensors")
    table = state["transformer.wte.weight"]
    save_file(state | {"transformer.wte.weight": torch.cat((table, table[:40]))}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | {"vocab_size": 297}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UserError, match="no usable tokenizer") as caught:
        open_model(folder)
    assert "it has 257 ids, the model 297" in caught.value.why


@pytest.mark.parametrize("merges", [[1, 2], ["\ud800 a"], [["a", 1]], {}])
def test_merges_of_other_types_are_refused(merges: object, sound: Path, tmp_path: Path) -> None:
    folder = copy(sound, "gpt2", tmp_path)
    content = {"model": {"type": "BPE", "vocab": {}, "merges": merges}, "pre_tokenizer": {"type": "ByteLevel"}}
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        open_model(folder)
    assert caught.value.code == errors.DATA


@pytest.mark.parametrize("size", [30, 5000])
def test_merges_that_double_are_refused(size: int, sound: Path, tmp_path: Path) -> None:
    """Thirty lines would make a token of a gigabyte."""
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
