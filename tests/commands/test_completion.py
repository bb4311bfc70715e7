"""`hectogpt completion`: the script is tyro's; a shell runs it, and it knows commands, options and values."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from command import Here

from hectogpt.cli import COMMANDS

CASES = {
    "hectogpt tr": "train",
    "hectogpt train --head-dtype bfl": "bfloat16",
    "hectogpt train --model.n-l": "--model.n-layers",
    "hectogpt generate runs/top --prec": "--precision",
}


def test_bash_completes(tmp_path: Path, here: Here) -> None:
    (tmp_path / "hectogpt.bash").write_text(here("completion", "bash").stdout)
    program = "source hectogpt.bash\nfor line in " + " ".join(map(repr, CASES)) + "; do\n"
    program += (
        "  COMP_WORDS=($line) COMP_CWORD=$((${#COMP_WORDS[@]} - 1))\n  _tyro_hectogpt; echo ${COMPREPLY[*]}\ndone"
    )
    done = subprocess.run(["bash", "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert (done.stderr, done.stdout.splitlines()) == ("", list(CASES.values()))
    script = here("completion", "zsh").stdout
    assert script.startswith("#compdef hectogpt")
    assert all(re.search(rf"\b{name}\b", script) for name in COMMANDS)
