"""`hectogpt explore`: interactive pages; `explore numbers` and `explore export VIEW` print or save what they show."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import webbrowser
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.idea_file import read_idea

HOST = "127.0.0.1"
APP = Path(__file__).parent.parent / "explore" / "pages" / "app.py"


EXAMPLES = """\
  hectogpt explore
  hectogpt explore --model runs/top
  hectogpt explore export model --model runs/top --prompt "The state of the" --out attention.html
  hectogpt explore numbers --json"""


@dataclass(frozen=True)
class PagesArguments:
    """Open the pages in the browser: attention by hand, positions, a trained model's attention. Ctrl-C ends them.

    `hectogpt explore numbers --help` and `hectogpt explore export --help` tell of the other two uses.
    """

    model: str | None = None
    """Folder of a run or of a GPT-2 in Hugging Face's layout (default: the run below ./runs that finished last)."""
    idea: tuple[Path, ...] = ()
    """Your own file, FILE.py, if the model has classes of it; it is imported."""
    port: int | None = None
    """Port on 127.0.0.1 (default: a free one)."""
    no_browser: bool = False
    """Print the address and open nothing."""


@dataclass(frozen=True)
class NumbersArguments:
    """Print every number that the written answers quote."""

    json: bool = False
    """As one JSON object."""


@dataclass(frozen=True)
class ExportArguments:
    """Save a view as one file that opens offline: .html the whole page, .svg or .png its drawings."""

    view: Annotated[Literal["attention", "positions", "model"], tyro.conf.Positional]
    out: Path
    """File to write; its suffix chooses the kind."""
    model: str | None = None
    """For the model's view: its folder (default: the run below ./runs that finished last)."""
    idea: tuple[Path, ...] = ()
    """For the model's view: your own file, FILE.py, if the model has classes of it; it is imported."""
    prompt: str | None = None
    """For the model's view: the text to read."""
    layer: int = 1
    """For the model's view: the layer drawn in full."""
    head: int = 1
    """For the model's view: the head drawn in full."""
    off: tuple[str, ...] = field(default=())
    """For the model's view: heads switched off, each as LAYER.HEAD, both from 1."""
    query: Literal["copy", "average", "heads"] = "average"
    """For attention: copy one value, average two with one head, or with two heads."""
    beta: float = 10.0
    """For attention: scale of the query."""
    alpha: float = 1e-4
    """For attention: variance of the keys."""
    spread: float = 0.5
    """For attention: variance of key a along its mean."""
    n: int = 8
    """For attention: number of keys."""
    T: int = 64
    """For positions: how many."""
    d: int = 32
    """For positions: dimensions."""
    causal: bool = False
    """For positions: mask of the block."""
    sinusoids: bool = False
    """For positions: add them to the block's input."""


def main(argv: list[str]) -> None:
    """Run the command."""
    if argv[:1] == ["numbers"]:
        print_numbers(tyro.cli(NumbersArguments, args=argv[1:], prog="hectogpt explore numbers"))
    elif argv[:1] == ["export"]:
        export(tyro.cli(ExportArguments, args=argv[1:], prog="hectogpt explore export"))
    else:
        serve(tyro.cli(PagesArguments, args=argv, prog="hectogpt explore [numbers | export VIEW]"))


def print_numbers(arguments: NumbersArguments) -> None:
    """All numbers on stdout."""
    from hectogpt.explore.numbers import numbers

    found = numbers()
    if arguments.json:
        print(json.dumps(found, indent=2, allow_nan=False))
    else:
        for name, value in found.items():
            print(f"{name:<32}{value:.6g}")


def export(arguments: ExportArguments) -> None:
    """Write a view to a file."""
    from hectogpt.explore.pages.view import View
    from hectogpt.explore.pages.view import export as write

    a = arguments
    view: View
    if a.view == "attention":
        from hectogpt.explore.pages.by_hand import ByHand
        from hectogpt.explore.pages.by_hand import view as draw_attention

        view = draw_attention(ByHand(query=a.query, beta=a.beta, alpha=a.alpha, spread=a.spread, n=a.n))
    elif a.view == "positions":
        from hectogpt.explore.pages.order import Order
        from hectogpt.explore.pages.order import view as draw_positions

        view = draw_positions(Order(T=a.T, d=a.d, causal=a.causal, positions=a.sinusoids))
    else:
        from hectogpt.explore.pages import trained

        folder = trained.choose(a.model, Path("runs"))
        if folder is None:
            raise UserError(
                "no trained model", why="no run below ./runs has finished", fix="hectogpt train, or --model FOLDER"
            )
        prompt = trained.PROMPT if a.prompt is None else a.prompt
        settings = trained.Trained(prompt, a.layer - 1, a.head - 1, off=tuple(head_of(h) for h in a.off))
        view = trained.view(folder, settings, a.idea)
    content = write(view, a.out.suffix.lower())
    try:
        a.out.write_bytes(content)
    except OSError as error:
        raise UserError(
            f"cannot write {a.out}",
            why=error.strerror or str(error),
            fix="--out in a folder that exists and is yours",
            code=errors.STORAGE,
        ) from None
    print(f"{a.out} ({len(content):,} bytes)")


def head_of(text: str) -> tuple[int, int]:
    """LAYER.HEAD from 1 as a pair from 0."""
    layer, _, head = text.partition(".")
    if not (layer.isascii() and layer.isdigit() and head.isascii() and head.isdigit()):
        raise UserError(
            f"--off {text}", why="expected LAYER.HEAD", fix="--off 1.2 for the second head of the first layer"
        )
    return int(layer) - 1, int(head) - 1


def serve(arguments: PagesArguments) -> None:
    """Run marimo's read-only server in a process of its own until Ctrl-C.

    It listens on this machine only, and asks for a token that changes with every start, so that neither another user
    nor a web page open in the same browser can reach it.
    """
    if arguments.model is not None and not (Path(arguments.model) / "config.json").is_file():
        raise UserError(
            f"no model in {arguments.model}",
            why="it has no config.json" if Path(arguments.model).is_dir() else "there is no such folder",
            fix="name a folder that `hectogpt train` wrote, or one in Hugging Face's GPT-2 layout",
            code=errors.CHECKPOINT,
        )
    if importlib.util.find_spec("marimo") is None:
        raise UserError(
            "the pages need marimo",
            why="it is not installed",
            fix="python -m pip install 'hectogpt[explore]'   (`hectogpt explore export` works without it)",
        )
    port = free_port(arguments.port)
    token = secrets.token_urlsafe(24)
    command = [sys.executable, "-m", "marimo", "--quiet", "run", str(APP), "--headless", "--host", HOST]
    command += ["--port", str(port), "--token", "--token-password-file", "-", "--no-check", "--no-skew-protection"]
    options = [] if arguments.model is None else ["--model", arguments.model]
    options += [word for file in arguments.idea for word in ("--idea", str(read_idea(file).path))]
    command += ["--", *options] if options else []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(errors.TERMINATED))  # so that the server ends with us
    server = subprocess.Popen(command, stdin=subprocess.PIPE)
    try:
        assert server.stdin is not None
        with contextlib.suppress(BrokenPipeError), server.stdin as pipe:  # a server that ended is reported below
            pipe.write(token.encode())
        wait_until_up(server, port)
        address = f"http://{HOST}:{port}/?access_token={token}"
        print(f"{address}\nCtrl-C ends it.", flush=True)
        if not arguments.no_browser:
            webbrowser.open(address)
        server.wait()
    except KeyboardInterrupt:
        print("ended", file=sys.stderr)
    finally:
        server.terminate()
        server.wait()


def free_port(asked: int | None) -> int:
    """The port asked for, if nobody listens there, or any free one."""
    if asked is not None and not 1 <= asked <= 65535:
        raise UserError(f"--port {asked}", why="ports are 1 to 65535", fix="leave --port out for a free one")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, asked or 0))
        except OSError as error:
            raise UserError(
                f"--port {asked}", why=error.strerror or str(error), fix="leave --port out for a free one"
            ) from None
        return int(probe.getsockname()[1])


def wait_until_up(server: subprocess.Popen[bytes], port: int) -> None:
    """Return once the server answers. Raises UserError when it ends instead, or after two minutes."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise UserError("the pages' server did not start", why=f"marimo ended with code {server.returncode}")
        try:
            with urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.05)
    raise UserError("the pages' server did not start", why="it has not answered for two minutes")
