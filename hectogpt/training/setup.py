"""Build what a run trains: the model with its initial weights, its optimizer and its batches."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from hectogpt.data import Batches, Corpus, Tokenizer
from hectogpt.display import Note
from hectogpt.errors import CheckpointError, DataError, Setting, SetTo, UserError
from hectogpt.kernels import native
from hectogpt.kernels.build import find
from hectogpt.model import Transformer
from hectogpt.model.inputs import SpellingLayer
from hectogpt.model.weights import NoInit, hash_state, load_tensors, model_of, saved_tensors
from hectogpt.training.optim import OptimizerGroup, kinds
from hectogpt.training.optim.groups import Kind
from hectogpt.training.precision import Machine
from hectogpt.training.run import FirstWeights, Run, Schedule

# Added to the run's seed, to seed torch while modules are built. A user's own parts may then draw
# their initial weights; the offset keeps them different from the other weights.
PARTS_SEED = 1 << 40
# The C++ kernels are compiled for runs whose steps have at least this many logits.
NATIVE_FROM = 1 << 24


def check_corpus(run: Run, corpus: Corpus) -> None:
    """Refuse a corpus that the model cannot read, or that is shorter than one row of a batch.

    Raises UserError (DATA).
    """
    if corpus.n_vocab > run.model.vocab_size:
        raise DataError(
            (
                f"corpus {corpus.name}: ids up to {corpus.n_vocab - 1}, ",
                Setting("model.vocab_size", run.model.vocab_size),
            ),
            fix=SetTo("model.vocab_size", corpus.n_vocab),
        )
    if len(corpus.tokens["train"]) < run.data.seq_len:
        raise DataError(
            f"corpus {corpus.name}: {len(corpus.tokens['train'])} training tokens",
            why=f"one row of a batch takes data.seq_len = {run.data.seq_len}",
            fix="more text, or a smaller data.seq_len",
        )


def fit_vocabulary(run: Run, tokenizer: Tokenizer) -> Run:
    """Return the run with this tokenizer's vocabulary size. GPT-2's tokenizer changes nothing."""
    if tokenizer.is_gpt2:
        return run
    start = None if run.model.document_start is None else tokenizer.end_of_text
    return replace(
        run, model=replace(run.model, vocab_size=tokenizer.n_vocab, document_start=start)
    )


def make_batches(run: Run, corpus: Corpus) -> Batches:
    """The batches of the run."""
    data = run.data
    return Batches(
        corpus.tokens["train"], data.seq_len, data.batch_size, run.seed, data.order, run.steps
    )


def training_tokens(run: Run, corpus: Corpus) -> np.ndarray:
    """The tokens that a run reads, in order and uncut: int64 [steps * batch_size, seq_len]."""
    batches = make_batches(run, corpus)
    return np.concatenate([batches.rows(step) for step in range(run.steps)])


def build_model(run: Run, machine: Machine, corpus: Corpus) -> Transformer:
    """Build the run's model on its device, with weights drawn from the run's seed.

    Weights that modules drew when they were created are drawn again, in one fixed order, once the
    head has its rows.

    Args:
        run: the run.
        machine: its device and dtypes.
        corpus: its text. With `lm_head.compact_vocab`, only tokens that the run will read get
            their own row of the head.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(PARTS_SEED + run.seed)
        model = Transformer(run.model)
    if run.model.lm_head.compact_vocab:
        model.lm_head.compact(used_tokens(run, corpus))
    for module in model.modules():
        if isinstance(module, SpellingLayer):
            module.spell(corpus.tokenizer.texts())
    dtype = torch.float64 if machine.dtype == torch.float64 else torch.float32
    model.init_weights(run.init, seed=run.seed)
    return model.to(machine.device, dtype)


def load_first_weights(first: FirstWeights, model: Transformer) -> None:
    """Load another model's weights into a model with the same tensors, and cast them to its dtype.

    Raises UserError (CHECKPOINT) if the source is missing, if its weights have changed, or if
    its tensors do not match the model's.
    """
    state = saved_tensors(open_source(first.source, note=lambda text: None)[0])
    if hash_state(state) != first.sha256:
        raise CheckpointError(
            f"the weights in {first.source} have changed",
            why=f"their SHA-256 was {first.sha256[:12]}..., now it is {hash_state(state)[:12]}...",
            fix="use the old weights, or a new run",
        )
    dtype = model.embeddings.weight.dtype
    cast = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in state.items()
    }
    try:
        load_tensors(model, cast)
    except UserError as error:
        fix = "leave the fields of model as they are: they come from the source"
        what = f"the weights in {first.source} do not fit the run's model"
        raise CheckpointError(what, why=error.why, fix=fix) from None


def open_source(
    source: str, idea: Sequence[Path | str] = (), note: Note = warnings.warn
) -> tuple[Transformer, Tokenizer]:
    """Open the model from which a run is to start, and its tokenizer.

    Args:
        source: a folder, or a name on the hub.
        idea: as for `open_model`.
        note: as for `open_model`.

    Returns the model, with a row of the head for every token, and the tokenizer. Raises UserError
    as `open_model` does.
    """
    # Imported here: a run that draws its weights does not need it.
    from hectogpt.interop.open import open_model

    model, tokenizer = open_model(source, download=True, idea=idea, note=note)
    return whole(model), tokenizer


def whole(model: Transformer) -> Transformer:
    """Return a model that computes the same, with a row of the head for every token.

    In a compact vocabulary, tokens that the model has never read share a row, but a different text
    may contain them.
    """
    config = model.config
    head = model.config.lm_head
    if not head.compact_vocab:
        return model
    state = saved_tensors(model)
    rows = state.pop("lm_head.row_of_token")
    shared = rows == len(state["lm_head.weight"]) - 1
    for name in ("lm_head.weight", *(("lm_head.bias",) if head.bias else ())):
        state[name] = state[name][rows]
    if head.embedding_map:
        # A full head adds the map to every row, a compact one only to the rows in use.
        added = model.token_vectors()[shared] @ state["lm_head.embedding_map.weight"].T
        state["lm_head.weight"][shared] -= head.embedding_map * added
    config = replace(config, lm_head=replace(head, compact_vocab=False))
    return model_of(config, state, Path("the first weights"))


def build_optimizer(run: Run, model: Transformer) -> OptimizerGroup:
    """Build the run's optimizer over the model's parameters.

    Raises UserError if a user's own `optim` does not return an OptimizerGroup, or if a learning
    rate is negative or not finite.
    """
    optimizer = run.optim.build(model)
    if not isinstance(optimizer, OptimizerGroup):
        raise UserError(
            f"optim: {type(run.optim).__name__}.build returned {type(optimizer).__name__}, not "
            "an OptimizerGroup",
            fix="return OptimizerGroup([...]) of torch optimizers",
        )
    rates = [
        float(group["initial_lr"]) for one in optimizer.optimizers for group in one.param_groups
    ]
    if wrong := [rate for rate in rates if not 0 <= rate < math.inf]:
        raise UserError(
            Setting("optim.lr", wrong[0]), why="a learning rate is finite and not negative"
        )
    if type(run.schedule).of_kind is not Schedule.of_kind:
        optimizer.split_kinds(model)
    return optimizer


def used_tokens(run: Run, corpus: Corpus) -> torch.Tensor:
    """The ids that occur in the tokens that the run reads, ascending: int64 [used]."""
    batches = make_batches(run, corpus)
    seen = np.zeros(run.model.vocab_size, dtype=bool)
    # After one epoch every sequence has been read, if each is read exactly once and uncut.
    once = not (run.data.order.repeats or batches.cuts)
    epoch = -(-batches.n_sequences // run.data.batch_size) if once else run.steps
    for step in range(min(run.steps, epoch)):
        seen[batches.at(step)] = True
    return torch.from_numpy(seen.nonzero()[0])


def count_parameters(run: Run, corpus: Corpus, *only: Kind) -> int:
    """Count the parameters of the model that `build_model` would build, without allocating them.

    Args:
        run: the run.
        corpus: its text.
        only: count only parameters of these kinds. If none is given, count all parameters.
    """
    with torch.device("meta"), NoInit():
        model = Transformer(run.model)
    if run.model.lm_head.compact_vocab:
        model.lm_head.compact(used_tokens(run, corpus))
    kind_of = kinds(model)
    return sum(
        p.numel() for name, p in model.named_parameters() if not only or kind_of[name] in only
    )


def step_logits(run: Run, model: Transformer) -> int:
    """The number of logits that a step computes."""
    return run.data.batch_size * run.data.seq_len * len(model.lm_head.weight)


def choose_kernels(
    run: Run, model: Transformer, machine: Machine, chosen: str | None = None
) -> str:
    """Choose the kernels of a run's steps: "native", the package's own, or "eager", torch's.

    Native kernels are compiled if they do not exist yet, which takes about ten seconds, once per
    machine. That pays off only for large steps.

    Args:
        run: the run.
        model: its model.
        machine: its device and dtypes.
        chosen: the choice made when the run began. It is kept, because native and eager kernels
            add numbers in different orders.
    """
    worth_it = step_logits(run, model) >= NATIVE_FROM if chosen is None else chosen == "native"
    fits = machine.device.type == "cpu" and machine.head_dtype in native.DTYPES
    return "native" if fits and worth_it and find().library is not None else "eager"
