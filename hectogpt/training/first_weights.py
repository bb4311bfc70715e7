"""First weights that are not drawn: another model's."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from hectogpt import errors
from hectogpt.data import Tokenizer
from hectogpt.errors import UserError
from hectogpt.model import Transformer
from hectogpt.model.weights import load_tensors, model_of, saved_tensors


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
        state = saved_tensors(open_source(self.source, note=lambda text: None)[0])
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
    source: str, idea: Sequence[Path | str] = (), note: Callable[[str], None] = warnings.warn
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
