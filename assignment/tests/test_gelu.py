"""GELU: the tanh form, element by element."""

import torch
from checking import check_close, check_gradients, check_shape, value
from model_solution import GELU


def test_values():
    check_close(GELU()(value("gelu", "x")), value("gelu", "y"), "GELU")


def test_any_shape():
    for shape in ((), (3,), (2, 1, 5, 4)):
        check_shape(GELU()(torch.ones(shape)), shape, "GELU")


def test_large_numbers():
    x = torch.tensor([-200.0, -30.0, 30.0, 200.0], dtype=torch.float64)
    check_close(GELU()(x), x.clamp(min=0), "GELU of large numbers")


def test_gradients():
    check_gradients(GELU(), value("gelu", "x").abs())
