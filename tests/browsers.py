"""What axe-core finds in a page, and Firefox, which Playwright cannot drive as Debian packs it."""

from __future__ import annotations

import itertools
import json
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

# preload: it would fetch the style sheets, which a browser forbids in a file. Of headers of tables: text in MathML is
# none to axe, and the corner of a table may be empty.
AXE = "axe.run(document, {iframes: false, preload: false, rules: {'empty-table-header': {enabled: false}}})"


def axe_faults(page: Any) -> list[tuple[str, str]]:
    """What axe-core finds: the rule, and the element's beginning."""
    import axe_playwright_python

    page.add_script_tag(path=Path(axe_playwright_python.__file__).with_name("axe.min.js"))
    found = page.evaluate(AXE)
    return [(fault["id"], node["html"][:200]) for fault in found["violations"] for node in fault["nodes"]]


@contextmanager
def firefox(program: str, profile: Path) -> Iterator[Callable[..., Any]]:
    """Calls of a Firefox without a window, with a profile of its own. Its protocol Marionette: messages are a length, a
    colon and JSON."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    profile.mkdir()
    (profile / "user.js").write_text(f'user_pref("marionette.port", {port});\n', encoding="utf-8")
    command = [program, "--headless", "--marionette", "--no-remote", "--profile", str(profile)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        connection = None
        for _ in range(300):
            with suppress(OSError):
                connection = socket.create_connection(("127.0.0.1", port))
                break
            time.sleep(0.2)
        assert connection is not None, "Firefox does not answer"
        with connection, connection.makefile("rb") as answers:
            numbers = itertools.count()

            def read() -> Any:
                length = b""
                while (byte := answers.read(1)) != b":":
                    assert byte, "Firefox has ended"
                    length += byte
                return json.loads(answers.read(int(length)))

            def call(name: str, **options: object) -> Any:
                message = json.dumps([0, next(numbers), name, options]).encode()
                connection.sendall(b"%d:%b" % (len(message), message))
                _, _, error, result = read()
                assert error is None, error["message"]
                return result

            read()  # its greeting
            call("WebDriver:NewSession")
            yield call
    finally:
        process.terminate()
        process.wait(20)
