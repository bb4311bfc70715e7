"""One training step: forward, backward, clip, AdamW. Ours, the textbook, Hugging Face, x-transformers, PyTorch.

The setting `top` is different: it compares the step of the recipe `top` on sotu with itself under other choices.
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

from bench.race import Lap, Race, Row, Work, timed, weighed
from bench.recipes import KINDS, kinds_of, take_step
from hectogpt.data import open_corpus
from hectogpt.lab.recipes import recipe
from hectogpt.model import ModelConfig, Transformer
from hectogpt.model.lm_head import LMHeadConfig
from hectogpt.training import setup
from hectogpt.training.optim import AdamW
from hectogpt.training.precision import fast_matmul_dtype
from hectogpt.training.session import Session

PACKAGES = ("transformers", "x-transformers")
Loss = Callable[[Tensor], Tensor]
Builder = Callable[[ModelConfig], tuple[nn.Module, Loss]]


class Setting(NamedTuple):
    """The sizes of a model and of a batch, and the contenders. memory: also measure peak memory."""

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


TOP = {"ours": "native", "torch's kernels": "eager"}  # contender: its session's kernels

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
    """Our model with the head's products in the dtype that `hectogpt train` would choose here."""
    return ours_in(config, fast_matmul_dtype())


def ours_in(config: ModelConfig, precision: torch.dtype) -> tuple[nn.Module, Loss]:
    model = Transformer(config)
    model.use_kernels(True)
    return model, lambda ids: model.loss(ids[:, :-1], ids[:, 1:], precision=precision)


def ours_bf16(config: ModelConfig) -> tuple[nn.Module, Loss]:
    """Our model with bf16 products in the blocks too, as `hectogpt train` has if d_model >= 128 and they are quick."""
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
    """GPT-2 as one would write it with the library's own layers."""

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


CONTENDERS: dict[str, Builder] = {
    "ours": ours,
    "ours bf16": ours_bf16,
    "ours fp32": lambda config: ours_in(config, torch.float32),
    "textbook": textbook,
    "huggingface": huggingface,
    "x-transformers": x_transformers,
    "pytorch": pytorch,
}


class Trainer:
    """A contender with its optimizer: torch's AdamW for everyone except us, who use our own."""

    def __init__(self, build: Builder, config: ModelConfig) -> None:
        torch.manual_seed(0)
        self.model, self.loss = build(config)
        if isinstance(self.model, Transformer):
            optimizer = AdamW(lr=1e-5).build(self.model)
            self.update: Work = lambda: optimizer.step(0, 1.0)
        else:
            self.update = torch.optim.AdamW(self.model.parameters(), lr=1e-5).step

    def step(self, ids: Tensor) -> None:
        """One step."""
        self.step_from(self.loss(ids))

    def step_from(self, loss: Tensor) -> None:
        """The part of a step that follows its loss."""
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.update()
        for p in self.model.parameters():
            p.grad = None


def prepare(setting: str, contender: str, folder: str) -> dict[str, Lap]:
    """A step of a batch. "short" is one of fewer rows; "memory" is two of a new model. A tiny model is trained
    first, so that every library is loaded."""
    if setting == "top":
        return prepare_top(contender)
    chosen, tiny = SETTINGS[setting], SETTINGS["tiny"]
    ids = chosen.batch()
    Trainer(CONTENDERS[contender], tiny.config).step(tiny.batch())
    trainer: list[Trainer] = []  # built in the first lap

    def steps(ids: Tensor, count: int) -> None:
        if not trainer:
            trainer.append(Trainer(CONTENDERS[contender], chosen.config))
        for _ in range(count):
            trainer[0].step(ids)

    return {
        "step": timed(partial(steps, ids, 1)),
        "short": timed(partial(steps, ids[: max(1, chosen.rows // 4)], 1)),
        "memory": weighed(timed(partial(steps, ids, 2))),
    }


def prepare_top(contender: str) -> dict[str, Lap]:
    """A step of the recipe `top` on sotu, of the two kinds that it has."""
    run = replace(recipe("top"), threads=torch.get_num_threads())
    session, kind_of = Session.open(run, open_corpus("sotu")), kinds_of(run)
    session.model.use_kernels(TOP[contender] == "native")
    session.optimizer = setup.build_optimizer(run, session.model)

    def lap(kind: str) -> Lap:
        steps = (step for step in range(run.steps) if kind_of(step) == kind)
        return lambda: {"seconds": take_step(session, next(steps))}

    return {kind: lap(kind) for kind in KINDS}


def measure(setting: str, race: Race) -> Iterator[tuple[str, list[Row]]]:
    """Median seconds, ratios to ours, and peak memory where the setting asks for it."""
    if setting == "top":
        yield from measure_top(race)
        return
    chosen = SETTINGS[setting]
    (laps,) = race.run(__name__, setting, chosen.contenders, warm_up=["memory" if chosen.memory else "short"])

    def figures(name: str) -> dict[str, Any]:
        return {
            "seconds": round(laps.median(name), 3),
            "this_over_ours": laps.ratio(name, "ours"),
            "peak_mb": laps.facts[name].get("peak_mb"),
            "memory_over_ours": laps.memory(name, "ours"),
        }

    yield "training step", laps.rows(figures, setting=setting)


def measure_top(race: Race) -> Iterator[tuple[str, list[Row]]]:
    """Median seconds of the two kinds of steps and of the mean step of the run. Steps that update eigenbases are
    slower; they are the first 20 and then every fifth."""
    run = recipe("top")
    count = Counter(map(kinds_of(run), range(run.steps)))
    kinds = dict(zip(KINDS, race.run(__name__, "top", tuple(TOP), KINDS), strict=True))

    def mean(name: str) -> float:
        return sum(count[kind] * laps.median(name) for kind, laps in kinds.items()) / run.steps

    def figures(name: str) -> dict[str, Any]:
        return {
            "seconds": round(mean(name), 3),
            "this_over_ours": round(mean(name) / mean("ours"), 2) if "ours" not in last.lost else None,
            **{f"{kind}_step_seconds": round(laps.median(name), 3) for kind, laps in kinds.items()},
        }

    last = kinds[KINDS[-1]]  # a contender lost in one kind is lost in the next
    yield "training step of the top", last.rows(figures, setting="top")
