"""GPT-2, written for speed. By default it is the same function as reference/model_solution.py.

Queries, keys and values come from one matrix, attention uses scaled_dot_product_attention, and the
loss comes from the fused head. State dicts use the textbook's names when saved and loaded.
Departures from GPT-2 come from the config.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeVar, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from hectogpt.errors import UserError
from hectogpt.model.attention import AttentionView, CausalAttention, wants_layer
from hectogpt.model.config import MLP, Attention, Block, Init, ModelConfig
from hectogpt.model.inputs import Cache, LayerCache, SpellingLayer
from hectogpt.model.lm_head import LMHead
from hectogpt.model.parts import GELULayer, Ids, Places, Vectors


class MLPLayer(nn.Module):
    """Two linear maps with an activation between them, d -> 4d -> d, applied to each position."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.d_model, 4 * config.d_model, bias=config.biases)
        self.activation = config.activation.build()
        self.fc2 = nn.Linear(4 * config.d_model, config.d_model, bias=config.biases)

    def forward(self, x: Vectors) -> Vectors:
        return self.fc2(self.activation(self.fc1(x)))


class DecoderBlock(nn.Module):
    """Pre-norm residual block.

    The textbook calls the norm before the MLP `post_layer_norm`.
    """

    def __init__(self, layer: int, config: ModelConfig) -> None:
        super().__init__()
        self.layer = layer
        self.pre_layer_norm = config.norm.build(config.d_model)
        self.attention = build_for(config.attention, layer, config, CausalAttention)
        self.post_layer_norm = config.norm.build(config.d_model)
        self.mlp = (
            MLPLayer(config)
            if config.mlp is None
            else build_for(config.mlp, layer, config, nn.Module)
        )

    def forward(
        self,
        x: Vectors,
        view: AttentionView,
        cache: LayerCache | None = None,
        ve: Vectors | None = None,
    ) -> Vectors:
        x = x + self.attention(self.pre_layer_norm(x), view, cache, ve)
        return x + self.mlp(self.post_layer_norm(x))


Built = TypeVar("Built", bound=nn.Module)


def build_for(
    part: Block | Attention | MLP | None, layer: int, config: ModelConfig, kind: type[Built]
) -> Built:
    """Build the module of a layer's part, or GPT-2's if `part` is None.

    Raises UserError if the module is not an instance of `kind`. Later, each call of the module
    raises UserError if the output does not have the shape of the input.
    """
    if part is None:
        return kind(layer, config)
    module = part.build(layer, config)
    name = type(part).__name__
    if not isinstance(module, kind):
        raise UserError(
            f"{name}.build returned {type(module).__name__}", why=f"it has to be a {kind.__name__}"
        )

    def check_shape(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if output.shape != inputs[0].shape:
            raise UserError(
                f"{name}: layer {layer} gave {tuple(output.shape)} for {tuple(inputs[0].shape)}",
                why="this must keep the shape [batch, time, d_model] of the residual stream",
                fix=f"a last layer with {inputs[0].shape[-1]} outputs",
            )

    module.register_forward_hook(check_shape)
    return module


class Transformer(nn.Module):
    """Map token ids to next-token logits."""

    kernels = False

    def __init__(self, config: ModelConfig, init: Init | None = None) -> None:
        super().__init__()
        self.config = config
        width = config.input_width
        self.embeddings = nn.Embedding(config.vocab_size, width)
        self.position_embeddings = config.positions.build(config.context_length, width)
        sizes = (width, config.vocab_size, config.norm)
        self.inputs = nn.ModuleList(part.build(*sizes) for part in config.inputs)
        self.value_embeddings = nn.ModuleList(
            part.build(*sizes) for part in config.value_embeddings
        )
        self.backbone = nn.ModuleList(
            build_for(config.block, layer, config, DecoderBlock)
            for layer in range(config.n_layers)
        )
        self.shares_view = (
            config.block is None
            and config.attention is None
            and not any(map(wants_layer, config.attention_parts))
        )
        self.final_layer_norm = config.norm.build(config.d_model)
        self.lm_head = LMHead(config.lm_head, config.d_model, config.vocab_size, width)
        self.pointer = (
            config.pointer.build(config.d_model, config.vocab_size) if config.pointer else None
        )
        if config.lm_head.tied:
            self.lm_head.weight = cast(nn.Parameter, self.embeddings.weight)
        self.init_weights(init or Init())

    # --- initial weights ---

    @torch.no_grad()
    def init_weights(self, init: Init, seed: int | None = None) -> None:
        """Draw the initial weights.

        With a seed, they equal the textbook's after torch.manual_seed(seed): the same generator
        and the same order (tables, then per layer k, q, v, o, fc1, fc2, then the head). Parts that
        draw their own weights (in a method `init_weights(generator)`) follow, in the order of the
        modules.
        """
        if self.embeddings.weight.is_meta:
            return
        generator = (
            torch.default_generator if seed is None else torch.Generator().manual_seed(seed)
        )
        for module in self.modules():
            if isinstance(module, (nn.Linear, LMHead)) and module.bias is not None:
                module.bias.zero_()
            elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
                module.reset_parameters()
        for name, weight, std in self._initial_stds(init):
            weight.copy_(
                init.draw(name, weight.shape, std, generator) if std else torch.tensor(0.0)
            )
        for module in self.modules():
            if module is not self and callable(draw := getattr(module, "init_weights", None)):
                draw(generator)

    def _initial_stds(self, init: Init) -> Iterator[tuple[str, Tensor, float]]:
        """Yield saved name, weight and standard deviation, in the textbook's order."""
        d = self.config.d_model
        residual = init.residual
        if residual is None:
            residual = init.linear / math.sqrt(2 * max(self.config.n_layers, 1))
        yield "embeddings.weight", self.embeddings.weight, init.embedding
        if isinstance(self.position_embeddings, nn.Embedding):
            yield "position_embeddings.weight", self.position_embeddings.weight, init.position
        for number, block in enumerate(self.backbone):
            assert isinstance(block, DecoderBlock)
            where = f"backbone.{number}"
            if (qkv := getattr(block.attention, "W_qkv", None)) is not None:
                q, k, v = qkv.weight.split(d)
                yield from (
                    (f"{where}.attention.W_{n}.weight", w, init.linear)
                    for n, w in (("k", k), ("q", q), ("v", v))
                )
            yield f"{where}.attention.W_o.weight", block.attention.W_o.weight, residual
            for linear, std in (("fc1", init.linear), ("fc2", residual)):
                if isinstance(module := getattr(block.mlp, linear, None), nn.Linear):
                    yield f"{where}.mlp.{linear}.weight", module.weight, std
        if not self.config.lm_head.tied:
            # One row can stand for all unused tokens only if their rows stay equal, as they do
            # when they start at zero.
            yield (
                "lm_head.weight",
                self.lm_head.weight,
                0.0 if self.config.lm_head.compact_vocab else init.head,
            )
        if self.lm_head.embedding_map is not None:
            yield "lm_head.embedding_map.weight", self.lm_head.embedding_map.weight, 0.0

    # --- forward ---

    def hidden(
        self, ids: Ids, positions: Places | None = None, cache: Cache | None = None
    ) -> Vectors:
        """The last layer's normalised output, before the vocabulary head.

        `positions` default to 0, 1, 2, ...
        """
        if positions is None:
            if ids.shape[1] > self.config.context_length and self.position_embeddings is not None:
                raise ValueError(
                    f"{ids.shape[1]} tokens exceed the context length {self.config.context_length}"
                )
            positions = torch.arange(ids.shape[1], device=ids.device)[None]
        x = self.embeddings(ids)
        if self.position_embeddings is not None:
            # Sinusoidal positions may have a wider dtype.
            x = x + self.position_embeddings(positions).to(x.dtype)
        for part in self.inputs:
            x = part(x, ids, cache)
        ve = torch.zeros_like(x) if self.value_embeddings else None
        for part in self.value_embeddings:
            ve = part(ve, ids, cache)
        if missing := self.config.d_model - x.shape[-1]:
            x, ve = (t if t is None else F.pad(t, (0, missing)) for t in (x, ve))
        start = self.config.document_start
        first = None if start is None else self._first_of_document(ids == start, cache)
        entered: list[Tensor] = []
        view: AttentionView | None = None
        for index, block in enumerate(cast(Iterable[DecoderBlock], self.backbone)):
            if view is None or not self.shares_view:
                view = block.attention.view(positions, cache)._replace(
                    entered=entered, first=first
                )
            if not self.shares_view:
                entered.append(x)  # the layer's view holds this list, so its last element is x
            x = block(x, view, None if cache is None else cache.layer(index), ve)
        return self.final_layer_norm(x)

    def _first_of_document(self, starts: Bool[Tensor, "batch time"], cache: Cache | None) -> Ids:
        """For each token, the position of the last document start up to it, or 0."""
        so_far = starts if cache is None else cache.append((self, "starts of documents"), starts)
        places = torch.arange(so_far.shape[1], device=starts.device)
        return (so_far * places).cummax(dim=1).values[:, -starts.shape[1] :]

    def forward(
        self, ids: Ids, positions: Places | None = None, cache: Cache | None = None
    ) -> Float[Tensor, "batch time vocab"]:
        """Logits of the next token after each position."""
        hidden = self.hidden(ids, positions, cache)
        return self._mix(self.lm_head(hidden, self.token_vectors()), hidden, ids, cache)

    def next_logits(
        self, ids: Ids, positions: Places | None = None, cache: Cache | None = None
    ) -> Float[Tensor, "batch vocab"]:
        """Logits of the token after the last position, at the cost of one row of the head."""
        hidden = self.hidden(ids, positions, cache)
        logits = self.lm_head(hidden[:, -1], self.token_vectors())
        return self._mix(logits[:, None], hidden, ids, cache)[:, 0]

    def token_vectors(self) -> Float[Tensor, "vocab d_input"]:
        """Each token's embedding plus its spelling's vectors, for the head's embedding map."""
        vectors = self.embeddings.weight
        if self.lm_head.embedding_map is not None:
            for part in self.inputs:
                vectors = vectors + part.vectors() if isinstance(part, SpellingLayer) else vectors
        return vectors

    def _mix(self, logits: Tensor, hidden: Tensor, ids: Tensor, cache: Cache | None) -> Tensor:
        """Mix logits [batch, rows, vocab] at the last `rows` positions with the pointer.

        With a pointer the result is log-probabilities; without one the logits are unchanged.
        """
        return (
            logits
            if self.pointer is None
            else self.pointer.mix_log_probs(logits, hidden, ids, cache)
        )

    # --- loss ---

    def use_kernels(self, wanted: bool) -> None:
        """Train with our own kernels where they fit, or only with torch's operations."""
        self.kernels = wanted
        for module in self.modules():
            if isinstance(module, (CausalAttention, GELULayer, LMHead)):
                module.kernels = wanted

    def loss(
        self,
        ids: Ids,
        targets: Ids,
        reduction: Literal["mean", "sum"] = "mean",
        precision: torch.dtype | None = None,
    ) -> Float[Tensor, ""]:
        """Cross entropy in nats of `targets`, each given the tokens up to its position.

        The full logits are never stored.

        Args:
            ids: the tokens.
            targets: the token that follows each of them.
            reduction: "mean" or "sum".
            precision: dtype of the matrix products inside the vocabulary head; None uses the
                parameters' dtype. torch.bfloat16 is faster on CPUs that multiply it natively; sums
                keep a wider dtype.
        """
        return self.losses(ids, targets, reduction=reduction, precision=precision)[0]

    def losses(
        self, ids: Ids, targets: Ids, **options: Any
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "batch time"]]:
        """Return `loss`, and the cross entropy of each target, which has no gradient.

        The options are those of LMHead.losses.
        """
        return self.losses_of(self.hidden(ids), ids, targets, **options)

    def losses_of(
        self, hidden: Vectors, ids: Ids, targets: Ids, **options: Any
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "batch time"]]:
        """Compute `losses` from given hidden states."""
        mixture = None if self.pointer is None else self.pointer.mixture(hidden, ids, targets)
        return self.lm_head.losses(
            hidden, targets, self.token_vectors(), mixture=mixture, **options
        )

    def get_loss_on_batch(self, input_ids: Ids) -> Float[Tensor, ""]:
        """Mean cross entropy in nats of each row's tokens after the first, differentiable.

        [batch, time >= 2] -> scalar.
        """
        return self.loss(input_ids[:, :-1], input_ids[:, 1:])

    def gradient_norm(self) -> Float[Tensor, ""]:
        """The norm of all gradients together, as if every token had its own row of the head."""
        return self.lm_head.full_gradient_norm(get_total_norm(self.gradients()))

    def gradients(self) -> list[Tensor]:
        """The values of all gradients; for a sparse one, only the rows that it stores."""
        found = (p.grad for p in self.parameters() if p.grad is not None)
        return [g.values() if g.is_sparse else g for g in found]

    # --- generation without a cache ---

    @torch.no_grad()
    def generate(self, x: Ids, num_new_tokens: int) -> Int[Tensor, "batch longer"]:
        """Greedy continuation: the prompt followed by `num_new_tokens` tokens.

        Each token is conditioned on the last `context_length` tokens, which are all processed
        again every time. hectogpt.generate is the fast way, and is tested against this one.
        """
        for _ in range(num_new_tokens):
            following = self.next_logits(x[:, -self.config.context_length :]).argmax(dim=-1)
            x = torch.cat((x, following[:, None]), dim=1)
        return x

    # --- saved weights ---

    def fit_to(self, state: dict[str, Tensor]) -> None:
        """Give a compact head the rows of a saved state; the config does not determine them.

        Raises UserError (CHECKPOINT) if the rows are damaged.
        """
        rows = state.get("lm_head.row_of_token")
        if self.config.lm_head.compact_vocab and rows is not None and "lm_head.weight" in state:
            self.lm_head.compact_like(rows, len(state["lm_head.weight"]))


@contextmanager
def evaluating(model: Transformer) -> Iterator[None]:
    """Context manager: put the model into evaluation mode and restore its mode afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
