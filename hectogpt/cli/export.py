"""`hectogpt export RUN DIR`: write a model for transformers or llama.cpp."""

from __future__ import annotations

from typing import Any

from hectogpt.cli.console import remarks, show
from hectogpt.cli.options import ExportOptions
from hectogpt.display import columns, value_text
from hectogpt.interop.export import export


def main(options: ExportOptions) -> None:
    """Export the model and print what was written. Raises UserError."""
    done = export(
        options.model,
        options.folder,
        options.to,
        step=options.step,
        overwrite=options.overwrite,
        note=remarks(options.quiet),
    )
    answer = {
        "folder": str(done.folder),
        "kind": done.kind,
        "differences": done.differences,
        "files": done.files,
    }
    show(
        options.json,
        answer,
        lines_of(done.kind, str(done.folder), done.differences),
        options.quiet,
    )


def lines_of(kind: str, folder: str, differences: dict[str, tuple[Any, Any]]) -> list[str]:
    """Lines on what was written and why, and how to use it."""
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
