"""What goes wrong through nobody's bug, in one message: what, why, what to do, what is kept.

Every room raises `UserError`; only the command line turns it into lines on stderr and an exit code.
"""

from __future__ import annotations

from hectogpt.display import printable

# Exit codes. 129, 130 and 143 (SIGHUP, SIGINT, SIGTERM) follow the shell's convention, 128 + signal number.
BUG = 1  # also: a check that failed, of `hectogpt doctor` say
USAGE = 2
DATA = 3
CHECKPOINT = 4
EXACTNESS = 5
DIVERGED = 6
STORAGE = 7
MEMORY = 8
LOCKED = 9
PEER = 10  # another process of a parallel run has failed
HANGUP = 129
INTERRUPTED = 130
TERMINATED = 143


class UserError(Exception):
    """An error with its cause and its cure.

    what: the thing that failed, with its path, step or value.
    why:  what was expected and what came.
    fix:  a command or a value that mends it.
    kept: what survives (the last state on disk, the old file), if anything is at stake.
    code: the process's exit code, one of the constants above.
    """

    def __init__(self, what: str, *, why: str = "", fix: str = "", kept: str = "", code: int = USAGE) -> None:
        super().__init__(what)
        self.what, self.why, self.fix, self.kept, self.code = what, why, fix, kept, code

    def __str__(self) -> str:
        """The error as it is shown. Names of files come from others: their control characters are made visible, and
        no further line of a text begins where a line of ours does."""
        label = "stopped" if self.code in (HANGUP, INTERRUPTED, TERMINATED) else "error"
        parts = [(label, self.what), ("why", self.why), ("fix", self.fix), ("kept", self.kept)]
        lines = [f"{name}: {text}" for name, text in parts if text]
        return printable("\n".join(line.replace("\n", "\n  ") for line in lines))
