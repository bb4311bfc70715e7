"""Tokens per second of generation, side by side: ours, Hugging Face's generate, CTranslate2, the textbook.

GPT-2 small's shape with random weights, greedy. Every contestant runs once per round, rounds follow each other, and
ratios are taken within a round, so that a busy machine slows all alike.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

CHECKOUT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(CHECKOUT), str(CHECKOUT / "reference"), str(CHECKOUT / "bench")]

from hectogpt.data import load_tokenizer  # noqa: E402
from hectogpt.interop.huggingface import load_model  # noqa: E402
from hectogpt.model.cache import Continuation  # noqa: E402
from hectogpt.model.quantize import LightTransformer, copy_bandwidth, weight_bytes  # noqa: E402
from hectogpt.model.transformer import Transformer  # noqa: E402

PROMPT = 16
Run = Callable[[], float]  # one round: seconds


def random_gpt2(folder: Path) -> Any:
    """A GPT-2 small of random weights with tokenizer files, saved as transformers does; the model itself."""
    from transformers import GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config()).eval()
    model.save_pretrained(folder)
    tokenizer = load_tokenizer()
    (folder / "merges.txt").write_bytes(tokenizer.merges)
    (folder / "vocab.json").write_text(json.dumps(tokenizer.vocabulary()), encoding="utf-8")
    GPT2TokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)
    return model


def ours(model: Transformer, prompts: list[list[int]], new: int) -> Run:
    """Seconds of `new` one-token steps, the prompt's pass excluded."""

    def run() -> float:
        text = Continuation(model, prompts, new + 1)
        tokens = text.first().argmax(dim=-1).tolist()
        start = time.perf_counter()
        for _ in range(new):
            tokens = text.next(tokens).argmax(dim=-1).tolist()
        return time.perf_counter() - start

    return run


def hugging_face(model: Any, prompts: list[list[int]], new: int) -> Run:
    """`generate` with its cache; the time of a call for one token is taken off."""
    ids = torch.tensor(prompts)

    def call(tokens: int) -> float:
        start = time.perf_counter()
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            pad_token_id=50256,
        )
        return time.perf_counter() - start

    return lambda: -call(1) + call(new + 1)


def ctranslate(generator: Any, prompts: list[list[int]], new: int) -> Run:
    """`generate_batch`, greedy; the time of a call for one token is taken off."""
    names = {i: token for token, i in load_tokenizer().vocabulary().items()}
    texts = [[names[i] for i in prompt] for prompt in prompts]

    def call(tokens: int) -> float:
        start = time.perf_counter()
        generator.generate_batch(
            texts,
            max_length=tokens,
            min_length=tokens,
            sampling_topk=1,
            include_prompt_in_result=False,
            max_batch_size=len(texts),
        )
        return time.perf_counter() - start

    return lambda: -call(1) + call(new + 1)


def uncached(model: Transformer, prompts: list[list[int]], new: int) -> Run:
    """The textbook's way: the whole text again for every token, all logits."""

    def run() -> float:
        x = torch.tensor(prompts)
        start = time.perf_counter()
        with torch.no_grad():
            for _ in range(new):
                x = torch.cat((x, model(x)[:, -1].argmax(dim=-1, keepdim=True)), dim=1)
        return time.perf_counter() - start

    return run


def prefills(
    light: dict[str, Transformer], peer: Any, generator: dict[str, Any], tokens: int
) -> Iterator[tuple[str, Run]]:
    """One pass over a prompt up to the logits of its next token."""
    ids = torch.randint(50257, (1, tokens), generator=torch.Generator().manual_seed(1))
    texts = [[{i: t for t, i in load_tokenizer().vocabulary().items()}[i] for i in ids[0].tolist()]]

    def timed(call: Callable[[], Any]) -> Run:
        def run() -> float:
            start = time.perf_counter()
            with torch.no_grad():
                call()
            return time.perf_counter() - start

        return run

    for precision, model in light.items():
        yield f"hectogpt {precision}", timed(lambda m=model: Continuation(m, ids.tolist(), 1).first())
    for name, model in peer.items():
        yield f"hf {name}", timed(lambda m=model: m(ids, use_cache=True, logits_to_keep=1))
    for name, model in generator.items():
        yield (
            f"ctranslate2 {name}",
            timed(lambda g=model: g.generate_batch(texts, max_length=1, include_prompt_in_result=False)),
        )


def race(runs: dict[str, Run], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contestant in each round; one more round before warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            taken = run()
            if number:
                seconds[name].append(taken)
    return seconds


def table(
    question: str, seconds: dict[str, list[float]], work: int, against: str, **facts: dict[str, float]
) -> list[dict]:
    """Rows of tokens/s (median) and of the ratio to `against` within each round (median), printed too."""
    rows = []
    for name, taken in seconds.items():
        rate = statistics.median(work / s for s in taken)
        ratio = statistics.median(b / s for s, b in zip(taken, seconds[against], strict=True))
        row = {"name": name, "tokens_per_s": round(rate, 1), f"times_{against.replace(' ', '_')}": round(ratio, 2)}
        row |= {key: round(values[name] * rate, 3) for key, values in facts.items() if name in values}
        rows.append(row)
        print(f"{question:<22}" + "  ".join(f"{k} {v}" for k, v in row.items()), flush=True)
    return rows


def main() -> None:
    """Run all questions of this file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new", type=int, default=24, help="tokens per round")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch._dynamo.config.recompile_limit = 64  # three models share the code of one step
    import ctranslate2
    from ctranslate2.converters import TransformersConverter

    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stderr(sys.stdout):
        folder = Path(name)
        hf = {"float32": random_gpt2(folder / "hf")}
        hf["bfloat16"] = type(hf["float32"]).from_pretrained(folder / "hf", dtype=torch.bfloat16).eval()
        TransformersConverter(str(folder / "hf")).convert(str(folder / "ct2"))
        ct2 = {
            kind: ctranslate2.Generator(str(folder / "ct2"), compute_type=kind, intra_threads=options.threads)
            for kind in ("float32", "int8")
        }
        model = load_model(folder / "hf")
    precisions = ("float32", "bfloat16", "int8")
    light = {p: LightTransformer(model, p, compile=True) for p in precisions}
    bandwidth = copy_bandwidth()
    print(f"copy (read + write) {bandwidth / 1e9:.1f} GB/s, {options.threads} threads", flush=True)
    results: dict[str, list[dict]] = {}
    for batch in (1, 8):
        prompts = torch.randint(50257, (batch, PROMPT), generator=torch.Generator().manual_seed(batch)).tolist()
        runs = {f"hectogpt {p}": ours(m, prompts, options.new) for p, m in light.items()}
        runs |= {f"hf {p}": hugging_face(m, prompts, options.new) for p, m in hf.items()}
        runs |= {f"ctranslate2 {p}": ctranslate(m, prompts, options.new) for p, m in ct2.items()}
        if batch == 1:
            runs["textbook uncached"] = uncached(model, prompts, options.new)
        seconds = race(runs, options.rounds)
        per_token = {f"hectogpt {p}": weight_bytes(m) / batch for p, m in light.items()}
        facts = {
            "gb_per_s": {n: b / 1e9 for n, b in per_token.items()},
            "share_of_copy": {n: b / bandwidth for n, b in per_token.items()},
        }
        results[f"decode_batch_{batch}"] = table(
            f"decode, batch {batch}", seconds, batch * options.new, "hf float32", **facts
        )
    seconds = race(dict(prefills(light, hf, ct2, 512)), options.rounds)
    results["prefill_512"] = table("prefill, 512 tokens", seconds, 512, "hf float32")
    results["decode_error"] = errors(model, light)
    from record import record

    for question, rows in results.items():
        record(question, rows, ("transformers", "ctranslate2"))


def errors(model: Transformer, light: dict[str, Transformer]) -> list[dict]:
    """How far the lighter models' logits are from float32's, along a text decoded token by token."""
    ids = torch.randint(50257, (64,), generator=torch.Generator().manual_seed(2)).tolist()
    rows = []
    exact = along(model, ids)
    for precision, other in light.items():
        off = along(other, ids) - exact
        rms = (off.square().mean() / exact.var()).sqrt().item()
        rows.append({"name": precision, "max_abs_error": off.abs().max().item(), "rms_error_over_sd_of_logits": rms})
        print(f"{'logits off float32 by':<22}" + "  ".join(f"{k} {v}" for k, v in rows[-1].items()), flush=True)
    return rows


def along(model: Transformer, ids: list[int]) -> torch.Tensor:
    """Logits after each token of a text, [token, vocab]."""
    text = Continuation(model, [ids[:1]], len(ids))
    return torch.cat([text.first(), *(text.next([token]) for token in ids[1:])])


if __name__ == "__main__":
    main()
