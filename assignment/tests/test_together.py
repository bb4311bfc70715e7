"""All parts together: the whole model, its loss and its text, with no stand-ins."""

import torch
from checking import beyond, check, check_close, check_tokens, config, make_transformer, value, weights
from model_solution import ModelConfig, Transformer


def test_logits():
    model, ids = make_transformer(), value("together", "ids")
    check_close(model(ids), value("together", "logits"), "logits")
    check_close(model.train()(ids[1:, :7]), value("together", "logits")[1:, :7], "logits of one row, in train mode")


def test_loss():
    loss = make_transformer().get_loss_on_batch(value("together", "ids"))
    check_close(loss, value("together", "loss"), "loss")


@beyond
def test_generate():
    ids, expected = value("together", "prompt"), value("together", "tokens")
    new = expected.shape[1] - ids.shape[1]
    check_tokens(make_transformer().generate(ids, new), expected, f"{new} new tokens")


def test_every_layer_looks_back_and_not_ahead():
    model, ids = make_transformer(), value("together", "ids")
    moved = ids.clone()
    moved[:, 6:] = (moved[:, 6:] + 1) % 13
    logits, changed = model(ids), model(moved)
    check_close(changed[:, :6], logits[:, :6], "logits of the first 6 tokens when later ones change", 1e-9)
    check(not torch.allclose(changed[:, 6:], logits[:, 6:]), "the logits do not depend on the tokens")


def test_weights_of_others_load():
    model = Transformer(config())
    model.load_state_dict(weights(), strict=True)


def test_a_batch_is_learnt_by_heart():
    torch.manual_seed(0)
    model = Transformer(ModelConfig(d_model=16, n_heads=2, n_layers=2, context_length=8, vocab_size=11))
    ids = torch.tensor([[1, 5, 2, 9, 9, 0, 3, 7], [2, 5, 1, 1, 8, 4, 10, 6]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(80):
        optimizer.zero_grad()
        loss = model.get_loss_on_batch(ids)
        loss.backward()
        optimizer.step()
    check(loss.item() < 0.2, f"after 80 steps on one batch the loss is {loss.item():.3f}; below 0.2 was expected")
    check_tokens(model.generate(ids[:, :1], 7), ids, "the batch, continued from its first tokens")
