"""The one way to open a model: a run's folder, a folder in Hugging Face's GPT-2 layout, or a name on the hub."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from hectogpt import errors
from hectogpt.data import Tokenizer
from hectogpt.errors import UserError
from hectogpt.idea_file import load_idea, read_idea, remembered
from hectogpt.interop.hf_tokenizer import read_tokenizer
from hectogpt.interop.hf_weights import load_gpt2
from hectogpt.interop.hub import fetch
from hectogpt.model.transformer import Transformer
from hectogpt.model.weights import MODEL_TYPE, load_model, read_config


def open_model(
    name_or_folder: str | Path, *, download: bool = False, idea: Path | str | None = None
) -> tuple[Transformer, Tokenizer]:
    """The model, on the CPU and in evaluation mode, and its tokenizer.

    name_or_folder: a folder; with `download` also a name on the hub, such as "gpt2" or "openai-community/gpt2".
    idea: the user's own file that defines classes of the model. It is imported, which runs it. Without it, only a file
        is imported that the user has run here before and that is still where it was, unchanged.

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
    model = _load_own(folder, idea) if own else load_gpt2(folder)
    return model, read_tokenizer(folder, model.config.vocab_size)


def _load_own(folder: Path, given: Path | str | None) -> Transformer:
    """The model of a run's folder, after the ideas that it comes from are imported, as far as they may be."""
    named = None if given is None else read_idea(given)
    missing = []
    for idea in ideas_of(folder):
        found = named if named is not None and named.sha256 == idea["sha256"] else remembered(idea["sha256"])
        if found is None:
            missing.append(idea)
        else:
            load_idea(found)
    try:
        return load_model(folder)
    except UserError as error:
        if not missing:
            raise
        copy = folder / missing[0]["file"]
        raise UserError(
            f"{error.what}",
            why=f"it was made with the file {missing[0]['path']}"
            + (f", and {named.path} is another version of it" if named else ", which is not imported unasked"),
            fix=f"look at {copy}, and if you trust it, set idea to {copy}",
            code=errors.CHECKPOINT,
        ) from None


def ideas_of(folder: Path) -> list[dict[str, str]]:
    """What a run's folder says of the user's own files that made it: `file` (the copy there), `path`, `sha256`."""
    with contextlib.suppress(OSError, ValueError):
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        found = record.get("ideas", []) if isinstance(record, dict) else []
        names = ("file", "path", "sha256")
        return [i for i in found if isinstance(i, dict) and all(isinstance(i.get(n), str) for n in names)]
    return []
