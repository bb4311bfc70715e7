"""`hectogpt explore`: interactive pages; `explore numbers` and `explore export VIEW` print or save what they show."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import webbrowser
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from hectogpt import errors
from hectogpt.display import printable
from hectogpt.errors import UserError
from hectogpt.files import replacing
from hectogpt.idea_file import read_idea
from hectogpt.signals import Stopped, raise_on_signal

SERVER = "hectogpt.explore.pages.server"
ROOT = Path(__file__).resolve().parents[2]  # the server imports the same files as this process
SECONDS_TO_END = 5.0
CRASHED = 1  # the exit code of a fault that is not the user's, as Python gives it


EXAMPLES = """\
  hectogpt explore
  hectogpt explore --model runs/minute
  hectogpt explore export train --out train.html --text mine.txt
  hectogpt explore export model --model runs/minute --prompt "The state of the" --out attention.html
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

    view: Annotated[Literal["train", "attention", "positions", "model"], tyro.conf.Positional]
    out: Path
    """File to write; its suffix chooses the kind."""
    text: Path | None = None
    """For the page that trains: a text file that stands first among its texts."""
    weights: Path | None = None
    """For the page that trains: folder of a run whose weights it begins with."""
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
    if arguments.view == "train":
        export_training(arguments)
        return
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
    save(a.out, write(view, a.out.suffix.lower()))


def export_training(arguments: ExportArguments) -> None:
    """Write the page that trains in the browser."""
    from hectogpt.data.text import read_text
    from hectogpt.web.train_page import train_page

    a = arguments
    if a.out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out {a.out}", why="the page that trains is HTML", fix=f"--out {a.out.stem or 'train'}.html")
    text = None if a.text is None else (a.text.name, read_text(a.text, "utf-8", False))
    save(a.out, train_page(text, a.weights).encode("utf-8"))


def save(out: Path, content: bytes) -> None:
    """Write a file whole or not at all, and say so."""
    try:
        with replacing(out) as temporary:
            temporary.write_bytes(content)
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise UserError(
            f"cannot write {out}",
            why=getattr(error, "strerror", None) or str(error),
            fix="--out in a folder that exists and is yours",
            code=errors.STORAGE,
        ) from None
    print(printable(f"{out} ({len(content):,} bytes)"))


def head_of(text: str) -> tuple[int, int]:
    """LAYER.HEAD from 1 as a pair from 0."""
    layer, _, head = text.partition(".")
    if not (layer.isascii() and layer.isdigit() and head.isascii() and head.isdigit()):
        raise UserError(
            f"--off {text}", why="expected LAYER.HEAD", fix="--off 1.2 for the second head of the first layer"
        )
    return int(layer) - 1, int(head) - 1


def serve(arguments: PagesArguments) -> None:
    """Run the pages' server in a process of its own until Ctrl-C.

    It listens on this machine only, asks for a token that changes with every start, and ends when this process does.
    """
    if arguments.model is not None and not is_model(Path(arguments.model)):
        raise UserError(
            f"no model in {arguments.model}",
            why="it has no config.json" if os.path.isdir(arguments.model) else "there is no such folder",
            fix="name a folder that `hectogpt train` wrote, or one in Hugging Face's GPT-2 layout",
            code=errors.CHECKPOINT,
        )
    if importlib.util.find_spec("marimo") is None:
        raise UserError(
            "the pages need marimo",
            why="it is not installed",
            fix="python -m pip install 'hectogpt[explore]'   (`hectogpt explore export` works without it)",
        )
    if arguments.port is not None and not 1 <= arguments.port <= 65535:
        raise UserError(f"--port {arguments.port}", why="ports are 1 to 65535", fix="leave --port out for a free one")
    ideas = [str(read_idea(file).path) for file in arguments.idea]
    server, page = None, None
    try:
        with raise_on_signal():
            server = start_server({"port": arguments.port, "model": arguments.model, "ideas": ideas})
            found = wait_until_up(server, arguments.port)
            page = Path(found["page"])
            print(f"{found['address']}\nCtrl-C ends it.", flush=True)
            if not arguments.no_browser:
                webbrowser.open(page.as_uri())  # and not the address: other users can read a command line
            raise has_ended(server.wait())
    except Stopped as stop:
        if stop.code != errors.INTERRUPTED:
            raise
        print("ended", file=sys.stderr)
    finally:
        if server is not None:
            end_server(server)
        if page is not None and page.exists():  # a server that was killed has left it
            page.unlink()
            page.parent.rmdir()


def is_model(folder: Path) -> bool:
    """Whether the folder has a config.json."""
    try:
        return (folder / "config.json").is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def start_server(settings: dict[str, Any]) -> subprocess.Popen[str]:
    """The server's process, with its settings. It ends when its standard input does, however this process ends."""
    paths = [str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    server = subprocess.Popen(
        [sys.executable, "-P", "-m", SERVER],  # -P, and no empty path: no module is taken from the current folder
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL if sys.__stderr__ is None else None,  # marimo needs one, even if ours is closed
        text=True,
        encoding="utf-8",
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        start_new_session=True,  # Ctrl-C reaches this process alone
    )
    assert server.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # a server that has ended is reported when its answer is read
        server.stdin.write(json.dumps(settings, allow_nan=False) + "\n")
        server.stdin.flush()
    return server


def wait_until_up(server: subprocess.Popen[str], port: int | None) -> dict[str, str]:
    """The server's address and the page that leads to it, once it listens. Raises UserError when it cannot."""
    assert server.stdout is not None
    line = server.stdout.readline()
    if not line:
        raise has_ended(server.wait())
    found: dict[str, str] = json.loads(line)
    if "error" in found:
        where = "the pages' server has no port" if port is None else f"--port {port}"
        raise UserError(where, why=found["error"], fix="leave --port out for a free one")
    return found


def has_ended(code: int) -> UserError:
    """The error for a server that ended by itself. Nothing is lost: the pages keep nothing."""
    return UserError(
        "the pages' server has ended",
        why=signal.Signals(-code).name if code < 0 else f"exit code {code}",
        fix="hectogpt explore starts it again",
        code=CRASHED,
    )


def end_server(server: subprocess.Popen[str]) -> None:
    """End the server by the end of its standard input; kill it if that takes too long."""
    assert server.stdin is not None
    assert server.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        server.stdin.close()
    try:
        server.wait(SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
    server.stdout.close()
