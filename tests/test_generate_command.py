"""`hectogpt generate` as from a shell: text on stdout, remarks on stderr, and what it says about a damaged model."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command import HECTOGPT, assert_good_error, environment, hectogpt

from hectogpt import errors
from hectogpt.cli import main
from hectogpt.cli.generate import Clock
from hectogpt.data import load_tokenizer
from hectogpt.model import SIZES, Transformer
from hectogpt.model.weights import save_model

CONTEXT = 16


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder, as training leaves it."""
    folder = tmp_path_factory.mktemp("run")
    config = replace(SIZES["tiny"], d_model=8, n_heads=2, n_layers=1, context_length=CONTEXT)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_model(Transformer(config), folder)
    return folder


def test_text_goes_to_stdout_and_remarks_to_stderr(run: Path, tmp_path: Path) -> None:
    done = hectogpt("generate", run, "My fellow", "--max-new-tokens", "30", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("My fellow")
    note, speed = done.stderr.splitlines()
    assert note.startswith(f"note: past the context of {CONTEXT} tokens each token recomputes the last {CONTEXT}")
    assert re.fullmatch(
        r"2 prompt tokens and the first new one in [\d.]+ s; then [\d.]+ tokens per second \(float32\)", speed
    )
    quiet = hectogpt("generate", run, "My fellow", "--max-new-tokens", "30", "--quiet", cwd=tmp_path)
    assert (quiet.stdout, quiet.stderr) == (done.stdout, "")


def test_json_holds_the_texts_alone(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--temperature", "2", "--num-return-sequences", "3", "--max-new-tokens", "5", "--seed", "7"]
    main(["generate", str(run), "My fellow", *options, "--json", "--quiet"])
    told = capsys.readouterr()
    result = json.loads(told.out)
    assert told.err == ""
    assert set(result) == {"model", "prompt", "precision", "seed", "seconds", "texts"}
    assert result["seconds"] > 0
    assert [len(text["ids"]) for text in result["texts"]] == [5, 5, 5]
    assert all(load_tokenizer().decode(text["ids"]) == text["text"] for text in result["texts"])
    main(["generate", str(run), "My fellow", *options])
    shown = capsys.readouterr()
    for number, text in enumerate(result["texts"], start=1):
        assert f"--- {number} of 3 ---\nMy fellow{text['text']}\n" in shown.out
    assert "past the context" not in shown.err  # 2 + 5 tokens fit


@pytest.mark.parametrize("prompt_tokens", [0, 1, 5, CONTEXT, CONTEXT + 9])
def test_the_clock_tells_of_the_context_when_it_is_passed(
    prompt_tokens: int, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(prompt_tokens, CONTEXT, quiet=False)
    told_at = []
    for length in range(1, 40):
        for _ in range(2):  # two texts
            clock.tick(length)
            if "past the context" in capsys.readouterr().err:
                told_at.append(length)
    # A token is computed from all those before it: the prompt (or the one start token) and the earlier new ones.
    first_long = next(n for n in range(2, 40) if min(max(prompt_tokens, 1), CONTEXT) + n - 1 > CONTEXT)
    assert told_at == [first_long]
    assert "then" in clock.summary("int8")


def damage_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def damage_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def remove_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def change_shape(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_layers": 2}))


def remove_all(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.mark.parametrize("damage", [damage_weights, damage_config, remove_weights, change_shape, remove_all])
def test_a_damaged_model_is_refused_with_a_way_out(
    run: Path, tmp_path: Path, damage, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(run, folder)
    damage(folder)
    with pytest.raises(SystemExit) as caught:
        main(["generate", str(folder), "x"])
    told = capsys.readouterr()
    assert caught.value.code == errors.CHECKPOINT
    assert told.out == ""
    assert "\nfix: " in told.err
    assert str(folder) in told.err


def test_a_long_prompt_is_cut_or_refused(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    words = "one two three four " * 10
    main(["generate", str(run), words, "--max-new-tokens", "1"])
    assert f"note: the prompt's first {41 - CONTEXT} tokens lie outside" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main(["generate", str(run), words, "--strict"])
    assert caught.value.code == errors.USAGE
    assert "the prompt has 41 tokens" in capsys.readouterr().err


def test_a_reader_that_leaves_is_no_error(run: Path, tmp_path: Path) -> None:
    command = [*HECTOGPT, "generate", str(run), "x", "--max-new-tokens", "2000"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=tmp_path, env=environment(tmp_path), text=True, **streams) as child:
        child.stdout.read(5)
        child.stdout.close()
        assert (child.stderr.read().count("Traceback"), child.wait()) == (0, 0)


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    done = hectogpt("generate", "no where", "x", cwd=tmp_path)
    assert_good_error(done, errors.USAGE, "no where", "fix: ")
