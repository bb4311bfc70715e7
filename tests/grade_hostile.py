"""Submissions that harm themselves, the grader or the next one, and what is to come of each."""

# ruff: noqa: E501  # sources
from __future__ import annotations

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
HOSTILE: dict[str, Hostile] = {
    "os._exit(0)": Hostile(at(GENERATE, "    import os\n    os._exit(0)"), "generate", "crashed", "exit code 0"),
    "SystemExit": Hostile(at(GENERATE, "    raise SystemExit(0)"), "generate", "failed", "SystemExit"),
    "KeyboardInterrupt": Hostile(at(GENERATE, "    raise KeyboardInterrupt"), "generate", "failed", "KeyboardInterrupt"),
    "a loop without end": Hostile(at(GENERATE, "    while True: pass"), "generate", "timed out", "nothing came back"),
    "a flood": Hostile(at(MLP, "    while True: print('PASSED ' * 1000)"), "mlp", "output flood", "bytes were printed"),
    "memory": Hostile(
        at(MLP, "    y = []\n    while True: y.append(torch.empty(10**8))"), "mlp", "out of memory", "memory"
    ),
    "forged verdicts": Hostile(at(GENERATE, FORGED), "generate", "crashed", "private channel"),
    "a crash": Hostile(at(BLOCK, "    import ctypes\n    ctypes.string_at(0)"), "block", "crashed", "signal 11"),
    "endless recursion": Hostile(at(BLOCK, "    return self.forward(x)"), "block", "failed", "RecursionError"),
    "a process left behind": Hostile(
        at(BLOCK, "    import os, time\n    if os.fork() == 0:\n        time.sleep(1000)\n    return x"),
        "block",
        "failed",
        "",
    ),
    "the network": Hostile(
        at(GENERATE, "    import urllib.request\n    urllib.request.urlopen('http://example.com')"),
        "generate",
        "failed",
        "no network",
    ),
    "another program": Hostile(
        at(GENERATE, "    import os\n    os.system('echo PASSED')\n    return x"), "generate", "failed", "no other programs"
    ),
    "files of others": Hostile(
        at(GENERATE, "    open('../evil', 'w').write('x')\n    return x"), "generate", "failed", "no changes outside"
    ),
    "input()": Hostile(at(GENERATE, "    input('your grade? ')\n    return x"), "generate", "failed", "EOF"),
    "torch patched": Hostile(
        edited(
            BASE,
            ("@dataclass\nclass ModelConfig", "torch.allclose = torch.equal = lambda *a, **k: True\n\n@dataclass\nclass ModelConfig"),
            ("h = self.gelu(h)", "pass"),
        ),
        "mlp",
        "failed",
        "yours",
    ),
    "its own file changed": Hostile(
        at(GENERATE, "    open(__file__, 'w').write('x = 1')\n    return x"), "generate", "failed", "shape"
    ),
}  # fmt: skip
