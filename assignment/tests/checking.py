"""Code that the tests share: expected values, the weights for them, comparisons that say where, and stand-ins.

The weights are not fresh. In a freshly initialised model attention is nearly uniform, both norms are equal and biases
are 0, so many mistakes change nothing. Here attention is peaked, gains and biases differ, rows and prompts differ.

A stand-in takes the place of a part that the tested one calls, so that every part can be written and tested first.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor, nn

EXPECTED = json.loads((Path(__file__).parent / "expected.json").read_text(encoding="utf-8"))
TOLERANCE = 1e-5  # float64 is used, but a solution may compute in float32 in places

# --- values -----------------------------------------------------------------------------------------------------------


def value(part: str, name: str) -> Tensor:
    """A stored array: token ids as int64, other numbers as float64."""
    array = torch.tensor(EXPECTED[part][name])
    return array if array.dtype == torch.int64 else torch.tensor(EXPECTED[part][name], dtype=torch.float64)


@cache
def weights(prefix: str = "") -> dict[str, Tensor]:
    """The stored weights whose names begin so, without the beginning."""
    names = [name for name in EXPECTED["weights"] if name.startswith(prefix)]
    return {name.removeprefix(prefix): value("weights", name).double() for name in names}


def config():
    """d_model 15, 3 heads of 5, 2 layers, context 10, 13 tokens. The root of 5 is not whole."""
    from model_solution import ModelConfig

    return ModelConfig(**EXPECTED["config"])


def beyond(test):
    """Marks a test of what the course's own tests do not look at. `hectogpt assignment --check` makes it a note, which
    takes no points; pytest fails all the same."""
    test.beyond = True
    return test


# --- comparing --------------------------------------------------------------------------------------------------------


def check(truth: bool, message: str) -> None:
    """Fail with this message unless it is true."""
    if not truth:
        raise AssertionError(message)


def check_shape(yours: object, shape: tuple[int, ...], what: str) -> None:
    """Fail unless it is a tensor of this shape."""
    if not isinstance(yours, Tensor):
        raise AssertionError(f"{what}: a tensor was expected, yours is {yours!r:.60}")
    check(tuple(yours.shape) == tuple(shape), f"{what}: the shape is {list(yours.shape)}, expected {list(shape)}")


def check_close(yours: object, expected: Tensor, what: str, tolerance: float = TOLERANCE) -> None:
    """Fail where a number differs by more than the tolerance, absolutely and relatively; say where first."""
    if isinstance(yours, Tensor) and yours.shape == (1,) and expected.dim() == 0:
        yours = yours.reshape(())
    check_shape(yours, expected.shape, what)
    assert isinstance(yours, Tensor)
    mine, theirs = yours.detach().double(), expected.detach().double()
    wrong = ~((mine - theirs).abs() <= tolerance * (1 + theirs.abs()))  # "not close", so that NaN is wrong
    if wrong.any():
        place = tuple(wrong.nonzero()[0].tolist())
        at = f"first at {list(place)}: " if place else ""
        many = f"{int(wrong.sum())} of {wrong.numel()} numbers differ, " if place else ""
        mine_here, theirs_here = mine[place].item(), theirs[place].item()
        difference = f"difference {mine_here - theirs_here:.2g}"
        raise AssertionError(f"{what}: {many}{at}yours {mine_here:.6g}, expected {theirs_here:.6g}, {difference}")


def check_tokens(yours: object, expected: Tensor, what: str) -> None:
    """Fail unless these are the expected token ids, as integers."""
    check_shape(yours, expected.shape, what)
    assert isinstance(yours, Tensor)
    check(not yours.dtype.is_floating_point, f"{what}: token ids are integers, yours are {yours.dtype}")
    check_close(yours, expected, what, 0.0)


def check_gradients(module: nn.Module, x: Tensor) -> None:
    """Fail unless backward gives the gradient of the output by every parameter and by x: it is compared with how much
    the output changes when each of these moves a little."""
    leaf = x.clone().requires_grad_(x.is_floating_point())
    output = module(leaf.clone())  # what is done to it in place, is done to no leaf
    output = output if output.requires_grad else module.train()(leaf.clone())  # where gradients are taken in training
    check(output.requires_grad, "the result has no gradient: something was detached, or converted to a number")
    toward = 0.5 + torch.sin(torch.arange(output.numel(), dtype=output.dtype)).reshape(output.shape)
    module.zero_grad()
    (output * toward).sum().backward()
    moved = dict(module.named_parameters()) | ({"the input": leaf} if leaf.requires_grad else {})
    for name, tensor in moved.items():
        step = 0.5 + torch.cos(3.0 * torch.arange(tensor.numel(), dtype=tensor.dtype)).reshape(tensor.shape)
        sums = []
        with torch.no_grad():
            for factor in (1e-4, -1e-4):
                tensor += factor * step
                sums.append((module(leaf.clone()) * toward).sum())
                tensor -= factor * step
        expected = (sums[0] - sums[1]) / 2e-4
        yours = (tensor.grad * step).sum() if tensor.grad is not None else torch.zeros(())
        message = f"the gradient by {name} is wrong: something on the way to it is detached, or under no_grad"
        check(bool((yours - expected).abs() <= 0.02 + 1e-3 * expected.abs()), message)


def check_modes(module: nn.Module, x: Tensor, expected: Tensor, what: str) -> None:
    """Fail where train mode, unless it is random as dropout is, or a later call computes something else."""
    torch.manual_seed(0)
    made = [module.train()(x) for _ in range(8)]
    if all(torch.equal(made[0], again) for again in made):
        check_close(made[0], expected, f"{what} in train mode")
        check_gradients(module, x)
    module.eval()
    with torch.no_grad():
        for _ in range(40):
            module(x[:1, :2])
        check_close(module(x), expected, f"{what} at a later call")


def check_no_dropout(module: nn.Module, x: Tensor, what: str) -> None:
    """Fail where two calls in train mode differ, or where the input is changed."""
    kept = x.clone()
    check_close(module.train()(x), module(x), f"{what} in train mode, at a second call")
    check(torch.equal(x, kept), f"{what}: the input is changed in place")


def check_error(error, call, what: str) -> None:
    """Fail unless the call raises this error, or one of these."""
    try:
        call()
    except error:
        return
    raise AssertionError(f"{what}: {getattr(error, '__name__', 'an error')} was expected, and nothing was raised")


# --- modules with the stored weights ----------------------------------------------------------------------------------


def fill(module: nn.Module, prefix: str = "") -> nn.Module:
    """Give a module the stored weights, in float64. Fails if it has other parameters than it should."""
    torch.set_grad_enabled(True)  # whatever another test has left behind it
    module.double().eval()
    stored, parameters = weights(prefix), dict(module.named_parameters())
    lacking, more = sorted(stored.keys() - parameters.keys()), sorted(parameters.keys() - stored.keys())
    check(not lacking, f"there is no parameter {', '.join(lacking)}")
    check(not more, f"there are parameters that nothing asks for: {', '.join(more)}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            check_shape(parameter, stored[name].shape, f"parameter {name}")
            parameter.copy_(stored[name])
    return module


def make_mlp() -> nn.Module:
    """The first block's MLP."""
    from model_solution import MLP

    mlp = fill(MLP(config()), "backbone.0.mlp.")
    mlp.gelu = nn.GELU(approximate="tanh")
    return mlp


def make_attention() -> nn.Module:
    """The first block's attention."""
    from model_solution import CausalAttention

    return fill(CausalAttention(config()), "backbone.0.attention.")


def make_block() -> nn.Module:
    """The first block, with stand-ins for its attention and its MLP."""
    from model_solution import DecoderBlock

    block = fill(DecoderBlock(config()), "backbone.0.")
    block.attention, block.mlp = StandInAttention(), StandInMLP()
    return block


def make_transformer() -> nn.Module:
    """Make the whole model without calling `_init_weights`."""
    from model_solution import Transformer

    with patch.object(Transformer, "_init_weights", lambda self, *args, **kwargs: None):
        return fill(Transformer(config()))


def make_forward() -> nn.Module:
    """The whole model with stand-ins for its blocks."""
    model = make_transformer()
    model.backbone = nn.Sequential(*(StandInBlock(number) for number in range(model.config.n_layers)))
    return model


def make_small() -> nn.Module:
    """The whole model without blocks, with embeddings so small that the epsilon of the final norm shows."""
    model = make_transformer()
    model.backbone = nn.ModuleList()
    with torch.no_grad():
        model.embeddings.weight *= 3e-3
        model.position_embeddings.weight *= 3e-3
    return model


class StandInAttention(nn.Module):
    """Mixes earlier positions and columns; no attention at all."""

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        mean = x.cumsum(dim=1) / torch.arange(1, x.shape[1] + 1, dtype=x.dtype, device=x.device)[:, None]
        return torch.sin(1.3 * mean.roll(1, dims=-1)) + 0.4 * x


class StandInMLP(nn.Module):
    """Mixes columns; no MLP at all."""

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        return torch.cos(0.9 * x).roll(2, dims=-1) + 0.2 * x


class StandInBlock(nn.Module):
    """Another function for every number; no block at all."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        mean = x.cumsum(dim=1) / torch.arange(1, x.shape[1] + 1, dtype=x.dtype, device=x.device)[:, None]
        return x + torch.sin((1 + self.number) * mean.roll(1 + self.number, dims=-1)) + 0.3 * self.number


def stand_in_logits(ids: Tensor, vocab_size: int) -> Tensor:
    """[batch, seq, vocab]: scores that depend on all tokens up to their position, and on their places."""
    places = torch.arange(1, ids.shape[1] + 1, device=ids.device)
    words = torch.arange(vocab_size, device=ids.device)
    state = torch.cos(1.9 * ids.double() + 0.8 * places).cumsum(dim=1)
    phase = state[..., None] * (1 + 0.43 * words) + 0.9 * ids[..., None]
    return 2 * torch.sin(phase) + 1.5 * torch.cos(2.3 * phase + words)


LAST = 50_256  # which ends a text in GPT-2's vocabulary


def make_model_of_one_token() -> tuple[nn.Module, Tensor]:
    """Make a model with GPT-2's vocabulary whose most likely token is always LAST, and a batch."""
    model = make_transformer()

    def forward(x: Tensor, *args: object, **kwargs: object) -> Tensor:
        logits = torch.zeros(*x.shape, LAST + 1, dtype=torch.float64)
        logits[..., LAST] = 10.0
        return logits + 0.0 * model.lm_head.weight.sum()

    model.forward = forward
    return model, torch.tensor([[1, LAST, 2, LAST, 3]])


def make_model_with_logits() -> tuple[nn.Module, list[int], list[bool]]:
    """A Transformer whose forward is a stand-in; the lengths that it was called with, and whether with gradients."""
    model = make_transformer()
    lengths: list[int] = []
    tracked: list[bool] = []

    def forward(x: Tensor, *args: object, **kwargs: object) -> Tensor:
        context = model.config.context_length
        check(x.shape[1] <= context, f"the model was called with {x.shape[1]} tokens, its context is {context}")
        lengths.append(x.shape[1])
        tracked.append(torch.is_grad_enabled())
        return stand_in_logits(x, model.config.vocab_size) * (1 + 0.1 * model.lm_head.weight.mean())

    model.forward = forward
    return model, lengths, tracked
