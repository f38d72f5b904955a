"""A report as one page of HTML that needs nothing else, and as Markdown.

File names and class names come from data that nobody has vetted: all text is escaped.
"""

import re
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from skmrr.cli.outcomes import printable

TEMPLATE = Path(__file__).with_name("page.html")
SPECIAL = re.compile(r"([\\`*_{}\[\]()#+!|~])")  # to Markdown


@dataclass(frozen=True)
class Table:
    """Rows of text, perhaps under a header."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """A picture in PNG, and what it shows in words."""

    png: bytes
    words: str
    lines: Sequence[str] = ()
    """What stands beside it."""

    @property
    def source(self) -> str:
        """The picture itself, as an address."""
        return f"data:image/png;base64,{b64encode(self.png).decode()}"


@dataclass(frozen=True)
class Section:
    """A part of a report."""

    title: str
    text: Sequence[str] = ()
    """Paragraphs."""
    table: Table | None = None
    picture: Picture | None = None
    gallery: Sequence[Picture] = ()
    warnings: Sequence[str] = ()


def as_html(title: str, sections: Sequence[Section]) -> str:
    """Write a page."""
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise ImportError("The page is Jinja's work: pip install 'skmrr[cli]'.") from error
    made = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, finalize=_shown
    )
    template = made.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(title=title, sections=sections)


def as_markdown(title: str, sections: Sequence[Section]) -> str:
    """Write the same words and numbers, without the pictures."""
    lines = [f"# {_plain(title)}", ""]
    for section in sections:
        lines += [f"## {_plain(section.title)}", ""]
        for text in section.warnings:
            lines += [f"**Warning:** {_plain(text)}", ""]
        for text in section.text:
            lines += [_plain(text), ""]
        if section.table is not None:
            # Markdown knows no table without a header
            header = section.table.header or [""] * len(section.table.rows[0])
            lines += [_line(header), _line(["---"] * len(header), plain=False)]
            lines += [*map(_line, section.table.rows), ""]
        for picture in section.gallery:
            lines.append(f"- {_plain('; '.join(picture.lines))}")
        lines += [""] if section.gallery else []
    return "\n".join(lines)


def _line(cells: Sequence[str], plain: bool = True) -> str:
    return f"| {' | '.join(map(_plain, cells) if plain else cells)} |"


def _plain(text: str) -> str:
    """Text of which Markdown makes nothing but text."""
    return SPECIAL.sub(r"\\\1", escape(printable(" ".join(text.split())), quote=False))


def _shown(value: object) -> object:
    return printable(value) if isinstance(value, str) else value
