"""train: the optimizer and the loop, watched while they train a stand-in that is quick to learn."""

from functools import cache

import torch
import train as file
from checking import beyond, check, config
from torch import nn
from watch import Loop, Watch, first_fault, plain, run_train

STEPS, RATE, SIZE = 7, 0.05, 3
# 63 rows of 6 tokens, no two of which are equal.
TEXT = torch.tensor([[n % 13, n // 13, *((n * j + j * j) % 13 for j in (3, 4, 6, 9))] for n in range(3 * STEPS * SIZE)])


def loss(parameters, ids):
    """Of a table of three numbers a token, to be moved to others. It varies from batch to batch."""
    table, bias = parameters
    found = table[ids] + bias
    target = torch.cos(0.7 * ids[..., None] * torch.arange(1, 4, dtype=torch.float64))
    return ((found - target) ** 2 * (1 + ids[..., None] ** 2 / 20)).mean()


class StandInModel(nn.Module):
    """Tells the watch which batches it is trained on."""

    def __init__(self):
        super().__init__()
        start = torch.arange(3.0 * config().vocab_size, dtype=torch.float64).reshape(-1, 3)
        self.lm_head = nn.Linear(3, config().vocab_size, bias=False, dtype=torch.float64)
        self.lm_head.weight = nn.Parameter(torch.sin(1.3 * start))
        self.backbone = nn.ParameterList([torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)])
        self.first = [value.detach().clone() for value in self.parameters()]
        self.watch = Watch(dict(self.named_parameters()), lambda ids: loss(self.parameters(), ids))

    def _init_weights(self):
        with torch.no_grad():
            for value, first in zip(self.parameters(), self.first, strict=True):
                value.copy_(first)

    def get_loss_on_batch(self, input_ids):
        made = loss(self.parameters(), input_ids)
        self.watch.backward_of(input_ids, made)
        return made


@cache
def train(gradient_clipping, max_steps=STEPS):
    """A run that was watched, with what it returned or gave to plot_results; types recorded; an error after that."""
    model = StandInModel()
    wanted = {"learning_rate": RATE, "gradient_clipping": gradient_clipping, "model_config": config()}
    with model.watch:
        made = run_train(file, model, TEXT, wanted | {"batch_size": SIZE, "max_steps": max_steps})
    check(made.losses is not None, f"two lists were expected, yours is {made.result!r:.60}")
    kinds = {type(number).__name__ for number in (*made.losses, *made.norms)}
    losses, norms = plain(made.losses), plain(made.norms)
    loop = Loop(model.watch.seen().joined(SIZE), losses, norms, gradient_clipping, RATE, STEPS, SIZE, TEXT)
    return loop, kinds, made.after


def test_the_loop():
    """Batches, steps, clipping, and what is recorded; whatever the optimizer."""
    runs = [train(limit)[0] for limit in (None, 0.5)]
    fault = first_fault(*runs)
    check(fault is None, fault and fault.seen)
    for run in runs:
        differs = run.curve(loss, StandInModel().parameters())
        check(not differs or bool(run.other_optimizer()), differs)


@beyond
def test_the_optimizer_is_adamw_as_it_comes():
    run = train(None)[0]
    words = run.other_optimizer() if run.seen.optimizers else run.curve(loss, StandInModel().parameters())
    check(not words, f"{words}; the baseline's is AdamW, as PyTorch has it by default, at learning_rate")


@beyond
def test_numbers_are_plain_and_nothing_fails_later():
    _, kinds, torn = train(None)
    check(kinds == {"float"}, f"{kinds} are recorded, not plain floats: a tensor keeps its whole graph in memory")
    check(torn is None, f"after the losses were recorded: {torn}")


@beyond
def test_one_pass_over_the_data():
    count = len(train(1.0, max_steps=None)[0].losses)
    check(count == len(TEXT) // SIZE, f"without max_steps there are {count} losses, expected {len(TEXT) // SIZE}")
