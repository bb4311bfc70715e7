"""MLP: widen, GELU, narrow."""

from checking import beyond, check_close, check_gradients, check_modes, check_no_dropout, make_mlp, value


def test_values():
    check_close(make_mlp()(value("mlp", "x")), value("mlp", "y"), "MLP")


def test_other_sizes():
    x, y = value("mlp", "x"), value("mlp", "y")
    check_close(make_mlp()(x[1:, :3]), y[1:, :3], "MLP on one row of three tokens")


def test_large_activations():
    check_close(make_mlp()(8 * value("mlp", "x")), value("mlp", "y_of_large"), "MLP of a large input")


def test_both_modes():
    check_modes(make_mlp(), value("mlp", "x"), value("mlp", "y"), "MLP")


@beyond
def test_no_dropout():
    check_no_dropout(make_mlp(), value("mlp", "x"), "MLP")


def test_gradients():
    check_gradients(make_mlp(), value("mlp", "x"))
