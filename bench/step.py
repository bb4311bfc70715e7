"""One training step (forward, backward, clip, AdamW): ours, the textbook, Hugging Face, x-transformers, plain PyTorch.

Contenders take turns round by round in one process; ratios are taken within a round, medians told. Memory (of the
assignment's setting) is the peak of a fresh process per contender above what it held once everything was imported.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench"), str(ROOT / "reference")]

from head import status  # noqa: E402
from record import record  # noqa: E402

from hectogpt.model import ModelConfig, Transformer  # noqa: E402
from hectogpt.model.head import fastest_precision  # noqa: E402
from hectogpt.model.parts import Head  # noqa: E402
from hectogpt.train.machine import physical_cores  # noqa: E402
from hectogpt.train.optim import AdamW  # noqa: E402

ROUNDS = 5
# name: (sizes, rows of a batch, tokens of a row, contenders)
SETTINGS: dict[str, tuple[ModelConfig, int, int, tuple[str, ...]]] = {
    "assignment": (ModelConfig(33, 3, 3, 512, 50257), 16, 512, ("ours", "ours fp32", "textbook", "huggingface")),
    "d128": (ModelConfig(128, 4, 4, 512, 50257), 8, 512, ("ours", "huggingface", "x-transformers", "pytorch")),
    "d256": (ModelConfig(256, 4, 4, 512, 50257), 8, 512, ("ours", "huggingface", "x-transformers", "pytorch")),
    "gpt2": (ModelConfig(768, 12, 12, 1024, 50257), 4, 512, ("ours", "huggingface", "x-transformers", "pytorch")),
}
Loss = Callable[[Tensor], Tensor]


def ours(config: ModelConfig, precision: torch.dtype | None) -> tuple[nn.Module, Loss]:
    model = Transformer(config)
    model.loss_precision = precision
    return model, model.get_loss_on_batch


def textbook(config: ModelConfig) -> tuple[nn.Module, Loss]:
    import model_solution

    sizes = (config.d_model, config.n_heads, config.n_layers, config.context_length, config.vocab_size)
    model = model_solution.Transformer(model_solution.ModelConfig(*sizes))
    return model, model.get_loss_on_batch


def huggingface(config: ModelConfig) -> tuple[nn.Module, Loss]:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(
        GPT2Config(
            n_embd=config.d_model,
            n_head=config.n_heads,
            n_layer=config.n_layers,
            n_positions=config.context_length,
            vocab_size=config.vocab_size,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            tie_word_embeddings=config.head.tied,
        )
    )
    return model, lambda ids: model(ids, labels=ids).loss


def x_transformers(config: ModelConfig) -> tuple[nn.Module, Loss]:
    with contextlib.redirect_stdout(io.StringIO()):
        from x_transformers import AutoregressiveWrapper, Decoder, TransformerWrapper

    model = AutoregressiveWrapper(
        TransformerWrapper(
            num_tokens=config.vocab_size,
            max_seq_len=config.context_length,
            tie_embedding=config.head.tied,
            attn_layers=Decoder(
                dim=config.d_model, depth=config.n_layers, heads=config.n_heads, attn_dim_head=config.d_attention
            ),
        )
    )
    return model, model


class PlainPyTorch(nn.Module):
    """What one writes with the library's own layers."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(config.vocab_size, config.d_model)
        self.positions = nn.Embedding(config.context_length, config.d_model)
        layer = nn.TransformerEncoderLayer(
            config.d_model, config.n_heads, 4 * config.d_model, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, config.n_layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(config.d_model)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if config.head.tied:
            self.head.weight = self.embeddings.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embeddings(ids[:, :-1]) + self.positions.weight[: ids.shape[1] - 1]
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], device=x.device)
        logits = self.head(self.norm(self.layers(x, mask=mask, is_causal=True)))
        return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def pytorch(config: ModelConfig) -> tuple[nn.Module, Loss]:
    model = PlainPyTorch(config)
    return model, model


def build(name: str, config: ModelConfig) -> tuple[nn.Module, Loss]:
    """A contender by name. "ours" is what `hectogpt train` would choose here."""
    if name == "ours":
        return ours(config, fastest_precision(config.d_model, config.vocab_size))
    if name == "ours fp32":
        return ours(config, torch.float32)
    return {
        "textbook": textbook,
        "huggingface": huggingface,
        "x-transformers": x_transformers,
        "pytorch": pytorch,
    }[name](config)


class Contender:
    """A model with its optimizer: the textbook's AdamW for everyone but us, who use our own."""

    def __init__(self, name: str, config: ModelConfig) -> None:
        torch.manual_seed(0)
        self.model, self.loss = build(name, config)
        if isinstance(self.model, Transformer):
            optimizer = AdamW(lr=1e-5).build(self.model)
            self.update = lambda: optimizer.step(0, 1.0)
        else:
            self.update = torch.optim.AdamW(self.model.parameters(), lr=1e-5).step

    def step(self, ids: Tensor) -> float:
        """Seconds of one step."""
        start = time.perf_counter()
        self.loss(ids).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.update()
        for p in self.model.parameters():
            p.grad = None
        return time.perf_counter() - start


def batch(config: ModelConfig, rows: int, tokens: int) -> Tensor:
    return torch.randint(config.vocab_size, (rows, tokens), generator=torch.Generator().manual_seed(0))


def peak(name: str, setting: str) -> int:
    """Bytes above the imported baseline of two steps in a fresh process."""
    command = [sys.executable, __file__, "--setting", setting, "--memory-of", name]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(json.loads(run.stdout.splitlines()[-1])["bytes"])


def products(config: ModelConfig, rows: int, tokens: int) -> float:
    """Floating point operations of one step's matrix products: 6 per weight and token, and attention's two."""
    weights = config.n_layers * 12 * config.d_model**2 + config.vocab_size * config.d_model
    attention = 12 * config.n_layers * config.d_model * tokens / 2  # causal: half of the pairs
    return rows * tokens * (6 * weights + attention)


def measure(setting: str) -> list[dict[str, float | str]]:
    """Medians over the rounds, ratios within a round, peak memory."""
    config, rows, tokens, names = SETTINGS[setting]
    if setting == "gpt2":
        config = replace(config, head=Head(tied=True))
    ids = batch(config, rows, tokens)
    contenders = {name: Contender(name, config) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for contender in contenders.values():
        contender.step(ids[: max(1, rows // 4)])
    for _ in range(ROUNDS):
        for name, contender in contenders.items():
            seconds[name].append(contender.step(ids))
    del contenders
    memory = {name: peak(name, setting) for name in names} if setting == "assignment" else {}
    work = products(config, rows, tokens)
    return [
        {
            "contender": name,
            "setting": setting,
            "rounds": ROUNDS,
            "seconds": round(statistics.median(seconds[name]), 3),
            "this_over_ours": round(
                statistics.median(t / o for t, o in zip(seconds[name], seconds["ours"], strict=True)), 2
            ),
            "gflop_per_second": round(work / statistics.median(seconds[name]) / 1e9, 1),
        }
        | (
            {
                "peak_mb": round(memory[name] / 1e6, 1),
                "memory_over_ours": round(memory[name] / memory["ours"], 1),
            }
            if memory
            else {}
        )
        for name in names
    ]


def main() -> None:
    """Every setting, or one; prints a table and appends one line per setting to results/bench.jsonl."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--setting", choices=list(SETTINGS))
    parser.add_argument("--memory-of")
    args = parser.parse_args()
    torch.set_num_threads(physical_cores())
    if args.memory_of:
        config, rows, tokens, _ = SETTINGS[args.setting]
        import transformers  # noqa: F401  (so that every baseline holds the same imports)

        tiny = Contender(args.memory_of, replace(config, d_model=12, n_heads=3, n_layers=1, vocab_size=96))
        tiny.step(torch.zeros(2, 64, dtype=torch.int64))
        before = status("VmRSS")
        if args.setting == "gpt2":
            config = replace(config, head=Head(tied=True))
        contender = Contender(args.memory_of, config)
        for _ in range(2):
            contender.step(batch(config, rows, tokens))
        print(json.dumps({"bytes": status("VmHWM") - before}))
        return
    for setting in [args.setting] if args.setting else SETTINGS:
        rows_of = measure(setting)
        record("training step", list(rows_of), packages=("transformers", "x-transformers"))
        for row in rows_of:
            print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)


if __name__ == "__main__":
    main()
