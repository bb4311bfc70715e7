"""`hectogpt completion`: what the scripts offer is what the commands accept; each shell runs its script."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from command import HECTOGPT, environment, hectogpt

from hectogpt.cli import COMMANDS
from hectogpt.cli.completion import Line, read_lines


@pytest.fixture(scope="module")
def lines() -> dict[str, Line]:
    return read_lines()


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The three scripts, made by the command itself."""
    folder = tmp_path_factory.mktemp("scripts")
    found = {}
    for shell in ("bash", "zsh", "fish"):
        done = hectogpt("completion", shell, cwd=folder)
        assert (done.returncode, done.stderr) == (0, "")
        found[shell] = folder / f"hectogpt.{shell}"
        found[shell].write_text(done.stdout)
    return found


def need(shell: str) -> str:
    found = shutil.which(shell)
    if found is None:
        pytest.skip(f"no {shell}; Debian: apt-get install {shell}")
    return found


@pytest.mark.parametrize("name", [*(c for c in COMMANDS if c != "train"), "explore numbers", "explore export"])
def test_options_are_those_of_the_help(name: str, lines: dict[str, Line], tmp_path: Path) -> None:
    whole = "--help-all" if name == "grade" else "--help"  # whose --help is written by hand
    help_text = hectogpt(*name.split(), whole, cwd=tmp_path, COLUMNS="300").stdout
    rows = re.findall(r"│ (?:-h, )?(--[\w.-]+(?:, --[\w.-]+)*) ", help_text)
    assert sorted(option for row in rows for option in row.split(", ")) == sorted(lines[name].options)


@pytest.mark.parametrize("recipe", ["top", "baseline"])
def test_options_of_train_are_those_of_all_recipes(recipe: str, lines: dict[str, Line], tmp_path: Path) -> None:
    help_text = hectogpt("train", recipe, "--help-all", cwd=tmp_path, COLUMNS="400").stdout
    rows = re.findall(r"│ (--[\w.-]+(?:, --[\w.-]+)*) ", help_text)
    listed = {option for row in rows for option in row.split(", ")}
    assert {"--model.d-model", "--steps", "--out", "--model.no-biases"} <= listed
    assert listed <= set(lines["train"].options)


def test_every_command_is_offered_with_words_that_a_shell_leaves_alone(lines: dict[str, Line]) -> None:
    assert set(COMMANDS) <= set(lines)
    for line in lines.values():
        words = [*line.words, *line.options, *(word for values in line.values.values() for word in values)]
        assert all(re.fullmatch(r"[\w.-]+", word) for word in words)
        assert set(line.values) <= {*line.options, "--corpus", "--without"}


CASES = [
    (["tr"], "train"),
    (["train", "soap_ra"], "soap_rare_tokens"),
    (["train", "top", "--model.n-l"], "--model.n-layers"),
    (["train", "--head-dtype", "bf16"], ""),
    (["train", "--head-dtype", "bfl"], "bfloat16"),
    (["data", "ver"], "verify"),
    (["list", "ru"], "runs"),
    (["completion", "z"], "zsh"),
    (["explore", "exp"], "export"),
    (["explore", "export", "--al"], "--alpha"),
    (["explore", "--al"], ""),
    (["generate", "runs/top", "--prec"], "--precision"),
    (["generate", "--precision", "float"], "float32"),
    (["compare", "--without", "smear_"], "smear_3"),
]


@pytest.mark.parametrize(("words", "expected"), CASES)
def test_bash_completes(words: list[str], expected: str, scripts: dict[str, Path], tmp_path: Path) -> None:
    program = f"""
        source '{scripts["bash"]}'
        complete -p hectogpt | grep -q -- '-F _hectogpt hectogpt' || exit 3
        COMP_WORDS=(hectogpt {" ".join(words)}) COMP_CWORD={len(words)}
        _hectogpt
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run([need("bash"), "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == expected.split()


def test_bash_takes_the_script_from_the_command(tmp_path: Path) -> None:
    """As in the user's own start-up file."""
    program = 'source <("$@" completion bash); complete -p hectogpt'
    command = [need("bash"), "-c", program, "bash", *HECTOGPT]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment(tmp_path))
    assert done.stdout == "complete -o default -F _hectogpt hectogpt\n", done.stderr


@pytest.mark.parametrize(("words", "expected"), CASES)
def test_zsh_completes(words: list[str], expected: str, scripts: dict[str, Path], tmp_path: Path) -> None:
    """zsh's own functions print what they are given; which of it begins with the word, zsh decides."""
    program = f"""
        compdef() {{ : }}
        _files() {{ : }}
        _describe() {{ local each; for each in ${{(P)2}}; print -r -- ${{each%%:*}} }}
        compadd() {{ print -rl -- ${{(P)2}} }}
        source '{scripts["zsh"]}'
        words=(hectogpt {" ".join(words)}) CURRENT={len(words) + 1}
        _hectogpt
    """
    done = subprocess.run([need("zsh"), "-f", "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert [word for word in done.stdout.split() if word.startswith(words[-1])] == expected.split()


def test_zsh_finds_the_script_in_fpath(scripts: dict[str, Path], tmp_path: Path) -> None:
    shutil.copy(scripts["zsh"], tmp_path / "_hectogpt")
    program = f"fpath=('{tmp_path}' $fpath); autoload -Uz compinit; compinit -u -D; print -r -- $_comps[hectogpt]"
    done = subprocess.run([need("zsh"), "-f", "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "_hectogpt\n", done.stderr


@pytest.mark.parametrize(("words", "expected"), CASES)
def test_fish_completes(words: list[str], expected: str, scripts: dict[str, Path], tmp_path: Path) -> None:
    program = f"source '{scripts['fish']}'; complete -C 'hectogpt {' '.join(words)}'"
    done = subprocess.run([need("fish"), "-N", "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    offered = [line.partition("\t")[0] for line in done.stdout.splitlines()]
    assert [word for word in offered if word.startswith(words[-1])] == expected.split()
