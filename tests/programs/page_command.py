"""`hectogpt`, `torchrun` and `python` for the blocks of documentation: what a reader types, in small.

Arguments: the text to train on, the program's name, its arguments. Training gets the options of a small run. What stays
until Ctrl-C gets a Ctrl-C once it is ready. Exit code 1 of a grading, which a page's unfinished work has, and of a
judgement is printed and becomes 0.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress

from fork_server import ask

SMALL = {"model.d-model": 16, "model.n-heads": 2, "model.n-layers": 1, "data.batch-size": 8, "data.seq-len": 64}
SIZED = (".py:", "--resume", "--branch", "--init", "--model.d-model", "finetune")  # such a command is small by itself

corpus, program, *arguments = sys.argv[1:]
command, given = arguments[0] if arguments else "", " ".join(arguments)
module = "torch.distributed.run" if program == "torchrun" else "hectogpt"
trains = program == "torchrun" or command in ("train", "compare")
if trains and not any(word in given for word in SIZED):
    arguments += ["--steps", "2"] if "--steps" not in given else []
    arguments += ["--threads", "1"] if "--threads" not in given else []
    if command != "compare":
        arguments += [word for field, size in SMALL.items() for word in (f"--{field}", str(size))]
    elif "--sweep" not in given:
        arguments += ["--sweep", *(f"{field.replace('-', '_')}={size}" for field, size in SMALL.items())]
if command == "judge":
    arguments = [f"{word}@small.py:small" if word.endswith(".py:idea") else word for word in arguments]
    arguments += ["--seeds", "1", "--threads", "1", "--corpus", corpus]
if (trains or command == "score") and "--corpus" not in given and "--resume" not in given:
    arguments += ["--corpus", corpus]
if command == "compare" and "--seeds" in arguments:
    arguments[arguments.index("--seeds") + 1] = "1"
whole = [sys.executable, *(["-m", module] if program != "python" else []), *arguments]
if command != "watch":
    server = os.environ.get("FORK_SERVER", "") if program == "hectogpt" or command == "-c" else ""
    code = ask(server, arguments) if server else subprocess.run(whole).returncode
    if command in ("grade", "assignment", "judge") and code == 1:
        print("exit code 1")
        code = 0
    sys.exit(code)
with subprocess.Popen([*whole, "--no-browser"], stdout=subprocess.PIPE, text=True) as child:
    assert child.stdout is not None
    for line in child.stdout:
        print(line, end="", flush=True)
        if "Ctrl-C ends it" in line:
            while child.poll() is None:  # one that comes while an object is deleted is lost
                child.send_signal(signal.SIGINT)
                with suppress(subprocess.TimeoutExpired):
                    child.wait(5)
sys.exit(0 if child.returncode in (0, 130) else child.returncode)
