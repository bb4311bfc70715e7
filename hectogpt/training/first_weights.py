"""Initial weights that are another model's instead of being drawn at random."""

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
    """Another model's weights, as the start of a run.

    Attributes:
        source: the model's folder, or its name on the hub.
        sha256: the hash of its tensors, from `hash_state`.
    """

    source: str
    sha256: str

    def load_into(self, model: Transformer) -> None:
        """Load these weights, cast to the model's dtype, into a model with the same tensors.

        Raises UserError (CHECKPOINT) if the source is missing, if its weights have changed, or if
        its tensors do not match the model's.
        """
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
    """Open the model that a run is to start from, and its tokenizer.

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
    """Expand a compact vocabulary: the same function, with a row of the head for every token.

    In a compact vocabulary, tokens that the model has never read share a row. A different text may
    have such tokens.
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
        added = state["embeddings.weight"][shared] @ state["lm_head.embedding_map.weight"].T
        state["lm_head.weight"][shared] -= head.embedding_map * added
    config = replace(config, lm_head=replace(head, compact_vocab=False))
    return model_of(config, state, Path("the first weights"))


def hash_state(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of the names, dtypes, shapes and bytes of tensors, in the order of their names.

    It does not depend on the files that a model is stored in.
    """
    found = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
