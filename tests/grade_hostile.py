"""Submissions that harm themselves, the grader or the next one, and what is to come of each."""

# ruff: noqa: E501  # sources
from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass

from grade_solutions import BASE, body, edited


@dataclass(frozen=True)
class Hostile:
    """part, outcome: the one part that is not passed. words: in its reason or symptom."""

    source: str
    part: str
    outcome: str
    words: str = ""


def at(method: str, code: str) -> str:
    return body(BASE, method, code)


GENERATE, BLOCK, MLP = "Transformer.generate", "DecoderBlock.forward", "MLP.forward"
FORGED = """
    import os
    for number in range(3, 60):
        try:
            os.write(number, b'{"done": true}\\n{"verdict": "passed"}\\n')
        except OSError:
            pass
    print('{"done": true}')
    return x
"""
LANDLOCK = sys.platform == "linux" and ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), 1) > 0
DAEMON = """
    import os, time
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(1000)
        os._exit(0)
    return x
"""
FRAMES = """
    import gc
    f = next(o for o in gc.get_objects() if type(o).__name__ == "Frames")
    while True:
        f.send({"dtype": "float64", "answers": []}, bytes(10**7))
"""
HOSTILE: dict[str, Hostile] = {
    "a file of others replaced": Hostile(at(GENERATE, "    import os\n    open('a', 'w').close()\n    os.replace('a', '../evil')\n    return x"), "generate", "failed", "no changes outside"),
    "weights saved elsewhere": Hostile(at(GENERATE, "    torch.save(self.state_dict(), '../evil')\n    return x"), "generate", "failed", "ermission" if LANDLOCK else "shape"),
    "too many files": Hostile(at(GENERATE, "    for i in range(20):\n        with open(f'f{i}', 'wb') as f:\n            f.truncate(100 << 20)\n    import time\n    time.sleep(5)\n    return x"), "generate", "output flood", "of files"),
    "a daemon": Hostile(at(GENERATE, DAEMON), "generate", "failed", "shape"),
    "answers without end": Hostile(at(GENERATE, FRAMES), "generate", "crashed", "private channel"),
    "a header of many brackets": Hostile(at(GENERATE, FRAMES.partition("    while")[0] + "    f._file.write(b'[' * 200000 + b'\\n')\n    f._file.flush()"), "generate", "crashed", "private channel"),
    "os._exit(0)": Hostile(at(GENERATE, "    import os\n    os._exit(0)"), "generate", "crashed", "exit code 0"),
    "SystemExit": Hostile(at(GENERATE, "    raise SystemExit(0)"), "generate", "failed", "SystemExit"),
    "KeyboardInterrupt": Hostile(at(GENERATE, "    raise KeyboardInterrupt"), "generate", "failed", "KeyboardInterrupt"),
    "a loop without end": Hostile(at(GENERATE, "    while True: pass"), "generate", "timed out", "nothing came back"),
    "a flood": Hostile(at(MLP, "    while True: print('PASSED ' * 1000)"), "mlp", "output flood", "bytes were printed"),
    "memory": Hostile(at(MLP, "    y = []\n    while True: y.append(torch.empty(10**8))"), "mlp", "out of memory", "memory"),
    "forged verdicts": Hostile(at(GENERATE, FORGED), "generate", "crashed", "private channel"),
    "a crash": Hostile(at(BLOCK, "    import ctypes\n    ctypes.string_at(0)"), "block", "crashed", "signal 11"),
    "endless recursion": Hostile(at(BLOCK, "    return self.forward(x)"), "block", "failed", "RecursionError"),
    "a process left behind": Hostile(at(BLOCK, "    import os, time\n    if os.fork() == 0:\n        time.sleep(1000)\n    return x"), "block", "failed", ""),
    "the network": Hostile(at(GENERATE, "    import urllib.request\n    urllib.request.urlopen('http://example.com')"), "generate", "failed", "no network"),
    "another program": Hostile(at(GENERATE, "    import os\n    os.system('echo PASSED')\n    return x"), "generate", "failed", "no other programs"),
    "files of others": Hostile(at(GENERATE, "    open('../evil', 'w').write('x')\n    return x"), "generate", "failed", "no changes outside"),
    "input()": Hostile(at(GENERATE, "    input('your grade? ')\n    return x"), "generate", "failed", "EOF"),
    "torch patched": Hostile(edited(BASE, ("@dataclass\nclass ModelConfig", "torch.allclose = torch.equal = lambda *a, **k: True\n\n@dataclass\nclass ModelConfig"), ("h = self.gelu(h)", "pass")), "mlp", "failed", "yours"),
    "its own file changed": Hostile(at(GENERATE, "    open(__file__, 'w').write('x = 1')\n    return x"), "generate", "failed", "shape"),
}  # fmt: skip
