"""Known mistakes that leave every value right and break the gradient: what is detached, or taken by .data."""

# ruff: noqa: E501  # a table, an entry a line
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from hectogpt.grade.computation import Computation, Method, Mistake, mistake

CUT = "is cut off from the gradient: detached, taken by .data, or computed under no_grad."


def detached(method: str) -> Method:
    """The right method, whose result carries no gradient."""

    def cut(self: Computation, *arguments: Any) -> Any:
        made = getattr(Computation, method)(self, *arguments)
        return tuple(t.detach() for t in made) if isinstance(made, tuple) else made.detach()

    return cut


def of_detached(method: str) -> Method:
    """The right method of an input that carries no gradient."""
    return lambda self, *a: getattr(Computation, method)(self, *a[:-1], a[-1].detach())


def linear(self: Computation, name: str, x: Tensor, bias: bool) -> Tensor:
    b = self.w[name + ".bias"]
    return x @ self.w[name + ".weight"].detach().T + (b.detach() if bias else b)


def one_of_three(name: str, change: Callable[[Computation, str, Tensor], Tensor]) -> Method:
    """Queries, keys and values, one of them in another way."""

    def project(self: Computation, p: str, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(
            (change if n in (name, f"W_{name}") else type(self).linear)(self, p + n, x) for n in ("W_q", "W_k", "W_v")
        )

    return project


def data(names: tuple[str, ...], changes: Callable[[str, bool], dict[str, Method]]) -> list[Mistake]:
    """For each matrix: its weight, or weight and bias, taken by .data."""
    made = []
    for name, bias in ((name, bias) for name in names for bias in (False, True)):
        what = f"The weight{' and the bias' * bias} of {name} {'are' if bias else 'is'} cut off from the gradient, by .data or detach."
        made.append(Mistake(f"{name}'s weight{' and bias' * bias} by .data", name, what, changes(name, bias)))
    return made


GRADIENTS: dict[str, list[Mistake]] = {
    "gelu": [
        mistake("no gradient", "GELU.forward", f"The result {CUT}", gelu=detached("gelu")),
        mistake("tanh detached", "GELU.forward", f"What stands in the bracket with tanh {CUT}", gelu=lambda s, x: x * (Computation.gelu(s, x) / x).detach()),
    ],
    "mlp": [
        mistake("no gradient", "MLP.forward", f"The result {CUT}", narrow=detached("narrow")),
        mistake("hidden layer detached", "what goes into fc2", f"What goes into fc2 {CUT}", bend=detached("bend")),
        mistake("input detached", "what goes into fc1", f"The input {CUT}", widen=of_detached("widen")),
        *data(("fc1", "fc2"), lambda name, bias: {"widen" if name == "fc1" else "narrow": lambda s, p, x: linear(s, p + name, x, bias)}),
    ],
    "attention": [
        mistake("no gradient", "CausalAttention.forward", f"The result {CUT}", output=detached("output")),
        mistake("pattern detached", "scores and softmax", f"The pattern of attention {CUT}", pattern=detached("pattern")),
        mistake("heads detached", "what goes into W_o", f"What goes into W_o {CUT}", join=detached("join")),
        mistake("input detached", "what goes into W_q, W_k and W_v", f"The input {CUT}", project=of_detached("project")),
        *(mistake(f"{words} detached", f"the {words}", f"What W_{name} returns {CUT}", project=one_of_three(f"W_{name}", lambda s, n, x: s.linear(n, x).detach())) for name, words in (("q", "queries"), ("k", "keys"), ("v", "values"))),
        *data(("W_q", "W_k", "W_v"), lambda name, bias: {"project": one_of_three(name, lambda s, n, x: linear(s, n, x, bias))}),
        *data(("W_o",), lambda name, bias: {"output": lambda s, p, z: linear(s, p + name, z, bias)}),
        *(mistake(f"all projections{' and biases' * bias} by .data", "the projections", "The weights of the projections are cut off from the gradient, by .data or detach.", project=lambda s, p, x, bias=bias: tuple(linear(s, p + n, x, bias) for n in ("W_q", "W_k", "W_v"))) for bias in (False, True)),
    ],
    "block": [
        mistake("no gradient", "DecoderBlock.forward", f"The result {CUT}", second_half=detached("second_half")),
        mistake("residual detached", "the residual sums", f"In both sums the stream {CUT}", first_half=lambda s, p, x: x.detach() + s.attend(p, s.first_norm(p, x)), second_half=lambda s, p, x: x.detach() + s.think(p, s.second_norm(p, x))),
        mistake("first residual detached", "the first sum", f"In the first sum the stream {CUT}", first_half=lambda s, p, x: x.detach() + s.attend(p, s.first_norm(p, x))),
        mistake("second residual detached", "the second sum", f"In the second sum the stream {CUT}", second_half=lambda s, p, x: x.detach() + s.think(p, s.second_norm(p, x))),
        mistake("attention under no_grad", "the attention half of the block", f"What attention returns {CUT}", attend=detached("attend")),
        mistake("MLP under no_grad", "the MLP half of the block", f"What the MLP returns {CUT}", think=detached("think")),
        mistake("pre_layer_norm detached", "what goes into attention", f"What goes into attention {CUT}", first_norm=detached("first_norm")),
        mistake("post_layer_norm detached", "what goes into the MLP", f"What goes into the MLP {CUT}", second_norm=detached("second_norm")),
        mistake("norm of a detached stream, at attention", "what goes into pre_layer_norm", f"What goes into pre_layer_norm {CUT}", first_norm=of_detached("first_norm")),
        mistake("norm of a detached stream, at the MLP", "what goes into post_layer_norm", f"What goes into post_layer_norm {CUT}", second_norm=of_detached("second_norm")),
        mistake("input detached", "the block's input", f"The block's input {CUT}", first_half=of_detached("first_half")),
        mistake("stream detached between the halves", "between attention and MLP", f"The stream between attention and MLP {CUT}", second_half=of_detached("second_half")),
    ],
    "forward": [
        mistake("no gradient", "Transformer.forward", f"The result {CUT}", head=detached("head")),
        mistake("token embeddings detached", "the token embeddings", f"The token embeddings' table {CUT}", tokens=detached("tokens")),
        mistake("position embeddings detached", "the position embeddings", f"The position embeddings' table {CUT}", positions=detached("positions")),
        mistake("embeddings detached", "what goes into the blocks", f"What goes into the blocks {CUT}", embed=detached("embed")),
        mistake("blocks under no_grad", "what comes out of the blocks", f"What comes out of the blocks {CUT}", backbone=detached("backbone")),
        mistake("final norm detached", "what goes into lm_head", f"What goes into lm_head {CUT}", final_norm=detached("final_norm")),
        mistake("lm_head by .data", "the head", "The weight of lm_head is cut off from the gradient, by .data or detach.", head=lambda s, x: x @ s.w["lm_head.weight"].detach().T),
        mistake("stream detached before each block", "the loop over the blocks", f"What goes into each block {CUT}", block=of_detached("block")),
    ],
    "loss": [mistake("no gradient", "the gradient", "The result carries no gradient: it was detached or made a plain number.", finish=detached("finish"))],
}  # fmt: skip
