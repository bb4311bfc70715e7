"""Tokens per second of generation, side by side: ours, Hugging Face, CTranslate2, llama.cpp, the textbook's way.

GPT-2 small's shape with random weights, greedy. The prompt's pass is not counted in "decode"; "prefill" is the time
until the first token of a prompt. CTranslate2 uses oneDNN on processors that are not Intel's. CT2_USE_MKL=1, set before
the start, makes it use MKL, which packs weights (on an AMD processor it took more than ten times as long).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from bench import llama
from bench.race import Lap, Laps, Race, Row, timed
from hectogpt.data import load_tokenizer
from hectogpt.generation import Sampling, generate
from hectogpt.generation.decode import Decoder
from hectogpt.generation.quantize import WeightFormat, quantize
from hectogpt.interop import open_model
from hectogpt.interop.export import export
from hectogpt.model import ModelConfig, Transformer
from hectogpt.model.lm_head import LMHeadConfig
from hectogpt.model.weights import save_model

PACKAGES = ("transformers", "ctranslate2", "llama-cpp-python")
TEXTBOOK = "textbook uncached"
CONTENDERS = (
    *(f"hectogpt {form}" for form in ("float32", "bfloat16", "int8")),
    *(f"hf {form}" for form in ("float32", "bfloat16")),
    *(f"ctranslate2 {form}" for form in ("float32", "int8")),
    "llama.cpp q8_0",
    TEXTBOOK,
)
AGAINST = "hf float32"
Prompts = list[list[int]]
Continue = Callable[[Prompts, int], object]  # continues the prompts by this many tokens, greedily


class Setting(NamedTuple):
    """Sizes of the model, and of the texts in tokens."""

    d_model: int = 768
    n_layers: int = 12
    n_heads: int = 12
    new: int = 24
    prompt: int = 16
    prefill: int = 512

    @property
    def config(self) -> ModelConfig:
        """GPT-2 of these sizes."""
        return ModelConfig(self.d_model, self.n_heads, self.n_layers, 1024, 50257, lm_head=LMHeadConfig(tied=True))


SETTINGS = {"gpt2": Setting(), "tiny": Setting(64, 2, 4, 3, 4, 16)}


def random_prompts(rows: int, tokens: int) -> Prompts:
    return torch.randint(50257, (rows, tokens), generator=torch.Generator().manual_seed(rows)).tolist()


# --- the contenders, each in its own process --------------------------------------------------------------------------


def prepare(setting: str, contender: str, folder: str) -> dict[str, Lap]:
    """Laps of decoding one text and eight, and of a prompt's pass. The folder has the model in transformers' layout."""
    chosen, saved = SETTINGS[setting], Path(folder) / "hf"
    prompts = {f"batch {rows}": random_prompts(rows, chosen.prompt) for rows in (1, 8)}
    long = random_prompts(1, chosen.prefill)
    whose, _, form = contender.partition(" ")
    if whose == "hectogpt":
        exact, _ = open_model(saved)
        model = quantize(exact, cast(WeightFormat, form))
        laps: dict[str, Lap] = {name: decode_ours(model, texts, chosen.new) for name, texts in prompts.items()}
        laps["errors"] = partial(errors_of, exact, model, chosen.prompt * 4)
        return laps | {"prefill": timed(lambda: list(generate(model, long[0], Sampling(1))))}
    if whose == "llama.cpp":
        engine = llama.prepare(saved, Path(folder) / f"{form}.gguf", form)
        laps = {name: engine(texts, chosen.new) for name, texts in prompts.items()}
        return laps | {"prefill": engine(long, 0)}
    if contender == TEXTBOOK:
        model, _ = open_model(saved)
        return {"batch 1": timed(lambda: decode_uncached(model, torch.tensor(prompts["batch 1"]), chosen.new))}
    call = huggingface(saved, form) if whose == "hf" else ctranslate(saved, Path(folder) / f"ct2 {form}", form)
    laps = {name: after_the_first(call, texts, chosen.new) for name, texts in prompts.items()}
    return laps | {"prefill": timed(lambda: call(long, 1))}


def decode_ours(model: Transformer, prompts: Prompts, new: int) -> Lap:
    """Steps of one token, after the prompt's pass."""

    def lap() -> Row:
        decoder = Decoder(model, torch.tensor(prompts), new + 1)
        tokens = decoder.prefill().argmax(dim=-1)
        begun = time.perf_counter()
        for _ in range(new):
            tokens = decoder.decode(tokens).argmax(dim=-1)
        return {"seconds": time.perf_counter() - begun}

    return lap


def after_the_first(call: Continue, prompts: Prompts, new: int) -> Lap:
    """The time of the tokens after the first: a call for all of them, minus a call for one."""
    one, many = (timed(partial(call, prompts, tokens)) for tokens in (1, new + 1))
    return lambda: {"seconds": -float(one()["seconds"]) + float(many()["seconds"])}


def huggingface(saved: Path, form: str) -> Continue:
    """`generate` with its cache."""
    from transformers import GPT2LMHeadModel

    model: Any = GPT2LMHeadModel.from_pretrained(saved, dtype=getattr(torch, form)).eval()

    def call(prompts: Prompts, tokens: int) -> object:
        ids = torch.tensor(prompts)
        fixed = {"attention_mask": torch.ones_like(ids), "do_sample": False, "pad_token_id": 50256}
        return model.generate(ids, max_new_tokens=tokens, min_new_tokens=tokens, **fixed)

    return call


def ctranslate(saved: Path, converted: Path, form: str) -> Continue:
    """`generate_batch`, which takes tokens as strings."""
    import ctranslate2
    from ctranslate2.converters import TransformersConverter

    TransformersConverter(str(saved)).convert(str(converted))
    generator = ctranslate2.Generator(str(converted), compute_type=form, intra_threads=torch.get_num_threads())
    names = {i: token for token, i in load_tokenizer().vocabulary().items()}

    def call(prompts: Prompts, tokens: int) -> object:
        texts = [[names[i] for i in prompt] for prompt in prompts]
        fixed = {"sampling_topk": 1, "include_prompt_in_result": False, "max_batch_size": len(texts)}
        return generator.generate_batch(texts, max_length=tokens, min_length=tokens, **fixed)

    return call


@torch.no_grad()
def decode_uncached(model: Transformer, ids: Tensor, new: int) -> None:
    """The textbook's way: compute all logits of the whole text again for every token."""
    for _ in range(new):
        ids = torch.cat((ids, model(ids)[:, -1].argmax(dim=-1, keepdim=True)), dim=1)


def errors_of(exact: Transformer, model: Transformer, tokens: int) -> Row:
    """How far the logits of one of our formats are from float32's, along a text decoded token by token."""
    ids = random_prompts(1, tokens)[0]
    right = logits_along(exact, ids)
    off = logits_along(model, ids) - right
    rms = (off.square().mean() / right.var()).sqrt().item()
    return {"max_abs_error": off.abs().max().item(), "rms_error_over_sd_of_logits": rms}


def logits_along(model: Transformer, ids: list[int]) -> Tensor:
    """Logits after each token of a text, [token, vocab]."""
    decoder = Decoder(model, torch.tensor([ids[:1]]), len(ids))
    return torch.cat([decoder.prefill(), *(decoder.decode(torch.tensor([token])) for token in ids[1:])])


# --- the question -----------------------------------------------------------------------------------------------------


def speeds(laps: Laps, tokens: int) -> list[Row]:
    """Rows of median tokens per second."""

    def figures(name: str) -> dict[str, Any]:
        speed = round(tokens / laps.median(name), 1)
        return {"tokens_per_s": speed, "times_hf_float32": laps.ratio(AGAINST, name)}

    return laps.rows(figures)


def measure(setting: str, race: Race) -> Iterator[tuple[str, list[Row]]]:
    """Median speeds for one text and for eight, for a prompt, and the error of the smaller formats."""
    chosen = SETTINGS[setting]
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        ours = Path(folder) / "ours"
        ours.mkdir()
        save_model(Transformer(chosen.config), ours)
        export(ours, Path(folder) / "hf")
        names = ["batch 1", "batch 8", "prefill"]
        one, eight, long = race.run(__name__, setting, CONTENDERS, names, ["errors", *names], folder)
    yield "decode_batch_1", speeds(one, chosen.new)
    yield "decode_batch_8", speeds(eight, 8 * chosen.new)
    yield f"prefill_{chosen.prefill}", speeds(long, chosen.prefill)
    errors = {name: facts for name, facts in one.facts.items() if "max_abs_error" in facts}
    for name, facts in errors.items():
        facts.pop("seconds", None)
        facts["contender"] = name.removeprefix("hectogpt ")
    yield "decode_error", list(errors.values())
