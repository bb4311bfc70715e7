"""CausalAttention: values, the mask, lengths."""

import torch
from checking import beyond, check, check_close, check_gradients, check_modes, check_no_dropout, make_attention, value


def test_values():
    check_close(make_attention()(value("attention", "x")), value("attention", "y"), "attention")


def test_shorter_than_the_context():
    x, y = value("attention", "x"), value("attention", "y")
    for length in (1, 6):
        check_close(make_attention()(x[:, :length]), y[:, :length], f"attention over {length} tokens")


def test_one_row():
    x, y = value("attention", "x"), value("attention", "y")
    check_close(make_attention()(x[1:]), y[1:], "attention with a batch of one")


def test_the_future_is_hidden():
    attention, x = make_attention(), value("attention", "x")
    moved = x.clone()
    moved[:, 5:] += 1
    check_close(attention(moved)[:, :5], attention(x)[:, :5], "the first 5 results when later tokens change", 1e-9)


@beyond
def test_the_future_is_hidden_however_large_the_scores():
    attention, x = make_attention(), value("attention", "x")
    with torch.no_grad():
        attention.W_q.weight *= 300  # scores of about 100,000: a mask of -10,000 is outweighed, and exp overflows
        attention.W_k.weight *= 300
    moved = x.clone()
    moved[:, 5:] += 1
    result = attention(x)
    check(bool(torch.isfinite(result).all()), "large scores give results that are not finite")
    check_close(
        attention(moved)[:, :5], result[:, :5], "large scores: the first 5 results when later tokens change", 1e-9
    )


def test_both_modes():
    check_modes(make_attention(), value("attention", "x"), value("attention", "y"), "attention")


@beyond
def test_no_dropout():
    check_no_dropout(make_attention(), value("attention", "x"), "attention")


def test_gradients():
    check_gradients(make_attention(), value("attention", "x"))
