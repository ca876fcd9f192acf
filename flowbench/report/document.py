"""A page as a list of blocks, written as Markdown or as one self-contained HTML file."""

import base64
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path


@dataclass(frozen=True)
class Heading:
    """Head of a section."""

    text: str


@dataclass(frozen=True)
class Paragraph:
    """Running text, optionally after a word or two in bold."""

    text: str
    lead: str = ""


@dataclass(frozen=True)
class Bullets:
    """A list without order."""

    items: Sequence[str]


@dataclass(frozen=True)
class Code:
    """A command."""

    text: str


@dataclass(frozen=True)
class Table:
    """Cells of text; the columns after the first ``words`` hold numbers and are set flush right."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1


@dataclass(frozen=True)
class Picture:
    """A figure's PNG file, with what it shows for those who see it and for those who cannot."""

    file: str
    alt: str
    caption: str


Block = Heading | Paragraph | Bullets | Code | Table | Picture


def markdown(title: str, blocks: Iterable[Block]) -> str:
    """The page as GitHub-flavoured Markdown that links to its figures."""
    return "\n\n".join([f"# {_marked(title)}", *map(_markdown, blocks)]) + "\n"


def _markdown(block: Block) -> str:
    match block:
        case Heading(text):
            return f"## {_marked(text)}"
        case Paragraph(text, lead):
            return f"**{_marked(lead)}** {_marked(text)}" if lead else _marked(text)
        case Bullets(items):
            return "\n".join(f"- {_marked(item)}" for item in items)
        case Code(text):
            return f"```sh\n{text}\n```"
        case Table(header, rows, words):
            rule = ["---" if place < words else "---:" for place in range(len(header))]
            cells = [header, rule, *rows]
            marked = [[_marked(cell) for cell in row] for row in cells]
            return "\n".join(f"| {' | '.join(row)} |" for row in marked)
        case Picture(file, alt, caption):
            return f"![{_marked(alt)}]({file})\n\n*{_marked(caption)}*"


def _marked(text: str) -> str:
    # An underscore inside a word marks nothing, and names are read more easily without a backslash.
    line = " ".join(text.split())
    return re.sub(r"[\\`*\[\]<>|]|(?<!\w)_|_(?!\w)", r"\\\g<0>", line)


def html(title: str, blocks: Iterable[Block], directory: Path) -> str:
    """The page as one HTML file that holds its figures and refers to nothing outside.

    Args:
        title: Head of the page.
        blocks: Its contents.
        directory: Where the pictures' files are.
    """
    body = "\n".join(_html(block, directory) for block in blocks)
    return _PAGE.format(title=escape(title), style=_STYLE, body=body)


def _html(block: Block, directory: Path) -> str:
    match block:
        case Heading(text):
            return f"<h2>{escape(text)}</h2>"
        case Paragraph(text, lead):
            bold = f"<strong>{escape(lead)}</strong> " if lead else ""
            return f"<p>{bold}{escape(text)}</p>"
        case Bullets(items):
            return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"
        case Code(text):
            return f"<pre><code>{escape(text)}</code></pre>"
        case Table(header, rows, words):
            head = _cells("th", header, words)
            body = "\n".join(f"<tr>{_cells('td', row, words)}</tr>" for row in rows)
            inner = f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>"
            kind = ' class="prose"' if words == len(header) else ""
            return f'<div class="wide" tabindex="0"><table{kind}>\n{inner}\n</table></div>'
        case Picture(file, alt, caption):
            png = (directory / file).read_bytes()
            width = int.from_bytes(png[16:20]) // 2  # the file has the resolution of print
            data = base64.b64encode(png).decode()
            source = f'src="data:image/png;base64,{data}"'
            image = f'<img alt="{escape(alt)}" width="{width}" {source}>'
            return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def _cells(tag: str, row: Sequence[str], words: int) -> str:
    kinds = ["" if place < words else ' class="number"' for place in range(len(row))]
    return "".join(
        f"<{tag}{kind}>{escape(cell)}</{tag}>" for kind, cell in zip(kinds, row, strict=True)
    )


_STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --paper: #ffffff; --soft: #5c5c5c;
  --line: #d5d5d5; --tint: #f5f5f4; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --paper: #161718; --soft: #a3a3a3;
  --line: #3c3e40; --tint: #222426; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 66rem; color: var(--ink);
  background: var(--paper); font: 1rem/1.55 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.25; }
h2 { font-size: 1.2rem; margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
p, ul { max-width: 46rem; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: 0.82rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.3rem 0.55rem; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); overflow-wrap: normal; }
th { background: var(--tint); font-weight: 600; }
.number { text-align: right; }
td.number { white-space: nowrap; }
.prose td { min-width: 8.5rem; max-width: 28rem; }
figure { margin: 2rem 0; }
img { display: block; max-width: 100%; height: auto; margin: 0 auto;
  padding: 0.5rem; background: #ffffff; border-radius: 4px; }
figcaption { max-width: 46rem; margin: 0.6rem auto 0; font-size: 0.88rem; color: var(--soft); }
pre { overflow-x: auto; padding: 0.8rem; background: var(--tint); border-radius: 4px; }
code { font: 0.85rem ui-monospace, monospace; }
""".strip()

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}
</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""
