"""DecoderBlock: two norms, two parts, two sums. Attention and MLP are stand-ins."""

import torch
from checking import beyond, check, check_close, check_gradients, make_block, value


def test_values():
    check_close(make_block()(value("block", "x")), value("block", "y"), "block")


def test_other_sizes():
    x, y = value("block", "x"), value("block", "y")
    check_close(make_block()(x[1:2, :3]), y[1:2, :3], "block on one row of three tokens")


@beyond
def test_no_dropout_and_nothing_in_place():
    block, x = make_block().train(), value("block", "x")
    kept = x.clone()
    check_close(block(x), value("block", "y"), "block in train mode")
    check(torch.equal(x, kept), "the block has changed its input in place")


def test_gradients():
    check_gradients(make_block(), value("block", "x"))
