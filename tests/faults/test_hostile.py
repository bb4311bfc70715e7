"""Files from strangers and numbers beyond all reason: no code runs, nothing but a UserError comes of them, at once.

tests/faults/hostile.py and records.py make the files; `python tests/faults hostile records` tries more of them, and
measures the time. And the page of the proof."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import hostile
import pytest
import records
import torch
from command import Here
from forks import Line
from helpers import ROOT, peaked, small_run
from records import ESCAPE, MARKUP, SCRIPT
from safetensors.torch import load_file, save_file

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.generation import Sampling, generate
from hectogpt.generation.decode import check_memory
from hectogpt.interop import open_model
from hectogpt.interop.hf_model import read_tokenizer
from hectogpt.lab import recipes
from hectogpt.lab.record import Record, append_record, read_records
from hectogpt.model import Init, Transformer
from hectogpt.model.inputs import NgramHash
from hectogpt.model.parts import Rotary
from hectogpt.model.weights import check_header
from hectogpt.serialization import dump

SMALL = hostile.SIZES


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run and a GPT-2, to be copied and spoilt."""
    folder = tmp_path_factory.mktemp("sound")
    hostile.write_run(folder / "run")
    hostile.write_gpt2(folder / "gpt2")
    return folder


def copy(sound: Path, kind: str, tmp_path: Path) -> Path:
    return shutil.copytree(sound / kind, tmp_path / kind)


CHECKS: dict[str, tuple[Callable[[Path], list[Line]], int]] = {
    "pickles": (lambda folder: [hostile.check_pickles(folder)], 138),
    "headers": (lambda folder: hostile.check_headers(folder, 200), 232),
    "configs": (lambda folder: [hostile.check_configs(folder)], 55),
    "corpora": (lambda folder: [hostile.check_corpora(folder)], 39),
    "records": (lambda folder: records.check(quick=True), 60),
}


@pytest.mark.parametrize("name", CHECKS)
def test_strangers_files_are_refused_or_read_as_they_are(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Types are checked at run time here, and the machine is shared: `make proof` measures the time."""
    monkeypatch.setattr(hostile, "SECONDS", 60.0)
    check, tries = CHECKS[name]
    lines = check(tmp_path / "a")
    assert [line.detail for line in lines if line.failures] == []
    assert sum(line.tries for line in lines) >= tries


def test_the_proof_notices_what_it_looks_for() -> None:
    tally = hostile.Tally()
    tally.attempt("accepted", lambda: None, must_refuse=True)
    tally.attempt("a traceback", lambda: json.loads("{"))

    def be_greedy() -> None:
        assert bytearray(hostile.FLOOR + 3000)
        raise UserError("no")

    tally.attempt("greedy", be_greedy, 1000, must_refuse=True)
    assert [failure.partition(":")[0] for failure in tally.failures] == ["accepted", "a traceback", "greedy"]


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
    with pytest.raises(UserError, match="its header should have"):
        check_header(path, most_tensors=2)


# --- models of others -------------------------------------------------------------------------------------------------


def convert(weights: Path, dtype: str) -> None:
    """Give all weights of a file this dtype."""
    save_file({name: tensor.to(getattr(torch, dtype)) for name, tensor in load_file(weights).items()}, weights)


def test_weights_of_another_dtype(sound: Path, tmp_path: Path) -> None:
    """No number is converted in silence: a run's weights are refused, but for float64, which a run in float64 saves; a
    GPT-2's half precision is widened with a note. Whole, boolean, complex and float8 numbers are no weights."""
    weights = copy(sound, "run", tmp_path) / "model.safetensors"
    convert(weights, "float64")
    state = load_file(weights)
    assert open_model(weights.parent)[0].embeddings.weight.dtype == torch.float64
    save_file(state | {"lm_head.weight": state["lm_head.weight"].float()}, weights)
    with pytest.raises(UserError, match=r"has the dtype float(32|64), expected float"):
        open_model(weights.parent)
    convert(weights, "bfloat16")
    with pytest.raises(UserError, match="has the dtype bfloat16, expected float32"):
        open_model(weights.parent)
    weights = copy(sound, "gpt2", tmp_path) / "model.safetensors"
    notes: list[str] = []
    convert(weights, "bfloat16")
    model, _ = open_model(weights.parent, note=notes.append)
    assert model.embeddings.weight.dtype == torch.float32
    assert notes == [f"the weights in {weights.parent} are bfloat16; they were converted to float32"]
    convert(weights, "float8_e4m3fn")
    with pytest.raises(UserError, match="no weights that can be used"):
        open_model(weights.parent, note=pytest.fail)


def test_a_tokenizer_that_does_not_fit_or_is_no_tokenizer(sound: Path, tmp_path: Path) -> None:
    """A model with more ids would write some that no text belongs to. Thirty merges that double would make a token of a
    gigabyte."""
    folder = copy(sound, "gpt2", tmp_path)
    (folder / "merges.txt").write_text("\n".join(f"{'a' * 2**i} {'a' * 2**i}" for i in range(20)), encoding="utf-8")
    with pytest.raises(UserError, match="at most 4,096 bytes"):
        open_model(folder)
    (folder / "merges.txt").write_bytes(b"a b\n" * (2 << 20))
    with pytest.raises(UserError, match=r"merges\.txt(.|\n)*bytes"):
        open_model(folder)
    shutil.copy(sound / "gpt2" / "merges.txt", folder)
    with pytest.raises(UserError, match=r"no usable tokenizer(.|\n)*it has 257 ids, the model 297"):
        read_tokenizer(folder, 297)


# --- sizes and numbers beyond all reason ------------------------------------------------------------------------------


def test_numbers_beyond_all_reason_are_refused() -> None:
    for build, field in (
        (lambda: Rotary(fraction=math.nan), "Rotary.fraction"),
        (lambda: NgramHash(rows=2**62), "NgramHash."),
        (lambda: Init(head=math.inf), "init.head = "),
        (lambda: small_run(seed=2**63), "seed = "),
        (lambda: small_run(threads=4096), "threads = "),
    ):
        with pytest.raises(UserError, match=re.escape(field)):
            build()
    assert small_run(seed=2**63 - 1).seed == 2**63 - 1


def test_more_texts_than_memory_are_refused_at_once() -> None:
    """What is kept of each text until it is printed counts too."""
    copies, model = 10**9, Transformer(SMALL)
    sampling = Sampling(num_return_sequences=copies, do_sample=True)
    with pytest.raises(UserError, match=f"{copies:,} texts of up to 20 new tokens do not fit") as caught:
        generate(model, [[1, 2]], sampling)
    number = caught.value.fix.removeprefix("set num_return_sequences to ")
    check_memory(model, [2], replace(sampling, num_return_sequences=int(number)))
    long = Sampling(max_new_tokens=10**12)
    check_memory(model, [1], long)  # the cache ends at the context
    with pytest.raises(UserError, match="a text of up to 1,000,000,000,000 new tokens does not fit"):
        check_memory(model, [1], long, per_token=200)


def test_a_seed_that_no_generator_takes_is_refused() -> None:
    """Also if only the last text's seed is too large."""
    model, sampling = peaked(Transformer(SMALL)), Sampling(num_return_sequences=2, do_sample=True)
    for seed in (2**63, 2**63 - 1):
        with pytest.raises(UserError, match=r"it must lie between -2\^63"):
            generate(model, [[1]], sampling, seed=seed)
    assert list(generate(model, [[1]], Sampling(max_new_tokens=1), seed=2**63 - 1))


def test_the_command_says_what_is_too_much(here: Here, sound: Path) -> None:
    done = here("generate", sound / "run", "hello", "--quiet", "--max-new-tokens", "10" + "0" * 12)
    assert done.returncode == errors.MEMORY
    assert "--max-new-tokens a smaller number" in done.stderr


# --- records ----------------------------------------------------------------------------------------------------------


def test_what_compare_writes_is_read(tmp_path: Path) -> None:
    """Names of files come into records; whatever they are, the next command can read them."""
    for number, name in enumerate((MARKUP, SCRIPT, ESCAPE, *records.TEXTS)):
        if not name.isspace() and name:
            run = dump(recipes.recipe("baseline")) | {"recipe": name}
            record = Record(name, "closed", name, number, run, dev_loss=3.0, overrides={"optim.eps": float("inf")})
            append_record(tmp_path / "r.jsonl", record)
    found = read_records(tmp_path / "r.jsonl")
    assert len(found) >= 14
    assert found[0].overrides == {"optim.eps": "inf"}
    assert found[0].key() == Record(**{**found[0].__dict__}).key()


# --- the page of `make proof` -----------------------------------------------------------------------------------------


def test_every_proof_is_run_and_named_on_the_page() -> None:
    folder = ROOT / "tests" / "faults"
    program, page = (
        path.read_text(encoding="utf-8") for path in (folder / "__main__.py", ROOT / "docs" / "reliability.md")
    )
    proofs = [path.stem for path in folder.glob("*.py") if "\ndef check(quick" in path.read_text(encoding="utf-8")]
    assert len(proofs) == 9
    assert [name for name in proofs if f"tests/faults/{name}.py" not in page or f'"{name}"' not in program] == []
