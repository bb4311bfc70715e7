"""The weights that a run starts from if it draws none: those of another model, known by their hash."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.model import Transformer
from hectogpt.model.weights import load_tensors
from hectogpt.upward import call_api


@dataclass(frozen=True)
class FirstWeights:
    """source: the model's folder, or its name on the hub. sha256: of its tensors, as `hash_state` gives it."""

    source: str
    sha256: str

    def load_into(self, model: Transformer) -> None:
        """Give a model of the same tensors these weights, in its own dtype.

        Raises UserError (CHECKPOINT) if the source is gone, has other weights than it had, or has other tensors than
        the model.
        """
        state = call_api("first_weights", "read_state", self.source)
        if hash_state(state) != self.sha256:
            raise UserError(
                f"the weights in {self.source} have changed",
                why=f"their SHA-256 was {self.sha256[:12]}..., now it is {hash_state(state)[:12]}...",
                fix="the weights as they were, or a new run",
                code=errors.CHECKPOINT,
            )
        dtype = model.embeddings.weight.dtype
        cast = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
        try:
            load_tensors(model, cast)
        except UserError as error:
            fix = "leave the fields of model as they are: they come from the source"
            what = f"the weights in {self.source} do not fit the run's model"
            raise UserError(what, why=error.why, fix=fix, code=errors.CHECKPOINT) from None


def hash_state(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of tensors by name: of the names, dtypes, shapes and bytes, in the order of the names. The same model has
    one hash in whatever files it lies."""
    found = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
