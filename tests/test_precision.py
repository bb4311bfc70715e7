"""Device, dtypes and threads: every "auto" decided once, and what cannot be had refused before it is allocated."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from helpers import TINY, small_run

from hectogpt import errors, hardware
from hectogpt.errors import UserError
from hectogpt.model.cpu_kernels import float32_by_onednn
from hectogpt.train import precision


def test_absurd_sizes_are_refused_before_allocation() -> None:
    with pytest.raises(UserError, match="does not fit") as caught:
        precision.check_memory(replace(TINY, d_model=2 * 10**6), torch.device("cpu"))
    assert caught.value.code == errors.MEMORY
    with pytest.raises(UserError, match="does not fit"):
        precision.choose(small_run(model=replace(TINY, n_layers=10**12)))
    precision.check_memory(TINY, torch.device("cpu"))


def test_auto_is_decided_and_what_is_asked_for_is_given() -> None:
    machine = precision.choose(small_run(dtype="auto", head_dtype="auto"))
    assert machine.dtype == torch.float32  # so narrow a model gains nothing from bf16
    assert machine.head_dtype in (torch.float32, torch.bfloat16)
    assert (machine.device.type, machine.threads) == ("cpu", torch.get_num_threads()) == ("cpu", 1)
    assert precision.choose(small_run(dtype="bfloat16")).dtype == torch.bfloat16
    exact = precision.choose(small_run(dtype="float64", head_dtype="auto"))
    assert (exact.dtype, exact.head_dtype) == (torch.float64, torch.float64)


def test_no_threads_named_means_one_on_each_physical_core() -> None:
    try:
        machine = precision.choose(small_run(threads=0))
        assert machine.threads == torch.get_num_threads() == hardware.physical_cores()
    finally:
        torch.set_num_threads(1)


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match="device 'tpu' is not available") as caught:
        precision.choose(small_run(device="tpu"))
    assert caught.value.fix == "set device to auto"
    assert "cpu" in caught.value.why


@pytest.mark.gpu
def test_auto_takes_the_gpu() -> None:
    machine = precision.choose(small_run(device="auto"))
    assert machine.device.type == "cuda"
    assert machine.describe()["device"] == torch.cuda.get_device_name()


def test_the_choices_in_words_are_plain_values() -> None:
    words = precision.choose(small_run(head_dtype="bfloat16")).describe()
    assert json.loads(json.dumps(words)) == words
    assert (words["kind"], words["dtype"], words["head_dtype"]) == ("cpu", "float32", "bfloat16")
    assert words["device"] == hardware.cpu_name()
    assert words["torch"] == torch.__version__


def test_autocast_is_for_bf16_alone() -> None:
    for dtype in ("float32", "bfloat16", "float64"):
        with precision.choose(small_run(dtype=dtype)).autocast():
            assert torch.is_autocast_enabled("cpu") == (dtype == "bfloat16")


def test_timing_of_products_leaves_no_switch_behind() -> None:
    before = torch.backends.mkldnn.matmul.fp32_precision
    assert precision.faster_matmul_dtype(8, 64) in (torch.float32, torch.bfloat16)
    assert torch.backends.mkldnn.matmul.fp32_precision == before
    with pytest.raises(RuntimeError), float32_by_onednn(torch.float32):
        raise RuntimeError
    assert torch.backends.mkldnn.matmul.fp32_precision == before
