"""`hectogpt export`: transformers computes our numbers and our texts, an import gives the same model, errors leave
nothing. GGUF: transformers' reader gives our logits, llama.cpp our texts."""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from command import Here, assert_good_error
from helpers import small_run
from model_folders import VOCAB, contents, difference, export_kind, open_theirs, write_model
from model_kinds import GPT2, KINDS, random_ids

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.generation import Sampling, generate
from hectogpt.interop import modeling_hectogpt, open_model
from hectogpt.interop.export import Exported, export
from hectogpt.interop.gguf_file import tensors
from hectogpt.model import Init, ModelConfig
from hectogpt.model.lm_head import LMHeadConfig
from hectogpt.model.parts import LayerNorm
from hectogpt.serialization import Value, dump

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5}


def check_logits_and_texts(folder: Path, config: ModelConfig, dtype: torch.dtype = torch.float64) -> Exported:
    """Logits with and without a cache, and greedy texts that run past the context."""
    model = write_model(folder / "run", config, dtype)
    done = export(folder / "run", folder / "out")
    theirs, length = open_theirs(done.folder), model.config.context_length
    ids = random_ids(3, length, VOCAB)
    with torch.no_grad():
        for use_cache in (True, False):
            assert difference(model(ids), theirs(ids, use_cache=use_cache).logits) <= TOLERANCE[dtype]
    assert theirs.dtype == dtype
    half = ids[:, : max(1, length // 2)]
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "attention_mask": torch.ones_like(half)}
    new = length - half.shape[1] if done.kind == "GPT2LMHeadModel" else length + 4  # a GPT2LMHeadModel ends there
    if new:
        assert torch.equal(theirs.generate(half, max_new_tokens=new, **options), model.generate(half, new))
    return done


@pytest.mark.parametrize("tied", [pytest.param(True, marks=pytest.mark.thorough), False])
def test_a_gpt2_is_a_gpt2_for_transformers(tmp_path: Path, tied: bool) -> None:
    own = replace(GPT2, lm_head=LMHeadConfig(tied=tied), norm=LayerNorm(eps=1e-3))  # what its config.json can say
    done = check_logits_and_texts(tmp_path, own)
    assert (done.kind, done.differences) == ("GPT2LMHeadModel", {})
    names = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
    assert set(done.files) == {"README.md", "model.safetensors", *names}
    again = export(done.folder, tmp_path / "again")
    assert contents(again.folder) == contents(done.folder)
    (done.folder / "README.md").write_text("x" * (2 << 20), encoding="utf-8")  # too long to be copied
    again = export(done.folder, tmp_path / "a third")
    assert (again.folder / "README.md").read_text(encoding="utf-8").startswith("---")


def test_any_other_model_brings_its_code(tmp_path: Path) -> None:
    check_logits_and_texts(tmp_path, KINDS["everything else"])
    code = (tmp_path / "out" / "modeling_hectogpt.py").read_text(encoding="utf-8")
    assert not re.search("(import|from) hectogpt", code)
    again = export(tmp_path / "out", tmp_path / "again")
    assert contents(again.folder) == contents(tmp_path / "out")
    ours, back = open_model(tmp_path / "run")[0], open_model(tmp_path / "out")[0]
    assert ours.config == back.config
    assert all(torch.equal(back.state_dict()[name], tensor) for name, tensor in ours.state_dict().items())


def test_the_modelling_file_has_every_part_of_the_package() -> None:
    """What a new field of an old one computes is compared at every export."""
    kinds: list[type[Value]] = [Value]
    for kind in kinds:
        kinds += kind.__subclasses__()
    ours = {kind for kind in kinds if kind.__module__.startswith("hectogpt.model") and not inspect.isabstract(kind)}
    assert len(ours) >= 14
    assert {kind.__name__ for kind in ours - {Init}} <= set(modeling_hectogpt.PARTS)


def test_an_export_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is opened again before it has its name: what computes otherwise is not exported."""
    write_model(tmp_path / "run", KINDS["pointer"])
    with monkeypatch.context() as patch:
        patch.setitem(modeling_hectogpt.PARTS, "GELU", torch.nn.ReLU)
        with pytest.raises(UserError, match="does not compute the same"):
            export(tmp_path / "run", tmp_path / "out")
    monkeypatch.setattr("hectogpt.interop.export.save_file", lambda *_, **__: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(UserError, match="cannot write"):
        export(tmp_path / "run", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_prompts_of_unequal_length_in_one_batch(tmp_path: Path) -> None:
    """Padded on the left, past the context, with a copy of each text: as our own decoder continues each alone."""
    model, done = export_kind(tmp_path, "looks back")
    prompts = [row[:n].tolist() for row, n in zip(random_ids(3, 12, VOCAB), (2, 7, 12), strict=True)]
    ids = torch.tensor([[0] * (12 - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (12 - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "max_new_tokens": 9}
    texts = open_theirs(done.folder).generate(ids, attention_mask=mask, **options)[:, 12:]
    alone = [[token.id for token in generate(model, prompt, Sampling(max_new_tokens=9))] for prompt in prompts]
    assert texts.tolist() == alone


@pytest.mark.thorough
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "everything else" and "alibi" not in kind])
def test_every_kind_of_model(tmp_path: Path, kind: str) -> None:
    check_logits_and_texts(tmp_path, KINDS[kind], torch.float32 if kind == "everything" else torch.float64)


@pytest.mark.thorough
def test_what_else_transformers_does_with_a_model(tmp_path: Path) -> None:
    """Beams, half precision, right padding, a training step, and saving it again, which we read."""
    model, done = export_kind(tmp_path, "everything else", torch.float32)
    theirs, ids = open_theirs(done.folder), random_ids(2, 10, VOCAB)
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "max_new_tokens": 5}
    cached, anew = (theirs.generate(ids[:, :4], num_beams=3, use_cache=use, **options) for use in (True, False))
    assert torch.equal(cached, anew)
    with torch.no_grad():
        half = open_theirs(done.folder, dtype=torch.bfloat16)
        assert difference(model(ids), half(ids).logits.float()) < 0.1
        mask = torch.ones_like(ids)
        mask[1, 6:] = 0
        padded = theirs(ids, attention_mask=mask).logits
        assert difference(padded[1, :6], theirs(ids[1:, :6]).logits[0]) < 1e-5
    theirs.train()
    loss = theirs(ids, labels=ids).loss
    assert abs(loss.item() - model.get_loss_on_batch(ids).item()) < 1e-4
    loss.backward()
    assert all(p.grad is not None for p in theirs.parameters())
    theirs.save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "tokenizer.json").write_bytes((done.folder / "tokenizer.json").read_bytes())
    back = open_model(tmp_path / "saved")[0]
    assert torch.equal(back(ids), model(ids))


def test_the_card_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    write_model(tmp_path / "run", KINDS["pointer"])
    done = export(tmp_path / "run", tmp_path / "an_out")
    code = (done.folder / "README.md").read_text(encoding="utf-8").split("```")[1].removeprefix("python\n")
    code = code.replace("Once upon a time", "hello").replace("max_new_tokens=40", "max_new_tokens=3")
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert capsys.readouterr().out.startswith("hello")


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_says_what_it_did_and_why(tmp_path: Path, here: Here) -> None:
    write_model(tmp_path / "run", KINDS["pointer"])
    done = here.ok("export", "run", "out")
    assert "HectoGPTForCausalLM" in done.stdout
    assert all(field in done.stdout for field in ("positions", "NoPositions()", "inputs", "pointer"))
    assert "trust_remote_code" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    refused = here("export", "run", "out")
    assert_good_error(refused, errors.USAGE, "not an empty folder", "--overwrite")
    (tmp_path / "out" / "config.json").write_text("old", encoding="utf-8")
    done = json.loads(here("export", "run", "out", "--overwrite", "--json").stdout)
    assert (done["kind"], "pointer" in done["differences"]) == ("HectoGPTForCausalLM", True)
    assert (tmp_path / "out" / "config.json").read_text(encoding="utf-8") != "old"
    (tmp_path / "out" / "mine.txt").touch()
    for words, *said in (
        (["run", "out", "--overwrite"], "mine.txt"),
        (["run", "run", "--overwrite"], "merges.txt"),  # it has merges.txt, which no export writes
    ):
        assert_good_error(here("export", *words), errors.USAGE, *said)
    assert_good_error(here("export", "nowhere/at/all", "other"), errors.CHECKPOINT, "neither a folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]


def test_nothing_in_a_run_breaks_out_of_the_card(tmp_path: Path) -> None:
    write_model(tmp_path / "run", GPT2)
    run = dump(replace(small_run(), recipe="a|b\n# <script>", corpus="---\nx: `y`"))
    (tmp_path / "run" / "run.json").write_text(json.dumps({"run": run}), encoding="utf-8")
    (tmp_path / "run" / "summary.json").write_text(json.dumps({"dev_loss": 5.25, "ngrams": {"kn3": 5.0}}))
    export(tmp_path / "run", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert ("<script>" in card, card.splitlines().count("---")) == (False, 2)
    assert "| held-out loss | 5.2500 nats per token |" in card
    assert "| Kneser-Ney trigram, same text | 5.0000 nats per token |" in card


# --- GGUF -------------------------------------------------------------------------------------------------------------

SMALL = replace(GPT2, d_model=32, n_heads=2, context_length=32)


@pytest.mark.parametrize("tied", [True, False])
def test_the_file_holds_the_weights_and_the_vocabulary(tmp_path: Path, tied: bool) -> None:
    gguf = pytest.importorskip("gguf")
    model = write_model(tmp_path / "run", replace(SMALL, lm_head=LMHeadConfig(tied=tied)), torch.float32)
    done = export(tmp_path / "run", tmp_path / "out", "gguf")
    assert (done.kind, done.files) == ("gguf", ("README.md", "model.gguf"))
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert ("llama-cli -m 'out'/model.gguf" in card, "transformers" in card) == (True, False)
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
    pytest.importorskip("gguf")
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
    pytest.importorskip("gguf")
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
