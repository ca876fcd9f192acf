"""A page as a list of blocks: Markdown, and from that one self-contained HTML file."""

import base64
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token


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
    """A figure's PNG file, with its caption and a text for those who cannot see it."""

    file: str
    alt: str
    caption: str


@dataclass(frozen=True)
class Folded:
    """A part of the appendix: folded in HTML, a section in Markdown."""

    title: str
    blocks: Sequence["Block"]


class Markdown(str):
    """Text that is Markdown already; any other text is escaped."""


def link(text: str, target: str) -> Markdown:
    """Write a link to another page, for a cell of a table or a paragraph."""
    return Markdown(f"[{_escaped(text)}]({target})")


Block = Heading | Paragraph | Code | Table | Picture | Folded


def markdown(title: str, blocks: Iterable[Block]) -> str:
    """Write the page as GitHub-flavoured Markdown that links to its figures."""
    return "\n\n".join([f"# {_escaped(title)}", *map(_markdown, blocks)]) + "\n"


def _markdown(block: Block) -> str:
    match block:
        case Heading(text):
            return f"## {_escaped(text)}"
        case Paragraph(text, lead):
            return f"**{_escaped(lead)}** {_escaped(text)}" if lead else _escaped(text)
        case Code(text):
            return f"```sh\n{text}\n```"
        case Table(header, rows, words):
            rule = ["---" if place < words else "---:" for place in range(len(header))]
            lines = [[_escaped(cell) for cell in row] for row in (header, *rows)]
            lines.insert(1, rule)
            return "\n".join(f"| {' | '.join(row)} |" for row in lines)
        case Picture(file, alt, caption):
            return f"![{_escaped(alt)}]({file})\n\n*{_escaped(caption)}*"
        case Folded(title, blocks):
            return "\n\n".join([f"### {_escaped(title)}", *map(_markdown, blocks)])


def _escaped(text: str) -> str:
    if isinstance(text, Markdown):
        return text
    # An underscore inside a word marks nothing, and names are read more easily without a backslash.
    line = " ".join(text.split())
    return re.sub(r"[\\`*\[\]<>|]|(?<!\w)_|_(?!\w)", r"\\\g<0>", line)


def html(title: str, blocks: Iterable[Block], find: Callable[[str], Path]) -> str:
    """Write the page as one HTML file that holds its figures and loads nothing.

    Args:
        title: Head of the page.
        blocks: Its contents.
        find: Returns the path of a picture's file, given its name.
    """
    parser = _parser(find)

    def render(block: Block) -> str:
        if isinstance(block, Folded):
            inner = "".join(map(render, block.blocks))
            return f"<details><summary>{escape(block.title)}</summary>\n{inner}</details>\n"
        return str(parser.render(_markdown(block)))

    body = "".join(map(render, blocks))
    return _PAGE.format(title=escape(title), style=_STYLE, body=body)


def _parser(find: Callable[[str], Path]) -> MarkdownIt:
    """Make a parser whose HTML holds the pictures, and whose wide tables scroll by themselves."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")

    def image(self: RendererHTML, tokens: Sequence[Token], at: int, *rest: Any) -> str:
        png = find(str(tokens[at].attrs["src"])).read_bytes()
        width = int.from_bytes(png[16:20]) // 2  # the file has twice the resolution of a screen
        source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
        alt = self.renderInlineAsText(tokens[at].children, *rest)
        return f'<img alt="{escape(alt)}" width="{width}" src="{source}">'

    def table_open(self: RendererHTML, *_: Any) -> str:  # noqa: ARG001
        return '<div class="wide" tabindex="0"><table>'

    def table_close(self: RendererHTML, *_: Any) -> str:  # noqa: ARG001
        return "</table></div>\n"

    for rule in (image, table_open, table_close):
        parser.add_render_rule(rule.__name__, rule)
    return parser


_STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --paper: #ffffff; --soft: #5c5c5c;
  --line: #d5d5d5; --tint: #f5f5f4; --link: #0b5cad; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --paper: #161718; --soft: #a3a3a3;
  --line: #3c3e40; --tint: #222426; --link: #7db8f0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 66rem; color: var(--ink);
  background: var(--paper); font: 1rem/1.55 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.25; }
h2 { font-size: 1.2rem; margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
p { max-width: 46rem; }
a { color: var(--link); }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: 0.82rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.3rem 0.55rem; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); overflow-wrap: normal; max-width: 30rem; }
th { background: var(--tint); font-weight: 600; }
td[style*="right"] { white-space: nowrap; }
img { display: block; max-width: 100%; height: auto; margin: 1.6rem auto 0;
  padding: 0.5rem; background: #ffffff; border-radius: 4px; }
p:has(> img) { max-width: none; }
p:has(> em:only-child) { margin: 0.6rem auto 0; font-size: 0.88rem; color: var(--soft); }
p > em:only-child { font-style: normal; }
details { margin: 0.6rem 0; padding: 0.3rem 0.8rem; border: 1px solid var(--line);
  border-radius: 4px; }
summary { cursor: pointer; font-weight: 600; }
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
