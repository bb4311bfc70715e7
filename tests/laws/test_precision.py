"""Device, dtypes and threads: every "auto" decided once, and what cannot be had refused before it is allocated."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import TINY, small_run, tiny_corpus
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.kernels import dtypes
from hectogpt.lab.recipes import recipe
from hectogpt.model import Transformer
from hectogpt.training import precision
from hectogpt.training.run import Data
from hectogpt.training.session import Session


def test_absurd_sizes_are_refused_before_allocation() -> None:
    with pytest.raises(UserError, match="does not fit") as caught:
        precision.check_memory(replace(TINY, d_model=10**5), torch.device("cpu"))
    assert caught.value.code == errors.MEMORY
    precision.check_memory(TINY, torch.device("cpu"))


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (Data(batch_size=2**40, seq_len=32), "batch_size"),
        (Data(batch_size=10**7, seq_len=32), "(micro_batch|batch_size)"),  # 389 GB, and 3 GB of ids
    ],
)
def test_a_batch_that_cannot_fit_is_refused_before_anything_is_allocated(data: Data, field: str) -> None:
    """D14."""
    with pytest.raises(UserError, match="at a time do not fit") as caught:
        precision.choose(small_run(data=data))
    assert caught.value.code == errors.MEMORY
    assert re.fullmatch(rf"set data\.{field} to \d+", caught.value.fix)
    precision.check_memory(TINY, torch.device("cpu"), Data(batch_size=64, seq_len=32))


def test_the_estimate_of_memory_is_a_lower_bound() -> None:
    """What the backward pass of a step keeps, counted by the bytes that autograd saves."""
    model = Transformer(TINY)
    saved: dict[int, int] = {}
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.randint(0, 50257, (4, 32))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.hidden(ids)
    assert sum(saved.values()) > 4 * precision._bytes_per_row(TINY, 32, "float32")


def test_auto_is_decided_and_what_is_asked_for_is_given() -> None:
    machine = precision.choose(small_run(dtype="auto", head_dtype="auto"))
    assert machine.dtype == torch.float32  # so narrow a model gains nothing from bf16
    assert machine.head_dtype in (torch.float32, torch.bfloat16)
    assert (machine.device.type, machine.threads) == ("cpu", torch.get_num_threads()) == ("cpu", 1)
    assert precision.choose(small_run(dtype="bfloat16")).dtype == torch.bfloat16
    exact = precision.choose(small_run(dtype="float64", head_dtype="auto"))
    assert (exact.dtype, exact.head_dtype) == (torch.float64, torch.float64)


@pytest.mark.gpu
def test_auto_takes_the_gpu() -> None:
    machine = precision.choose(small_run(device="auto"))
    assert machine.device.type == "cuda"
    assert machine.describe()["device"] == torch.cuda.get_device_name()


# --- Apple's GPUs, which have no float64 ------------------------------------------------------------------------------


class RefuseFloat64(TorchDispatchMode):
    """Raises where an operation gives float64, as Apple's GPUs do."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float64:
                raise TypeError(f"no float64 here: {func}")
        return result


@pytest.mark.parametrize("name", ["baseline", "minute"])
def test_a_step_needs_no_float64_where_there_is_none(name: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(dtypes, "WITHOUT_FLOAT64", frozenset({"cpu"}))
    whole = recipe(name)
    model = replace(whole.model, d_model=32, n_heads=2, n_layers=2, context_length=32)
    run = replace(whole, model=model, data=Data(4, 32), steps=2, threads=1, dtype="float32", head_dtype="float32")
    session = Session.open(run, tiny_corpus(tmp_path))
    with RefuseFloat64():
        losses = [step.loss for step in session.steps()]
    assert all(math.isfinite(loss) for loss in losses)
    with pytest.raises(TypeError), RefuseFloat64():
        torch.ones(1).double()


def test_a_device_is_compared_with_the_cpu() -> None:
    assert precision.difference_from_cpu(torch.device("cpu")) == 0
    assert precision.difference_from_cpu(torch.device("meta")) == math.inf  # which cannot give a number
