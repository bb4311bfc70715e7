"""What a submission is run on and judged by: settings, and laws as data.

A setting is a model of a part on weights on which mistakes show, with inputs; the grader and its child both make them.
The weights are drawn so that nothing is trivial: attention is peaked, gains and biases of norms differ, rows and
prompts differ, and no two axes have the same length. All are float64, from a generator of their own, so two processes
that ask for the same setting get the same numbers.

A law is what is checked in a setting, and the sentence it rests on. One that does not count is a note: the assignment
never asks for it. Tolerances are relative to the spread of the right result. In float64 the allowed difference is a
hundred times the error of right solutions that round to float32 inside (3e-7; without such rounding 1e-14), and the
nearest mistake is four hundred times above it. A submission that cannot run in float64 is judged in float32, with fifty
times on both sides. Tests measure these numbers.
"""

# ruff: noqa: E501  # a table, an entry a line
from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

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


def shapes(size: Size) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of a model's state dict."""
    d, block = size.d_model, dict[str, tuple[int, ...]]()
    square = {f"attention.{name}": (d, d) for name in ("W_k", "W_q", "W_v", "W_o")}
    for name, shape in {"mlp.fc1": (4 * d, d), "mlp.fc2": (d, 4 * d), **square}.items():
        block |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    block |= {f"{name}_layer_norm.{kind}": (d,) for name in ("pre", "post") for kind in ("weight", "bias")}
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
    """The beginning of a hash over the grader's code: records of another version are not used again."""
    return hardware.code_hash([Path(__file__).parent])


# --- laws -------------------------------------------------------------------------------------------------------------

TOLERANCE = {"float64": 5e-5, "float32": 5e-4}  # by the dtype of the weights that the submission ran with
GRADIENT = 10  # a gradient may be off by this many times as much

Check = Literal[
    "values",  # the result is the right one, of the right shape and kind of dtype
    "again",  # the first input, given again at the end, gives the same result
    "gradient",  # gradients of the result by every weight and by the input are the right ones
    "input kept",  # the caller's tensor has not been changed
    "mode kept",  # the module is in the mode it was in
    "no graph",  # no gradient is recorded
    "device",  # tensors are made on the device of the input
    "fresh weights",  # the distribution of the weights of a new model
    "training",  # losses and gradient norms of a few steps
    "picture",  # a picture that is not blank
]


@dataclass(frozen=True)
class Law:
    """name: as shown. says: the sentence of the assignment that it rests on, in our words. counts: whether breaking it
    fails the part; otherwise it is a note."""

    name: str
    setting: Setting
    check: Check
    says: str
    counts: bool = True

    @property
    def part(self) -> str:
        return self.setting.part


PROMPTS = ((4, 3), (1, 1), (2, 5), (3, 2), (1, 4))
GELU = Setting("gelu", "gelu", gradient=True)
GELU_BEND = Setting("gelu, where it bends", "gelu", kind="bend")
MLP = Setting("mlp", "mlp", gradient=True)
MLP_BEND = Setting("mlp, where GELU bends", "mlp", NARROW, ((2, 5),), kind="bend")
ATTENTION = Setting("attention", "attention", gradient=True)
ATTENTION_NARROW = Setting("attention, eight heads", "attention", NARROW, ((3, 5), (2, 7)))
ATTENTION_LOUD = Setting("attention, large scores", "attention", WIDE, ((2, 6),), kind="loud")
ATTENTION_TRAIN = Setting("attention, train mode", "attention", NARROW, ((3, 5),), train_mode=True)
BLOCK = Setting("block", "block", gradient=True)
BLOCK_QUIET = Setting("block, small activations", "block", NARROW, ((3, 5),), kind="quiet")
FORWARD = Setting("forward", "forward", gradient=True)
FORWARD_NARROW = Setting("forward, three layers", "forward", NARROW, ((3, 5), (2, 7)))
FORWARD_TRAIN = Setting("forward, train mode", "forward", NARROW, ((3, 5),), train_mode=True)
ATTENTION_ELSEWHERE = Setting("attention, on another device", "attention", NARROW, ((3, 5),), kind="elsewhere")
FORWARD_ELSEWHERE = Setting("forward, on another device", "forward", NARROW, ((3, 5),), kind="elsewhere")
GENERATE = Setting("generate", "generate", WIDE, PROMPTS, new_tokens=(6, 2, 4, 1, 3))
GENERATE_FULL = Setting("generate, up to the context", "generate", NARROW, ((3, 4), (2, 6)), new_tokens=(3, 1))
GENERATE_PAST = Setting("generate, past the context", "generate", NARROW, ((3, 5),), new_tokens=(7,))
GENERATE_LONG = Setting("generate, a prompt longer than the context", "generate", NARROW, ((2, 9),), new_tokens=(3,))
GENERATE_TRAIN = Setting("generate, train mode", "generate", WIDE, ((2, 4),), new_tokens=(3,), train_mode=True)
LOSS = Setting("loss", "loss", WIDE, ((4, 7), (1, 2), (2, 10), (5, 3), (1, 6)), gradient=True)
LOSS_NARROW = Setting("loss, three layers", "loss", NARROW, ((3, 5), (2, 7)), gradient=True)
INIT = Setting("init", "init", NARROW)
TRAIN = Setting("train", "train")
TRAIN_CLIPPED = Setting("train, clipped", "train")
PLOT = Setting("plot", "plot")

TWICE = "The same input gives the same output, whatever was computed in between."
MLP_SAYS = "MLP(x) = fc2(GELU(fc1(x))), for x of shape (batch, seq, d_model)."
ATTENTION_SAYS = "softmax(q k^T / sqrt(d_attention) + causal mask) v for each head, heads joined in order, then W_o."
BLOCK_SAYS = "x = x + attention(pre_layer_norm(x)), then x = x + mlp(post_layer_norm(x))."
FORWARD_SAYS = "Token plus position embeddings, all blocks in order, the final layer norm, lm_head; logits come back."
GENERATE_SAYS = "Greedy decoding: num_new_tokens times, each row is extended by its own likeliest next token."
GRADIENT_SAYS = "Training differentiates it: the gradient of the input and of every weight is that of the formula."
LOSS_SAYS = "The mean cross entropy of each next token given those before it."

LAWS: tuple[Law, ...] = (
    Law("values", GELU, "values", "0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))."),
    Law("values where it bends", GELU_BEND, "values", "0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))."),
    Law("gradient", GELU, "gradient", GRADIENT_SAYS),
    Law("values", MLP, "values", MLP_SAYS),
    Law("values where GELU bends", MLP_BEND, "values", MLP_SAYS),
    Law("a second call", MLP, "again", TWICE),
    Law("gradient", MLP, "gradient", GRADIENT_SAYS),
    Law("values", ATTENTION, "values", ATTENTION_SAYS),
    Law("values with eight heads", ATTENTION_NARROW, "values", ATTENTION_SAYS),
    Law("a second call", ATTENTION, "again", TWICE),
    Law("gradient", ATTENTION, "gradient", GRADIENT_SAYS),
    Law("a mask that no score outweighs", ATTENTION_LOUD, "values", "The causal mask hides the future.", counts=False),
    Law("no dropout", ATTENTION_TRAIN, "values", "The assignment's attention has no dropout.", counts=False),
    Law("the caller's input unchanged", ATTENTION, "input kept", "A forward pass computes, and changes nothing.", counts=False),
    Law("any device", ATTENTION_ELSEWHERE, "device", "The model runs on a GPU as well.", counts=False),
    Law("values", BLOCK, "values", BLOCK_SAYS),
    Law("values for small activations", BLOCK_QUIET, "values", "Layer norm with eps 1e-5, as GPT-2's."),
    Law("a second call", BLOCK, "again", TWICE),
    Law("gradient", BLOCK, "gradient", GRADIENT_SAYS),
    Law("the caller's input unchanged", BLOCK, "input kept", "A forward pass computes, and changes nothing.", counts=False),
    Law("values", FORWARD, "values", FORWARD_SAYS),
    Law("values with three layers", FORWARD_NARROW, "values", FORWARD_SAYS),
    Law("a second call", FORWARD, "again", TWICE),
    Law("gradient", FORWARD, "gradient", GRADIENT_SAYS),
    Law("no dropout", FORWARD_TRAIN, "values", "The assignment's transformer has no dropout.", counts=False),
    Law("any device", FORWARD_ELSEWHERE, "device", "The model runs on a GPU as well.", counts=False),
    Law("tokens", GENERATE, "values", GENERATE_SAYS),
    Law("tokens up to the context", GENERATE_FULL, "values", GENERATE_SAYS),
    Law("a second call", GENERATE, "again", TWICE),
    Law("the caller's prompt unchanged", GENERATE, "input kept", "Generation makes a new text.", counts=False),
    Law("past the context", GENERATE_PAST, "values", "Said nowhere: the model sees the last context_length tokens.", counts=False),
    Law("a prompt longer than the context", GENERATE_LONG, "values", "Said nowhere: the model sees the last context_length tokens.", counts=False),
    Law("in train mode", GENERATE_TRAIN, "values", "Greedy decoding does not draw random numbers.", counts=False),
    Law("the mode kept", GENERATE_TRAIN, "mode kept", "Generation leaves the model in the mode it was in.", counts=False),
    Law("no graph", GENERATE, "no graph", "Generation needs no gradient.", counts=False),
    Law("values", LOSS, "values", LOSS_SAYS),
    Law("values with three layers", LOSS_NARROW, "values", LOSS_SAYS),
    Law("gradient", LOSS, "gradient", GRADIENT_SAYS),
    Law("gradient with three layers", LOSS_NARROW, "gradient", GRADIENT_SAYS),
    Law("a second call", LOSS, "again", TWICE),
    Law("fresh weights", INIT, "fresh weights", "Weights N(0, 0.02), biases 0, norms 1 and 0."),
    Law("losses and gradient norms", TRAIN, "training", "Loss, backward, gradient norm, step, for every batch."),
    Law("clipping", TRAIN_CLIPPED, "training", "Gradients are clipped to the given norm before each step."),
    Law("picture", PLOT, "picture", "A figure with the training loss and the gradient norm is saved."),
)  # fmt: skip

GRADED = tuple(dict.fromkeys(law.part for law in LAWS))
SETTINGS: dict[str, Setting] = {law.setting.name: law.setting for law in LAWS}


def laws_of(part: str) -> list[Law]:
    """The laws of a part, those that count first."""
    return sorted((law for law in LAWS if law.part == part), key=lambda law: not law.counts)
