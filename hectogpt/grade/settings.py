"""What a part is run on: sizes, weights on which mistakes show, and inputs. The grader and its child both make them.

The weights are drawn so that nothing is trivial: attention is peaked, gains and biases of norms differ, rows and
prompts differ, and no two axes have the same length. All are float64, from a generator of their own, so two processes
that ask for the same setting get the same numbers.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from hectogpt import hardware
from hectogpt.assignment.parts import BY_NAME


@dataclass(frozen=True)
class Size:
    """The five numbers of a model; the fields are those of the assignment's ModelConfig, in its order."""

    d_model: int
    n_heads: int
    n_layers: int
    context_length: int
    vocab_size: int

    @property
    def d_attention(self) -> int:
        """The width of one head."""
        return self.d_model // self.n_heads


# The roots of the head widths, 4 and 2, are exact: a root taken in float32 does no harm in float64.
WIDE = Size(d_model=48, n_heads=3, n_layers=2, context_length=10, vocab_size=29)
NARROW = Size(d_model=32, n_heads=8, n_layers=3, context_length=7, vocab_size=19)


@dataclass(frozen=True)
class Setting:
    """One model of a part, and the inputs it is called with, in this order; the first is given again at the end.

    inputs: (batch, seq) of each call. kind: "trained"; "bend" (the MLP works where the two forms of GELU differ most);
    "loud" (scores of some 10^5); "quiet" (inputs so small that a norm's eps matters);
    "elsewhere" (on torch's meta device, which has no numbers: only devices are compared). new_tokens: for generate, one
    number a call. train_mode: the module is left in train mode. gradient: the gradient of a weighted sum of the result
    comes back as well, by the input (if it is no token ids) and by every weight of the part.
    """

    name: str
    part: str
    size: Size = WIDE
    inputs: tuple[tuple[int, int], ...] = ((4, 7), (1, 1), (2, 10), (5, 3), (1, 6))
    kind: str = "trained"
    new_tokens: tuple[int, ...] = ()
    train_mode: bool = False
    gradient: bool = False

    @property
    def seed(self) -> int:
        """Fixed by the name, so that adding a setting changes no other."""
        return zlib.crc32(self.name.encode())


BLOCK_SHAPES: dict[str, tuple[str, str]] = {
    "mlp.fc1.weight": ("4d", "d"),
    "mlp.fc1.bias": ("4d", ""),
    "mlp.fc2.weight": ("d", "4d"),
    "mlp.fc2.bias": ("d", ""),
    **{
        f"attention.{name}.{kind}": ("d", "d" if kind == "weight" else "")
        for name in ("W_k", "W_q", "W_v", "W_o")
        for kind in ("weight", "bias")
    },
    **{f"{name}_layer_norm.{kind}": ("d", "") for name in ("pre", "post") for kind in ("weight", "bias")},
}


def shapes(size: Size) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of a model's state dict."""
    d, lengths = size.d_model, {"d": size.d_model, "4d": 4 * size.d_model}
    block = {name: tuple(lengths[axis] for axis in axes if axis) for name, axes in BLOCK_SHAPES.items()}
    return {
        "embeddings.weight": (size.vocab_size, d),
        "position_embeddings.weight": (size.context_length, d),
        **{f"backbone.{layer}.{name}": shape for layer in range(size.n_layers) for name, shape in block.items()},
        "final_layer_norm.weight": (d,),
        "final_layer_norm.bias": (d,),
        "lm_head.weight": (size.vocab_size, d),
    }


@lru_cache(maxsize=64)
def weights(setting: Setting) -> dict[str, Tensor]:
    """The state dict of a whole model, float64, for the setting. Made once; not to be changed."""
    generator = torch.Generator().manual_seed(setting.seed)
    root = setting.size.d_model**0.5
    state = {}
    for name, shape in shapes(setting.size).items():
        draw = torch.randn(shape, generator=generator, dtype=torch.float64)
        if "norm" in name:
            state[name] = 1 + 0.4 * draw if name.endswith("weight") else 0.5 * draw
        elif name.endswith("bias"):
            state[name] = 0.4 * draw
        elif name == "embeddings.weight":
            state[name] = draw
        elif name == "position_embeddings.weight":
            state[name] = 0.7 * draw
        elif name.endswith(("W_q.weight", "W_k.weight")):
            state[name] = 1.6 * draw / root
        elif name == "lm_head.weight":
            state[name] = 2.5 * draw / root
        else:
            state[name] = 1.2 * draw / root
        if setting.kind == "bend" and "mlp.fc1" in name:
            state[name] = 0.3 * draw / root if name.endswith("weight") else -2.3 + 0.2 * draw
        if setting.kind == "bend" and name.endswith("mlp.fc2.bias"):
            state[name] = 0.01 * draw
        if setting.kind == "loud" and name.endswith("W_q.weight"):
            state[name] = 1e5 * draw / root
    return state


def activations(setting: Setting, call: int) -> Tensor:
    """[batch, seq, d_model] float64, the input of a call of GELU, MLP, attention or block."""
    batch, seq = setting.inputs[call]
    generator = torch.Generator().manual_seed(setting.seed + 1 + call)
    x = torch.randn(batch, seq, setting.size.d_model, generator=generator, dtype=torch.float64)
    if setting.kind == "quiet":
        return 3e-3 * x
    if setting.part == "gelu":
        return 0.3 * x - 2.3 if setting.kind == "bend" else 2 * x
    return x


def token_ids(setting: Setting, call: int) -> Tensor:
    """[batch, seq] int64, the input of a call of the transformer. Token 0 occurs in every row longer than two."""
    batch, seq = setting.inputs[call]
    generator = torch.Generator().manual_seed(setting.seed + 1 + call)
    ids = torch.randint(1, setting.size.vocab_size, (batch, seq), generator=generator)
    if seq > 2:
        ids[torch.arange(batch), torch.arange(batch) % (seq - 1) + 1] = 0
    return ids


@lru_cache(maxsize=256)
def given(setting: Setting, call: int) -> Tensor:
    """The input of a call. Made once; not to be changed."""
    return token_ids(setting, call) if setting.part in ("forward", "generate", "loss") else activations(setting, call)


def state_of(setting: Setting) -> dict[str, Tensor]:
    """Our weights of the setting's part, by the names that they have in it."""
    prefix = BY_NAME[setting.part].prefix
    if setting.part == "gelu":
        return {}
    return {k.removeprefix(prefix): v for k, v in weights(setting).items() if k.startswith(prefix)}


INPUT = "the input"


def gradient_sizes(setting: Setting, call: int) -> dict[str, int]:
    """Name -> length of what a gradient is taken by, in the order in which one flat tensor holds all of them."""
    x = given(setting, call)
    own = {INPUT: x.numel()} if x.is_floating_point() else {}
    return own | {name: value.numel() for name, value in state_of(setting).items()}


def cotangent(setting: Setting, shape: torch.Size) -> Tensor:
    """What the result is multiplied with before its sum is differentiated: random numbers; 1 for a loss."""
    if setting.part == "loss":
        return torch.ones(shape, dtype=torch.float64)
    return torch.randn(shape, generator=torch.Generator().manual_seed(setting.seed), dtype=torch.float64)


def order(setting: Setting) -> list[int]:
    """The numbers of the inputs in the order of the calls: each once, then the first again."""
    return [*range(len(setting.inputs)), 0]


def prepare(setting: Setting) -> None:
    """Make weights and inputs now, before foreign code can change what torch does."""
    weights(setting)
    for call in range(len(setting.inputs)):
        given(setting, call)


def version() -> str:
    """The beginning of a hash over the grader's code: records of another version are not used again, and children of
    another one not listened to."""
    return hardware.code_hash([Path(__file__).parent])
