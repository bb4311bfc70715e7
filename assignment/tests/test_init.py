"""Transformer._init_weights: sizes of the initial weights, not the order in which they are drawn."""

import math

import torch
from checking import check
from model_solution import ModelConfig, Transformer

CONFIG = ModelConfig(d_model=64, n_heads=4, n_layers=4, context_length=100, vocab_size=150)
RESIDUAL = ("W_o.weight", "fc2.weight")


def check_weights(model, residual_std):
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            constant = 1 if name.endswith("norm.weight") else 0
            check(bool((parameter == constant).all()), f"{name} is not {constant} everywhere")
            continue
        std = residual_std if name.endswith(RESIDUAL) else 0.02
        found, count = parameter.std().item(), parameter.numel()
        check(abs(found / std - 1) < 0.1, f"{name} has a standard deviation of {found:.4f}, expected {std:.4f}")
        check(abs(parameter.mean().item()) < 6 * std / math.sqrt(count), f"{name} does not have mean 0")
        check(parameter.abs().max().item() > 2.8 * std, f"{name} is not drawn from a normal distribution")


def test_scaled():
    torch.manual_seed(0)
    check_weights(Transformer(CONFIG), 0.02 / math.sqrt(2 * CONFIG.n_layers))


def test_not_scaled():
    torch.manual_seed(0)
    model = Transformer(CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    model._init_weights(scale_residual=False)
    check_weights(model, 0.02)


def test_no_two_are_equal():
    torch.manual_seed(0)
    first, second = Transformer(CONFIG), Transformer(CONFIG)
    drawn = [parameter for parameter in first.parameters() if parameter.dim() == 2]
    for one in range(len(drawn)):
        for other in range(one):
            check(not torch.equal(drawn[one], drawn[other]), "two matrices of the model have the same weights")
    check(not torch.equal(first.lm_head.weight, second.lm_head.weight), "two models in a row have the same weights")
