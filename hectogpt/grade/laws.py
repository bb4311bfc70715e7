"""What a submission is run on and judged by: settings, each with the law that is checked in it.

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
import zlib
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from hectogpt.assignment.parts import BY_NAME


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


# The roots of the head widths of the first two, 4 and 2, are exact: a root taken in float32 does
# no harm in float64.
WIDE = Size(d_model=48, n_heads=3, n_layers=2, context_length=10, vocab_size=29)
NARROW = Size(d_model=32, n_heads=8, n_layers=3, context_length=7, vocab_size=19)
HEADS_OF_11 = Size(d_model=33, n_heads=3, n_layers=1, context_length=9, vocab_size=23)
HEADS_OF_24 = Size(d_model=48, n_heads=2, n_layers=1, context_length=8, vocab_size=21)
GPT2 = Size(d_model=8, n_heads=2, n_layers=1, context_length=6, vocab_size=50_257)


@dataclass(frozen=True)
class Setting:
    """One model of a part, and the inputs it is called with.

    law, says: the name of what is checked in it, and the sentence of the assignment that it rests
        on, in our words.
    counts: whether breaking it fails the part; otherwise it is a note.
    inputs: (batch, seq) of each call.
    kind: "trained"; "bend" (the MLP works where the two forms of GELU differ most); "loud" (scores
        of some 10^5);
        "quiet" (a stream so small that a norm's eps matters); "end" (the last token is always the
        likeliest).
    new_tokens: for generate, one number a call.
    train_mode: the module is left in train mode.
    gradient: the gradient of a weighted sum of the result comes back as well, by the input (if it
        is no token ids) and
        by every weight of the part.
    slack: how many times the usual tolerance is allowed.
    """

    name: str
    part: str
    law: str
    says: str
    size: Size = WIDE
    inputs: tuple[tuple[int, int], ...] = ((4, 7), (1, 1), (2, 10), (5, 3), (1, 6))
    kind: str = "trained"
    new_tokens: tuple[int, ...] = ()
    train_mode: bool = False
    gradient: bool = False
    counts: bool = True
    slack: float = 1.0

    @property
    def order(self) -> tuple[int, ...]:
        """The number of the input of each call: each once, then the first again. In train mode
        each twice, so that dropout shows."""
        numbers = range(len(self.inputs))
        return (*numbers, *(numbers if self.train_mode else (0,)))

    @property
    def seed(self) -> int:
        """Fixed by the name, so that adding a setting changes no other."""
        return zlib.crc32(self.name.encode())


def shapes(size: Size) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of a model's state dict."""
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
    """The input of a call: [batch, seq, d_model] float64 for GELU, MLP, attention and block;
    [batch, seq] int64 for the transformer, with the first and the last token of the vocabulary in
    every row longer than two. Made once; not to be changed."""
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
    """Our weights of the setting's part, by the names that they have in it."""
    prefix = BY_NAME[setting.part].prefix
    if setting.part == "gelu":
        return {}
    return {k.removeprefix(prefix): v for k, v in weights(setting).items() if k.startswith(prefix)}


INPUT = "the input"


def cotangent(setting: Setting, shape: torch.Size) -> Tensor:
    """What the result is multiplied with before its sum is differentiated: random numbers; 1 for a
    loss.
    """
    if setting.part == "loss":
        return torch.ones(shape, dtype=torch.float64)
    return torch.randn(
        shape, generator=torch.Generator().manual_seed(setting.seed), dtype=torch.float64
    )


# --- the settings
# ---

TOLERANCE = {
    "float64": 5e-5,
    "float32": 5e-4,
}  # by the dtype of the weights that the submission ran with
GRADIENT = 10  # a gradient may be off by this many times as much

FORMULA = "0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))."
MLP = "MLP(x) = fc2(GELU(fc1(x))), for x of shape (batch, seq, d_model)."
ATTENTION = (
    "softmax(q k^T / sqrt(d_attention) + causal mask) v for each head, heads joined in order, "
    "then W_o."
)
BLOCK = "x = x + attention(pre_layer_norm(x)), then x = x + mlp(post_layer_norm(x))."
FORWARD = (
    "Token plus position embeddings, all blocks in order, the final layer norm, lm_head; logits "
    "come back."
)
GREEDY = (
    "Greedy decoding: num_new_tokens times, each row is extended by its own likeliest next token."
)
LOSS = "The mean cross entropy of each next token given those before it."
UNSAID = "Said nowhere: the model sees the last context_length tokens."
MODE = (
    "Nothing in the assignment's model depends on the mode: training computes what evaluation "
    "does."
)
FEW = ((3, 5), (2, 7), (1, 3))
PROMPTS = ((4, 3), (1, 1), (2, 5), (3, 2), (1, 4))
ROWS = ((4, 7), (1, 2), (2, 10), (5, 3), (1, 6))

SETTINGS: dict[str, Setting] = {
    setting.name: setting
    for setting in (
        Setting("gelu", "gelu", "values", FORMULA, gradient=True),
        Setting("gelu, where it bends", "gelu", "values where it bends", FORMULA, kind="bend"),
        Setting(
            "gelu, train mode",
            "gelu",
            "values in train mode",
            MODE,
            NARROW,
            FEW,
            train_mode=True,
            gradient=True,
        ),
        Setting("mlp", "mlp", "values", MLP, gradient=True),
        Setting(
            "mlp, where GELU bends",
            "mlp",
            "values where GELU bends",
            MLP,
            NARROW,
            ((2, 5),),
            kind="bend",
        ),
        Setting(
            "mlp, train mode",
            "mlp",
            "values in train mode",
            MODE,
            NARROW,
            FEW,
            train_mode=True,
            gradient=True,
        ),
        Setting("attention", "attention", "values", ATTENTION, gradient=True),
        # A root of 11 or 24 taken in float32 is off by 1e-8 of itself, and the scores with it.
        Setting(
            "attention, heads of width 11",
            "attention",
            "values with heads of width 11",
            ATTENTION,
            HEADS_OF_11,
            ((2, 7), (1, 9)),
            slack=10,
        ),
        Setting(
            "attention, heads of width 24",
            "attention",
            "values with heads of width 24",
            ATTENTION,
            HEADS_OF_24,
            ((2, 6),),
            slack=10,
        ),
        Setting(
            "attention, eight heads",
            "attention",
            "values with eight heads",
            ATTENTION,
            NARROW,
            ((3, 5), (2, 7)),
        ),
        Setting(
            "attention, large scores",
            "attention",
            "a mask that no score outweighs",
            "The causal mask hides the future.",
            WIDE,
            ((2, 6),),
            kind="loud",
            counts=False,
        ),
        Setting(
            "attention, train mode",
            "attention",
            "values in train mode",
            MODE,
            NARROW,
            FEW,
            train_mode=True,
            gradient=True,
        ),
        Setting("block", "block", "values", BLOCK, gradient=True),
        Setting(
            "block, small activations",
            "block",
            "values for small activations",
            "Layer norm with eps 1e-5, as GPT-2's.",
            NARROW,
            ((3, 5),),
            kind="quiet",
        ),
        Setting(
            "block, train mode",
            "block",
            "values in train mode",
            MODE,
            NARROW,
            FEW,
            train_mode=True,
            gradient=True,
        ),
        Setting("forward", "forward", "values", FORWARD, gradient=True),
        Setting(
            "forward, three layers",
            "forward",
            "values with three layers",
            FORWARD,
            NARROW,
            ((3, 5), (2, 7)),
        ),
        Setting(
            "forward, small activations",
            "forward",
            "values for small activations",
            "Layer norm with eps 1e-5, as GPT-2's.",
            NARROW,
            ((3, 5),),
            kind="quiet",
        ),
        Setting(
            "forward, train mode",
            "forward",
            "values in train mode",
            MODE,
            NARROW,
            FEW,
            train_mode=True,
            gradient=True,
        ),
        Setting(
            "generate", "generate", "tokens", GREEDY, WIDE, PROMPTS, new_tokens=(6, 2, 4, 1, 3)
        ),
        Setting(
            "generate, up to the context",
            "generate",
            "tokens up to the context",
            GREEDY,
            NARROW,
            ((3, 4), (2, 6)),
            new_tokens=(3, 1),
        ),
        Setting(
            "generate, GPT-2's vocabulary",
            "generate",
            "tokens of GPT-2's vocabulary",
            GREEDY,
            GPT2,
            ((2, 3),),
            kind="end",
            new_tokens=(3,),
        ),
        Setting(
            "generate, nothing new",
            "generate",
            "no new token",
            GREEDY,
            NARROW,
            ((2, 3),),
            new_tokens=(0,),
            counts=False,
        ),
        Setting(
            "generate, past the context",
            "generate",
            "past the context",
            UNSAID,
            NARROW,
            ((3, 5),),
            new_tokens=(7,),
            counts=False,
        ),
        Setting(
            "generate, a prompt longer than the context",
            "generate",
            "a prompt longer than the context",
            UNSAID,
            NARROW,
            ((2, 9),),
            new_tokens=(3,),
            counts=False,
        ),
        Setting(
            "generate, train mode",
            "generate",
            "tokens in train mode",
            MODE,
            WIDE,
            ((2, 4),),
            new_tokens=(3,),
            train_mode=True,
        ),
        Setting("loss", "loss", "values", LOSS, WIDE, ROWS, gradient=True),
        Setting(
            "loss, three layers",
            "loss",
            "values with three layers",
            LOSS,
            NARROW,
            ((3, 5), (2, 7)),
            gradient=True,
        ),
        Setting(
            "loss, GPT-2's vocabulary",
            "loss",
            "values with GPT-2's vocabulary",
            LOSS,
            GPT2,
            ((3, 6),),
        ),
        Setting(
            "loss, train mode",
            "loss",
            "values in train mode",
            MODE,
            NARROW,
            FEW,
            train_mode=True,
            gradient=True,
        ),
        Setting(
            "train",
            "train",
            "losses and gradient norms",
            "Loss, backward, gradient norm, step, for every batch.",
        ),
        Setting(
            "train, clipped",
            "train",
            "clipping",
            "Gradients are clipped to the given norm before each step.",
        ),
    )
}
GRADED = tuple(
    part for part in BY_NAME if any(setting.part == part for setting in SETTINGS.values())
)


@lru_cache
def settings_of(part: str) -> list[Setting]:
    """The settings of a part, those that count first."""
    return sorted(
        (one for one in SETTINGS.values() if one.part == part), key=lambda one: not one.counts
    )
