"""A page's contents as a value (paragraphs, drawings, tables, tokens), and its HTML, SVG and PNG forms.

All text is escaped in HTML. An exported page is one file that loads nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from hectogpt.display import printable
from hectogpt.errors import UserError
from hectogpt.explore.pages import drawing
from hectogpt.explore.pages.drawing import Drawing


@dataclass(frozen=True)
class Note:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Quantity:
    """A number: a name for programs, a label for readers, its value and its format."""

    name: str
    label: str
    value: float
    digits: str = ".4f"

    @property
    def text(self) -> str:
        """The number as the page shows it."""
        return f"{self.value:{self.digits}}"


@dataclass(frozen=True)
class Quantities:
    """A table of named numbers."""

    caption: str
    rows: tuple[Quantity, ...]


@dataclass(frozen=True)
class Table:
    """A table of texts; the first column names the row. `token` is shown in a frame behind the caption."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    token: str = ""


@dataclass(frozen=True)
class Tokens:
    """A row of tokens, each shaded by its loss in nats (None: not predicted)."""

    caption: str
    names: Sequence[str]
    losses: Sequence[float | None]


@dataclass(frozen=True)
class Charts:
    """Drawings of one width that belong together: all side by side, or two by two, or below each other, by the room."""

    drawings: tuple[Drawing, ...]


Block = Note | Quantities | Table | Tokens | Drawing | Charts


@dataclass(frozen=True)
class View:
    """A page's contents in reading order."""

    title: str
    blocks: tuple[Block, ...]

    @property
    def drawings(self) -> list[Drawing]:
        """All drawings, in reading order."""
        groups = (block.drawings if isinstance(block, Charts) else (block,) for block in self.blocks)
        return [block for group in groups for block in group if isinstance(block, Drawing)]

    @property
    def values(self) -> dict[str, float]:
        """All named numbers."""
        tables = [block for block in self.blocks if isinstance(block, Quantities)]
        return {row.name: row.value for table in tables for row in table.rows}


STYLE = """
.hecto-view{
  container-type:inline-size; display:flex; flex-wrap:wrap; gap:1.1rem 1.6rem; align-items:flex-start; color:var(--ink);
  font-size:.95rem; line-height:1.45;}
.hecto-view figure{margin:0}
.hecto-view figure svg{display:block;width:100%;max-width:var(--w);min-width:calc(.8*var(--w))}
.hecto-view>figure{flex:0 1 auto;max-width:100%;width:min(100%,var(--w));overflow-x:auto}
.hecto-view>.charts{flex:0 0 100%;display:grid;grid-template-columns:minmax(0,1fr);gap:1.1rem 1.2rem}
.hecto-view>.charts svg{max-width:calc(1.3*var(--w));min-width:0}
@container(min-width:34rem){.hecto-view>.charts{grid-template-columns:repeat(2,minmax(0,1fr))}}
@container(min-width:55rem){.hecto-view>.charts.of-3{grid-template-columns:repeat(3,minmax(0,1fr))}}
@container(min-width:60rem){.hecto-view>.charts{grid-template-columns:repeat(var(--n),minmax(0,1fr))}}
.hecto-view>p{flex:0 0 100%;box-sizing:border-box;margin:0;padding-right:max(0px,100% - 46rem)}
.hecto-view>h2{flex:1 0 100%;margin:0;font-size:1.3rem}
.hecto-view table{border-collapse:collapse;font-variant-numeric:tabular-nums;min-width:min(100%,20rem);max-width:100%}
.hecto-view caption{text-align:left;font-weight:600;padding:.2rem 0;caption-side:top;color:var(--ink)}
.hecto-view th,.hecto-view td{
  text-align:left; font-weight:400; padding:.18rem .9rem .18rem 0; border:0;
  border-bottom:1px solid var(--grid); overflow-wrap:anywhere;}
.hecto-view td{text-align:right;white-space:nowrap}
.hecto-view thead th{color:var(--muted)}
.hecto-view thead th+th{text-align:right}
.hecto-view .strip{flex:1 0 100%;min-width:0}
.hecto-view .strip p{font-weight:600;margin:0 0 .3rem}
.hecto-view ol{
  display:flex; flex-wrap:wrap; gap:.2rem; list-style:none; margin:0; padding:0; max-height:14rem;
  overflow:auto;}
.hecto-view li,.hecto-view .token{
  margin:0; padding:.1rem .35rem; border:1px solid var(--grid); border-radius:.3rem;
  font-family:ui-monospace,DejaVu Sans Mono,monospace; font-size:.85rem; overflow-wrap:anywhere;}
.hecto-view li{position:relative;isolation:isolate;overflow:hidden}
.hecto-view li i{position:absolute;inset:0;z-index:-1;background:var(--orange)}
.hecto-view li small{margin-left:.3rem;font-family:system-ui,sans-serif;opacity:.75}
.hecto-error{border-left:4px solid var(--orange);padding:.5rem .9rem;color:var(--ink)}
.hecto-error b{display:block}
.hecto-vh{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
"""


def fragment(view: View) -> str:
    """The view as an HTML element without styles."""
    parts = "".join(_block_html(block) for block in view.blocks)
    return f'<section class="hecto hecto-view" aria-label="{escape(view.title)}">{parts}</section>'


def _block_html(block: Block) -> str:
    match block:
        case Note():
            return f"<p>{escape(block.text)}</p>"
        case Drawing():
            return f'<figure style="--w:{block.width:.0f}px">{drawing.to_svg(block)}</figure>'
        case Charts():
            n, figures = len(block.drawings), "".join(_block_html(chart) for chart in block.drawings)
            return f'<div class="charts of-{n}" style="--n:{n}">{figures}</div>'
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
                + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
                + "</tr>"
                for row in block.rows
            )
            token = f' <span class="token">{escape(block.token)}</span>' if block.token else ""
            caption = f"<caption>{escape(block.caption)}{token}</caption>"
            return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        case Tokens():
            items = "".join(_token_html(name, loss) for name, loss in zip(block.names, block.losses, strict=True))
            return f'<div class="strip"><p>{escape(block.caption)}</p><ol>{items}</ol></div>'


def _token_html(name: str, loss: float | None) -> str:
    if loss is None:
        return f"<li><span>{escape(name)}</span></li>"
    shade = min(loss / 12, 1) * 0.6  # deepest from 12 nats on; a uniform guess has 10.8
    return (
        f'<li><i style="opacity:{shade:.2f}"></i><span>{escape(name)}</span>'
        f'<small aria-label="loss {loss:.2f}">{loss:.2f}</small></li>'
    )


def message(error: UserError) -> str:
    """An error as an HTML element: what failed, why, and how to fix it; control characters as visible escapes."""
    lines = [("", error.what), ("Why: ", error.why), ("To fix it: ", error.fix)]
    shown = [(label, escape(printable(words))) for label, words in lines if words]
    text = "".join(f"<div>{label}{words}</div>" if label else f"<b>{words}</b>" for label, words in shown)
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
        f"<title>{escape(view.title)}</title><style>{paper}{drawing.css()}{STYLE}</style></head>"
        f"<body>{body}</body></html>\n"
    )


def export(view: View, suffix: str) -> bytes:
    """The view as a file: .html is the whole page, .svg and .png are its drawings on one sheet.

    Raises UserError for any other suffix.
    """
    if suffix == ".html":
        return page(view).encode()
    if suffix == ".svg":
        return drawing.to_svg(_arrange(view), alone=True).encode()
    if suffix == ".png":
        return drawing.to_png(_arrange(view))
    raise UserError(
        f"cannot write a view as {suffix or 'a file without suffix'}", fix="a name ending in .html, .svg or .png"
    )


def _arrange(view: View) -> Drawing:
    """All drawings on one sheet: two by two if they have one width, else below each other."""
    widths = {chart.width for chart in view.drawings}
    return drawing.arrange(view.drawings, columns=2 if len(widths) == 1 else 1)
