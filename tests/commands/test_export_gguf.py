"""GGUF: transformers' reader gives our logits, llama.cpp our texts."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from exported_models import VOCAB, difference, write_model
from model_kinds import GPT2, random_ids

from hectogpt.interop import open_model
from hectogpt.interop.export import export
from hectogpt.interop.gguf_file import tensors
from hectogpt.model.lm_head import LMHeadConfig

gguf = pytest.importorskip("gguf")
SMALL = replace(GPT2, d_model=32, n_heads=2, context_length=32)


@pytest.mark.parametrize("tied", [True, False])
def test_the_file_holds_the_weights_and_the_vocabulary(tmp_path: Path, tied: bool) -> None:
    model = write_model(tmp_path / "run", replace(SMALL, lm_head=LMHeadConfig(tied=tied)), torch.float32)
    done = export(tmp_path / "run", tmp_path / "out", "gguf")
    assert (done.kind, done.files) == ("gguf", ("README.md", "model.gguf"))
    reader = gguf.GGUFReader(tmp_path / "out" / "model.gguf")
    expected = dict(tensors(model))
    written = {tensor.name: tensor for tensor in reader.tensors}
    assert written.keys() == expected.keys()
    assert ("output.weight" in written) != tied
    for name, tensor in written.items():
        assert (tensor.data == expected[name]).all()
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["gpt2.context_length"] == 32
    assert fields["gpt2.attention.head_count"] == 2
    assert len(fields["tokenizer.ggml.tokens"]) == VOCAB
    assert fields["tokenizer.ggml.merges"] == ["h e", "l l", "he ll", "Ġ w", "hell o"]


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")
def test_transformers_reads_it(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    from transformers import AutoModelForCausalLM

    model = write_model(tmp_path / "run", SMALL, torch.float32)
    export(tmp_path / "run", tmp_path / "out", "gguf")
    # Its reader leaves n_positions at 1024 unless it is told.
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", gguf_file="model.gguf", n_positions=32).eval()
    ids = random_ids(2, 32, VOCAB)
    with torch.no_grad():
        assert difference(model(ids), theirs(ids).logits) <= 2e-5


@pytest.mark.thorough
def test_llama_cpp_continues_as_we_do(tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    config = replace(SMALL, d_model=64, n_heads=4, context_length=128, lm_head=LMHeadConfig(tied=True))
    model = write_model(tmp_path / "run", config, torch.float32)
    export(tmp_path / "run", tmp_path / "out", "gguf")
    theirs = llama_cpp.Llama(str(tmp_path / "out" / "model.gguf"), n_ctx=128, n_threads=1, verbose=False)
    prompt = random_ids(1, 8, VOCAB - 1)
    expected = model.generate(prompt, 40)[0, 8:].tolist()
    written = islice(theirs.generate(prompt[0].tolist(), top_k=1, temp=0.0, repeat_penalty=1.0), 40)
    assert list(written) == expected
    text = "hello world, he'll  say\n\nwell"
    tokenizer = open_model(tmp_path / "run")[1]
    assert theirs.tokenize(text.encode(), add_bos=False) == tokenizer.encode(text).tolist()
