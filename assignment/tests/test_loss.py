"""Transformer.get_loss_on_batch: mean cross entropy of the next token. The model's forward is a stand-in."""

import math

import torch
from checking import LAST, check, check_close, make_model_of_one_token, make_model_with_logits, value


def test_values():
    loss = make_model_with_logits()[0].get_loss_on_batch(value("loss", "ids"))
    check_close(loss, value("loss", "loss"), "loss")


def test_other_sizes():
    ids = value("loss", "ids")
    model = make_model_with_logits()[0]
    check_close(
        model.get_loss_on_batch(ids[:1, :2]), value("loss", "loss_of_two_tokens"), "loss of one row of two tokens"
    )
    check_close(
        model.get_loss_on_batch(ids[1:, :5]), value("loss", "loss_of_five_tokens"), "loss of rows of five tokens"
    )


def test_gradient():
    model = make_model_with_logits()[0]
    loss = model.get_loss_on_batch(value("loss", "ids"))
    check(
        isinstance(loss, torch.Tensor) and loss.requires_grad, "the loss has no gradient: .item(), detach or no_grad?"
    )
    loss.backward()
    check_close(model.lm_head.weight.grad[0, 0], value("loss", "gradient"), "a gradient of the loss")


def test_the_batch_is_left_alone():
    ids = value("loss", "ids")
    kept = ids.clone()
    make_model_with_logits()[0].get_loss_on_batch(ids)
    check(torch.equal(ids, kept), "the batch was changed in place")


def test_both_modes():
    model, ids = make_model_with_logits()[0].train(), value("loss", "ids")
    check_close(model.get_loss_on_batch(ids), value("loss", "loss"), "loss in train mode")


def test_the_token_that_ends_a_text_counts():
    model, ids = make_model_of_one_token()
    expected = math.log(LAST + math.exp(10)) - 10 / 2  # every second token is the one that has a logit of 10
    check_close(model.get_loss_on_batch(ids), torch.tensor(expected), f"loss with token {LAST}")
