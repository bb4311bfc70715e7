"""Transformer.forward: embeddings, positions, blocks, norm, head. The blocks are stand-ins."""

import torch
from checking import (
    beyond,
    check_close,
    check_error,
    check_gradients,
    check_modes,
    check_no_dropout,
    make_forward,
    make_small,
    value,
)


def test_values():
    check_close(make_forward()(value("forward", "ids")), value("forward", "logits"), "logits")


def test_shorter_than_the_context():
    ids, logits = value("forward", "ids"), value("forward", "logits")
    for length in (1, 6):
        check_close(make_forward()(ids[:, :length]), logits[:, :length], f"logits of {length} tokens")


def test_one_row():
    ids, logits = value("forward", "ids"), value("forward", "logits")
    check_close(make_forward()(ids[1:2]), logits[1:2], "logits of a batch of one")
    check_close(make_forward()(ids[1:2, :1]), logits[1:2, :1], "logits of one token")


def test_small_activations():
    check_close(
        make_small()(value("forward", "ids")), value("forward", "logits_of_small"), "logits of small embeddings"
    )


def test_both_modes():
    check_modes(make_forward(), value("forward", "ids"), value("forward", "logits"), "logits")


@beyond
def test_no_dropout():
    check_no_dropout(make_forward(), value("forward", "ids"), "logits")


@beyond
def test_too_long():
    ids = torch.zeros(1, 11, dtype=torch.long)
    check_error((ValueError, IndexError), lambda: make_forward()(ids), "11 tokens, a context of 10")


class ElsewhereError(Exception):
    """Positions on another device than the tokens."""


@beyond
def test_positions_are_on_the_device_of_the_tokens():
    model, ids = make_forward().to("meta"), value("forward", "ids").to("meta")  # a device without numbers

    def look(module, args):
        if args[0].device != ids.device:
            raise ElsewhereError

    model.position_embeddings.register_forward_pre_hook(look)
    try:
        model(ids)
    except ElsewhereError:
        raise AssertionError("the positions are not on the device of x; on a GPU this is an error") from None
    except (RuntimeError, NotImplementedError) as error:
        if "exercise" in str(error):
            raise  # and what else this odd device cannot do is no mistake


def test_gradients():
    check_gradients(make_forward(), value("forward", "ids"))
