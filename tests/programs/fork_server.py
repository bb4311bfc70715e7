"""Runs commands of `hectogpt` and programs of Python in forked processes, so that torch is loaded once for all:
python fork_server.py SOCKET.

`ask` is for page_command.py: a command runs with the files, folder and environment of the process that asks.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Client, Connection, Listener
from multiprocessing.reduction import recv_handle, send_handle
from types import ModuleType


def ask(path: str, arguments: Sequence[str]) -> int:
    """The exit code of `hectogpt ARGUMENTS`, or of `python -c PROGRAM` if these are the arguments."""
    with Client(path) as server:
        server.send((list(arguments), os.getcwd(), dict(os.environ)))
        for number in range(3):
            send_handle(server, number, None)
        return int(server.recv())


def serve(path: str) -> None:
    """Answer until this process is ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that have answered
    with Listener(path) as listener:
        while True:
            asker = listener.accept()
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                answer(asker)
                os._exit(0)
            asker.close()


def answer(asker: Connection) -> None:
    """Run one command, and send its exit code."""
    arguments, folder, environment = asker.recv()
    for number in range(3):
        os.dup2(recv_handle(asker), number)
    sys.stdin, sys.stdout, sys.stderr = (open(n, "rww"[n], closefd=False) for n in range(3))  # noqa: SIM115
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    code: object = 1
    try:
        if arguments[:1] == ["-c"]:
            sys.path.insert(0, "")
            sys.modules["__main__"] = ModuleType("__main__")
            exec(arguments[1], vars(sys.modules["__main__"]))
        else:
            importlib.import_module("hectogpt.cli").main(arguments)
        code = 0
    except SystemExit as leaving:
        code = leaving.code or 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    asker.send(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    for name in ("hectogpt.python", "hectogpt.cli.train", "hectogpt.cli.generate", "matplotlib.pyplot", "scipy.stats"):
        importlib.import_module(name)
    serve(sys.argv[1])
