"""The laws that a submission is judged by, as data: what is run, what is checked, and the sentence it rests on.

A law that does not count is a note: the assignment never asks for it. Tolerances are relative to the spread of the
right result. In float64 the allowed difference is a hundred times the error of right solutions that round to float32
inside (3e-7; without such rounding 1e-14), and the nearest mistake is four hundred times above it. A submission that
cannot run in float64 is judged in float32, with fifty times on both sides. Tests measure these numbers.
"""

# ruff: noqa: E501  # a table, an entry a line
from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hectogpt.grade.settings import NARROW, WIDE, Setting

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
