"""DecoderBlock: two norms, two parts, two sums. Attention and MLP are stand-ins."""

import torch
from checking import check, check_close, make_block, value


def test_values():
    check_close(make_block()(value("block", "x")), value("block", "y"), "block")


def test_other_sizes():
    x, y = value("block", "x"), value("block", "y")
    check_close(make_block()(x[1:2, :3]), y[1:2, :3], "block on one row of three tokens")


def test_no_dropout_and_nothing_in_place():
    block, x = make_block().train(), value("block", "x")
    kept = x.clone()
    check_close(block(x), value("block", "y"), "block in train mode")
    check(torch.equal(x, kept), "the block has changed its input in place")


def test_gradients():
    block, x = make_block(), value("block", "x").requires_grad_()
    result = block(x)
    check(result.requires_grad, "the result has no gradient: something was detached")
    result.square().sum().backward()
    for name in ("pre_layer_norm", "post_layer_norm"):
        check(getattr(block, name).weight.grad is not None, f"the result does not depend on {name}")
