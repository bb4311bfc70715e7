"""`hectogpt export RUN DIR`: writes a model for transformers or llama.cpp."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from hectogpt.cli.console import note, one_line
from hectogpt.display import columns, printable

EXAMPLES = """\
  hectogpt export runs/minute exported
  hectogpt export runs/baseline exported --to gguf
  hectogpt export runs/mine exported --overwrite"""
MOST_FIELDS = 20  # differing fields that are listed


@dataclass(frozen=True)
class ExportArguments:
    """Write a model as a folder that transformers opens offline, or as a GGUF file for llama.cpp.

    A model that is GPT-2 becomes a GPT2LMHeadModel. Any other comes with its code in one file, which transformers runs
    with trust_remote_code=True. docs/interop.md tells more, docs/serving.md how to serve either.
    """

    model: Annotated[str, tyro.conf.Positional]
    """A run's folder, a folder in Hugging Face's layout, or a name on the hub."""
    folder: Annotated[Path, tyro.conf.Positional]
    """Where to write; made if it is missing."""
    to: Literal["hf", "gguf"] = "hf"
    """hf: for transformers. gguf: model.gguf for llama.cpp, of a GPT-2 only."""
    step: int | None = None
    """Of a run: the weights of its checkpoint of this step (default: those at its end; of a run that is not finished
    those of its newest checkpoint)."""
    overwrite: bool = False
    """Replace an earlier export in the folder."""
    json: bool = False
    """Print one JSON object."""
    quiet: bool = False
    """Print errors only."""


def main(argv: list[str]) -> None:
    """Run the command."""
    run(tyro.cli(ExportArguments, args=argv, prog="hectogpt export"))


def run(arguments: ExportArguments) -> None:
    """Export, and say what was done and why. Raises UserError."""
    from hectogpt.interop.export import check_target, export  # loads torch

    check_target(arguments.folder, arguments.overwrite)
    done = export(
        arguments.model,
        arguments.folder,
        arguments.to,
        step=arguments.step,
        overwrite=arguments.overwrite,
        note=lambda text: note(f"note: {text}", arguments.quiet),
    )
    if arguments.json:
        fields = {field: list(pair) for field, pair in done.differences.items()}
        result = {"folder": str(done.folder), "kind": done.kind, "differences": fields, "files": list(done.files)}
        print(json.dumps(result, allow_nan=False))
    elif not arguments.quiet:
        print(printable("\n".join(lines_of(done.kind, str(done.folder), done.differences))))


def lines_of(kind: str, folder: str, differences: dict[str, tuple[Any, Any]]) -> list[str]:
    """What was done and why, and how the result is used."""
    if kind == "gguf":
        return [f"{folder}/model.gguf: a GPT-2 for llama.cpp", f"  llama-cli -m {folder}/model.gguf -p PROMPT"]
    if not differences:
        return [
            f"{folder}: GPT2LMHeadModel, since the model is GPT-2 in every field",
            f'  AutoModelForCausalLM.from_pretrained("{folder}")',
        ]
    from hectogpt.cli.show import value_text

    rows = [[one_line(field), *(shortened(value_text(value)) for value in pair)] for field, pair in differences.items()]
    more = [f"  and {len(rows) - MOST_FIELDS} more"] if len(rows) > MOST_FIELDS else []
    return [
        f"{folder}: HectoGPTForCausalLM with its code in modeling_hectogpt.py, since the model is no GPT-2:",
        *columns(["field", "GPT-2", "this model"], rows[:MOST_FIELDS], left=3),
        *more,
        f'  AutoModelForCausalLM.from_pretrained("{folder}", trust_remote_code=True)',
    ]


def shortened(text: str) -> str:
    """A value that leaves room for the others."""
    return text if len(text) <= 70 else text[:67] + "..."
