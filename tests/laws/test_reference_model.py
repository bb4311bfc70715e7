"""The textbook's model against Hugging Face's GPT-2: logits, generated tokens, loss and gradients; and its contract."""

from __future__ import annotations

import math

import pytest
import torch
from gpt2_twins import ASSIGNMENT, CONFIG, assert_close, hugging_face, in_our_names, pair, precisions, token_ids
from model_solution import Transformer
from torch import Tensor, nn

# --- Transformer.forward ----------------------------------------------------------------------------------------------


@precisions
@pytest.mark.parametrize("length", [1, 9, CONFIG.context_length])
def test_forward_agrees(dtype: torch.dtype, tolerance: float, length: int) -> None:
    ours, theirs = pair(dtype)
    ids = token_ids(5, length)
    assert_close(ours(ids), theirs(ids).logits, tolerance)
    assert torch.equal(ours.eval()(ids), ours.train()(ids))


def test_forward_is_causal_by_gradient() -> None:
    ours, _ = pair()
    streams: list[Tensor] = []
    ours.embeddings.register_forward_hook(lambda module, args, output: streams.append(output))
    logits = ours(token_ids(2, CONFIG.context_length))
    for t in range(CONFIG.context_length):
        (gradient,) = torch.autograd.grad(logits[:, t].square().sum(), streams[0], retain_graph=True)
        moves = gradient.abs().amax(dim=-1) > 0
        assert moves[:, : t + 1].all()
        assert not moves[:, t + 1 :].any()


def test_names_and_sizes() -> None:
    names = set(Transformer(CONFIG).state_dict())
    assert names == set(in_our_names(hugging_face(), lambda parameter: parameter.data))
    assert len(names) == 37
    model = Transformer(ASSIGNMENT)
    assert sum(parameter.numel() for parameter in model.parameters()) == 3_374_415
    assert model.lm_head.weight is not model.embeddings.weight
    assert {norm.eps for norm in model.modules() if isinstance(norm, nn.LayerNorm)} == {1e-5}
    assert model.config == ASSIGNMENT


@pytest.mark.parametrize("scale_residual", [True, False])
def test_initial_weights_come_in_the_documented_order(scale_residual: bool) -> None:
    model = Transformer(CONFIG)
    for parameter in model.parameters():
        nn.init.constant_(parameter, 7)
    torch.manual_seed(11)
    model._init_weights(scale_residual=scale_residual)

    torch.manual_seed(11)
    residual = 0.02 / math.sqrt(2 * CONFIG.n_layers) if scale_residual else 0.02
    order = [("embeddings", 0.02), ("position_embeddings", 0.02)]
    for n in range(CONFIG.n_layers):
        order += [(f"backbone.{n}.attention.W_{letter}", 0.02) for letter in "kqv"]
        order += [(f"backbone.{n}.attention.W_o", residual), (f"backbone.{n}.mlp.fc1", 0.02)]
        order += [(f"backbone.{n}.mlp.fc2", residual)]
    order += [("lm_head", 0.02)]
    state = model.state_dict()
    for name, std in order:
        weight = state.pop(f"{name}.weight")
        assert torch.equal(weight, nn.init.normal_(torch.empty_like(weight), 0, std)), name
    for name, rest in state.items():  # norms and biases
        assert (rest == (1 if name.endswith("norm.weight") else 0)).all(), name


# --- generate ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 5, CONFIG.context_length, CONFIG.context_length + 6])
def test_generate_agrees(length: int) -> None:
    ours, theirs = pair(seed=4)
    prompt = token_ids(4, length)
    expected = prompt
    for _ in range(2 * CONFIG.context_length):  # well past the context, whatever the prompt
        logits = theirs(expected[:, -CONFIG.context_length :]).logits[:, -1]
        expected = torch.cat([expected, logits.argmax(dim=-1, keepdim=True)], dim=1)
    assert len(set(map(tuple, expected[:, -8:].tolist()))) > 1  # the rows do not all say the same

    kept = prompt.clone()
    result = ours.generate(prompt, 2 * CONFIG.context_length)
    assert torch.equal(result, expected)
    assert result.dtype == prompt.dtype
    assert torch.equal(prompt, kept)
    assert torch.equal(ours.generate(x=prompt, num_new_tokens=0), prompt)


# --- get_loss_on_batch ------------------------------------------------------------------------------------------------


@precisions
def test_loss_agrees(dtype: torch.dtype, tolerance: float) -> None:
    ours, theirs = pair(dtype)
    ids = token_ids(3, CONFIG.context_length)
    loss, expected = ours.get_loss_on_batch(input_ids=ids), theirs(ids, labels=ids).loss
    assert loss.shape == ()
    # Hugging Face computes its loss in float32, whatever the model.
    assert_close(loss, expected.to(dtype), 1e-6 if dtype == torch.float64 else tolerance)

    log_probabilities = theirs(ids).logits.log_softmax(dim=-1)
    by_hand = -torch.stack(
        [log_probabilities[row, t - 1, ids[row, t]] for row in range(3) for t in range(1, CONFIG.context_length)]
    ).mean()
    assert_close(loss, by_hand, tolerance)
    loss.backward()
    by_hand.backward()
    gradients = in_our_names(theirs, lambda parameter: parameter.grad)
    for name, parameter in ours.named_parameters():
        assert_close(parameter.grad, gradients[name], tolerance, name)
