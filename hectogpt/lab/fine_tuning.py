"""Runs that start from the weights of another model, with the files of the user's own that this model needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from hectogpt import errors
from hectogpt.data import find_tokenizer
from hectogpt.errors import UserError
from hectogpt.idea_file import imported, remember
from hectogpt.lab import ideas
from hectogpt.model import ModelConfig
from hectogpt.model.weights import saved_tensors
from hectogpt.serialization import IDEA_MODULE, classes_in
from hectogpt.training.first_weights import FirstWeights, hash_state, open_source
from hectogpt.training.run import Run


def start_from(
    run: Run, source: str, idea: Sequence[Path | str] = (), note: Callable[[str], None] = lambda text: None
) -> Run:
    """The run with the model of `source`, starting from its weights: a run's folder, a folder in Hugging Face's layout,
    or a name on the hub. Rows of the text are cut to the model's context.

    idea: as for `open_model`. Raises UserError as `open_model` does, and (DATA) for another tokenizer than that of the
    run's text.
    """
    folder = Path(source).expanduser()
    source = str(folder.resolve()) if folder.is_dir() else source
    model, tokenizer = open_source(source, idea, note)
    if tokenizer.sha256 != find_tokenizer(run.corpus).sha256:
        raise UserError(
            f"{source} has another tokenizer than the text",
            why=f"the ids of {run.corpus} would be other words to it",
            fix="a text in the model's tokens, or a model with those of the text",
            code=errors.DATA,
        )
    first = FirstWeights(source, hash_state(saved_tensors(model)))
    data = replace(run.data, seq_len=min(run.data.seq_len, model.config.context_length))
    return replace(run, model=model.config, data=data, first_weights=first, ideas=_ideas_of(model.config, run))


def _ideas_of(config: ModelConfig, run: Run) -> tuple[str, ...]:
    """The run's ideas and those whose classes the model has, which are from now on among the run's files."""
    modules = {kind.__module__ for kind in classes_in(config)}
    files = [file for module in sorted(modules) if module.startswith(IDEA_MODULE) and (file := imported(module))]
    for file in files:
        remember(file)  # the user has run it; the run's own process opens the weights again
    ideas.load_sources({"path": str(file.path), "source": file.source} for file in files)
    return tuple(dict.fromkeys((*run.ideas, *(file.sha256 for file in files))))
