"""Transformer.generate: greedy, each row for itself, also past the context. The model's forward is a stand-in."""

import torch
from checking import LAST, beyond, check, check_tokens, make_model_of_one_token, make_model_with_logits, value


def test_values():
    prompt, expected = value("generate", "prompt"), value("generate", "tokens")
    for new in (1, 3, 6):  # up to the context
        result = make_model_with_logits()[0].generate(prompt, new)
        check_tokens(result, expected[:, : prompt.shape[1] + new], f"{new} new tokens")


def test_nothing_new():
    """A model may refuse; if it does not, the prompt alone comes back."""
    prompt = value("generate", "prompt")
    try:
        result = make_model_with_logits()[0].generate(prompt, num_new_tokens=0)
    except Exception:
        return
    check_tokens(result, prompt, "0 new tokens")


def test_the_token_that_ends_a_text_is_a_token():
    model, ids = make_model_of_one_token()
    expected = torch.cat([ids, torch.full((1, 3), LAST)], 1)
    check_tokens(model.generate(ids, 3), expected, f"3 new tokens, all of them {LAST}")


TEXT, PAST = value("generate", "tokens"), ((4, 14), (13, 3))  # tokens, new ones; the context holds 10


def test_nothing_of_the_text_is_lost():
    """Past the context a model may refuse or stop, but a text that comes back begins with the whole prompt."""
    for length, new in PAST:
        try:
            result = make_model_with_logits()[0].generate(TEXT[:, :length], new)
        except Exception:  # the next test says so
            continue
        check(
            result.dim() == 2 and result.shape[1] <= length + new and torch.equal(result[:, :length], TEXT[:, :length]),
            f"{new} new tokens after {length}, past the context: the text does not begin with the prompt",
        )


@beyond
def test_past_the_context():
    for length, new in PAST:
        result = make_model_with_logits()[0].generate(TEXT[:, :length], new)
        check_tokens(result, TEXT[:, : length + new], f"{new} new tokens after {length}, past the context")


def test_one_row_and_one_token():
    prompt, expected = value("generate", "prompt"), value("generate", "tokens")
    for row in range(len(prompt)):
        result = make_model_with_logits()[0].generate(prompt[row : row + 1], 6)
        check_tokens(result, expected[row : row + 1, :10], f"row {row} alone")
    short = value("generate", "short")
    check_tokens(make_model_with_logits()[0].generate(short[:, :1], 5), short, "prompts of one token")


def test_what_the_caller_has_is_left_alone():
    prompt, expected = value("generate", "prompt"), value("generate", "tokens")
    kept = prompt.clone()
    with torch.enable_grad():
        result = make_model_with_logits()[0].train().generate(prompt, 3)
        check(torch.is_grad_enabled(), "generate has left gradients switched off")
    check_tokens(result, expected[:, : prompt.shape[1] + 3], "3 new tokens in train mode")
    check(torch.equal(prompt, kept), "generate has changed the prompt in place")


@beyond
def test_the_mode_is_left_alone():
    prompt = value("generate", "prompt")
    model, _, tracked = make_model_with_logits()
    model.train()
    model.generate(prompt, 3)
    check(model.training, "generate has left the model in eval mode")
    check(tracked != [] and not any(tracked), "generate keeps a graph for gradients: torch.no_grad() is missing")
