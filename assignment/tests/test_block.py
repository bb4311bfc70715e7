"""DecoderBlock: two norms, two parts, two sums. Attention and MLP are stand-ins."""

from checking import beyond, check_close, check_gradients, check_modes, check_no_dropout, make_block, value


def test_values():
    check_close(make_block()(value("block", "x")), value("block", "y"), "block")


def test_other_sizes():
    x, y = value("block", "x"), value("block", "y")
    check_close(make_block()(x[1:2, :3]), y[1:2, :3], "block on one row of three tokens")


def test_both_modes():
    check_modes(make_block(), value("block", "x"), value("block", "y"), "block")


@beyond
def test_no_dropout():
    check_no_dropout(make_block(), value("block", "x"), "block")


def test_gradients():
    check_gradients(make_block(), value("block", "x"))
