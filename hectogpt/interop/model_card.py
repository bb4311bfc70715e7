"""Write the README.md of an exported model: its size, use, training and licences.

The facts come from the run's own files, which may be from somebody else: no value can break out of
its line or its table cell.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hectogpt import __version__
from hectogpt.display import NGRAMS, one_line, value_text
from hectogpt.errors import UserError
from hectogpt.files import read_json_object
from hectogpt.run_records import object_of, text_of

# Origin and licence of the texts that hectoGPT knows by name.
TEXTS = {
    "sotu": "State of the Union addresses, works of the United States Government, in the public "
    "domain in the US; "
    "transcriptions by The American Presidency Project, University of California, Santa Barbara "
    "(https://www.presidency.ucsb.edu; please cite it); package sotu, MIT License.",
    "tinystories": "TinyStories (arXiv 2305.07759), CDLA-Sharing-1.0.",
}
# Library -> the example.
USE = {
    "transformers": """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({place})
model = AutoModelForCausalLM.from_pretrained({place})
ids = tokenizer({prompt}, return_tensors="pt")
print(tokenizer.decode(model.generate(**ids, max_new_tokens=40)[0]))
```
""",
    "gguf": """\
```sh
llama-cli -m {place}/model.gguf -p PROMPT
```
""",
}
LOSSES = {
    "train_loss_last10": "mean of the last ten training losses",
    "dev_loss": "held-out loss",
    "test_loss": "test loss",
}


def read_facts(folder: Path, step: int | None = None) -> dict[str, dict[str, Any]]:
    """The facts in a run's folder: {"run": ..., "summary": ...}; both are empty for other folders.

    Args:
        folder: the folder.
        step: the checkpoint that is exported; None means the end of the run. The summary
            describes the end, so for a checkpoint only the summary's prompt is returned.
    """
    facts: dict[str, dict[str, Any]] = {"run": {}, "summary": {}}
    for name in facts:
        with contextlib.suppress(UserError):
            facts[name] = read_json_object(folder / f"{name}.json", nan_as_none=True)
    if step is not None:
        run = object_of(facts["run"].get("run"))
        facts = {
            "run": facts["run"] | {"run": run | {"steps": f"{step} of {run.get('steps')}"}},
            "summary": {"prompt": facts["summary"].get("prompt")},
        }
    return facts


def title_of(facts: Mapping[str, dict[str, Any]], name: str) -> str:
    """A title on one line: recipe and text of a run, otherwise the name of the folder or model."""
    run = object_of(facts["run"].get("run"))
    if "recipe" not in run:
        return one_line(name)
    changed = " (modified)" if facts["run"].get("modified") is True else ""
    return one_line(f"{run['recipe']}{changed} on {run.get('corpus', 'unknown text')}")[:200]


def write_card(
    facts: Mapping[str, dict[str, Any]],
    name: str,
    folder: str,
    parameters: int,
    differences: Mapping[str, Any],
    own_vocabulary: bool,
    library: str,
) -> str:
    """Write the text of the README.

    Args:
        facts: from `read_facts`.
        name: the model's name, if it is not a run.
        folder: the folder that the example loads.
        parameters: the number of parameters.
        differences: field -> (GPT-2's value, the model's); empty for a GPT-2.
        own_vocabulary: True if the tokenizer is not GPT-2's.
        library: transformers or gguf.
    """
    run = object_of(facts["run"].get("run"))
    summary = facts["summary"]
    place = repr("FOLDER" if "`" in folder else folder) + (
        ", trust_remote_code=True" if differences else ""
    )
    prompt = repr((text_of(summary.get("prompt")) or "Once upon a time")[:200])
    lines = [
        "---",
        f"library_name: {library}",
        "pipeline_tag: text-generation",
        "tags: [hectogpt]",
        "---",
        "",
        f"# {_line(title_of(facts, name))}",
        "",
        f"A decoder-only transformer with {parameters:,} parameters, exported by hectoGPT "
        f"{__version__}.",
        "",
        "## Use",
        "",
        USE[library].format(place=place, prompt=prompt),
    ]
    trained: dict[str, Any] = {
        key: run[key] for key in ("recipe", "corpus", "seed", "steps") if key in run
    }
    losses = [(name, summary.get(key)) for key, name in LOSSES.items()]
    losses += [
        (f"{name}, same text", object_of(summary.get("ngrams")).get(key))
        for key, name in NGRAMS.items()
    ]
    numbers = (
        (name, loss)
        for name, loss in losses
        if isinstance(loss, (int, float)) and math.isfinite(loss)
    )
    trained |= {name: f"{loss:.4f} nats per token" for name, loss in numbers}
    if trained:
        lines += ["## Training", "", "| | |", "|---|---|"]
        lines += [
            f"| {key} | {_line(value_text(value, longest=200))} |"
            for key, value in trained.items()
        ] + [""]
    if differences:
        lines += [
            "## Architecture",
            "",
            "The model is not a GPT-2, so it comes with its own code, modeling_hectogpt.py; read "
            "that first.",
            f"It differs in {', '.join(differences)}.",
            "",
        ]
    gpt2 = "GPT-2's vocabulary, Copyright (c) 2019 OpenAI, modified MIT License."
    own = "its own vocabulary, whose tokens are strings from the text that it was made from."
    lines += ["## Licences", "", f"* Tokenizer: {own if own_vocabulary else gpt2}"]
    if differences:
        lines += ["* modeling_hectogpt.py: the hectoGPT authors, MIT License."]
    if "corpus" in run:
        said = TEXTS.get(str(run["corpus"]), "ask its owners; hectoGPT does not know its licence.")
        lines += [f"* Training text {_line(run['corpus'])}: {said}"]
    if isinstance(first := run.get("first_weights"), dict):
        lines += [f"* Initial weights {_line(first.get('source'))}: ask their owners."]
    return "\n".join(
        [*lines, "* Weights: ask whoever trained them; no licence is stated here.", ""]
    )


def _line(value: Any) -> str:
    """Write a value on one line, with the special characters of Markdown and HTML escaped."""
    return "".join("\\" + c if c in "\\`*_[]<>|#" else c for c in one_line(str(value))[:200])
