"""MLP: widen, GELU, narrow."""

from checking import beyond, check_close, check_gradients, make_mlp, value


def test_values():
    check_close(make_mlp()(value("mlp", "x")), value("mlp", "y"), "MLP")


def test_other_sizes():
    x, y = value("mlp", "x"), value("mlp", "y")
    check_close(make_mlp()(x[1:, :3]), y[1:, :3], "MLP on one row of three tokens")


@beyond
def test_no_dropout():
    mlp, x = make_mlp().train(), value("mlp", "x")
    check_close(mlp(x), value("mlp", "y"), "MLP in train mode")


def test_gradients():
    check_gradients(make_mlp(), value("mlp", "x"))
