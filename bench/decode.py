"""Tokens per second of generation, side by side: ours, Hugging Face, CTranslate2, llama.cpp, the textbook's way.

GPT-2 small's shape with random weights, greedy. The prompt's pass is not counted in "decode"; "prefill" is the time
until the first token of a prompt. CTranslate2 uses oneDNN on processors that are not Intel's. CT2_USE_MKL=1, set before
the start, has it use MKL, which packs weights (on an AMD processor it took more than ten times as long).
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench import llama
from bench.peaks import peaks
from bench.race import Lap, Laps, Work, race, timed
from bench.record import Row
from hectogpt.data import load_tokenizer
from hectogpt.generation import Sampling, generate
from hectogpt.generation.decode import Decoder
from hectogpt.generation.quantize import WeightFormat, quantize
from hectogpt.interop import gguf_file, open_model
from hectogpt.model import Transformer

PACKAGES = ("transformers", "ctranslate2")
FORMATS: tuple[WeightFormat, ...] = ("float32", "bfloat16", "int8")
AGAINST = "hf float32"


class Setting(NamedTuple):
    """Sizes of the model, as transformers names them, and of the texts in tokens."""

    sizes: dict[str, Any]
    new: int = 24
    prompt: int = 16
    prefill: int = 512


SETTINGS = {"gpt2": Setting({}), "tiny": Setting({"n_layer": 2, "n_embd": 64, "n_head": 4}, 3, 4, 16)}


class Models(NamedTuple):
    """The same weights, as everybody reads them; the dicts are by format. llama: files for llama.cpp, if it is here."""

    ours: Transformer
    quantized: dict[str, Transformer]
    huggingface: dict[str, Any]
    ctranslate: dict[str, Any]
    llama: dict[str, Path]


def load(setting: Setting, folder: Path) -> Models:
    """Random weights with GPT-2's tokenizer, saved as transformers does, and read by everybody."""
    import ctranslate2
    from ctranslate2.converters import TransformersConverter
    from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(0)
    theirs = GPT2LMHeadModel(GPT2Config(**setting.sizes)).eval()
    theirs.save_pretrained(folder / "hf")
    tokenizer = load_tokenizer()
    (folder / "hf" / "merges.txt").write_bytes(tokenizer.merges)
    (folder / "hf" / "vocab.json").write_text(json.dumps(tokenizer.vocabulary()), encoding="utf-8")
    vocabulary = [str(folder / "hf" / name) for name in ("vocab.json", "merges.txt")]
    GPT2Tokenizer(*vocabulary).save_pretrained(folder / "hf")
    with contextlib.redirect_stderr(sys.stdout):
        TransformersConverter(str(folder / "hf")).convert(str(folder / "ct2"))
    threads = torch.get_num_threads()
    model, _ = open_model(folder / "hf")
    files = {form: folder / f"{form}.gguf" for form in llama.FORMATS} if llama.installed() else {}
    for form, path in files.items():
        gguf_file.write(model, tokenizer, path, form, form)
    if not files:
        print(llama.MISSING, flush=True)
    return Models(
        model,
        {form: quantize(model, form) for form in FORMATS},
        {
            "float32": theirs,
            "bfloat16": GPT2LMHeadModel.from_pretrained(folder / "hf", dtype=torch.bfloat16).eval(),
        },
        {
            form: ctranslate2.Generator(str(folder / "ct2"), compute_type=form, intra_threads=threads)
            for form in ("float32", "int8")
        },
        files,
    )


def decode_ours(model: Transformer, prompts: list[list[int]], new: int) -> Lap:
    """Steps of one token, after the prompt's pass."""

    def lap() -> float:
        decoder = Decoder(model, torch.tensor(prompts), new + 1)
        tokens = decoder.prefill().argmax(dim=-1)
        begun = time.perf_counter()
        for _ in range(new):
            tokens = decoder.decode(tokens).argmax(dim=-1)
        return time.perf_counter() - begun

    return lap


Continue = Callable[[int], object]  # continues its prompts by so many tokens, greedily


def continue_huggingface(model: Any, prompts: list[list[int]]) -> Continue:
    """`generate` with its cache."""
    ids = torch.tensor(prompts)
    fixed = {"attention_mask": torch.ones_like(ids), "do_sample": False, "pad_token_id": 50256}
    return lambda tokens: model.generate(ids, max_new_tokens=tokens, min_new_tokens=tokens, **fixed)


def continue_ctranslate(generator: Any, prompts: list[list[int]]) -> Continue:
    """`generate_batch`. It wants token ids as strings."""
    names = {i: token for token, i in load_tokenizer().vocabulary().items()}
    texts = [[names[i] for i in prompt] for prompt in prompts]
    fixed = {"sampling_topk": 1, "include_prompt_in_result": False, "max_batch_size": len(texts)}
    return lambda tokens: generator.generate_batch(texts, max_length=tokens, min_length=tokens, **fixed)


def others(models: Models, prompts: list[list[int]]) -> dict[str, Continue]:
    """The contenders that are called for a whole text."""
    found = {f"hf {form}": continue_huggingface(m, prompts) for form, m in models.huggingface.items()}
    return found | {f"ctranslate2 {form}": continue_ctranslate(m, prompts) for form, m in models.ctranslate.items()}


def after_the_first(call: Continue, new: int) -> Lap:
    """The time of more tokens, less the time of a call for one."""
    one, many = timed(partial(call, 1)), timed(partial(call, new + 1))
    return lambda: -one() + many()


def random_prompts(rows: int, tokens: int) -> list[list[int]]:
    return torch.randint(50257, (rows, tokens), generator=torch.Generator().manual_seed(rows)).tolist()


def decoders(models: Models, setting: Setting, batch: int) -> dict[str, Lap]:
    """Everybody who decodes a batch; the textbook's way, uncached, only for one text."""
    prompts, new = random_prompts(batch, setting.prompt), setting.new
    laps = {f"hectogpt {form}": decode_ours(m, prompts, new) for form, m in models.quantized.items()}
    laps |= {name: after_the_first(call, new) for name, call in others(models, prompts).items()}
    for form, path in models.llama.items():
        model = llama.Llama(path, torch.get_num_threads(), batch, setting.prompt + new)
        laps[f"llama.cpp {form}"] = llama.decode_lap(model, prompts, new)
    if batch == 1:
        ids = torch.tensor(prompts)
        laps["textbook uncached"] = timed(lambda: decode_uncached(models.ours, ids, new))
    return laps


@torch.no_grad()
def decode_uncached(model: Transformer, ids: Tensor, new: int) -> None:
    """The textbook's way: the whole text again for every token, all logits."""
    for _ in range(new):
        ids = torch.cat((ids, model(ids)[:, -1].argmax(dim=-1, keepdim=True)), dim=1)


def prefills(models: Models, tokens: int) -> dict[str, Lap]:
    """Everybody who can pass over a prompt, up to its first new token."""
    prompts = random_prompts(1, tokens)
    works: dict[str, Work] = {}
    for form, model in models.quantized.items():
        works[f"hectogpt {form}"] = partial(lambda m: list(generate(m, prompts[0], Sampling(1))), model)
    works |= {name: partial(call, 1) for name, call in others(models, prompts).items()}
    for form, path in models.llama.items():
        works[f"llama.cpp {form}"] = partial(llama.Llama(path, torch.get_num_threads(), 1, tokens).prefill, prompts)
    return {name: timed(work) for name, work in works.items()}


def speeds(laps: Laps, tokens: int, token_bytes: dict[str, float] | None = None) -> list[Row]:
    """Rows of median tokens per second. token_bytes: weights read per token, by contender."""
    rows: list[Row] = []
    for name in laps.seconds:
        speed = tokens / laps.median(name)
        row: Row = {"contender": name, "tokens_per_s": round(speed, 1)}
        row["times_hf_float32"] = round(laps.ratio(AGAINST, name), 2)
        if token_bytes and name in token_bytes:
            row["gb_per_s"] = round(token_bytes[name] * speed / 1e9, 3)
            row["share_of_copy"] = round(token_bytes[name] * speed / peaks()["copy"], 3)
        rows.append(row)
    return rows


def weight_bytes(model: Transformer) -> int:
    """Bytes of weights that one decoded token reads: all but the embedding tables, of which it reads a row each."""
    tensors = [t for m in (model.backbone, model.lm_head) for t in (*m.buffers(), *m.parameters())]
    return sum(t.numel() * t.element_size() for t in dict.fromkeys(tensors))


def logit_errors(models: Models, tokens: int) -> list[Row]:
    """How far the logits of the smaller formats are from float32's, along a text decoded token by token."""
    ids = random_prompts(1, tokens)[0]
    exact = logits_along(models.ours, ids)
    rows: list[Row] = []
    for form, model in models.quantized.items():
        off = logits_along(model, ids) - exact
        rms = (off.square().mean() / exact.var()).sqrt().item()
        rows.append({"contender": form, "max_abs_error": off.abs().max().item(), "rms_error_over_sd_of_logits": rms})
    return rows


def logits_along(model: Transformer, ids: list[int]) -> Tensor:
    """Logits after each token of a text, [token, vocab]."""
    decoder = Decoder(model, torch.tensor([ids[:1]]), len(ids))
    return torch.cat([decoder.prefill(), *(decoder.decode(torch.tensor([token])) for token in ids[1:])])


def measure(setting: str, rounds: int) -> Iterator[tuple[str, list[Row]]]:
    """Median speeds for one text and for eight, for a prompt, and the error of the smaller formats."""
    chosen = SETTINGS[setting]
    with tempfile.TemporaryDirectory() as folder:
        models = load(chosen, Path(folder))
        for batch in (1, 8):
            laps = race(decoders(models, chosen, batch), rounds)
            read = {f"hectogpt {form}": weight_bytes(m) / batch for form, m in models.quantized.items()}
            yield f"decode_batch_{batch}", speeds(laps, batch * chosen.new, read)
        laps = race(prefills(models, chosen.prefill), rounds)
        rows = speeds(laps, chosen.prefill)
        for row in rows:
            row["first_token_ms"] = round(1000 * laps.median(str(row["contender"])), 1)
        yield f"prefill_{chosen.prefill}", rows
        yield "decode_error", logit_errors(models, chosen.prompt * 4)
