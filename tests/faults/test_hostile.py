"""Weights and records of others, and numbers beyond all reason. `python tests/faults hostile` tries crafted files. And
the page of the proof."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import hostile
import pytest
import torch
from command import Here, assert_good_error
from helpers import ROOT
from safetensors.torch import load_file, save_file

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.generation import Sampling, generate
from hectogpt.generation.decode import check_memory
from hectogpt.interop import open_model
from hectogpt.interop.export import export
from hectogpt.model import Transformer
from hectogpt.model.weights import check_header

# --- the header's own check -------------------------------------------------------------------------------------------


def test_a_header_for_more_tensors_than_expected_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({f"t{i}": torch.zeros(i, 3) for i in range(9)}, path)
    assert sorted(check_header(path)) == [f"t{i}" for i in range(9)]
    with pytest.raises(UserError, match="its header"):
        check_header(path, most_tensors=2)


# --- models of others -------------------------------------------------------------------------------------------------


def test_weights_of_another_dtype(tmp_path: Path) -> None:
    """No number is converted in silence: a run's weights are refused, but for float64, which a run in float64 saves; a
    GPT-2's half precision is widened with a note. Whole, boolean, complex and float8 numbers are no weights."""

    def convert(weights: Path, dtype: str) -> dict[str, torch.Tensor]:
        state = {name: tensor.to(getattr(torch, dtype)) for name, tensor in load_file(weights).items()}
        save_file(state, weights)
        return state

    weights, theirs = (tmp_path / name / "model.safetensors" for name in ("run", "gpt2"))
    export(hostile.write_run(weights.parent), theirs.parent)
    state = convert(weights, "float64")
    assert open_model(weights.parent)[0].embeddings.weight.dtype == torch.float64
    save_file(state | {"lm_head.weight": state["lm_head.weight"].float()}, weights)
    with pytest.raises(UserError, match=r"has the dtype float(32|64), expected float"):
        open_model(weights.parent)
    convert(weights, "bfloat16")
    with pytest.raises(UserError, match="has the dtype bfloat16, expected float32"):
        open_model(weights.parent)
    notes: list[str] = []
    convert(theirs, "bfloat16")
    model, _ = open_model(theirs.parent, note=notes.append)
    assert model.embeddings.weight.dtype == torch.float32
    assert notes == [f"the weights in {theirs.parent} are bfloat16; they were converted to float32"]
    convert(theirs, "float8_e4m3fn")
    with pytest.raises(UserError, match="cannot be used"):
        open_model(theirs.parent, note=pytest.fail)


# --- sizes beyond all reason ------------------------------------------------------------------------------------------


def test_more_texts_than_memory_are_refused_at_once() -> None:
    """What is kept of each text until it is printed counts too."""
    copies, model = 10**9, Transformer(hostile.SIZES)
    sampling = Sampling(num_return_sequences=copies, do_sample=True)
    with pytest.raises(UserError, match=f"{copies:,} texts of up to 20 new tokens do not fit") as caught:
        generate(model, [1, 2], sampling)
    number = caught.value.fix.removeprefix("set num_return_sequences to ")
    check_memory(model, 2, replace(sampling, num_return_sequences=int(number)))
    long = Sampling(max_new_tokens=10**12)
    check_memory(model, 1, long)  # the cache ends at the context
    with pytest.raises(UserError, match="a text of up to 1,000,000,000,000 new tokens does not fit"):
        check_memory(model, 1, long, per_token=200)


def test_the_command_says_what_is_too_much(here: Here, tmp_path: Path) -> None:
    run = hostile.write_run(tmp_path / "run")
    done = here("generate", run, "hello", "--quiet", "--max-new-tokens", "10" + "0" * 12)
    assert_good_error(done, errors.MEMORY, "--max-new-tokens a smaller number")


# --- the page of `make proof` -----------------------------------------------------------------------------------------


def test_every_proof_is_run_and_named_on_the_page() -> None:
    folder = ROOT / "tests" / "faults"
    program, page = ((folder / "__main__.py").read_text(), (ROOT / "docs" / "reliability.md").read_text())
    proofs = [path.stem for path in folder.glob("*.py") if "\ndef check(quick" in path.read_text(encoding="utf-8")]
    assert len(proofs) == 7
    assert [name for name in proofs if f"tests/faults/{name}.py" not in page or f'"{name}"' not in program] == []
