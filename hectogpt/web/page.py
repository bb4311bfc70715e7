"""Pages as single HTML files: styles, scripts and data are inlined, so no network is needed."""

from __future__ import annotations

import base64
import gzip
import json
import posixpath
import re
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
_STYLE = re.compile(r'<link rel="stylesheet" href="([\w.-]+)">')
_SCRIPT = re.compile(r'(<script[^>]*) data-from="([\w./-]+)"></script>')
_IMPORT = re.compile(r'^import [^;]+? from "([^"]+)";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async|class|const|function|let) )", re.MULTILINE)
_DATA = '<script type="application/json" id="data"></script>'


def fill(name: str, data: Any) -> str:
    """Inline styles, scripts and `data` into web/pages/NAME.html.

    Scripts read the data as JSON. The data may come from anywhere, so "<" is escaped: no string in
    the data can end the script that holds it. Pages show such strings without interpreting them.
    """
    page = (FOLDER / "pages" / f"{name}.html").read_text(encoding="utf-8")
    page = _STYLE.sub(lambda m: f"<style>\n{_text('kit/' + m[1])}</style>", page)
    page = _SCRIPT.sub(lambda m: f"{m[1]}>\n{_linked(m[2], set())}</script>", page)
    filled = json.dumps(data, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    return page.replace(_DATA, _DATA.replace("></script>", f">{filled}</script>"))


def _linked(name: str, have: set[str]) -> str:
    """Join a module and the modules that it imports into one script.

    A page opened as a file cannot import modules, so all are joined. Each appears once, after
    those that it imports. Two modules of a page must not share a file name.
    """
    text = _text(name)
    others = [
        posixpath.normpath(posixpath.join(name, "..", other)) for other in _IMPORT.findall(text)
    ]
    have.add(name)
    before = [_linked(other, have) for other in others if other not in have]
    return "".join([*before, _EXPORT.sub("", _IMPORT.sub("", text))])


def _text(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def engine_data() -> dict[str, str]:
    """The data that a page needs to train: the kernels and GPT-2's merges, in base64."""
    from hectogpt.data.tokenizer import load_tokenizer

    names = {"wasm": "kernels.wasm", "wasm64": "kernels64.wasm"}
    files = {key: (FOLDER / "engine" / name).read_bytes() for key, name in names.items()}
    coded = {key: base64.b64encode(content).decode() for key, content in files.items()}
    return coded | {"merges": zipped(load_tokenizer().merges)}


def zipped(content: bytes) -> str:
    """Compress content with gzip and encode it in base64, as pages store it."""
    return base64.b64encode(gzip.compress(content, mtime=0)).decode()
