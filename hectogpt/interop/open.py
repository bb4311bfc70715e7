"""The one way to open a model: a run's folder, a folder in Hugging Face's GPT-2 layout, or a name on the hub."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from hectogpt import errors
from hectogpt.data import Tokenizer
from hectogpt.errors import UserError
from hectogpt.idea_file import IdeaFile, load_idea, read_idea, remembered
from hectogpt.interop.hf_tokenizer import read_tokenizer
from hectogpt.interop.hf_weights import is_exported, load_exported, load_gpt2
from hectogpt.interop.hub import fetch
from hectogpt.json_files import read_json_object
from hectogpt.model.config import ModelConfig
from hectogpt.model.transformer import Transformer
from hectogpt.model.weights import MODEL_TYPE, load_model, model_of, read_config
from hectogpt.serialization import classes_of, load


class WithoutInit(TorchFunctionMode):
    """Within it torch.nn.init leaves tensors on the meta device alone. They have no numbers; but to find that out,
    torch would load its compiler, which takes as long as to load torch."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function, or return the tensor that it was to fill."""
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            tensor = kwargs["tensor"] if "tensor" in kwargs else args[0]
            if tensor.is_meta:
                return tensor
        return func(*args, **kwargs)


def open_model(
    name_or_folder: str | Path,
    *,
    download: bool = False,
    idea: Path | str | Sequence[Path | str] = (),
    note: Callable[[str], None] = lambda text: None,
) -> tuple[Transformer, Tokenizer]:
    """The model, on the CPU and in evaluation mode, and its tokenizer.

    name_or_folder: a folder; with `download` also a name on the hub, such as "gpt2" or "openai-community/gpt2".
    idea: the user's own file that defines classes of the model, or several. They are imported, which runs them. Without
        it, only a file is imported that the user has run here before and that is still where it was, unchanged.
    note: is told, in a sentence, that the weights of a Hugging Face folder had to be converted.

    Raises UserError: CHECKPOINT for a folder that is missing, damaged or no GPT-2; DATA for its tokenizer; USAGE for
    what cannot be a name on the hub.
    """
    folder = find_folder(name_or_folder, download)
    if (folder / "run.json").is_file() and not os.path.lexists(folder / "config.json"):
        why, fix = "it writes its weights when it ends", "train the run to its end"
        raise UserError(f"the run in {folder} has no model yet", why=why, fix=fix, code=errors.CHECKPOINT)
    config = read_config(folder)
    if config.get("model_type") == MODEL_TYPE:
        named = [idea] if isinstance(idea, (Path, str)) else idea
        fields = config["model"] if is_exported(config) else config
        with classes_of(_import_ideas(folder, fields, [read_idea(path) for path in named])), WithoutInit():
            model = load_exported(folder, config, note) if is_exported(config) else load_model(folder)
    else:
        with WithoutInit():
            model = load_gpt2(folder, note)
    return model, read_tokenizer(folder, model.config.vocab_size)


def find_folder(name_or_folder: str | Path, download: bool) -> Path:
    """A model's folder: the one that is named, or with `download` that of a name on the hub. Raises UserError as
    `open_model` does."""
    folder = Path(name_or_folder)
    if os.path.isdir(folder):  # False, and no error, also for what cannot be a path
        return folder
    if download:
        return fetch(str(name_or_folder))
    raise UserError(
        f"no model in {str(folder)[:200]}",
        why="there is no such folder",
        fix="name a folder that `hectogpt train` wrote, or one in Hugging Face's GPT-2 layout",
        code=errors.CHECKPOINT,
    )


def open_state(
    folder: Path, state: dict[str, Tensor], idea: Path | str | Sequence[Path | str] = ()
) -> tuple[Transformer, Tokenizer]:
    """The model of a run's folder with these weights, which one of its checkpoints holds; else as `open_model`."""
    record = read_json_object(folder / "run.json", nan_as_none=True)
    fields = record["run"].get("model") if isinstance(record.get("run"), dict) else None
    if not isinstance(fields, dict):
        raise UserError(f"no model in {folder / 'run.json'}", why="it is no run's record", code=errors.CHECKPOINT)
    named = [idea] if isinstance(idea, (Path, str)) else idea
    with classes_of(_import_ideas(folder, fields, [read_idea(path) for path in named])), WithoutInit():
        model = model_of(load(ModelConfig, fields), state, folder / "run.json")
    return model, read_tokenizer(folder, model.config.vocab_size)


# --- runs that come from a user's own file ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """What a run's folder says of a file that made the run. file: the name of its copy there. path: where it was."""

    file: str
    path: str
    sha256: str


def _import_ideas(folder: Path, config: dict[str, Any], named: Sequence[IdeaFile]) -> list[str]:
    """Import the files whose classes the model has, as far as they may be; their hashes. Raises UserError (CHECKPOINT)
    for one that may not, and for a named file that did not make the run."""
    sources = ideas_of(folder)
    for idea in named:
        if sources and idea.sha256 not in [source.sha256 for source in sources]:
            raise UserError(
                f"{idea.path} is not the file that made {folder}",
                why=f"that had the SHA-256 {sources[0].sha256[:12]}..., this has {idea.sha256[:12]}...",
                fix=_advice(folder, sources),
                code=errors.CHECKPOINT,
            )
        load_idea(idea)
    found = [idea.sha256 for idea in named]
    if _is_readable(config, found):
        return found
    others = [source for source in sources if source.sha256 not in found]
    here = [file for source in others if (file := remembered(source.sha256)) is not None]
    missing = [source for source in others if source.sha256 not in [file.sha256 for file in here]]
    if missing:
        raise UserError(
            f"the model in {folder} has classes of {', '.join(Path(source.path).name for source in missing)}",
            why="importing a file runs it, so one that was not run here, or has changed since, is not imported unasked",
            fix=_advice(folder, missing),
            code=errors.CHECKPOINT,
        )
    for file in here:
        load_idea(file)
    return found + [file.sha256 for file in here]


def _advice(folder: Path, sources: Sequence[Source]) -> str:
    """How to go on without files that a folder names."""
    copies = [folder / source.file for source in sources]
    if not all(os.path.isfile(copy) for copy in copies):
        return f"ask for {', '.join(source.file for source in sources)} where the folder comes from"
    them = "it" if len(copies) == 1 else "them"
    return (
        f"look at {' and '.join(map(str, copies))}, and if you trust {them}, set idea to {' '.join(map(str, copies))}"
    )


def _is_readable(config: dict[str, Any], ideas: Sequence[str]) -> bool:
    """Whether these ideas, beside the package, have all classes that a config.json names."""
    with classes_of(ideas):
        try:
            load(ModelConfig, {name: value for name, value in config.items() if name != "model_type"})
        except UserError:
            return False
    return True


def ideas_of(folder: Path) -> list[Source]:
    """The users' own files that made a run, as its folder tells. They are names and hashes; nothing is imported."""
    file = "run.json" if (folder / "run.json").exists() else "config.json"  # the latter of an exported model
    with contextlib.suppress(UserError):
        listed = read_json_object(folder / file, nan_as_none=True).get("ideas")
        listed = listed if isinstance(listed, list) else []
        found = [
            [str(item.get(name)) for name in ("file", "path", "sha256")] for item in listed if isinstance(item, dict)
        ]
        return [Source(Path(file).name, path, sha256) for file, path, sha256 in found]
    return []
