"""Runs commands of `hectogpt` in forked processes, so that torch is loaded once for all: python fork_server.py SOCKET.

`ask` is for page_command.py: a command runs with the files, folder and environment of the process that asks.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Sequence


def ask(path: str, arguments: Sequence[str]) -> int:
    """The exit code of `hectogpt ARGUMENTS`."""
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(path)
        request = json.dumps({"arguments": list(arguments), "folder": os.getcwd(), "environment": dict(os.environ)})
        socket.send_fds(server, [b"files"], [0, 1, 2])
        server.sendall(request.encode())
        server.shutdown(socket.SHUT_WR)
        return int(server.recv(100))


def serve(path: str) -> None:
    """Answer until this process is ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that have answered
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        while True:
            asker = server.accept()[0]
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                os._exit(answer(asker))
            asker.close()


def answer(asker: socket.socket) -> int:
    """Run one command in a process of its own, and send its exit code."""
    _, files, _, _ = socket.recv_fds(asker, 5, 3)
    request = json.loads(b"".join(iter(lambda: asker.recv(1 << 16), b"")))
    pid = os.fork()
    if pid == 0:
        for number, file in enumerate(files):
            os.dup2(file, number)
        sys.stdin, sys.stdout, sys.stderr = (open(n, "rww"[n], closefd=False) for n in range(3))  # noqa: SIM115
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        sys.path[:0] = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        code: object = 1
        try:
            importlib.import_module("hectogpt.cli").main(request["arguments"])
            code = 0
        except SystemExit as leaving:
            code = leaving.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code if isinstance(code, int) else 1)
    asker.sendall(b"%d" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    return 0


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    for name in ("hectogpt.python", "hectogpt.cli.train", "hectogpt.cli.generate", "hectogpt.cli.options"):
        importlib.import_module(name)
    serve(sys.argv[1])
