"""First weights that are not drawn: another model's, or from counts of the run's text."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from hectogpt import errors
from hectogpt.data import Tokenizer
from hectogpt.errors import UserError, set_to
from hectogpt.model import Transformer
from hectogpt.model.weights import load_tensors, model_of, saved_tensors
from hectogpt.serialization import Value


@dataclass(frozen=True)
class FirstWeights:
    """source: the model's folder, or its name on the hub. sha256: of its tensors, as `hash_state`
    gives it.
    """

    source: str
    sha256: str

    def load_into(self, model: Transformer) -> None:
        """Give a model of the same tensors these weights, in its own dtype.

        Raises UserError (CHECKPOINT) if the source is gone, has other weights than it had, or has
        other tensors than the model."""
        state = saved_tensors(open_source(self.source)[0])
        if hash_state(state) != self.sha256:
            raise UserError(
                f"the weights in {self.source} have changed",
                why=f"their SHA-256 was {self.sha256[:12]}..., now it is "
                f"{hash_state(state)[:12]}...",
                fix="the weights as they were, or a new run",
                code=errors.CHECKPOINT,
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
            what = f"the weights in {self.source} do not fit the run's model"
            raise UserError(what, why=error.why, fix=fix, code=errors.CHECKPOINT) from None


def open_source(
    source: str, idea: Sequence[Path | str] = (), note: Callable[[str], None] = lambda text: None
) -> tuple[Transformer, Tokenizer]:
    """The model that a run is to start from, with a row of the head for every token, and its
    tokenizer. idea, note: as for `open_model`. Raises UserError as that does."""
    from hectogpt.interop.open import (
        open_model,
    )  # here, so that a run that draws its weights does not load it

    model, tokenizer = open_model(source, download=True, idea=idea, note=note)
    return whole(model), tokenizer


def whole(model: Transformer) -> Transformer:
    """The same function with a row of the head for every token: another text may have tokens that
    the model has never read, which share a row in a compact vocabulary."""
    config = model.config
    head = model.config.lm_head
    if not head.compact_vocab:
        return model
    state = saved_tensors(model)
    rows = state.pop("lm_head.row_of_token")
    shared = rows == len(state["lm_head.weight"]) - 1
    for name in ("lm_head.weight", *(("lm_head.bias",) if head.bias else ())):
        state[name] = state[name][rows]
    if (
        head.embedding_map
    ):  # of a whole head every row gets the map's part, of a compact one those in use
        added = state["embeddings.weight"][shared] @ state["lm_head.embedding_map.weight"].T
        state["lm_head.weight"][shared] -= head.embedding_map * added
    config = replace(config, lm_head=replace(head, compact_vocab=False))
    return model_of(config, state, Path("the first weights"))


def hash_state(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of tensors by name: of the names, dtypes, shapes and bytes, in the order of the
    names. The same model has one hash in whatever files it lies."""
    found = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


ADDED = 0.1  # to every count of a token, so that none has probability 0


@dataclass(frozen=True)
class BigramInit(Value):
    """Head bias log p(y), and embedding and head from a truncated SVD of the bigrams' lift.

    With c counts and p the unigram, M_xy = log(1 + c_xy / (smoothing p_y)) are the logits, up to a
    constant per row, of a Dirichlet-smoothed bigram. diag(sqrt p) M diag(sqrt p) = U S V^T weighs
    each entry by how often it matters; E = diag(1 / sqrt p) U sqrt S and W = diag(1 / sqrt p) V
    sqrt S give E W^T ~ M at rank d. Rows of E get unit variance, since the norm after the
    embedding would take their lengths away anyway, and W is scaled by `head`. Tokens that never
    occur keep their random embedding, and a head row of zero."""

    smoothing: float = 30.0
    head: float = 0.3

    def apply(self, model: Transformer, tokens: np.ndarray) -> None:
        """Set the weights from `tokens` [rows, time]; no pair is counted across a row's edge.

        The same tokens give the same weights, but for texts so short or regular that singular
        values are equal: any rotation of their vectors is then as good. Raises UserError for a
        head without bias or tied to the embedding."""
        # Imported here: half a second that only this initialisation needs.
        from scipy.sparse import coo_array
        from scipy.sparse.linalg import svds

        head = model.lm_head
        vocab = model.config.vocab_size
        d = model.config.d_model
        if head.bias is None or model.config.lm_head.tied:
            raise UserError(
                "init_from_counts with a head that is tied or has no bias",
                why="the bias takes the tokens' frequencies, the head's rows what follows what",
                fix=set_to("model.lm_head.bias", True),
            )
        rows = np.arange(vocab) if head.row_of_token is None else head.row_of_token.cpu().numpy()
        size = len(head.weight)
        counts = np.bincount(tokens.ravel(), minlength=vocab) + ADDED
        mass = np.bincount(rows, counts, minlength=size) / counts.sum()
        words = np.maximum(np.bincount(rows, minlength=size), 1)
        before = rows[tokens[:, :-1].ravel()]
        after = rows[tokens[:, 1:].ravel()]
        pairs = coo_array((np.ones(len(before)), (before, after)), shape=(size, size))
        pairs.sum_duplicates()
        x, y = pairs.coords
        root = np.sqrt(np.maximum(mass, 1e-30))
        lift = np.log1p(pairs.data / (self.smoothing * mass[y])) * root[x] * root[y]
        weighted = coo_array((lift, (x, y)), shape=(size, size)).tocsr()
        u, s, vt = svds(weighted, k=min(d, size - 1), v0=root)
        # What a singular vector leaves free comes out differently from run to run: its sign, and
        # where there are fewer pairs than dimensions also the directions without any weight (svds
        # has them with an s of about 1e-8).
        s = np.where(s > 1e-6 * s.max(), s, 0.0)
        signs = np.sign(u[np.abs(u).argmax(axis=0), np.arange(len(s))])
        u = u * signs
        vt = vt * signs[:, None]
        left, right = (np.zeros((size, d)) for _ in range(2))
        left[:, : len(s)], right[:, : len(s)] = (
            u * np.sqrt(s) / root[:, None],
            vt.T * np.sqrt(s) / root[:, None],
        )
        occurs = np.bincount(tokens.ravel(), minlength=vocab) > 0
        length = np.linalg.norm(left, axis=1, keepdims=True)
        left = left / np.maximum(length, 1e-12) * np.sqrt(d)
        used = np.zeros(size, bool)
        used[rows[occurs]] = True
        with torch.no_grad():
            device = head.weight.device
            head.bias.copy_(torch.from_numpy(np.log(mass / words)))
            head.weight.copy_(torch.from_numpy(right * self.head * used[:, None]))
            model.embeddings.weight[torch.from_numpy(occurs).to(device)] = torch.from_numpy(
                left[rows[occurs]]
            ).to(head.weight)
