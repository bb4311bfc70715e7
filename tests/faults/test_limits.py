"""Sizes and numbers beyond all reason end in a sentence, before anything is built or allocated for them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command import Here
from helpers import TINY, peaked, small_run

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.generation import Sampling, generate
from hectogpt.generation.text import check_memory
from hectogpt.model import Init, ModelConfig, Transformer
from hectogpt.model.inputs import EmbeddingNorm, NgramHash
from hectogpt.model.parts import Rotary, SinusoidalPositions
from hectogpt.model.weights import save_model

SMALL = ModelConfig(8, 2, 1, 16, 50257)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    with torch.random.fork_rng():
        save_model(Transformer(SMALL), folder)
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    return Here(tmp_path, monkeypatch, capsys)


# --- models and runs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("d_model", 10**9),
        ("n_layers", 501),
        ("context_length", 2**62),
        ("vocab_size", 10**12),
        ("inputs", (EmbeddingNorm(),) * 101),
    ],
)
def test_a_model_beyond_all_models_is_refused_by_its_config(field: str, value: object) -> None:
    """nothing is built for it, neither when it is trained nor when a file asks for it."""
    with pytest.raises(UserError, match=rf"(?s)model\.{field}.*at most") as caught:
        replace(TINY, **{field: value})  # type: ignore[arg-type]
    assert len(str(caught.value)) < 200


def test_a_table_of_sines_that_cannot_fit_is_not_computed() -> None:
    """no weight bounds it, so that it has to be bounded itself."""
    with pytest.raises(UserError, match="sinusoidal positions") as caught:
        SinusoidalPositions().build(10**6, 10**6)
    assert caught.value.code == errors.MEMORY


@pytest.mark.parametrize(
    ("build", "field"),
    [
        (lambda: Rotary(fraction=math.nan), "Rotary.fraction"),
        (lambda: NgramHash(rows=2**62), "NgramHash."),
        (lambda: Init(head=math.inf), "init.head = "),
    ],
)
def test_a_part_refuses_numbers_that_it_cannot_have(build: Callable[[], object], field: str) -> None:
    with pytest.raises(UserError) as caught:
        build()
    assert field in str(caught.value)


@pytest.mark.parametrize("changes", [{"seed": 2**63}, {"threads": 4096}])
def test_seeds_and_threads_have_bounds(changes: dict[str, int]) -> None:
    (field,) = changes
    with pytest.raises(UserError, match=f"{field} = "):
        small_run(**changes)
    assert small_run(seed=2**63 - 1).seed == 2**63 - 1


# --- generation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("copies", [10**9])
def test_more_texts_than_memory_are_refused_at_once(copies: int) -> None:
    sampling = Sampling(num_return_sequences=copies, do_sample=True)
    with pytest.raises(UserError, match=f"{copies:,} texts of up to 20 new tokens do not fit") as caught:
        generate(Transformer(SMALL), [[1, 2]], sampling)
    assert caught.value.code == errors.MEMORY
    number = caught.value.fix.removeprefix("set num_return_sequences to ")
    check_memory(Transformer(SMALL), [2], replace(sampling, num_return_sequences=int(number)))


def test_what_is_kept_of_each_token_counts() -> None:
    """texts are kept until they are printed."""
    model, sampling = Transformer(SMALL), Sampling(max_new_tokens=10**12)
    check_memory(model, [1], sampling)  # the cache ends at the context
    with pytest.raises(UserError, match="a text of up to 1,000,000,000,000 new tokens does not fit") as caught:
        check_memory(model, [1], sampling, per_token=200)
    assert (caught.value.code, caught.value.fix) == (errors.MEMORY, "set max_new_tokens to a smaller number")


@pytest.mark.parametrize("seed", [2**63, 2**64, 2**70, -(2**63) - 1, [0, 2**64]])
def test_a_seed_that_no_generator_takes_is_refused(seed: int | list[int]) -> None:
    """also if only the last text's seed is too large."""
    sampling = Sampling(num_return_sequences=2, do_sample=True)
    with pytest.raises(UserError, match=r"it must lie between -2\^63"):
        generate(peaked(Transformer(SMALL)), [[1]], sampling, seed=seed)
    with pytest.raises(UserError, match=r"it must lie between -2\^63"):
        generate(peaked(Transformer(SMALL)), [[1]], sampling, seed=2**63 - 1)
    assert list(generate(peaked(Transformer(SMALL)), [[1]], Sampling(max_new_tokens=1), seed=2**63 - 1))


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--num-return-sequences", "1000000000", "--temperature", "1"], errors.MEMORY, "--num-return-sequences"),
        (["--max-new-tokens", "10" + "0" * 12], errors.MEMORY, "--max-new-tokens with a smaller number"),
        (["--seed", str(2**64)], errors.USAGE, "seed = "),
        (["--threads", "4096"], errors.USAGE, "threads = 4096"),
        (["--prompts", "/dev/zero"], errors.DATA, "too long"),
        (["--prompts", "a" * 5000], errors.DATA, "File name too long"),
        (["--prompts", "a\0b"], errors.DATA, "NUL"),
    ],
)
def test_the_command_says_what_is_too_much(options: list[str], code: int, said: str, here: Here, run: Path) -> None:
    done = here("generate", run, "hello", "--quiet", *options)
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr


def test_prompts_may_come_through_a_pipe(here: Here, run: Path) -> None:
    end, other = os.pipe()
    os.write(other, b"first\nsecond\n")
    os.close(other)
    done = here("generate", run, "--prompts", f"/dev/fd/{end}", "--quiet", "--max-new-tokens", "1")
    os.close(end)
    assert done.returncode == 0
    assert "--- 2 of 2 ---\nsecond" in done.stdout
