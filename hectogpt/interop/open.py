"""Open a model: a run's folder, a folder in Hugging Face's layout, or a name on the hub."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from hectogpt.data import Tokenizer
from hectogpt.data.sources import HUB_NAME, TIMEOUT, check_hub_answers
from hectogpt.display import Note
from hectogpt.errors import CheckpointError, SetTo, Text, UserError, first_line
from hectogpt.idea_file import IdeaFile, load_idea, read_idea, remembered
from hectogpt.interop.hf_model import load_exported, load_gpt2, read_tokenizer
from hectogpt.model.config import ModelConfig
from hectogpt.model.transformer import Transformer
from hectogpt.model.weights import (
    MODEL_TYPE,
    WEIGHTS,
    check_header,
    load_model,
    model_of,
    no_model,
    read_config,
)
from hectogpt.run_records import (
    CHECKPOINTS,
    MOST_STATE_TENSORS,
    RUN,
    RUNNING,
    STATE,
    STATE_MODEL,
    UNFINISHED,
    SavedCheckpoints,
    nearest_run,
    read_object,
    read_record,
    read_summary,
    run_of,
)
from hectogpt.serialization import classes_of, load

# Files downloaded from the hub. The README names the owners of the weights; an export keeps it.
FILES = ["config.json", WEIGHTS, "vocab.json", "merges.txt", "tokenizer.json", "README.md"]


def open_model(
    name_or_folder: str | Path,
    *,
    step: int | None = None,
    download: bool = False,
    idea: Path | str | Sequence[Path | str] = (),
    note: Note = warnings.warn,
) -> tuple[Transformer, Tokenizer]:
    """Open a model, on the CPU and in evaluation mode, and its tokenizer.

    Args:
        name_or_folder: a folder; with `download`, also a name on the hub, such as "gpt2" or
            "openai-community/gpt2".
        step: the step of the run's checkpoint to load. None loads the weights at the run's end
            or, if the run is not finished, those of its newest checkpoint.
        download: also look for the model on the hub.
        idea: one or more files of the user that define classes of the model. Importing them runs
            them. A file that is not named is imported only if the user has run it here before and
            it has neither moved nor changed.
        note: called with a sentence if the weights come from a checkpoint that `step` did not
            name, had to be converted, or belong to a finished run whose hashes are lost. By
            default these sentences are Python warnings.

    Raises UserError: CHECKPOINT for a folder that is missing, damaged or holds neither our model
    nor a GPT-2, and for a missing checkpoint; DATA for an unusable tokenizer; USAGE for a `step`
    of a folder that is not a run's, and for an unreadable file in `idea`.
    """
    folder = find_folder(name_or_folder, download)
    checkpoint = find_checkpoint(folder, step, note)
    named = [read_idea(path) for path in ([idea] if isinstance(idea, (Path, str)) else idea)]
    fields = read_fields(folder, checkpoint)
    ideas = [] if fields is None else import_ideas(folder, named, fields)
    with classes_of(ideas):
        if fields is None:
            model = load_gpt2(folder, note)
        elif checkpoint is not None:
            weights = _checkpoint_weights(folder, checkpoint)
            model = model_of(load(ModelConfig, fields), weights, folder / RUN)
        elif "model_type" in fields:
            model = load_model(folder)
        else:
            model = load_exported(folder, fields, note)
    return model, read_tokenizer(folder, model.config.vocab_size)


def read_fields(folder: Path, checkpoint: int | None) -> dict[str, Any] | None:
    """The fields of a folder's model, or None if another program wrote the folder.

    `checkpoint` is the result of `find_checkpoint`.

    Raises UserError (CHECKPOINT).
    """
    if checkpoint is None:
        config = read_config(folder)
        if config.get("model_type") != MODEL_TYPE:
            return None
        # An export has its settings under "model".
        return config["model"] if isinstance(config.get("model"), dict) else config
    fields = run_of(folder, read_object(folder / RUN)).get("model")
    if not isinstance(fields, dict):
        raise CheckpointError(
            f"no model in {folder / RUN}",
            why="the file is not the record of a run",
        )
    return fields


def find_checkpoint(
    folder: Path, step: int | None = None, note: Note = warnings.warn
) -> int | None:
    """The step of the checkpoint that holds the weights to load, as `open_model` chooses them.

    None means that the weights are in the folder itself. Raises UserError (CHECKPOINT).
    """
    if not (folder / RUN).is_file():
        if step is not None:
            raise UserError(
                f"step {step} of {folder}", why="only the folder of a run has checkpoints"
            )
        return None
    saved = SavedCheckpoints(folder / CHECKPOINTS)
    steps = saved.steps()
    has_weights = os.path.lexists(folder / "config.json")
    if step in steps:
        return step
    if step is not None and not (has_weights and read_summary(folder).get("steps") == step):
        raise CheckpointError(
            f"{folder} has no checkpoint of step {step}",
            why=f"it has checkpoints of steps {', '.join(map(str, steps))}"
            if steps
            else "it has none (see save_every)",
        )
    ended = has_weights and not _is_under_way(folder, note)
    if ended or step is not None:
        return None
    for newest in reversed(steps):
        if problem := saved.problem(newest):
            note(f"a checkpoint is damaged: {problem}")
            continue
        note(
            f"the run in {folder} is not finished: these are the weights of its checkpoint of "
            f"step {newest}"
        )
        return newest
    if has_weights:
        return None
    raise CheckpointError(
        f"the run in {folder} has no model yet",
        why="it is not finished and has no checkpoint",
        fix="train the run to its end",
    )


def _is_under_way(folder: Path, note: Note) -> bool:
    with contextlib.suppress(UserError):
        # If run.json is damaged, the weights may be intact: they have their own hashes.
        record = read_record(folder)
        if record.hashes_lost:
            note(f"{folder}: {record.hashes_lost}; `hectogpt check {folder}` says what to do")
        return record.state in (RUNNING, UNFINISHED)
    return False


def _checkpoint_weights(folder: Path, step: int) -> dict[str, Tensor]:
    """The weights in a checkpoint, after checking its hashes; the optimizer's state is not loaded.

    Raises UserError (CHECKPOINT).
    """
    saved = SavedCheckpoints(folder / CHECKPOINTS)
    if problem := saved.problem(step):
        raise CheckpointError(f"the checkpoint of step {step} is damaged", why=problem)
    path = saved.path(step) / STATE
    names = [
        name for name in check_header(path, MOST_STATE_TENSORS) if name.startswith(STATE_MODEL)
    ]
    with safe_open(path, framework="pt") as file:
        return {name.removeprefix(STATE_MODEL): file.get_tensor(name) for name in names}


def find_folder(name_or_folder: str | Path, download: bool) -> Path:
    """Find a model's folder. With `download`, the name may also be one on the hub.

    A model in this machine's cache is not downloaded again. Raises UserError as `open_model` does,
    within seconds if the hub does not answer.
    """
    name = str(name_or_folder)
    folder = Path(os.path.expanduser(name))
    if os.path.isdir(folder):  # False, without an error, also for an impossible path
        return folder
    near = nearest_run(name)
    above = name.partition("/")[0]
    is_file = os.path.isfile(folder)
    if not download or is_file or above in ("runs", ".", "..", "") or os.path.isdir(above):
        raise no_model(
            name[:200], "it is a file" if is_file else "there is no such folder"
        ).amended(fix=near)
    try:
        if not HUB_NAME.match(name):
            raise ValueError("it cannot be a name on the hub")
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        with contextlib.suppress(LocalEntryNotFoundError):
            folder = Path(snapshot_download(name, allow_patterns=FILES, local_files_only=True))
            if (folder / WEIGHTS).exists():
                return folder
        check_hub_answers("models", name, reached=True)
        return Path(snapshot_download(name, allow_patterns=FILES, etag_timeout=TIMEOUT))
    except (ImportError, OSError, ValueError) as error:
        fix = f"copy {', '.join(FILES[:4])} into a folder and name that folder"
        fix = near if near.startswith("did") else fix
        if isinstance(error, ImportError):
            fix = f"python -m pip install 'hectogpt[hf]', or {fix}"
        raise CheckpointError(
            f"{name[:200]!r} is neither a folder here nor a model found on the hub",
            why=first_line(error)[:200] or type(error).__name__,
            fix=fix,
        ) from None


# --- runs with a user's own files


@dataclass(frozen=True)
class Source:
    """An idea file that defines a run, as the run's folder records it.

    Attributes:
        file: the name of its copy in the folder.
        path: where it was when the run was trained.
        sha256: the hash of its source.
    """

    file: str
    path: str
    sha256: str


def import_ideas(
    folder: Path, named: Sequence[IdeaFile], model: dict[str, Any] | None = None
) -> list[str]:
    """Import the idea files that define a run, if that is allowed.

    Args:
        folder: the folder of the run.
        named: files that the user has named, which may be imported.
        model: the fields of the run's model, if only its classes are needed.

    Returns the hashes of the files. Raises UserError (CHECKPOINT) for a file that may be imported
    only if it is named, and for a named file that does not belong to the run.
    """
    sources = ideas_of(folder)
    own = [idea.sha256 for idea in named]
    made = [source.sha256 for source in sources]
    foreign = [str(idea.path) for idea in named if sources and idea.sha256 not in made]
    for idea in () if foreign else named:
        load_idea(idea)
    if not foreign and model is not None and is_readable(model, own):
        return own
    here = {
        sha256: file
        for sha256 in made
        if sha256 not in own and (file := remembered(sha256)) is not None
    }
    missing = [source for source in sources if source.sha256 not in (*own, *here)]
    if foreign or missing:
        why = "importing a file runs it, so a new or changed one is only imported if you name it"
        raise CheckpointError(
            f"the {'model' if model else 'run'} in {folder} uses classes from "
            f"{', '.join(Path(source.path).name for source in sources)}",
            why=f"{foreign[0]} is not the file that made it" if foreign else why,
            fix=_advice(folder, sources if foreign else missing),
        )
    for file in here.values():
        load_idea(file)
    return [*own, *here]


def _advice(folder: Path, sources: Sequence[Source]) -> Text:
    """How to get or name the missing idea files."""
    copies = [str(folder / source.file) for source in sources]
    if not all(map(os.path.isfile, copies)):
        return f"ask the author of the folder for {', '.join(source.file for source in sources)}"
    text = f"read {' and '.join(copies)}, and if you trust it, "
    return text, SetTo("idea", " ".join(copies))


def is_readable(fields: dict[str, Any], ideas: Sequence[str] = ()) -> bool:
    """True if all classes in a model's fields are known, given idea files with these hashes."""
    with classes_of(ideas):
        try:
            load(
                ModelConfig,
                {name: value for name, value in fields.items() if name != "model_type"},
            )
        except UserError:
            return False
    return True


def ideas_of(folder: Path) -> list[Source]:
    """The idea files of a run, as the run's folder lists them. Nothing is imported."""
    with contextlib.suppress(UserError):
        sources: list[Source] = load(list[Source], read_object(folder / RUN).get("ideas"))
        return [replace(source, file=Path(source.file).name) for source in sources]
    return []
