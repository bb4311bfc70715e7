"""The one way to open a model: a run's folder, a folder in Hugging Face's GPT-2 layout, or a name on the hub."""

from __future__ import annotations

from pathlib import Path

from hectogpt import errors
from hectogpt.data import Tokenizer
from hectogpt.errors import UserError
from hectogpt.interop.hf_tokenizer import read_tokenizer
from hectogpt.interop.hf_weights import load_gpt2
from hectogpt.interop.hub import fetch
from hectogpt.model.transformer import Transformer
from hectogpt.model.weights import MODEL_TYPE, load_model, read_config


def open_model(name_or_folder: str | Path, *, download: bool = False) -> tuple[Transformer, Tokenizer]:
    """The model, on the CPU and in evaluation mode, and its tokenizer.

    name_or_folder: a folder; with `download` also a name on the hub, such as "gpt2" or "openai-community/gpt2".

    Raises UserError: CHECKPOINT for a folder that is missing, damaged or no GPT-2; DATA for its tokenizer; USAGE for
    what cannot be a name on the hub.
    """
    folder = Path(name_or_folder)
    if not folder.is_dir():
        if not download:
            raise UserError(
                f"no model in {folder}",
                why="there is no such folder",
                fix="name a folder that `hectogpt train` wrote, or one in Hugging Face's GPT-2 layout",
                code=errors.CHECKPOINT,
            )
        folder = fetch(str(name_or_folder))
    own = read_config(folder).get("model_type") == MODEL_TYPE
    model = load_model(folder) if own else load_gpt2(folder)
    return model, read_tokenizer(folder, model.config.vocab_size)
