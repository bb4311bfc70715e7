"""Settings: models and inputs that a submission is run on. Each setting checks one law.

A setting has the sizes of a model, weights that reveal mistakes, and inputs for one part. The
grader and its child derive the same numbers from it. Nothing is trivial: attention is peaked,
gains and biases of norms differ, rows and prompts differ, most axes differ in length, and some
heads have a width that is neither a square nor a power of two. Weights and inputs other than
token ids are float64, from a generator seeded by the setting's name.

Some laws do not count, because the assignment never asks for them. Breaking one is only a note.
Tolerances are relative to the spread of the right result. In float64, correct solutions have an
error of 1e-14, or of 3e-7 if they round to float32 internally. The tolerance is more than a
hundred times the larger of these, and the nearest mistake differs by four hundred times the
tolerance. A submission that cannot run in float64 is judged in float32, where both margins are a
factor of fifty. Tests measure these numbers.
"""

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
    """The sizes of a model: the fields of the assignment's ModelConfig, in the same order."""

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
    """A model for one part, and the inputs that the part is called with.

    name: the name, which also seeds weights and inputs.
    part: the part of the assignment.
    says: the sentence of the assignment that the law is based on, in our words.
    size: the sizes of the model.
    inputs: (batch, seq) of each input.
    law: the name of the law that the setting checks.
    kind: the kind of weights and inputs. "trained": the usual ones; "bend": the MLP works where
        the two forms of GELU differ most; "loud": scores of about 10^5; "quiet": a stream so small
        that a norm's eps matters; "end": the last token always has the largest logit.
    new_tokens: the number of new tokens for each input, in settings for generate.
    train_mode: run the module in train mode.
    gradient: also compute the gradient of a weighted sum of the result, with respect to every
        weight of the part and to the input, unless that is token ids.
    counts: True if breaking the law fails the part; False if that is only a note.
    slack: factor on the usual tolerance.
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
        """The number of the input for each call: every input once, then the first again.

        In train mode every input is repeated, so that dropout shows.
        """
        numbers = range(len(self.inputs))
        return (*numbers, *(numbers if self.train_mode else (0,)))

    @property
    def seed(self) -> int:
        """The seed. It depends only on the name, so adding a setting changes no other seed."""
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
    """Return the state dict of a whole model, in float64. It is cached: do not change it."""
    generator = torch.Generator().manual_seed(setting.seed)
    root = setting.size.d_model**0.5
    # (end of a name, standard deviation, divisor); the first that matches is used.
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
    """Return the input with this number. It is cached: do not change it.

    It is [batch, seq, d_model] in float64 for GELU, MLP, attention and block. For the transformer
    it is [batch, seq] in int64; every row of more than two tokens contains the first and the last
    token of the vocabulary.
    """
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
        return 8 * x if call % 2 else 2 * x  # includes activations of about 20
    return x


def state_of(setting: Setting) -> dict[str, Tensor]:
    """Return our weights for the setting's part, by their names in that part."""
    prefix = BY_NAME[setting.part].prefix
    if setting.part == "gelu":
        return {}
    return {k.removeprefix(prefix): v for k, v in weights(setting).items() if k.startswith(prefix)}


INPUT = "the input"


def cotangent(setting: Setting, shape: torch.Size) -> Tensor:
    """Return the weights of the sum that is differentiated: random numbers, or 1 for a loss."""
    if setting.part == "loss":
        return torch.ones(shape, dtype=torch.float64)
    return torch.randn(
        shape, generator=torch.Generator().manual_seed(setting.seed), dtype=torch.float64
    )


# --- the settings, from laws.toml


def read_setting(row: dict[str, Any]) -> Setting:
    """Build a setting from its row. Without `says`, the sentence of its part is used."""
    size = TABLES["sizes"][row.get("size", "wide")]
    says = SAYS[row.get("says", row["part"])]
    setting: Setting = load(Setting, row | {"size": size, "says": says})
    return setting


TABLES = tomllib.loads(Path(__file__).with_name("laws.toml").read_text(encoding="utf-8"))
SAYS: dict[str, str] = TABLES["says"]
SETTINGS: dict[str, Setting] = {row["name"]: read_setting(row) for row in TABLES["setting"]}
GRADED = tuple(part for part in BY_NAME if any(one.part == part for one in SETTINGS.values()))
# dtype that the submission ran in -> the largest relative error allowed.
TOLERANCE = {"float64": 5e-5, "float32": 5e-4}
GRADIENT = 10  # factor on the tolerance, for gradients


@lru_cache
def settings_of(part: str) -> list[Setting]:
    """Return the settings of a part, starting with those that count."""
    settings = (one for one in SETTINGS.values() if one.part == part)
    return sorted(settings, key=lambda one: not one.counts)


# --- train.py: all rows of the text differ, so reused rows are noticed, and shuffling is allowed

TRAIN_SIZE = Size(d_model=24, n_heads=3, n_layers=1, context_length=12, vocab_size=31)
STEPS = 6
BATCH = 4
RATE = 3e-3
ROWS = 3 * STEPS * BATCH  # enough to hold out a part without using a row twice
TRAIN_MODEL = Setting(
    "train model", "train", "", TRAIN_SIZE, ()
)  # its weights are the ones that training starts from


def clip_of(setting: Setting) -> float | None:
    """Return the norm to clip to, or None.

    It is so small that AdamW's eps matters. Otherwise an update would not depend on the size of
    the gradient.
    """
    return 1e-6 if setting.name.endswith("clipped") else None


@lru_cache(maxsize=1)
def train_text() -> Tensor:
    """Return the text, [ROWS, context_length] in int64.

    The rows share a pattern, so that the loss can fall, but no two are equal.
    """
    generator = torch.Generator().manual_seed(7)
    row = torch.randint(
        1, TRAIN_SIZE.vocab_size, (1, TRAIN_SIZE.context_length), generator=generator
    ).repeat(ROWS, 1)
    other = torch.randint(1, TRAIN_SIZE.vocab_size, row.shape, generator=generator)
    return torch.where(torch.rand(row.shape, generator=generator) < 0.3, other, row)
