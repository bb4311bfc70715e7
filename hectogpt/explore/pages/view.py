"""What a page shows, as a value: paragraphs, drawings, tables and tokens; and how it becomes HTML, SVG or PNG.

Everything is escaped on its way into HTML. An exported page is one file that loads nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from hectogpt.errors import UserError
from hectogpt.explore.pages import drawing
from hectogpt.explore.pages.drawing import Drawing


@dataclass(frozen=True)
class Note:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Quantity:
    """A number with a name for programs, a label for readers, its value and how it is written."""

    name: str
    label: str
    value: float
    digits: str = ".4f"

    @property
    def text(self) -> str:
        """As shown."""
        return f"{self.value:{self.digits}}"


@dataclass(frozen=True)
class Quantities:
    """A table of named numbers."""

    caption: str
    rows: tuple[Quantity, ...]


@dataclass(frozen=True)
class Table:
    """A table of texts; the first column names the row."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Tokens:
    """A strip of tokens, each shaded by its loss in nats (None: not predicted)."""

    caption: str
    names: Sequence[str]
    losses: Sequence[float | None]


Block = Note | Quantities | Table | Tokens | Drawing


@dataclass(frozen=True)
class View:
    """A page's contents in reading order."""

    title: str
    blocks: tuple[Block, ...]

    @property
    def drawings(self) -> list[Drawing]:
        """The drawings alone."""
        return [block for block in self.blocks if isinstance(block, Drawing)]

    @property
    def values(self) -> dict[str, float]:
        """The named numbers."""
        tables = [block for block in self.blocks if isinstance(block, Quantities)]
        return {row.name: row.value for table in tables for row in table.rows}


STYLE = """
.hecto-view{
  display:flex; flex-wrap:wrap; gap:1.1rem 1.6rem; align-items:flex-start; color:var(--ink);
  font-size:.95rem; line-height:1.45;}
.hecto-view>figure{margin:0;flex:0 1 auto;max-width:100%;width:min(100%,var(--w))}
.hecto-view>figure{overflow-x:auto}
.hecto-view>figure svg{display:block}
.hecto-view>p{flex:1 0 100%;margin:0;max-width:46rem}
.hecto-view>h2{flex:1 0 100%;margin:0;font-size:1.3rem}
.hecto-view table{border-collapse:collapse;font-variant-numeric:tabular-nums;max-width:100%}
.hecto-view caption{text-align:left;font-weight:600;padding:.2rem 0;caption-side:top;color:var(--ink)}
.hecto-view th,.hecto-view td{
  text-align:left; font-weight:400; padding:.18rem .9rem .18rem 0; border:0;
  border-bottom:1px solid var(--grid); overflow-wrap:anywhere;}
.hecto-view td{text-align:right;white-space:nowrap}
.hecto-view thead th{color:var(--muted)}
.hecto-view .strip{flex:1 0 100%;min-width:0}
.hecto-view .strip p{font-weight:600;margin:0 0 .3rem}
.hecto-view ol{
  display:flex; flex-wrap:wrap; gap:.2rem; list-style:none; margin:0; padding:0; max-height:14rem;
  overflow:auto;}
.hecto-view li{
  position:relative; margin:0; padding:.1rem .35rem; border:1px solid var(--grid); border-radius:.3rem;
  font-family:ui-monospace,DejaVu Sans Mono,monospace; font-size:.85rem; overflow-wrap:anywhere;
  isolation:isolate; overflow:hidden;}
.hecto-view li i{position:absolute;inset:0;z-index:-1;background:var(--orange)}
.hecto-view li small{margin-left:.3rem;font-family:system-ui,sans-serif;opacity:.75}
.hecto-error{border-left:4px solid var(--orange);padding:.5rem .9rem;color:var(--ink)}
.hecto-error b{display:block}
.hecto-vh{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
"""


def fragment(view: View) -> str:
    """The view as an HTML element without styles."""
    parts = "".join(_block(block) for block in view.blocks)
    return f'<section class="hecto hecto-view" aria-label="{escape(view.title)}">{parts}</section>'


def _block(block: Block) -> str:
    match block:
        case Note():
            return f"<p>{escape(block.text)}</p>"
        case Drawing():
            return f'<figure style="--w:{block.width:.0f}px">{drawing.svg(block)}</figure>'
        case Quantities():
            rows = "".join(
                f'<tr><th scope="row">{escape(row.label)}</th>'
                f'<td data-name="{escape(row.name)}">{escape(row.text)}</td></tr>'
                for row in block.rows
            )
            return f"<table><caption>{escape(block.caption)}</caption><tbody>{rows}</tbody></table>"
        case Table():
            head = "".join(f'<th scope="col">{escape(name)}</th>' for name in block.columns)
            rows = "".join(
                f'<tr><th scope="row">{escape(row[0])}</th>'
                + "".join(f"<td>{escape(c)}</td>" for c in row[1:])
                + "</tr>"
                for row in block.rows
            )
            caption = f"<caption>{escape(block.caption)}</caption>"
            return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        case Tokens():
            items = "".join(_token(n, loss) for n, loss in zip(block.names, block.losses, strict=True))
            return f'<div class="strip"><p>{escape(block.caption)}</p><ol>{items}</ol></div>'


def _token(name: str, loss: float | None) -> str:
    if loss is None:
        return f"<li><span>{escape(name)}</span></li>"
    shade = min(loss / 12, 1) * 0.6  # 12 nats and more, worse than a uniform guess, is the deepest
    return (
        f'<li><i style="opacity:{shade:.2f}"></i><span>{escape(name)}</span>'
        f'<small aria-label="loss {loss:.2f}">{loss:.2f}</small></li>'
    )


def message(error: UserError) -> str:
    """An error as an HTML element: what, why and what to do."""
    lines = [("", error.what), ("Why: ", error.why), ("To mend it: ", error.fix)]
    text = "".join(
        f"<b>{escape(words)}</b>" if not label else f"<div>{label}{escape(words)}</div>"
        for label, words in lines
        if words
    )
    return f'<div class="hecto hecto-error" role="alert">{text}</div>'


def page(view: View) -> str:
    """The view as one HTML file that loads nothing and follows the reader's theme."""
    paper = (
        ":root{color-scheme:light dark}body{margin:0 auto;padding:1.2rem;max-width:64rem;background:#fff;"
        "font-family:system-ui,DejaVu Sans,sans-serif}"
        "@media(prefers-color-scheme:dark){body{background:#181c1a}}"
    )
    body = fragment(view).replace(">", f"><h2>{escape(view.title)}</h2>", 1)
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(view.title)}</title><style>{paper}{drawing.style()}{STYLE}</style></head>"
        f"<body>{body}</body></html>\n"
    )


def export(view: View, suffix: str) -> bytes:
    """The view as a file: .html the whole page, .svg and .png its drawings below each other.

    Raises UserError for another suffix.
    """
    if suffix == ".html":
        return page(view).encode()
    if suffix == ".svg":
        return drawing.svg(drawing.stack(view.drawings), alone=True).encode()
    if suffix == ".png":
        return drawing.png(drawing.stack(view.drawings))
    raise UserError(
        f"cannot write a view as {suffix or 'a file without suffix'}", fix="a name ending in .html, .svg or .png"
    )
