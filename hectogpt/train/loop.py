"""The training loop, a generator of small `Step` records: whoever drives it decides what happens between steps.

A loss or gradient that is not finite stops the run before the optimizer has touched a weight.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from hectogpt import errors
from hectogpt.data import Batches, Corpus, tokens_read
from hectogpt.errors import UserError
from hectogpt.model import Transformer
from hectogpt.model.head import prepare
from hectogpt.model.shared_head import used_vocabulary
from hectogpt.train.machine import Machine
from hectogpt.train.optim import Optimizer
from hectogpt.train.run import Run


@dataclass(frozen=True)
class Step:
    """One optimizer step. `step` counts from 1; loss (nats per token) and grad_norm (before clipping) belong to the
    weights before the update; `seconds` is the step's own time."""

    step: int
    tokens: int
    loss: float
    grad_norm: float
    lr: float
    seconds: float


@dataclass(frozen=True)
class Score:
    """Held-out cross entropy: nats per token, bits per byte of the text, and how many tokens were scored."""

    loss: float
    bits_per_byte: float
    tokens: int


def build_model(run: Run, machine: Machine, corpus: Corpus) -> Transformer:
    """The run's model on its device, weights drawn from the run's seed.

    Of the corpus only one thing is asked, and only if the head wants it: which words its training text uses. A run with
    `statistics` counts the tokens that it is going to read.
    """
    config = run.model
    if config.head.shared:
        used, rows = used_vocabulary(torch.from_numpy(corpus.train.astype(np.int64)), config.vocab_size)
        model = Transformer(replace(config, head=replace(config.head, used=len(used))))
        assert model.word_rows is not None
        model.word_rows.copy_(rows)
        _share_equally(model)
    else:
        model = Transformer(config)
    model.init_weights(run.init, seed=run.seed)
    if run.statistics is not None:
        run.statistics.apply(
            model, tokens_read(corpus.train, run.data.window, run.data.batch_size, run.seed, run.steps)
        )
    model = model.to(machine.device, torch.float64 if machine.dtype == torch.float64 else torch.float32)
    model.loss_precision = machine.head_dtype
    if run.compile:
        for block in model.backbone:
            block.compile()
    return model


def count_parameters(run: Run, corpus: Corpus) -> int:
    """Number of parameters of the model that build_model would build, without allocating them."""
    config = run.model
    if config.head.shared:
        config = replace(config, head=replace(config.head, used=len(np.unique(corpus.train))))
    with torch.device("meta"):
        return sum(p.numel() for p in Transformer(config).parameters())


def _share_equally(model: Transformer) -> None:
    """Give the row that stands for all unused words the gradient of one of them, where differentiation gives their sum:
    so every optimizer moves it as it would move each of them."""

    words = max(_unused(model), 1)

    def divide(gradient: Tensor) -> Tensor:
        return torch.cat((gradient[:-1], gradient[-1:] / words))

    for parameter in model.lm_head.parameters():
        parameter.register_hook(divide)


def _unused(model: Transformer) -> int:
    """How many words the head's last row stands for; 0 if it is a row like the others."""
    rows = model.word_rows
    return 0 if rows is None else int((rows == model.lm_head.out_features - 1).sum())


def _gradient_norm(model: Transformer, unused: int) -> Tensor:
    """The norm of all gradients, a row that stands for `unused` words counted that often."""
    norm = get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    if unused:
        shared = [p.grad[-1] for p in model.lm_head.parameters() if p.grad is not None]
        norm = (norm.square() + (unused - 1) * get_total_norm(shared).square()).sqrt()
    return norm


def compile_head(run: Run, model: Transformer, machine: Machine) -> str:
    """Compile the head's element-wise pass if this run is long enough to earn it back; says in a word what was done.

    On two cores and 8,192 tokens it saves 0.1 s (measured), with a soft cap about 0.4 s (half of the 0.8 s of processor
    time measured); compiling takes up to 16 s the first time on a machine.
    """
    gain = (0.4 if run.model.head.soft_cap else 0.1) * run.steps * run.data.batch_size * run.data.window / 8192
    if machine.device.type != "cpu" or machine.head_dtype == torch.float64 or gain < 16:
        return "eager"
    head = run.model.head
    seconds = prepare(
        model.lm_head.out_features,
        precision=machine.head_dtype,
        soft_cap=head.soft_cap,
        bias=head.bias or head.shared,
    )
    return "eager (no C++ compiler works)" if seconds is None else "compiled"


def autocast(machine: Machine) -> AbstractContextManager[object]:
    """bf16 products in the blocks where the machine wants them; weights and sums stay float32."""
    if machine.dtype == torch.bfloat16:
        return torch.autocast(machine.device.type, dtype=torch.bfloat16)
    return nullcontext()


def check_corpus(run: Run, corpus: Corpus) -> None:
    """Refuse a corpus that the run's model cannot read or that is shorter than one window."""
    if corpus.n_vocab > run.model.vocab_size:
        raise UserError(
            f"corpus {corpus.name}: ids up to {corpus.n_vocab - 1}, model.vocab_size = {run.model.vocab_size}",
            fix=f"--model.vocab-size {corpus.n_vocab}",
            code=errors.DATA,
        )
    if len(corpus.train) < run.data.window:
        raise UserError(
            f"corpus {corpus.name}: {len(corpus.train)} training tokens",
            why=f"one window takes {run.data.window}",
            fix="more text, or a smaller --data.window",
            code=errors.DATA,
        )


def steps(
    run: Run, model: Transformer, optimizer: Optimizer, corpus: Corpus, machine: Machine, start: int = 0
) -> Iterator[Step]:
    """Train from 0-based step `start` to the run's end. Raises UserError (code DIVERGED) at a non-finite number."""
    batches = Batches(corpus.train, run.data.window, run.data.batch_size, run.seed)
    parameters = [p for p in model.parameters() if p.requires_grad]
    tokens, unused = start * run.data.batch_size * run.data.window, _unused(model)
    model.train()
    for step in range(start, run.steps):
        begun = time.perf_counter()
        batch = torch.from_numpy(batches.at(step)).to(machine.device, non_blocking=True)
        loss = accumulate(run, model, batch, machine)
        norm = _gradient_norm(model, unused)
        # One device sync: nothing that is not finite may reach the optimizer.
        loss_value, norm_value = torch.stack((loss.double(), norm.double())).tolist()
        if not (math.isfinite(loss_value) and math.isfinite(norm_value)):
            raise _diverged(step, run, model, loss_value, norm_value)
        if run.gradient_clipping is not None:
            clip_grads_with_norm_(parameters, run.gradient_clipping, norm)
        optimizer.step(step, run.schedule.factor(step, run.steps))
        optimizer.zero_grad()
        tokens += batch.numel()
        yield Step(step + 1, tokens, loss_value, norm_value, optimizer.lr, time.perf_counter() - begun)


def accumulate(run: Run, model: Transformer, batch: Tensor, machine: Machine) -> Tensor:
    """Add up gradients of the batch's mean loss, `micro_batch` windows at a time; each token weighs the same."""
    n_targets = batch.shape[0] * (batch.shape[1] - 1)
    total = torch.zeros((), dtype=torch.float64 if machine.device.type != "mps" else torch.float32)
    total = total.to(machine.device)
    for windows in batch.split(run.data.micro_batch or run.data.batch_size):
        with autocast(machine):
            loss = model.loss(windows[:, :-1], windows[:, 1:], reduction="sum") / n_targets
        loss.backward()
        total += loss.detach()
    return total


def _diverged(step: int, run: Run, model: Transformer, loss: float, norm: float) -> UserError:
    bad = [n for n, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    where = f"; first gradient that is not finite: {bad[0]} (and {len(bad) - 1} more)" if bad else ""
    return UserError(
        f"step {step + 1}: loss {loss}, gradient norm {norm}",
        why=f"a number stopped being finite{where}",
        fix="a lower learning rate, a longer warm-up, or --gradient-clipping 1",
        kept=f"the weights after step {step}: this step's update was not applied",
        code=errors.DIVERGED,
    )


@torch.no_grad()
def evaluate(
    model: Transformer, tokens: np.ndarray, token_bytes: np.ndarray, window: int = 512, rows: int = 8
) -> Score:
    """Score every token after the first once, in non-overlapping windows, products in float32 and sums in float64.

    A token is predicted from those before it in its window (at most `window` of them, at most the context length).
    End-of-text tokens count as targets with no bytes.
    """
    was_training, precision = model.training, model.loss_precision
    model.eval()
    model.loss_precision = None
    window = min(window, model.config.context_length, len(tokens) - 1)
    if window < 1:
        raise UserError(f"{len(tokens)} held-out tokens", why="scoring takes at least 2", code=errors.DATA)
    device = model.embeddings.weight.device
    stream = torch.from_numpy(tokens.astype(np.int64))
    total = 0.0
    n_full = (len(tokens) - 1) // window
    inputs = stream[: n_full * window].view(-1, window)
    targets = stream[1 : n_full * window + 1].view(-1, window)
    for x, y in zip(inputs.split(rows), targets.split(rows), strict=True):
        total += model.loss(x.to(device), y.to(device), reduction="sum").item()
    if rest := (len(tokens) - 1) % window:
        tail = stream[-rest - 1 :].to(device)[None]
        total += model.loss(tail[:, :-1], tail[:, 1:], reduction="sum").item()
    model.train(was_training)
    model.loss_precision = precision
    n_bytes = int(token_bytes[tokens[1:]].sum())
    return Score(total / (len(tokens) - 1), total / (math.log(2) * max(n_bytes, 1)), len(tokens) - 1)
