"""train: the optimizer and the loop, on a stand-in for the model that is quick to learn."""

from unittest.mock import patch

import torch
import train as file
from checking import check, check_close, config, value
from torch import nn

STEPS, RATE = 7, 0.05


class StandInModel(nn.Module):
    """A table of three numbers a token, to be moved to others. Its losses and gradients vary from batch to batch."""

    def __init__(self, config):
        super().__init__()
        start = torch.arange(3.0 * config.vocab_size, dtype=torch.float64).reshape(config.vocab_size, 3)
        self.table = nn.Parameter(torch.sin(1.3 * start))
        self.bias = nn.Parameter(torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64))

    def _init_weights(self):
        pass

    def get_loss_on_batch(self, input_ids):
        found = self.table[input_ids] + self.bias
        target = torch.cos(0.7 * input_ids[..., None] * torch.arange(1, 4, dtype=torch.float64))
        return ((found - target) ** 2 * (1 + input_ids[..., None] ** 2 / 20)).mean()


def run(gradient_clipping, max_steps=STEPS):
    chunks = value("train", "chunks")
    with (
        patch.object(file, "Transformer", StandInModel),
        patch.object(file, "get_chunked_tinystories", lambda chunk_size, data="auto": chunks),
        patch.object(file, "pick_device", lambda: torch.device("cpu")),
    ):
        result = file.train(
            learning_rate=RATE,
            gradient_clipping=gradient_clipping,
            model_config=config(),
            batch_size=3,
            max_steps=max_steps,
        )
    check(isinstance(result, tuple) and len(result) == 2, f"two lists were expected, yours is {result!r:.60}")
    for name, numbers in zip(("losses", "grad_norms"), result, strict=True):
        check(len(numbers) == STEPS if max_steps else len(numbers) == 2, f"there are {len(numbers)} {name}")
        kinds = {type(number).__name__ for number in numbers}
        check(kinds == {"float"}, f"{name} holds {kinds}, not plain floats: a tensor keeps its whole graph in memory")
    return [torch.tensor(numbers, dtype=torch.float64) for numbers in result]


def check_run(gradient_clipping, name):
    losses, norms = run(gradient_clipping)
    for what, numbers in (("loss", losses), ("gradient norm before clipping", norms)):
        expected = value("train", f"{name}_{'losses' if what == 'loss' else 'norms'}")
        for step in range(STEPS):
            check_close(numbers[step], expected[step], f"{name}: {what} at step {step}", 1e-6)


def test_without_clipping():
    check_run(None, "unclipped")


def test_with_clipping():
    check_run(0.5, "clipped")


def test_one_pass_over_the_data():
    run(1.0, max_steps=None)  # 8 chunks are 2 whole batches of 3
