"""The process in which a judged idea runs. It trains on text that is dealt to it batch by batch,
or it has weights and says, token by token, what follows the rows that are dealt to it. The judge
(lab/judge.py) believes none of it.

Each task has a process of its own, sealed where the machine allows it (hectogpt/sandbox.py),
without a folder: sources, text and weights come through its pipe, and losses, weights and
distributions leave through it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from hectogpt import errors, process
from hectogpt.data import Batches, Corpus, load_tokenizer
from hectogpt.data.batches import DataOrder
from hectogpt.errors import UserError
from hectogpt.generation.decode import Decoder
from hectogpt.idea_file import IdeaFile
from hectogpt.kernels.build import find
from hectogpt.lab.ideas import SPEC, run_of
from hectogpt.lab.recipes import recipe
from hectogpt.lab.trial import serve
from hectogpt.model.lm_head import LMHead
from hectogpt.model.transformer import Transformer
from hectogpt.model.weights import model_of, saved_tensors
from hectogpt.sandbox import Policy
from hectogpt.serialization import dump
from hectogpt.training.optim.groups import needs_closure
from hectogpt.training.precision import give_back_memory
from hectogpt.training.run import Run
from hectogpt.training.session import Session

MOST_ATTEMPTS = 20  # that are reported
CACHE_TRIAL = 24  # tokens on which logits with and without a cache are compared
CACHE_DIFFERENCE = 1e-2


def do(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Do a task of the judge's; the last message has the `attempts` to leave the sandbox.

    request: task ("plan", "train" or "score"), sources (name of a file -> its text), base and idea
    (names as an Entrant has them; idea is None for the base alone), seed, threads, policy; and
    what the task needs. Raises UserError."""
    torch.set_num_threads(request["threads"])
    # Indexing's backward pass adds in any order otherwise, and an honest idea gives other bits
    # each time.
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    find()  # the C++ kernels
    give_back_memory()  # finds the C library, for later
    load_tokenizer()
    attempts: list[str] = []

    def refuse(what: str) -> None:
        if len(attempts) < MOST_ATTEMPTS and what not in attempts:
            attempts.append(what)
        raise PermissionError(
            f"{what}: a judged idea has its source and what is dealt to it, and nothing else"
        )

    Policy(**{name: tuple(places) for name, places in request["policy"].items()}).watch(refuse)
    run = replace(
        entered_run(request), seed=request["seed"], threads=request["threads"], device="cpu"
    )
    yield {"run": dump(run)}
    yield from {"plan": plan, "train": train, "score": score}[request["task"]](run, request) or ()
    yield {"attempts": attempts}


def entered_run(request: dict[str, Any]) -> Run:
    """The run of the base, or of the idea applied to it."""

    def applied(name: str, before: Run | None) -> Run:
        match = SPEC.match(name)
        if match is None:
            return recipe(name)
        file = IdeaFile(Path("/judged", match["path"]), request["sources"][match["path"]])
        return run_of(file, match["function"], before or applied(match["base"] or "top", None))

    base = applied(request["base"], None)
    return base if request["idea"] is None else applied(request["idea"], base)


# --- training, on text that is dealt
# ---


def plan(run: Run, request: dict[str, Any]) -> None:
    """Answer the whole training text with the rows that the run is going to read, int64 [steps *
    batch_size], and then with the ids that it reads of them. Nothing else leaves this process."""
    tokens = np.frombuffer(process.frames().receive_frame()[1], np.uint16)
    numbers, used = planned(
        Batches(tokens, run.data.seq_len, run.data.batch_size, run.seed, run.data.order, run.steps)
    )
    process.frames().send({"plan": "rows"}, numbers.tobytes())
    process.frames().send({"plan": "ids"}, used.tobytes())


def planned(batches: Batches) -> tuple[np.ndarray, np.ndarray]:
    """Which sequences the batches of a run show, int64 [steps * batch_size], and the ids in them,
    uint16, ascending.
    """
    numbers = [number for step in range(batches.steps) for number in batches.numbers(step)]
    used = np.unique(
        np.concatenate([np.unique(batches.at(step)) for step in range(batches.steps)])
    )
    return np.array(numbers, dtype=np.int64), used.astype(np.uint16)


@dataclass(frozen=True)
class InOrder(DataOrder):
    """The rows as they are dealt."""

    def order(self, sequences: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        return np.arange(len(sequences))


@dataclass(frozen=True)
class Cut(InOrder):
    """The rows as they are dealt, cut as another order cuts them; whole until training begins."""

    inner: DataOrder
    begun: ClassVar[bool] = False

    def cut(self, rows: np.ndarray, step: int, steps: int) -> np.ndarray:
        return self.inner.cut(rows, step, steps) if Cut.begun else rows


def train(run: Run, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Receive the ids that the run is going to read, then the rows of a batch before each step.
    Send each loss, at last the weights."""
    frames = process.frames()
    data = run.data
    used = np.frombuffer(frames.receive_frame()[1], np.uint16)
    text = np.resize(
        used, run.steps * data.batch_size * data.seq_len
    )  # holds these ids until rows take their place
    cuts = type(data.order).cut is not DataOrder.cut
    nothing = np.zeros(0, dtype=np.uint16)
    tokens = {"train": text, "dev": nothing, "test": nothing}
    corpus = Corpus(
        "dealt",
        tokens,
        dict.fromkeys(tokens, ""),
        dict.fromkeys(tokens, 0),
        load_tokenizer(),
        Path(),
    )
    order = Cut(data.order) if cuts else InOrder()
    session = Session.open(replace(run, data=replace(data, order=order)), corpus)
    Cut.begun = True
    again = any(needs_closure(optimizer) for optimizer in session.optimizer.optimizers)
    yield {
        "computes_again": again,
        "numbers": sum(t.numel() for t in session.model.state_dict().values()),
    }
    steps = session.steps()
    for rows in text.reshape(run.steps, -1):
        rows[:] = np.frombuffer(frames.receive_frame()[1], np.uint16)
        try:
            step = next(steps)
        except UserError as error:
            if error.code != errors.DIVERGED:
                raise
            yield {"diverged": f"{error.what}: {error.why}"}
            return
        yield {"loss": step.loss}
    tensors = saved_tensors(session.model)
    described = [
        [name, str(t.dtype).removeprefix("torch."), list(t.shape)] for name, t in tensors.items()
    ]
    whole = torch.cat([tensor.reshape(-1).view(torch.uint8) for tensor in tensors.values()])
    frames.send({"weights": described}, whole.numpy().tobytes())


# --- scoring, token by token
# ---


@torch.no_grad()
def score(run: Run, request: dict[str, Any]) -> None:
    """Receive the weights; then, for each number in `deals`, a token of as many rows at a time,
    `tokens` times. Answer each with the distribution of the token after it, float32 [rows, vocab],
    logits or log-probabilities."""
    frames = process.frames()
    state = {}
    at = 0
    whole = torch.frombuffer(bytearray(frames.receive_frame()[1]), dtype=torch.uint8)
    for name, dtype, shape in request["weights"]:
        size = int(np.prod(shape, dtype=np.int64)) * getattr(torch, dtype).itemsize
        state[name] = whole[at : at + size].clone().view(getattr(torch, dtype)).reshape(shape)
        at += size
    model = model_of(run.model, state, Path("weights"))
    head = model.lm_head
    if (
        type(head) is LMHead and head.embedding_map is not None
    ):  # one product for each token instead of two
        head.weight = nn.Parameter(head.matrix(model.embeddings.weight))
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
    """True if the model's parts compute the same with a cache as without: an idea's own parts may
    not know caches.
    """
    vocab = model.config.vocab_size
    start = model.config.document_start
    ids = torch.randint(
        0, vocab, (2, min(CACHE_TRIAL, model.config.context_length)), generator=torch.Generator()
    )
    if start is not None:
        ids[0, ids.shape[1] // 2] = start
    decoder = Decoder(model, ids[:, :1], ids.shape[1])
    same = True
    try:
        for place in range(ids.shape[1]):
            cached = decoder.decode(ids[:, place]) if place else decoder.prefill()
            apart = (cached - model.next_logits(ids[:, : place + 1])).abs()
            same = same and bool(apart.nan_to_num(posinf=0.0).max() < CACHE_DIFFERENCE)
    except Exception:  # whatever a part of the idea's raises for a cache that it does not know
        return False
    return same


if __name__ == "__main__":
    serve(do)
