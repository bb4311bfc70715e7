"""Faults of runs that several processes share, for test_parallel_faults.py: prints JSON, an answer for each fault.

The processes are forked as those of shared_runs.py; each runs the whole command. What goes wrong is done by a user's
own file, fault.py, at a call of its part that the environment names.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import torch
from shared_runs import ALONE, free_port, open_corpus, small, take_steps

from hectogpt.cli import main

SIZES = ["--model.d-model", "8", "--model.n-heads", "2", "--model.n-layers", "1", "--model.context-length", "16"]
SIZES += ["--data.seq-len", "16", "--data.batch-size", "4", "--threads", "1", "--steps", "4", "--head-dtype", "float32"]

FAULT = Path(__file__).with_name("fault.py").read_text()


def command(folder: Path, name: str, count: int, argv: list[str], **environment: str) -> dict[str, Any]:
    """Run a command in so many processes. An argument or value that is a list has one entry for each process."""
    port, pids, begun = free_port(), [], time.monotonic()
    for rank in range(count):
        sys.stdout.flush()
        pid = os.fork()
        if not pid:
            error = os.open(folder / f"{name}-{rank}.err", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
            os.dup2(error, 2)
            os.dup2(error, 1)
            if environment.pop("in_folders", ""):
                os.chdir(folder / f"rank{rank}")
            os.environ.update(RANK=str(rank), WORLD_SIZE=str(count), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(count))
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=environment.pop("port", str(port)), **environment)
            own = [argument[rank] if isinstance(argument, list) else argument for argument in argv]
            code = 0
            try:
                main([argument for argument in own if argument])
            except SystemExit as stop:
                code = stop.code or 0
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        pids.append(pid)
    codes: dict[int, int] = {}
    last = None
    while len(codes) < count:
        for pid in pids:
            if pid not in codes and (status := os.waitpid(pid, os.WNOHANG))[0]:
                codes[pid] = os.waitstatus_to_exitcode(status[1])
                last = time.monotonic() + 30 if codes[pid] else last
        if last is not None and (time.monotonic() > last or "hung" in name):
            for pid in pids:
                if pid not in codes:
                    os.kill(pid, signal.SIGKILL)  # as torchrun does
        time.sleep(0.02)
    told = [(folder / f"{name}-{rank}.err").read_text() for rank in range(count)]
    return {
        "codes": [codes[pid] for pid in pids],
        "told": told,
        "seconds": time.monotonic() - begun,
        "folder": sorted(path.name for path in (folder / name).glob("*")),
        "checkpoints": sorted(path.name for path in (folder / name / "checkpoints").glob("*")),
    }


def faults(folder: Path) -> dict[str, Any]:
    os.chdir(folder)
    Path("fault.py").write_text(FAULT)
    common = [*SIZES, "--corpus", str(folder), "--save-every", "2", "--quiet"]
    train = ["train", "fault.py:faulty@baseline", *common]
    found: dict[str, Any] = {}

    def fault(name: str, rank: int, call: int = 6, more: tuple[str, ...] = ()) -> None:
        argv = [*train, "--out", name, "--dist-timeout", "3" if "hung" in name else "60", *more]
        found[name] = command(folder, name, 2, argv, FAULT=f"{name.partition('-')[0]} {rank} {call}")

    for name in ("killed", "raised", "hung"):
        fault(name, 1)
    fault("hung-first", 0)
    plain = ["train", "baseline", *common]
    found["configuration"] = command(
        folder, "configuration", 2, [*plain, "--seed", ["0", "1"], "--out", "configuration"]
    )
    other = folder / "other_text"
    other.mkdir()
    for split in ("train", "dev", "test"):
        content = (folder / f"{split}.bin").read_bytes()
        (other / f"{split}.bin").write_bytes(content[:-2] + b"\1\0")
    for rank, text in enumerate((folder, other)):
        own = folder / f"rank{rank}"
        own.mkdir()
        (own / "text").symlink_to(text)
        (own / "fault.py").write_text(FAULT + f"\n# of rank {rank}\n")
    found["idea"] = command(folder, "idea", 2, [*train, "--out", "idea"], in_folders="yes")
    argv = [*plain[: plain.index("--corpus")], "--corpus", "text", "--save-every", "2", "--quiet", "--out", "data"]
    found["data"] = command(folder, "data", 2, argv, in_folders="yes")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        argv = [*plain, "--out", "port", "--dist-timeout", "3"]
        found["port"] = command(folder, "port", 2, argv, port=str(taken.getsockname()[1]))
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    signal.alarm(300)
    where = Path(sys.argv[1])
    run = small("baseline", 2)
    take_steps(run, open_corpus(str(where)), ALONE, where / "first", 1, 0)  # loads what is loaded late
    print(json.dumps(faults(where)))
