"""Known mistakes in GELU, the MLP and the block."""

# ruff: noqa: E501  # a table, an entry a line
from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from hectogpt.grade.computation import Change, Computation, Method, Mistake, mistake

CURVES: dict[str, tuple[str, Change]] = {
    "erf GELU": ("it is the exact unit, by erf; the assignment asks for its tanh form", lambda s, x: F.gelu(x)),
    "ReLU for GELU": ("it is a ReLU", lambda s, x: x.relu()),
    "SiLU for GELU": ("it is x times the sigmoid of x (SiLU)", lambda s, x: F.silu(x)),
    "sigmoid GELU": ("it is the sigmoid approximation (factor 1.702), another one", lambda s, x: x * (1.702 * x).sigmoid()),
    "tanh for GELU": ("it is a plain tanh", lambda s, x: x.tanh()),
    "leaky ReLU for GELU": ("it is a leaky ReLU", lambda s, x: F.leaky_relu(x)),
    "ELU for GELU": ("it is an ELU", lambda s, x: F.elu(x)),
    "sigmoid for GELU": ("it is a sigmoid", lambda s, x: x.sigmoid()),
    "softplus for GELU": ("it is a softplus", lambda s, x: F.softplus(x)),
    "squared ReLU for GELU": ("it is a squared ReLU", lambda s, x: x.relu() ** 2),
    "bracket misplaced in GELU": ("the factor sqrt(2/pi) multiplies x alone; it stands before the whole bracket", lambda s, x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * x + 0.044715 * x**3))),
    "1 + inside tanh": ("the 1 is added inside tanh", lambda s, x: 0.5 * x * torch.tanh(1 + math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "no x before the bracket": ("the x before the bracket is missing", lambda s, x: 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))),
    "x squared in GELU": ("the power of x inside tanh is 2 instead of 3", lambda s, x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**2)))),
}  # fmt: skip

GELU = [mistake(name, "GELU.forward", what + ".", gelu=f) for name, (what, f) in CURVES.items()]


def without_bias(name: str) -> Method:
    return lambda self, p, x: x @ self.w[f"{p}{name}.weight"].T


MLP = [
    *(mistake(name, "the activation between fc1 and fc2", f"The activation is not the tanh GELU: {what}.", bend=f) for name, (what, f) in CURVES.items() if name in ("erf GELU", "sigmoid GELU") or name.endswith("for GELU")),
    mistake("no GELU", "the activation between fc1 and fc2", "There is no activation between the two linear layers.", bend=lambda s, h: h),
    mistake("GELU twice", "the activation between fc1 and fc2", "The activation is applied twice between the two layers.", bend=lambda s, h: s.gelu(s.gelu(h))),
    mistake("GELU after fc2 too", "after fc2", "The result of the second layer goes through GELU once more.", narrow=lambda s, p, h: s.gelu(s.linear(p + "fc2", h))),
    mistake("GELU after fc2 only", "the order of fc1, GELU and fc2", "The activation comes after the second layer, not between the two.", narrow=lambda s, p, h: s.gelu(s.linear(p + "fc2", h)), bend=lambda s, h: h),
    mistake("GELU before fc1", "the order of fc1, GELU and fc2", "The activation comes before the first layer, not between the two.", widen=lambda s, p, x: s.linear(p + "fc1", s.gelu(x)), bend=lambda s, h: h),
    mistake("GELU before fc1 too", "before fc1", "The input of the first layer goes through GELU once more.", widen=lambda s, p, x: s.linear(p + "fc1", s.gelu(x))),
    mistake("fc1 without bias", "fc1", "The bias of the first layer is not added.", widen=without_bias("fc1")),
    mistake("fc2 without bias", "fc2", "The bias of the second layer is not added.", narrow=without_bias("fc2")),
    mistake("no fc2", "fc2", "The second layer is not applied: the result has width 4 d_model.", narrow=lambda s, p, h: h),
    mistake("residual inside the MLP", "the result", "The input is added inside the MLP; the residual sum belongs to the block.", mlp=lambda s, p, x: x + Computation.mlp(s, p, x)),
    mistake("softmax in the MLP", "the activation between fc1 and fc2", "A softmax stands where the activation belongs.", bend=lambda s, h: h.softmax(-1)),
    mistake("batches summed", "the result", "The result is averaged over the batch.", mlp=lambda s, p, x: Computation.mlp(s, p, x).mean(0, keepdim=True).expand_as(x)),
]  # fmt: skip


# What is done to a part's result at its end: (name, sentence, function).
ENDS: list[tuple[str, str, Change]] = [
    ("ReLU at the end", "The result goes through a ReLU.", lambda s, y: y.relu()),
    ("GELU at the end", "The result goes through a GELU.", lambda s, y: Computation.gelu(s, y)),
    ("tanh at the end", "The result goes through a tanh.", lambda s, y: y.tanh()),
    ("sigmoid at the end", "The result goes through a sigmoid.", lambda s, y: y.sigmoid()),
    ("softmax at the end", "The result goes through a softmax.", lambda s, y: y.softmax(-1)),
    ("norm at the end", "The result is normalised, without gain and bias.", lambda s, y: F.layer_norm(y, y.shape[-1:], eps=1e-5)),
    ("averaged over positions", "The result is averaged over the positions.", lambda s, y: y.mean(1)),
    ("averaged over positions, axis kept", "The result is averaged over the positions.", lambda s, y: y.mean(1, keepdim=True)),
    ("summed over positions", "The result is summed over the positions.", lambda s, y: y.sum(1)),
    ("averaged over the batch", "The result is averaged over the batch.", lambda s, y: y.mean(0)),
    ("first position only", "Only the first position comes back.", lambda s, y: y[:, 0]),
    ("last position only", "Only the last position comes back.", lambda s, y: y[:, -1]),
    ("first row only", "Only the first row of the batch comes back.", lambda s, y: y[0]),
    ("rows and positions swapped", "The axes of batch and positions are swapped in the result.", lambda s, y: y.transpose(0, 1)),
    ("axes transposed at the end", "The last two axes of the result are swapped.", lambda s, y: y.transpose(-1, -2)),
    ("axes of length one squeezed away", "Axes of length one are squeezed away.", lambda s, y: y.squeeze()),
    ("sign of the result", "The sign of the result is wrong.", lambda s, y: -y),
    ("cumulative sum", "The result is summed up along the positions.", lambda s, y: y.cumsum(1)),
]  # fmt: skip


def ends(listed: list[Mistake]) -> list[Mistake]:
    """The mistakes at the end of a part, where none of the listed ones has that name."""
    names = {mistake.name for mistake in listed}
    return [mistake(n, "the result", what, after=f) for n, what, f in ENDS if n not in names]


MLP += ends(MLP)


def normalised(axis: int | tuple[int, ...] = -1, mean: bool = True, sample: int = 0, outside: bool = False) -> Method:
    """A norm over another axis, without the mean, by the sample variance (sample=1), with eps outside the root."""

    def norm(self: Computation, name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(axis, keepdim=True) if mean else x
        count = x[0].numel() if isinstance(axis, tuple) else x.shape[axis]
        variance = (centred**2).mean(axis, keepdim=True) * (count / (count - sample))
        root = variance.sqrt() + self.eps() if outside else torch.sqrt(variance + self.eps())
        return self.affine(name, centred / root)

    return norm


# Mistakes in a norm written by hand, in whatever part it stands: (name, sentence, method, what takes its place).
NORM_MISTAKES: list[tuple[str, str, str, Method]] = [
    ("norm over positions", "The norm is taken over positions, not over d_model.", "norm", normalised(1)),
    ("norm over the batch", "The norm is taken over the batch, not over d_model.", "norm", normalised(0)),
    ("norm over positions and channels", "The norm is taken over positions and d_model together.", "norm", normalised((1, 2))),
    ("RMS norm", "The mean is not subtracted: this is an RMS norm.", "norm", normalised(mean=False)),
    ("norm by the sample variance", "The norm is written by hand with the sample variance, divided by n - 1; layer norm divides by n.", "norm", normalised(sample=1)),
    ("norm by the sample deviation", "The norm is written by hand with the sample deviation (divided by n - 1), to which eps is added.", "norm", normalised(sample=1, outside=True)),
    ("eps outside the root", "Eps is added to the deviation; it belongs to the variance, under the root.", "norm", normalised(outside=True)),
    ("norm not divided", "The mean is subtracted, but nothing is divided by the deviation.", "norm", lambda s, name, x: s.affine(name, x - x.mean(-1, keepdim=True))),
    ("norm divided by the variance", "The variance divides, not its root.", "norm", lambda s, name, x: s.affine(name, (c := x - x.mean(-1, keepdim=True)) / ((c**2).mean(-1, keepdim=True) + s.eps()))),
    ("norm without gain and bias", "The norm's gain and bias are not applied.", "affine", lambda s, n, x: x),
    ("norm without bias", "The norm's bias is not added.", "affine", lambda s, n, x: x * s.w[n + ".weight"]),
]  # fmt: skip


Half = Callable[[Tensor, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]], Tensor]  # of stream, norm and part


def halves(change: Half, *names: str) -> dict[str, Method]:
    """A change in both halves of the block, or in that of "attention" or "MLP"."""
    methods = {
        "attention": ("first_half", lambda s, p, x: change(x, partial(s.first_norm, p), partial(s.attend, p))),
        "MLP": ("second_half", lambda s, p, x: change(x, partial(s.second_norm, p), partial(s.think, p))),
    }
    return dict(methods[name] for name in names or methods)


SUMS, NORMS = "the residual sums", "where the norms stand"
FIRST, SECOND = "the attention half of the block", "the MLP half of the block"
BLOCK = [
    mistake("norms swapped", "which norm belongs to which part", "The two norms are swapped. Mind the names: post_layer_norm is the norm before the MLP.", first_norm=lambda s, p, x: s.norm(p + "post_layer_norm", x), second_norm=lambda s, p, x: s.norm(p + "pre_layer_norm", x)),
    mistake("pre_layer_norm used twice", "the norm before the MLP", "pre_layer_norm is used before both parts.", second_norm=lambda s, p, x: s.norm(p + "pre_layer_norm", x)),
    mistake("post_layer_norm used twice", "the norm before attention", "post_layer_norm is used before both parts.", first_norm=lambda s, p, x: s.norm(p + "post_layer_norm", x)),
    mistake("post-norm", NORMS, "The norms are applied to the sums (post-norm); GPT-2 normalises what goes into each part.", **halves(lambda x, norm, part: norm(x + part(x)))),
    mistake("post-norm at attention", FIRST, "In the attention half the norm is applied to the sum, not to the input.", **halves(lambda x, norm, part: norm(x + part(x)), "attention")),
    mistake("post-norm at the MLP", SECOND, "In the MLP half the norm is applied to the sum, not to the input.", **halves(lambda x, norm, part: norm(x + part(x)), "MLP")),
    mistake("norm after attention", FIRST, "The norm is applied to what attention returns, not to what goes into it.", **halves(lambda x, norm, part: x + norm(part(x)), "attention")),
    mistake("norm after the MLP", SECOND, "The norm is applied to what the MLP returns, not to what goes into it.", **halves(lambda x, norm, part: x + norm(part(x)), "MLP")),
    mistake("norms after both parts", NORMS, "The norms are applied to what the parts return, not to what goes into them.", **halves(lambda x, norm, part: x + norm(part(x)))),
    mistake("residual from the normalised stream, both", SUMS, "What is added to is the normalised stream; the residual has to be the stream before each norm.", **halves(lambda x, norm, part: (y := norm(x)) + part(y))),
    mistake("residual from the normalised stream, at attention", FIRST, "The sum after attention starts from the normalised stream.", **halves(lambda x, norm, part: (y := norm(x)) + part(y), "attention")),
    mistake("residual from the normalised stream, at the MLP", SECOND, "The sum after the MLP starts from the normalised stream.", **halves(lambda x, norm, part: (y := norm(x)) + part(y), "MLP")),
    mistake("parallel block", "what goes into the MLP", "Both parts read the block's input; the MLP has to read the stream after attention was added.", block=lambda s, p, x: x + s.attend(p, s.first_norm(p, x)) + s.think(p, s.second_norm(p, x))),
    mistake("second residual from the block's input", SUMS, "The second sum starts from the block's input: what attention added is lost from the stream.", block=lambda s, p, x: x + s.think(p, s.second_norm(p, s.first_half(p, x)))),
    mistake("MLP reads attention alone", "what goes into the MLP", "The MLP reads what attention returns, without the residual.", block=lambda s, p, x: (a := s.attend(p, s.first_norm(p, x))) + x + s.think(p, s.second_norm(p, a))),
    mistake("first residual only at the end", SUMS, "Attention's own result takes the place of the stream, and the input is added at the very end only.", block=lambda s, p, x: x + s.think(p, s.second_norm(p, s.attend(p, s.first_norm(p, x))))),
    mistake("second sum starts from attention alone", SUMS, "The second sum starts from what attention returned, without the stream.", block=lambda s, p, x: (a := s.attend(p, s.first_norm(p, x))) + s.think(p, s.second_norm(p, x + a))),
    mistake("no residual sums", SUMS, "The input of each part is not added to its result: there is no residual stream.", **halves(lambda x, norm, part: part(norm(x)))),
    mistake("no residual at attention", FIRST, "The input is not added to what attention returns.", **halves(lambda x, norm, part: part(norm(x)), "attention")),
    mistake("no residual at the MLP", SECOND, "The stream is not added to what the MLP returns.", **halves(lambda x, norm, part: part(norm(x)), "MLP")),
    mistake("MLP not normalised", "the norm before the MLP", "What goes into the MLP is not normalised.", second_norm=lambda s, p, x: x),
    mistake("attention not normalised", "the norm before attention", "What goes into attention is not normalised.", first_norm=lambda s, p, x: x),
    mistake("norms before and after the MLP", SECOND, "The second norm is applied twice: before the MLP and to its result.", **halves(lambda x, norm, part: x + norm(part(norm(x))), "MLP")),
    mistake("norms before and after attention", FIRST, "The first norm is applied twice: before attention and to its result.", **halves(lambda x, norm, part: x + norm(part(norm(x))), "attention")),
    mistake("post_layer_norm at the end too", NORMS, "The block's result is normalised once more, by post_layer_norm.", block=lambda s, p, x: s.second_norm(p, s.second_half(p, s.first_half(p, x)))),
    mistake("post_layer_norm at the end only", NORMS, "post_layer_norm stands at the end of the block instead of before the MLP.", block=lambda s, p, x: s.second_norm(p, (y := s.first_half(p, x)) + s.think(p, y))),
    mistake("post_layer_norm after attention's sum, not before the MLP alone", NORMS, "The stream itself is normalised between the two parts.", block=lambda s, p, x: s.second_norm(p, s.first_half(p, x)) + s.think(p, s.first_half(p, x))),
    mistake("MLP's result subtracted", SUMS, "What the MLP returns is subtracted.", **halves(lambda x, norm, part: x - part(norm(x)), "MLP")),
    mistake("attention's result subtracted", SUMS, "What attention returns is subtracted.", **halves(lambda x, norm, part: x - part(norm(x)), "attention")),
    mistake("GELU on the MLP's result", SECOND, "What the MLP returns goes through GELU once more.", second_half=lambda s, p, x: x + s.gelu(s.think(p, s.second_norm(p, x)))),
    mistake("sums averaged", SUMS, "Each sum is divided by two.", **halves(lambda x, norm, part: (x + part(norm(x))) / 2)),
    mistake("second sum averaged", SUMS, "The second sum is divided by two.", **halves(lambda x, norm, part: (x + part(norm(x))) / 2, "MLP")),
    mistake("no norms", NORMS, "Neither part's input is normalised.", first_norm=lambda s, p, x: x, second_norm=lambda s, p, x: x),
    mistake("MLP before attention", "the order of the parts", "The MLP comes first; attention has to.", block=lambda s, p, x: s.first_half(p, s.second_half(p, x))),
    mistake("MLP before attention, norms by place", "the order of the parts", "The MLP comes first; attention has to.", block=lambda s, p, x: (y := x + s.think(p, s.first_norm(p, x))) + s.attend(p, s.second_norm(p, y))),
    mistake("no attention", FIRST, "Attention is not used.", first_half=lambda s, p, x: x),
    mistake("no MLP", SECOND, "The MLP is not used.", second_half=lambda s, p, x: x),
    mistake("attention twice", SECOND, "Attention stands where the MLP belongs.", second_half=lambda s, p, x: x + s.attend(p, s.second_norm(p, x))),
    mistake("MLP twice", FIRST, "The MLP stands where attention belongs.", first_half=lambda s, p, x: x + s.think(p, s.first_norm(p, x))),
    mistake("input added twice", SUMS, "The block's input is added once too often.", block=lambda s, p, x: x + s.second_half(p, s.first_half(p, x))),
    *(mistake(name, "the norms", what, **{method: f}) for name, what, method, f in NORM_MISTAKES),
]  # fmt: skip
BLOCK += ends(BLOCK)
