"""The command line itself: dispatch, help, exit codes, how errors and bugs are printed."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from command import Here, assert_good_error, environment

from hectogpt import cli, errors, idea_file
from hectogpt.cli import COMMANDS, as_option, main
from hectogpt.cli.options import DataOptions
from hectogpt.errors import Setting, SetTo, Text, UserError


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (["trian"], 2, "did you mean 'train'?"),
        (["train", "basline"], 2, "did you mean 'baseline'?"),
        (["train", "baseline", "--model.n-heads", "4"], 2, "n_heads: one of 1, 3, 11, 33"),
        (["train", "baseline", "--model.d-model", "99000", "--model.n-heads", "1"], 8, "GiB"),
        (["train", "baseline", "--corpus", "a\x1b[31mb\x9b"], 3, "a\\x1b[31mb\\x9b"),
        (["train", "baseline", "--model.context-length", "64"], 2, "fix: --data.seq-len 64"),
        (["explore", "nosuch"], 4, "no model in nosuch"),
        (["compare", "baseline", "--sweep", "lr"], 2, "--sweep optim.lr=0.001,0.003"),
        (["judge"], 2, "judge takes an idea"),
        (["judge", "no.py:idea"], 2, "no.py does not exist"),
        (["data", "build", "sotu", "--out", "x"], 2, "--out needs --vocab"),
    ],
)
def test_errors_say_what_why_and_what_to_do(
    arguments: list[str], code: int, named: str, tmp_path: Path, here: Here
) -> None:
    done = here(*arguments)
    assert_good_error(done, code, named)
    with pytest.raises(UserError) as raised:
        main([*arguments, "--debug"])
    memory = r"[\d.,]+ GiB are free"  # another number a moment later
    assert re.sub(memory, "", str(raised.value)) + "\n" == re.sub(memory, "", done.stderr)
    assert not list(tmp_path.iterdir())


WRONG = """
    trian | train minut | train --stepz 3 | train --steps abc | train --steps 0 | train --steps | train --dtype half
    train --steps 300 adamw_128 | train minute baseline | train --json yes | train --resume
    train adamw_128 --optim.lr -1 | train --corpus nofile | train --model.n-heads 3 | train --resume runs/none
    train --init runs/none | train noidea.py | train noidea.py:idea | train minute:idea | train finetune
    train baseline --optim.muon-lr 0.1 | generate | generate runs/none | generate x --temperature hot | generate a b c
    data | data frob | export | export runs/none | export none x | export a b --to onnx | score | score a --split x
    compare | compare minute baselin | compare minute muon --seeds 0 | compare minute muon --engine dask
    compare minute muon --workers 0 | compare minute --sweep lr=1 | judge | judge nofile.py:idea | judge minute
    idea a.txt | assignment | assignment --check nofolder | explore nofolder | explore export | explore export attention
    explore export atention x.html | explore attention | data build nofile.txt | data build sotu --vocab x | show a
    show a b | watch none | watch --port abc | check | check none | grade | grade nofolder | grade x --hints 5
    completion fish | doctor x"""


@pytest.mark.parametrize("command", re.split(r"\s+\|\s+|\n\s+", WRONG.strip()))
def test_every_command_refuses_in_one_form(command: str, tmp_path: Path, here: Here) -> None:
    done = here(*command.split())
    lines = [line.partition(": ")[0] for line in done.stderr.splitlines() if line[:1] != " "]
    assert lines in (["error", "why"], ["error", "fix"], ["error", "why", "fix"], ["error", "why", "fix", "kept"])
    assert (done.stdout, done.returncode in (2, 3, 4)) == ("", True), done.stderr
    assert {path.name for path in tmp_path.iterdir()} <= {"cache"}


def test_an_error_shows_no_control_characters_and_no_forged_lines() -> None:
    """Names of files come from others."""
    error = UserError("cannot read a\x1b]0;pwn\x07\nerror: b\udcff.txt", why="\x9b31m", fix="\u202e", kept="é")
    assert str(error).splitlines() == [
        "error: cannot read a\\x1b]0;pwn\\x07",
        "  error: b\\udcff.txt",
        "why: \\x9b31m",
        "fix: \\u202e",
        "kept: é",
    ]


@pytest.mark.parametrize(
    ("fix", "said", "named"),
    [
        (SetTo("data.seq_len", 64), "set data.seq_len to 64", "--data.seq-len 64"),
        (SetTo("resume", False), "set resume to False", "--no-resume"),
        (SetTo("resume", "a"), "set resume to a", "hectogpt train --resume a"),
        (SetTo("model.lm_head.bias", False), "set model.lm_head.bias to False", "--model.lm-head.no-bias"),
        ((SetTo("out", "another"), ", or no"), "set out to another, or no", "--out another, or no"),
        (("a text (", SetTo("json", True), ")"), "a text (set json to True)", "a text (--json)"),
        ("set steps to 3, or steps = 4", "set steps to 3, or steps = 4", "set steps to 3, or steps = 4"),
    ],
)
def test_settings_in_a_fix_are_named_as_options(fix: Text, said: str, named: str) -> None:
    """What is no option of the command stays a field."""
    error = UserError(Setting("seeds", 0), fix=fix)
    assert (error.what, error.fix) == ("seeds = 0", said)
    error.spell(as_option)
    assert (error.what, error.fix) == ("--seeds 0", named)
    error = UserError("x", fix=(SetTo("vocab", 300), ", or ", SetTo("corpus", "x")))
    error.spell(lambda setting: as_option(setting, DataOptions))
    assert error.fix == "--vocab 300, or set corpus to x"


# --- help -------------------------------------------------------------------------------------------------------------


def test_help_fits_a_screen() -> None:
    lines = cli.usage().splitlines()
    assert len(lines) <= 28
    assert max(map(len, lines)) <= 80
    codes = {value for name, value in vars(errors).items() if name.isupper() and isinstance(value, int)}
    assert all(f" {code} " in cli.usage().replace("\n", " ") for code in codes)
    assert all(name in cli.usage() for name in COMMANDS)


def test_version_and_no_command(here: Here) -> None:
    assert here("--version").stdout.startswith("hectogpt ")
    assert here().returncode == errors.USAGE


def test_bash_and_zsh_complete(here: Here, tmp_path: Path) -> None:
    cases = {
        "hectogpt tr": "train",
        "hectogpt train --head-dtype bfl": "bfloat16",
        "hectogpt train --model.n-l": "--model.n-layers",
        "hectogpt generate runs/top --prec": "--precision",
    }
    (tmp_path / "hectogpt.bash").write_text(here("completion", "bash").stdout)
    lines = " ".join(map(repr, cases))
    program = (
        f"source hectogpt.bash\nfor line in {lines}; do COMP_WORDS=($line) COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))\n"
    )
    program += "  _tyro_hectogpt; echo ${COMPREPLY[*]}\ndone"
    done = subprocess.run(["bash", "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert (done.stderr, done.stdout.splitlines()) == ("", list(cases.values()))
    script = here("completion", "zsh").stdout
    assert script.startswith("#compdef hectogpt")
    assert all(name in script for name in COMMANDS if " " not in name)


def test_help_and_show_load_no_torch_and_help_has_examples(tmp_path: Path) -> None:
    program = "import sys, hectogpt.cli as c\nc.main(['show'])\nassert not {'torch', 'numpy'} & set(sys.modules)\n"
    program += "for name in c.COMMANDS:\n    print('====', name)\n"
    program += "    try: c.main([*name.split(), '--help'])\n    except SystemExit as stop: assert not stop.code\n"
    program += "assert not {'torch', 'matplotlib'} & set(sys.modules)"
    known = environment(tmp_path, COLUMNS="80")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, env=known)
    assert (done.returncode, done.stderr) == (0, "")
    texts = {text.partition("\n")[0]: text for text in done.stdout.split("==== ")[1:]}
    assert list(texts) == list(COMMANDS)
    for name, text in texts.items():
        assert f"usage: hectogpt {name}" in text
        assert f"\nExamples\n  hectogpt {name}" in text


# --- how a command ends -----------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def no_ideas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of other tests in this process: an error that comes while one is loaded is said to be its."""
    monkeypatch.setattr(idea_file, "_files", {})


def fail_with(error: BaseException | signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `hectogpt broken` raise this, or get this signal."""

    def run(argv: list[str]) -> None:
        if isinstance(error, signal.Signals):
            signal.raise_signal(error)
        else:
            raise error

    module = ModuleType("broken")
    module.main = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "hectogpt.cli.broken", module)
    monkeypatch.setitem(cli.COMMANDS, "broken", "raises")


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize(("name", "code", "word"), [("SIGTERM", 143, "terminated"), ("SIGHUP", 129, "hung up")])
def test_every_command_ends_in_order_at_a_signal(
    name: str, code: int, word: str, monkeypatch: pytest.MonkeyPatch, here: Here
) -> None:
    number = signal.Signals[name]
    before = signal.signal(number, signal.SIG_DFL)  # the tests may run under nohup, which ignores SIGHUP
    try:
        fail_with(number, monkeypatch)
        done = here("broken")
        assert (done.returncode, done.stdout, done.stderr) == (code, "", word + "\n")
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_a_bug_is_one_error_below_its_traceback(monkeypatch: pytest.MonkeyPatch, here: Here) -> None:
    fail_with(KeyError("no\x1bkey"), monkeypatch)
    done = here("broken")
    what, why, fix = done.stderr.splitlines()[-3:]
    assert (done.returncode, what, why) == (
        errors.BUG,
        "error: this is a bug in hectogpt",
        "why: KeyError: 'no\\x1bkey'",
    )
    assert "hectogpt doctor" in fix
    assert done.stderr.startswith("Traceback")
    assert "\x1b" not in done.stderr
    with pytest.raises(KeyError):
        main(["broken", "--debug"])


@pytest.mark.parametrize(
    ("raised", "code", "named"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a\x1bb"), errors.STORAGE, "cannot use a\\x1bb"),
        (MemoryError(), errors.MEMORY, "out of memory"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't"), errors.MEMORY, "smaller"),
        (OSError("of no number"), errors.BUG, "OSError: of no number"),
    ],
)
def test_a_full_disk_and_full_memory_are_no_bugs(
    raised: BaseException, code: int, named: str, monkeypatch: pytest.MonkeyPatch, here: Here
) -> None:
    fail_with(raised, monkeypatch)
    done = here("broken")
    assert (done.returncode, named in done.stderr, done.stdout) == (code, True, "")
    assert ("Traceback" in done.stderr) == (code == errors.BUG)
