"""Settings: models and inputs that a submission is run on, each with the law that it checks.

A setting is a model of a part on weights on which mistakes show, with inputs; the grader and its
child both make them. The weights are drawn so that nothing is trivial: attention is peaked, gains
and biases of norms differ, rows and prompts differ, no two axes have the same length, and some
widths of heads are neither squares nor powers of two. All are float64, from a generator of their
own, so two processes that ask for the same setting get the same numbers.

A law that does not count is a note: the assignment never asks for it. Tolerances are relative to
the spread of the right result. In float64 the allowed difference is a hundred times the error of
right solutions that round to float32 inside (3e-7; without such rounding 1e-14), and the nearest
mistake is four hundred times above it. A submission that cannot run in float64 is judged in
float32, with fifty times on both sides. Tests measure these numbers."""

from __future__ import annotations

import re
import tomllib
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hectogpt.assignment.parts import BY_NAME
from hectogpt.serialization import load


@dataclass(frozen=True)
class Size:
    """The five numbers of a model; the fields are those of the assignment's ModelConfig, in its
    order.
    """

    d_model: int
    n_heads: int
    n_layers: int
    context_length: int
    vocab_size: int

    @property
    def d_attention(self) -> int:
        """The width of one head."""
        return self.d_model // self.n_heads


@dataclass(frozen=True)
class Setting:
    """One model of a part, and the inputs it is called with.

    name: also the seed of its numbers.
    law: the name of what is checked in it.
    says: the sentence of the assignment that the law is based on, in our words.
    inputs: (batch, seq) of each call.
    kind: of its weights and inputs. "trained"; "bend": the MLP works where the two forms of GELU
        differ most; "loud": scores of some 10^5; "quiet": a stream so small that a norm's eps
        matters; "end": the last token always has the largest logit.
    new_tokens: for generate, one number a call.
    train_mode: the module is in train mode.
    gradient: also ask for the gradient of a weighted sum of the result, by every weight of the
        part and, unless that is token ids, by the input.
    counts: breaking the law fails the part; otherwise it is a note.
    slack: how many times the usual tolerance is allowed.
    """

    name: str
    part: str
    says: str
    size: Size
    inputs: tuple[tuple[int, int], ...] = ((4, 7), (1, 1), (2, 10), (5, 3), (1, 6))
    law: str = "values"
    kind: str = "trained"
    new_tokens: tuple[int, ...] = ()
    train_mode: bool = False
    gradient: bool = False
    counts: bool = True
    slack: float = 1.0

    @property
    def order(self) -> tuple[int, ...]:
        """The number of the input of each call: each once, then the first again. In train mode
        each comes twice, so that dropout shows."""
        numbers = range(len(self.inputs))
        return (*numbers, *(numbers if self.train_mode else (0,)))

    @property
    def seed(self) -> int:
        """Depends only on the name, so that adding a setting changes no other."""
        return zlib.crc32(self.name.encode())


def shapes(size: Size) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of a model's state dict, by name."""
    d = size.d_model
    block = dict[str, tuple[int, ...]]()
    square = {f"attention.{name}": (d, d) for name in ("W_k", "W_q", "W_v", "W_o")}
    for name, shape in {"mlp.fc1": (4 * d, d), "mlp.fc2": (d, 4 * d), **square}.items():
        block |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    block |= {
        f"{name}_layer_norm.{kind}": (d,)
        for name in ("pre", "post")
        for kind in ("weight", "bias")
    }
    return {
        "embeddings.weight": (size.vocab_size, d),
        "position_embeddings.weight": (size.context_length, d),
        **{
            f"backbone.{layer}.{name}": shape
            for layer in range(size.n_layers)
            for name, shape in block.items()
        },
        "final_layer_norm.weight": (d,),
        "final_layer_norm.bias": (d,),
        "lm_head.weight": (size.vocab_size, d),
    }


@lru_cache(maxsize=64)
def weights(setting: Setting) -> dict[str, Tensor]:
    """Return the state dict of a whole model, float64. Made once; do not change it."""
    generator = torch.Generator().manual_seed(setting.seed)
    root = setting.size.d_model**0.5
    # How a name ends, the standard deviation, and what divides it; the first that holds.
    scales = (
        ("norm.weight", 0.4, 1.0),
        ("norm.bias", 0.5, 1.0),
        ("bias", 0.4, 1.0),
        ("position_embeddings.weight", 0.7, 1.0),
        ("embeddings.weight", 1.0, 1.0),
        ("W_q.weight", 1e5 if setting.kind == "loud" else 1.6, root),
        ("W_k.weight", 1.6, root),
        ("lm_head.weight", 2.5, root),
        ("", 1.2, root),
    )
    state = {}
    for name, shape in shapes(setting.size).items():
        draw = torch.randn(shape, generator=generator, dtype=torch.float64)
        std, divisor = next((std, divisor) for end, std, divisor in scales if name.endswith(end))
        state[name] = float(name.endswith("norm.weight")) + std * draw / divisor
        if setting.kind == "bend" and "mlp.fc1" in name:
            state[name] = 0.3 * draw / root if name.endswith("weight") else -2.3 + 0.2 * draw
        if setting.kind == "bend" and name.endswith("mlp.fc2.bias"):
            state[name] = 0.01 * draw
        if (
            setting.kind == "quiet"
            and setting.part == "forward"
            and re.search("embeddings|W_o|fc2", name)
        ):
            state[name] *= 3e-3
    if setting.kind == "end":
        state["final_layer_norm.weight"] *= 0.1
        state["lm_head.weight"][-1] = 9 * state["final_layer_norm.bias"]
    return state


@lru_cache(maxsize=256)
def given(setting: Setting, call: int) -> Tensor:
    """Return the input of a call. Made once; do not change it.

    It is [batch, seq, d_model] float64 for GELU, MLP, attention and block; [batch, seq] int64 for
    the transformer, with the first and the last token of the vocabulary in every row longer than
    two."""
    batch, seq = setting.inputs[call]
    generator = torch.Generator().manual_seed(setting.seed + 1 + call)
    if setting.part in ("forward", "generate", "loss"):
        ids = torch.randint(1, setting.size.vocab_size, (batch, seq), generator=generator)
        if seq > 2:
            rows = torch.arange(batch)
            ids[rows, rows % (seq - 1) + 1] = 0
            ids[rows, (rows + 1) % (seq - 1) + 1] = setting.size.vocab_size - 1
        return ids
    x = torch.randn(batch, seq, setting.size.d_model, generator=generator, dtype=torch.float64)
    if setting.kind == "quiet":
        return 3e-3 * x
    if setting.part == "gelu" and setting.kind == "bend":
        return 0.3 * x - 2.3
    if setting.part in ("gelu", "mlp", "block") and setting.kind == "trained":
        return 8 * x if call % 2 else 2 * x  # activations of some 20, too
    return x


def state_of(setting: Setting) -> dict[str, Tensor]:
    """Return our weights of the setting's part, by the names that they have in it."""
    prefix = BY_NAME[setting.part].prefix
    if setting.part == "gelu":
        return {}
    return {k.removeprefix(prefix): v for k, v in weights(setting).items() if k.startswith(prefix)}


INPUT = "the input"


def cotangent(setting: Setting, shape: torch.Size) -> Tensor:
    """Return what the result is multiplied with before its sum is differentiated: random numbers,
    or 1 for a loss.
    """
    if setting.part == "loss":
        return torch.ones(shape, dtype=torch.float64)
    return torch.randn(
        shape, generator=torch.Generator().manual_seed(setting.seed), dtype=torch.float64
    )


# --- the settings, from laws.toml


def read_setting(row: dict[str, Any]) -> Setting:
    """Build a setting from its row. Without `says`, its sentence is that of its part."""
    size = TABLES["sizes"][row.get("size", "wide")]
    says = SAYS[row.get("says", row["part"])]
    setting: Setting = load(Setting, row | {"size": size, "says": says})
    return setting


TABLES = tomllib.loads(Path(__file__).with_name("laws.toml").read_text(encoding="utf-8"))
SAYS: dict[str, str] = TABLES["says"]
SETTINGS: dict[str, Setting] = {row["name"]: read_setting(row) for row in TABLES["setting"]}
GRADED = tuple(part for part in BY_NAME if any(one.part == part for one in SETTINGS.values()))
# The error that is allowed, by the dtype of the weights that the submission ran with.
TOLERANCE = {"float64": 5e-5, "float32": 5e-4}
GRADIENT = 10  # a gradient may be off by this many times as much


@lru_cache
def settings_of(part: str) -> list[Setting]:
    """Return the settings of a part, those that count first."""
    settings = (one for one in SETTINGS.values() if one.part == part)
    return sorted(settings, key=lambda one: not one.counts)


# --- train.py: all rows of its text differ, so that rows that are used again are seen, and a
# shuffle changes nothing

TRAIN_SIZE = Size(d_model=24, n_heads=3, n_layers=1, context_length=12, vocab_size=31)
STEPS = 6
BATCH = 4
RATE = 3e-3
ROWS = 3 * STEPS * BATCH  # so that a part may be held out, and no row has to come twice
TRAIN_MODEL = Setting(
    "train model", "train", "", TRAIN_SIZE, ()
)  # of the weights that training starts from


def clip_of(setting: Setting) -> float | None:
    """Return the norm to clip to, or None. It is so small that AdamW's eps matters: without that,
    an update does not depend on the size of the gradient."""
    return 1e-6 if setting.name.endswith("clipped") else None


@lru_cache(maxsize=1)
def train_text() -> Tensor:
    """[ROWS, context_length] int64. The rows share a pattern, so that a loss falls, and no two are
    equal.
    """
    generator = torch.Generator().manual_seed(7)
    row = torch.randint(
        1, TRAIN_SIZE.vocab_size, (1, TRAIN_SIZE.context_length), generator=generator
    ).repeat(ROWS, 1)
    other = torch.randint(1, TRAIN_SIZE.vocab_size, row.shape, generator=generator)
    return torch.where(torch.rand(row.shape, generator=generator) < 0.3, other, row)
