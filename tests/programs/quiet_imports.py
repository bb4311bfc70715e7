"""Import every module of hectogpt while an audit hook watches; prints what opened a socket or started a process.

Ends with code 1 if the hook does not see a process that is started to try it.
"""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys

WATCHED = {"socket.connect", "socket.bind", "socket.getaddrinfo", "subprocess.Popen", "os.system", "os.fork"}
WATCHED |= {"os.forkpty", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "pty.spawn", "webbrowser.open"}
OF_MATPLOTLIB = {"fc-list", "system_profiler"}  # where it finds this machine's fonts, once, when it has no list of them
found: list[str] = []
imported = ""


def watch(event: str, arguments: tuple[object, ...]) -> None:
    if event in WATCHED and not (arguments and arguments[0] in OF_MATPLOTLIB):
        found.append(f"{imported}: {event} {arguments!r}"[:300])


sys.addaudithook(watch)
import hectogpt  # noqa: E402

for module in pkgutil.walk_packages(hectogpt.__path__, "hectogpt."):
    imported = module.name
    if not imported.endswith("__main__") and not imported.startswith("hectogpt.lab.examples"):
        importlib.import_module(imported)
print("\n".join(found))
count = len(found)
subprocess.run([sys.executable, "-c", ""], check=True)
sys.exit(len(found) == count)
