"""`hectogpt export RUN DIR`: write the models after one or several steps for other programs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from hectogpt.cli.console import remarks, show
from hectogpt.cli.options import ExportOptions
from hectogpt.display import columns, value_text
from hectogpt.errors import Setting, UserError
from hectogpt.interop.export import export
from hectogpt.interop.open import find_folder
from hectogpt.run_records import RUN, SavedCheckpoints
from hectogpt.training.history import History


def main(options: ExportOptions) -> None:
    """Export the model, or one for each step of a series, and print it. Raises UserError."""
    note = remarks(options.quiet)
    place = find_folder(options.model, download=True)
    history = History(place, options.idea, note) if (place / RUN).is_file() else None
    steps = [options.step] if options.series is None else read_series(options)
    if history is not None and options.series is not None:
        history.check(max(step or 0 for step in steps))
    done = []
    for step in steps:
        folder = options.folder
        opened = None
        if options.series is not None and step is not None:
            folder = SavedCheckpoints(folder).path(step)
        if history is not None and step is not None and not history.keeps(step):
            opened = history.model_after(step)
        done.append(
            export(
                options.model,
                folder,
                options.to,
                step=step,
                overwrite=options.overwrite,
                note=note,
                opened=opened,
            )
        )
    answers = [asdict(one) | {"folder": str(one.folder)} for one in done]
    answer = answers[0] if options.series is None else {"series": answers}
    lines = lines_of(done[0].kind, str(done[0].folder), done[0].differences)
    lines += [f"{one.folder}: hash of the weights {one.weights_hash}" for one in done]
    show(options.json, answer, lines, options.quiet)


def read_series(options: ExportOptions) -> list[int | None]:
    """The steps of a series, in ascending order. Raises UserError."""
    words = str(options.series).split(",")
    if options.step is not None or not all(word.isdecimal() for word in words):
        raise UserError(
            Setting("series", options.series),
            why="it is a list of steps with commas, and replaces --step",
            fix="--series 0,10,20",
        )
    return [*sorted({int(word) for word in words})]


def lines_of(kind: str, folder: str, differences: dict[str, tuple[Any, Any]]) -> list[str]:
    """The lines that say what was written and why, and how to use it."""
    if kind == "gguf":
        return [
            f"{folder}/model.gguf: a GPT-2 for llama.cpp",
            f"  llama-cli -m {folder}/model.gguf -p PROMPT",
        ]
    if not differences:
        return [
            f"{folder}: GPT2LMHeadModel, since the model is GPT-2 in every field",
            f'  AutoModelForCausalLM.from_pretrained("{folder}")',
        ]
    rows = [[field, *map(value_text, pair)] for field, pair in differences.items()]
    return [
        f"{folder}: HectoGPTForCausalLM with its code in modeling_hectogpt.py, since the model "
        "is not a GPT-2:",
        *columns(["field", "GPT-2", "this model"], rows, left=3),
        f'  AutoModelForCausalLM.from_pretrained("{folder}", trust_remote_code=True)',
    ]
