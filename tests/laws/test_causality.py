"""Causality: no output knows anything of a later token, and what may look back does look back."""

from __future__ import annotations

from dataclasses import replace
from inspect import isabstract

import pytest
import torch
from model_kinds import BARE, KINDS, ALiBi, build, random_ids
from torch import Tensor

from hectogpt.model import ModelConfig, Transformer
from hectogpt.model.inputs import EmbeddingNorm, Induction, InputPart, NgramHash, Smear, Spelling, TokenTable
from hectogpt.model.parts import Activation, AttentionPart, Norm, Positions, QKNorm, Rotary
from hectogpt.serialization import dump

# Every part alone, so that a failure names the part.
ATTENTION_PARTS = (Rotary(), Rotary(100.0, 0.5), QKNorm(), ALiBi())
INPUT_PARTS = (
    *(EmbeddingNorm(), Smear(), Smear((0.3, 0.2)), TokenTable()),
    *(Spelling(7), NgramHash(2, 31), NgramHash(3, 31, common=9), Induction()),
)
ALONE: dict[str, ModelConfig] = {
    **{f"attention {part}": replace(BARE, attention_parts=(part,)) for part in ATTENTION_PARTS},
    **{f"input {part}": replace(BARE, inputs=(part,)) for part in INPUT_PARTS},
    **{f"value embedding {part}": replace(BARE, value_embeddings=(part,)) for part in INPUT_PARTS},
}
ALL = KINDS | ALONE


def derivatives(model: Transformer, ids: Tensor) -> Tensor:
    """[t, s]: the largest derivative of the logits at position t with respect to the embedding at position s."""
    embedded: list[Tensor] = []
    hook = model.embeddings.register_forward_hook(lambda module, args, output: embedded.append(output))
    logits = model(ids[None])[0]
    hook.remove()
    probe = torch.randn(logits.shape[-1], generator=torch.Generator().manual_seed(2), dtype=logits.dtype)
    gradients = [torch.autograd.grad(row @ probe, embedded[0], retain_graph=True)[0][0] for row in logits]
    return torch.stack(gradients).abs().amax(dim=-1)


@pytest.mark.parametrize("kind", ALL)
def test_no_derivative_with_respect_to_a_later_embedding(kind: str) -> None:
    """Causality by gradient.

    1. The logits z_t at position t are a differentiable function of the embeddings x_0 ... x_{T-1}.
    2. If z_t does not depend on x_s, then dz_t / dx_s = 0. Exactly zero, not nearly: either no operation leads from x_s
       to z_t, or one on the way multiplies by the weight 0 of a masked key.
    3. A causal model therefore has a lower triangular matrix of derivatives: dz_t / dx_s = 0 for every s > t.
    4. This says that the future is hidden. It holds as well for a model that is blind to the past, so we ask for more:
       with at least one layer of attention dz_t / dx_s is not 0 for any s <= t. Without a layer dz_t / dx_t is not.
    """
    config = ALL[kind]
    model = build(config)
    matrix = derivatives(model, random_ids(1, config.context_length, config.vocab_size)[0])
    later = torch.ones_like(matrix, dtype=torch.bool).triu(1)
    assert (matrix[later] == 0).all()
    heeded = matrix[~later] if config.n_layers else matrix.diagonal()
    assert (heeded > 0).all()


@pytest.mark.parametrize("kind", ALL)
def test_another_later_token_changes_nothing(kind: str) -> None:
    """Causality by substitution, for what derivatives cannot see.

    1. Tables are read by id: n-gram tables, value embeddings and the pointer's copies depend on ids, not on embeddings.
    2. So we exchange all tokens from t on: the logits before t must not move, to the last bit.
    3. The logits from t on must move, otherwise the exchange would prove nothing.
    """
    config = ALL[kind]
    model = build(config)
    ids = random_ids(2, config.context_length, config.vocab_size)
    whole = model(ids)
    for t in range(config.context_length):
        changed = torch.cat((ids[:, :t], (ids[:, t:] + 1) % config.vocab_size), dim=1)
        logits = model(changed)
        assert torch.equal(logits[:, :t], whole[:, :t])
        assert (logits[:, t:] != whole[:, t:]).any(dim=-1).all()


@pytest.mark.parametrize("part", INPUT_PARTS, ids=str)
def test_how_far_an_input_part_reaches(part: InputPart) -> None:
    """Without layers a model sees what its input parts see: a smear with n shares the n tokens before, the others of
    this file no earlier embedding."""
    matrix = derivatives(build(replace(BARE, n_layers=0, inputs=(part,))), random_ids(1, 8)[0])
    distance = torch.arange(8)[:, None] - torch.arange(8)
    reach = len(part.shares) if isinstance(part, Smear) else 0
    assert torch.equal(matrix > 0, (distance >= 0) & (distance <= reach))


def test_no_part_of_the_package_is_left_out() -> None:
    """A part that is added to hectogpt.model has to be added to the models of these laws."""

    def names(kind: type) -> set[str]:
        own = {kind.__name__} if kind.__module__.startswith("hectogpt.") and not isabstract(kind) else set()
        return own.union(*map(names, kind.__subclasses__()))

    tried = str([dump(config) for config in ALL.values()])
    for base in (Norm, Activation, Positions, AttentionPart, InputPart):
        assert names(base)
        assert [name for name in names(base) if f"'{name}'" not in tried] == []
