"""Runs that start from the weights of another model: which model, and what it scores before the first step."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hectogpt import errors
from hectogpt.api.progress import Progress
from hectogpt.data import load_tokenizer
from hectogpt.errors import UserError
from hectogpt.idea_file import imported, remember
from hectogpt.interop.open import open_model
from hectogpt.json_files import open_regular
from hectogpt.lab import ideas
from hectogpt.model import ModelConfig, Transformer
from hectogpt.model.weights import model_of, saved_tensors
from hectogpt.serialization import IDEA_MODULE, classes_in
from hectogpt.training.evaluate import evaluate
from hectogpt.training.first_weights import FirstWeights, hash_state
from hectogpt.training.run import Run
from hectogpt.training.run_folder import METRICS, RunFolder
from hectogpt.training.session import Session

LONGEST_ROW = 10_000  # bytes of a line of metrics.jsonl


def start_from(
    run: Run, source: str, idea: Sequence[Path | str] = (), note: Callable[[str], None] = lambda text: None
) -> Run:
    """The run with the model of `source`, starting from its weights: a run's folder, a folder in Hugging Face's layout,
    or a name on the hub. Rows of the text are cut to the model's context.

    idea: as for `open_model`. Raises UserError as `open_model` does, and (DATA) for a tokenizer that is not GPT-2's,
    whose ids a corpus has.
    """
    folder = Path(source).expanduser()
    source = str(folder.resolve()) if folder.is_dir() else source
    model, tokenizer = open_model(source, download=True, idea=idea, note=note)
    if tokenizer.sha256 != load_tokenizer().sha256:
        raise UserError(
            f"{source} has a tokenizer of its own",
            why="a corpus is made of the ids of GPT-2's tokenizer",
            fix="a model with GPT-2's tokenizer",
            code=errors.DATA,
        )
    model = whole(model)
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


def read_state(source: str) -> dict[str, torch.Tensor]:
    """The tensors of a run's first weights. Raises UserError as `open_model` does."""
    return saved_tensors(whole(open_model(source, download=True)[0]))


def whole(model: Transformer) -> Transformer:
    """The same function with a row of the head for every token: another text may have tokens that the model has never
    read, which share a row in a compact vocabulary."""
    config, head = model.config, model.config.lm_head
    if not head.compact_vocab:
        return model
    state = saved_tensors(model)
    rows = state.pop("word_rows")
    shared = rows == len(state["lm_head.weight"]) - 1
    for name in ("lm_head.weight", *(("lm_head.bias",) if head.bias else ())):
        state[name] = state[name][rows]
    if head.embedding_map:  # of a whole head every row gets the map's part, of a compact one those in use
        added = state["embeddings.weight"][shared] @ state["joint.weight"].T
        state["lm_head.weight"][shared] -= head.embedding_map * added
    config = replace(config, lm_head=replace(head, compact_vocab=False))
    return model_of(config, state, Path("the first weights"))


def score_before(session: Session, folder: RunFolder, progress: Progress) -> dict[str, Any]:
    """What the run's summary says of its first weights: where they came from, their hash, and their held-out loss,
    which is measured before the first step and kept in metrics.jsonl. {} for a run that drew its weights."""
    first = session.run.first_weights
    if first is None:
        return {}
    facts: dict[str, Any] = {"first_weights": {"source": first.source, "sha256": first.sha256}}
    if session.step:
        return facts | _scored_before(folder.path / METRICS)
    corpus = session.corpus
    progress.line(f"first weights: {first.source}; scoring {len(corpus.dev):,} held-out tokens with them ...")
    found = evaluate(session.model, corpus.tokens["dev"], corpus.tokenizer.token_bytes)
    folder.add_score(0, found)
    progress.line(f"before training: held-out loss {found.loss:.4f} nats per token")
    return facts | {"dev_loss_before": found.loss, "dev_bpb_before": found.bits_per_byte}


def _scored_before(metrics: Path) -> dict[str, float]:
    """The score of step 0 in the first line of a metrics.jsonl, if it is there."""
    with suppress(OSError, ValueError), open_regular(metrics) as file:
        row = json.loads(file.readline(LONGEST_ROW))
        if isinstance(row, dict) and row.get("step") == 0:
            return {"dev_loss_before": float(row["val/loss"]), "dev_bpb_before": float(row["val/bpb"])}
    return {}
