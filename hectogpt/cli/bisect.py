"""`hectogpt bisect A B`: find where two runs, or two models, begin to differ."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path

import torch

from hectogpt import errors
from hectogpt.assignment import kit
from hectogpt.cli.console import remarks, show
from hectogpt.cli.options import BisectOptions
from hectogpt.data import open_corpus
from hectogpt.errors import UserError
from hectogpt.grade.laws import Size
from hectogpt.grade.module_outputs import Named, drawn_weights, outputs, outputs_of_file
from hectogpt.grade.submission import SOLUTION
from hectogpt.interop.hf_model import gpt2_differences
from hectogpt.interop.open import open_model
from hectogpt.lab.bisect import Open, Parting, bisect_models, bisect_runs
from hectogpt.model.transformer import Transformer
from hectogpt.run_records import RUN
from hectogpt.training.checkpoint import Checkpoint
from hectogpt.training.events import Stream, events
from hectogpt.training.history import History, trunk_of

TOKENS = (2, 64)  # the shape of the models' input; cut to the shorter context


def main(options: BisectOptions) -> None:
    """Compare, print the result, and exit with 1 if they differ. Raises UserError."""
    are_runs = all((Path(name) / RUN).is_file() for name in (options.a, options.b))
    if are_runs and not options.models:
        found, lines = compare_runs(options)
    else:
        found, lines = compare_models(options)
    largest = {k: v if math.isfinite(v) else None for k, v in found.largest.items()}
    show(options.json, asdict(found) | {"largest": largest}, lines)
    if not found.equal:
        raise SystemExit(errors.BUG)


# --- runs


def compare_runs(options: BisectOptions) -> tuple[Parting, list[str]]:
    """Compare the records of two runs, then train both again side by side."""
    histories = [History(Path(name), options.idea, remarks()) for name in (options.a, options.b)]
    recorded = [[(s.loss, s.grad_norm) for s in history.steps] for history in histories]
    pairs = zip(*recorded, strict=False)
    parted = next((step for step, (one, two) in enumerate(pairs, 1) if one != two), None)
    if parted is not None:
        histories = [before(history, parted) for history in histories]
    first = shared_step(histories, parted or len(recorded[0]) + 1)
    a, b = (opener(history, first) for history in histories)
    found = bisect_runs(a, b)
    if not found.equal:
        return found, runs_text(found, parted)
    done = f"when trained again, {options.a} and {options.b} are equal to the last bit"
    lines = [f"{done} for {found.step} steps"]
    if parted is not None:
        lines.append(
            f"but their records differ from step {parted} on: `hectogpt check RUN --replay` says "
            "whether this machine reproduces a run's bits"
        )
        return Parting(False, parted), lines
    return found, lines


def before(history: History, step: int) -> History:
    """Return the run that took this step: this one or, if it branched off later, its trunk."""
    while (branch := history.branch) and step <= branch.step:
        history = trunk_of(branch, history.ideas, history.note)
    return history


def opener(history: History, first: int) -> Open:
    """Return a function that opens a run's events, at a checkpoint or after the step `first`."""
    corpus = open_corpus(history.run.corpus)

    def opened(at: Checkpoint | None) -> Stream:
        if at is None and first:
            at = history.state_after(first)
        return events(history.run, corpus, at)

    return opened


def shared_step(histories: list[History], parted: int) -> int:
    """The latest step to start from: a checkpoint that both have, or the start of a branch.

    Args:
        histories: the two runs.
        parted: the first step whose records differ. A checkpoint counts if it is earlier, and
            both runs recorded the same hash of its weights.
    """
    a, b = histories
    kept = set(a.checkpoints.steps()) & set(b.checkpoints.steps())
    same = [s for s in kept if s < parted and a.hashes.get(s) == b.hashes.get(s) is not None]
    return max([0, *same, *(each.branch.step for each in histories if each.branch)])


def runs_text(found: Parting, parted: int | None) -> list[str]:
    """Describe, line by line, where two runs begin to differ."""
    if found.step == 0 or found.stage is None:
        return [f"their initial weights differ: {found.tensor}, row {found.row}"]
    lines = [f"first difference after step {found.step}: {found.tensor}, row {found.row}"]
    if found.batch_row is not None:
        lines.append(f"  row {found.batch_row} of the step's batch has different tokens")
    lines += [f"  first {stage} that differs: {module}" for stage, module in found.first.items()]
    if parted is not None and parted != found.step:
        lines.append(f"  the recorded losses differ from step {parted} on")
    return lines


# --- models


def compare_models(options: BisectOptions) -> tuple[Parting, list[str]]:
    """Run two models on the same tokens, and compare the outputs of their modules."""
    names = (options.a, options.b)
    files = [solution_of(name) for name in names]
    models = [
        None if file else open_model(name, download=True, idea=options.idea, note=remarks())[0]
        for name, file in zip(names, files, strict=True)
    ]
    size, state = weights_for(models, names) if any(files) else (None, {})
    sizes = [size] if size else [model.config for model in models if model]
    vocab = min(one.vocab_size for one in sizes)
    shape = (TOKENS[0], min(TOKENS[1], *(one.context_length for one in sizes)))
    ids = torch.randint(vocab, shape, generator=torch.Generator().manual_seed(0))
    answers = []
    for model, file in zip(models, files, strict=True):
        if model is not None:
            answers.append(outputs(model, ids))
        elif file is not None and size is not None:
            answers.append(outputs_of_file(file, size, state, ids))
    found = bisect_models(answers[0], answers[1], exact=not any(files))
    apart = ", ".join(f"{value:.3g} in {dtype}" for dtype, value in found.largest.items())
    if found.equal and not any(found.largest.values()):
        return found, [f"{options.a} and {options.b} are equal to the last bit"]
    if found.equal:
        return found, [f"{options.a} and {options.b} are equal up to rounding: at most {apart}"]
    how = f"by up to {apart}"
    if math.inf in found.largest.values():
        how = "in shape or in non-finite values"
    return found, [f"first module whose output differs: {found.module}, {how}"]


def solution_of(name: str) -> Path | None:
    """The file or folder of a solution of the assignment. Returns None for a model's name."""
    if name == "textbook":
        return kit.folder_of("reference") / SOLUTION
    path = Path(name)
    return path if path.suffix == ".py" or (path / SOLUTION).is_file() else None


def weights_for(models: list[Transformer | None], names: tuple[str, str]) -> tuple[Size, Named]:
    """The sizes and weights for a solution: a model's, or random ones if both are solutions."""
    model = next((model for model in models if model is not None), None)
    if model is None:
        return drawn_weights()
    config = model.config
    if odd := gpt2_differences(config):
        raise UserError(
            f"{names[models.index(model)]} is not a GPT-2, but the assignment's model is",
            why=f"it differs in {', '.join(odd)}",
            fix="compare it with a run of the recipe baseline",
        )
    size = Size(
        config.d_model, config.n_heads, config.n_layers, config.context_length, config.vocab_size
    )
    return size, {name: tensor.clone() for name, tensor in model.state_dict().items()}
