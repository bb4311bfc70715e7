"""`hectogpt bisect A B`: find where two runs, or two models, begin to differ."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path

import torch

from hectogpt import errors
from hectogpt.assignment import kit
from hectogpt.cli.check import read_own_run
from hectogpt.cli.console import remarks, show
from hectogpt.cli.options import BisectOptions
from hectogpt.data import open_corpus
from hectogpt.errors import UserError
from hectogpt.grade.laws import Size
from hectogpt.grade.outputs import Named, drawn_weights, outputs, outputs_of_file
from hectogpt.grade.submission import SOLUTION
from hectogpt.interop.hf_model import gpt2_differences
from hectogpt.interop.open import open_model
from hectogpt.lab.bisect import Open, Parting, bisect_models, bisect_runs, first_difference
from hectogpt.model.transformer import Transformer
from hectogpt.run_records import CHECKPOINTS, RUN
from hectogpt.training.checkpoint import Checkpoint, Checkpoints
from hectogpt.training.events import events
from hectogpt.training.run_folder import read_steps

TOKENS = (2, 64)  # the shape of the models' input; shorter if a context is


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
    folders = (Path(options.a), Path(options.b))
    recorded = [[(s.loss, s.grad_norm) for s in read_steps(folder)] for folder in folders]
    pairs = zip(*recorded, strict=False)
    parted = next((step for step, (one, two) in enumerate(pairs, 1) if one != two), None)
    a, b = (opener(folder, options) for folder in folders)
    found = bisect_runs(a, b, shared_checkpoint(folders, parted))
    if not found.equal:
        return found, runs_text(found, parted)
    done = f"computed again, {options.a} and {options.b} are equal to the last bit"
    lines = [f"{done} for {found.step} steps"]
    if parted is not None:
        lines.append(
            f"but their records part at step {parted}: `hectogpt check RUN --replay` says whether "
            "this machine gives a run's own bits"
        )
        return Parting(False, parted), lines
    return found, lines


def opener(folder: Path, options: BisectOptions) -> Open:
    """Return a function that opens streams of a run, at its first step or at a checkpoint."""
    run = read_own_run(folder, options)
    corpus = open_corpus(run.corpus)
    return lambda at: events(run, corpus, at)


def shared_checkpoint(folders: tuple[Path, Path], parted: int | None) -> Checkpoint | None:
    """The latest checkpoint that both runs share, before the step at which their records differ.

    Args:
        folders: the two run folders.
        parted: the first step whose records differ; None if all are equal.
    """
    a, b = (Checkpoints(folder / CHECKPOINTS) for folder in folders)
    for step in sorted(set(a.steps()) & set(b.steps()), reverse=True):
        if (parted is None or step < parted) and not (a.problem(step) or b.problem(step)):
            one = a.load(step)
            two = b.load(step)
            names = one.tensors.keys() - {"history"}
            if names == two.tensors.keys() - {"history"} and one.facts["run"] == two.facts["run"]:
                pair = ({name: c.tensors[name] for name in sorted(names)} for c in (one, two))
                if first_difference(*pair) is None:
                    return one
    return None


def runs_text(found: Parting, parted: int | None) -> list[str]:
    """A description of where two runs begin to differ, as lines."""
    if found.step == 0 or found.stage is None:
        return [f"they begin with other weights: {found.tensor}, row {found.row}"]
    lines = [f"first difference after step {found.step}: {found.tensor}, row {found.row}"]
    if found.batch_row is not None:
        lines.append(f"  row {found.batch_row} of the step's batch holds other tokens")
    lines += [f"  first {stage} that differs: {module}" for stage, module in found.first.items()]
    if parted is not None and parted != found.step:
        lines.append(f"  the recorded losses part at step {parted}")
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
        how = "in shape, or in numbers that are not finite"
    return found, [f"first module whose output differs: {found.module}, {how}"]


def solution_of(name: str) -> Path | None:
    """The file or folder of a solution of the assignment; None if it is the name of a model."""
    if name == "textbook":
        return kit.folder_of("reference") / SOLUTION
    path = Path(name)
    return path if path.suffix == ".py" or (path / SOLUTION).is_file() else None


def weights_for(models: list[Transformer | None], names: tuple[str, str]) -> tuple[Size, Named]:
    """The sizes and weights for a solution: those of the other model, or random ones."""
    model = next((model for model in models if model is not None), None)
    if model is None:
        return drawn_weights()
    config = model.config
    if odd := gpt2_differences(config):
        raise UserError(
            f"{names[models.index(model)]} is not a GPT-2, and the assignment's model is",
            why=f"it has another {', '.join(odd)}",
            fix="a run of the recipe baseline",
        )
    size = Size(
        config.d_model, config.n_heads, config.n_layers, config.context_length, config.vocab_size
    )
    return size, {name: tensor.clone() for name, tensor in model.state_dict().items()}
