"""`hectogpt generate` as from a shell: text on stdout, remarks on stderr."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from command import Here
from model_folders import write_run

from hectogpt.data import load_tokenizer
from hectogpt.model import ModelConfig

CONTEXT = 16


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder, as training leaves it."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    write_run(folder, ModelConfig(8, 2, 1, CONTEXT, 50257))
    return folder


def test_text_goes_to_stdout_and_remarks_to_stderr(run: Path, here: Here) -> None:
    done = here.ok("generate", run, "My fellow", "--max-new-tokens", "30")
    assert done.stdout.startswith("My fellow")
    note, speed = done.stderr.splitlines()
    assert note.startswith(f"note: past the context of {CONTEXT} tokens, each token sees only the last {CONTEXT}")
    assert re.fullmatch(r"30 tokens in [\d.]+ s, [\d.]+ a second, prompt included \(float32\)", speed)
    quiet = here("generate", run, "My fellow", "--max-new-tokens", "30", "--quiet")
    assert (quiet.stdout, quiet.stderr) == (done.stdout, "")
    assert "at once" not in here("generate", run, "My fellow", "--max-new-tokens", "0").stderr
    for form in ("bfloat16", "int8"):
        shown = here.ok("generate", run, "Hello", "--max-new-tokens", "3", "--precision", form, "--eos-token-id", "-1")
        assert (shown.stdout[:5], f"({form})" in shown.stderr) == ("Hello", True)


def test_json_holds_the_texts_alone(run: Path, here: Here) -> None:
    options = ["--temperature", "2", "--num-return-sequences", "3", "--max-new-tokens", "5", "--seed", "7"]
    found = here("generate", run, "My fellow", *options, "--json", "--quiet")
    result = json.loads(found.stdout)
    assert found.stderr == ""
    assert set(result) == {"model", "prompt", "precision", "seed", "seconds", "texts"}
    assert [(text["seed"], len(text["ids"])) for text in result["texts"]] == [(7, 5), (8, 5), (9, 5)]
    assert all(load_tokenizer().decode(text["ids"]) == text["text"] for text in result["texts"])
    shown = here("generate", run, "My fellow", *options)
    for number, text in enumerate(result["texts"], start=1):
        assert f"--- {number} of 3 ---\nMy fellow{text['text']}\n" in shown.stdout
    assert "past the context" not in shown.stderr  # 2 + 5 tokens fit
