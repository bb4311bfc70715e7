"""The process in which a judged idea runs, and the judge's side of it, where no answer is trusted.

The process either trains on text that is dealt to it batch by batch, or receives weights and
predicts rows that are dealt to it token by token. Each task runs in a separate process, sealed
where the machine allows it (hectogpt/sandbox.py). A process has no folder of its own: sources,
text and weights arrive through a pipe, and weights and distributions leave the same way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import safetensors.numpy
import safetensors.torch
import torch
from torch import nn

from hectogpt import hardware, process
from hectogpt.data import Batches, Corpus, load_tokenizer
from hectogpt.data.batches import DataOrder
from hectogpt.errors import UserError
from hectogpt.generation.decode import Decoder
from hectogpt.idea_file import IdeaFile
from hectogpt.kernels.build import find
from hectogpt.lab.ideas import run_of
from hectogpt.lab.recipes import recipe
from hectogpt.lab.trial import serve
from hectogpt.model.lm_head import LMHead
from hectogpt.model.transformer import Transformer
from hectogpt.model.weights import model_of, saved_tensors
from hectogpt.sandbox import Policy
from hectogpt.serialization import dump
from hectogpt.training.events import Ended, events, session_of
from hectogpt.training.optim.groups import needs_closure
from hectogpt.training.precision import give_back_memory
from hectogpt.training.run import Data, Run

HANGS = 300.0  # seconds; a process that sends no message for this long is ended
CACHE_TRIAL = 24  # tokens on which logits with and without a cache are compared
CACHE_DIFFERENCE = 1e-2


# --- the judge's side


class Talk(process.Child):
    """A new process that runs a task of an arm.

    Attributes:
        messages: its messages; closing them ends the process.
        peak_mb: its peak memory in MiB, measured from outside.
    """

    def __init__(
        self, request: dict[str, Any], environment: Mapping[str, str], policy: Policy, most: int
    ) -> None:
        """Start the process. most: the most bytes of a message."""
        super().__init__("hectogpt.lab.contestant", Path("/"), environment, policy)
        request |= {"policy": asdict(policy)}
        self.messages = self.frames(request, first_seconds=HANGS, seconds=HANGS, body_bytes=most)
        self.peak_mb = 0.0

    def deal(self, numbers: np.ndarray | bytes) -> None:
        """Send values without a message."""
        self.send({}, bytes(numbers))

    def receive(self) -> tuple[dict[str, Any], bytes]:
        """Receive the next message and its body. Raises EOFError if the process ends instead."""
        for message in self.messages:
            return message
        raise EOFError

    def finish(self) -> str:
        """Wait for the process to end properly, and return its attempts to leave the sandbox.

        Raises EOFError if it ends in any other way.
        """
        attempts = str(self.receive()[0]["attempts"])
        if next(self.messages, None) or self.ending is None or self.ending.error:
            raise EOFError
        return attempts

    def fault(self, error: Exception) -> str:
        """Describe the fault of a process whose answers caused an error."""
        ending = self.ending
        if ending is None or not isinstance(error, EOFError):
            return f"it sends an invalid answer: {error!r:.300}"
        how = f"its process ended ({ending.how}, exit code {ending.code})"
        return ending.last_words[-2000:] or how

    def measure(self) -> float:
        """Measure the process's memory. Returns the CPU seconds that it has used."""
        megabytes, seconds = hardware.taken_by(self.process.pid)
        self.peak_mb = max(self.peak_mb, megabytes)
        return seconds


def clean_weights(data: bytes) -> tuple[int, bytes]:
    """Return the number of values in a safetensors file, and the file with only its tensors.

    Raises the library's error for an invalid file.
    """
    tensors = safetensors.numpy.load(data)
    return sum(tensor.size for tensor in tensors.values()), safetensors.numpy.save(tensors)


def nats(body: bytes, vocab: int, targets: np.ndarray) -> np.ndarray:
    """Losses of target ids, float64 [rows].

    Args:
        body: float32 [rows, vocab], logits or log-probabilities (which are logits too).
        vocab: the size of the vocabulary.
        targets: the ids.

    Raises ValueError if a target has no probability.
    """
    logits = np.frombuffer(body, np.float32).reshape(len(targets), vocab)
    with np.errstate(invalid="ignore"):
        logits = logits - logits.max(axis=1, keepdims=True)
        total = np.exp(logits).sum(axis=1, dtype=np.float64)
        losses: np.ndarray = np.log(total) - logits[np.arange(len(targets)), targets]
    if not np.isfinite(losses).all():
        raise ValueError("tokens have no probability")
    return losses


# --- the process's side


def do(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Do a task for the judge, yielding messages.

    The first message is the run; the last one lists the `attempts` to leave the sandbox.

    Args:
        request: task ("plan", "train" or "score"), links (from `Entrant.links`), seed, threads,
            policy, and what the task needs.

    Raises UserError.
    """
    torch.set_num_threads(request["threads"])
    # Otherwise the backward pass of indexing would sum in any order, and an honest idea would give
    # different bits each time.
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    find()  # the C++ kernels
    give_back_memory()  # finds the C library before the policy is in force
    load_tokenizer()
    attempts: dict[str, None] = {}

    def refuse(what: str) -> None:
        attempts[what] = None
        raise PermissionError(what)

    Policy(**request["policy"]).watch(refuse)
    name, *links = request["links"]
    run = recipe(name)
    for file, function, source in links:
        run = run_of(IdeaFile(Path("/judged", file), source), function, run)
    yield dump(run)
    run = replace(run, seed=request["seed"], threads=request["threads"], device="cpu")
    {"plan": plan, "train": train, "score": score}[request["task"]](run, request)
    yield {"attempts": "; ".join(attempts)}


# --- training, on text that is dealt


def plan(run: Run, request: dict[str, Any]) -> None:
    """Receive the whole training text, and send the indices of the rows that the run will read.

    Nothing else leaves this process.
    """
    tokens = np.frombuffer(process.frames().receive_frame()[1], np.uint16)
    numbers = planned(tokens, run.data, run.seed, run.steps)
    process.frames().send({}, numbers.tobytes())


def planned(tokens: np.ndarray, data: Data, seed: int, steps: int) -> np.ndarray:
    """Indices of the sequences that a run reads, step by step, int64 [steps * batch_size]."""
    batches = Batches(tokens, data.seq_len, data.batch_size, seed, data.order)
    return np.array([number for step in range(steps) for number in batches.numbers(step)])


@dataclass(frozen=True)
class Dealt(DataOrder):
    """A data order for dealt rows, which arrive in their final order.

    The idea's own order cuts the rows, but only once training has started.
    """

    inner: DataOrder
    begun: ClassVar[bool] = False

    def order(self, sequences: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        return np.arange(len(sequences))

    def cut(self, rows: np.ndarray, step: int, steps: int) -> np.ndarray:
        return self.inner.cut(rows, step, steps) if Dealt.begun else rows


def train(run: Run, request: dict[str, Any]) -> None:
    """Receive the token ids that occur in the run's text, then before each step its batch of rows.

    Sends an answer after each step, and the weights after the last one.
    """
    frames = process.frames()
    data = run.data
    if run.first_weights is not None:
        raise UserError("its weights start from another model", why="it may use only this text")
    # At first the text holds only the ids that occur; the dealt rows replace them below.
    used = np.frombuffer(frames.receive_frame()[1], np.uint16)
    text = np.resize(used, run.steps * data.batch_size * data.seq_len)
    tokens = dict.fromkeys(("train", "dev", "test"), text)
    none = dict.fromkeys(tokens, "")
    corpus = Corpus("dealt", tokens, none, dict.fromkeys(tokens, 0), load_tokenizer(), Path())
    stream = events(replace(run, data=replace(data, order=Dealt(data.order))), corpus)
    session = session_of(stream)
    Dealt.begun = True
    if any(map(needs_closure, session.optimizer.optimizers)):
        what = "its optimizer computes gradients more than once a step"
        raise UserError(what, why="a step has one gradient")
    for rows in text.reshape(run.steps, -1):
        rows[:] = np.frombuffer(frames.receive_frame()[1], np.uint16)
        if isinstance(next(stream), Ended):
            return frames.send({"diverged": True})
        frames.send({})
    frames.send({}, safetensors.torch.save(saved_tensors(session.model)))


# --- scoring, token by token


@torch.no_grad()
def score(run: Run, request: dict[str, Any]) -> None:
    """Receive the weights and predict the rows that are dealt.

    The rows come in `deals` groups. For each group, the exchange is repeated `tokens` times: one
    token of every row arrives, and the answer holds the distributions of the next tokens, float32
    [rows, vocab], as logits or log-probabilities.
    """
    frames = process.frames()
    state = safetensors.torch.load(frames.receive_frame()[1])
    model = model_of(run.model, state, Path("weights"))
    head = model.lm_head
    if type(head) is LMHead and head.embedding_map is not None:
        # One matrix product for each token; two took three times as long.
        head.weight = nn.Parameter(head.matrix(model.token_vectors()))
        head.embedding_map = None
    has_cache = is_same_with_cache(model)
    for _ in range(request["deals"]):
        dealt: list[torch.Tensor] = []
        for place in range(request["tokens"]):
            tokens = torch.frombuffer(bytearray(frames.receive_frame()[1]), dtype=torch.int64)
            dealt.append(tokens)
            if not has_cache:
                logits = model.next_logits(torch.stack(dealt[-run.model.context_length :], dim=1))
            elif place == 0:
                decoder = Decoder(model, tokens[:, None], request["tokens"])
                logits = decoder.prefill()
            else:
                logits = decoder.decode(tokens)
            frames.send({}, logits.float().numpy().tobytes())


def is_same_with_cache(model: Transformer) -> bool:
    """True if the model computes the same with a cache as without.

    It may not, because an idea's own parts need not support caches.
    """
    length = min(CACHE_TRIAL, model.config.context_length)
    ids = torch.randint(0, model.config.vocab_size, (2, length), generator=torch.Generator())
    if model.config.document_start is not None:
        ids[0, length // 2] = model.config.document_start
    decoder = Decoder(model, ids[:, :1], length)
    try:
        logits = [decoder.prefill(), *(decoder.decode(tokens) for tokens in ids.T[1:])]
        apart = logits[-1] - model.next_logits(ids)
    except Exception:  # any error of an idea's part that does not support caches
        return False
    return bool(apart.nan_to_num(posinf=0.0).abs().max() < CACHE_DIFFERENCE)


if __name__ == "__main__":
    serve(do)
