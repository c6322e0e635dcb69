"""Pieces of HTML: sections, tables, figures. Whatever text they are given is escaped."""

from __future__ import annotations

from collections.abc import Sequence, Set
from html import escape


def section(title: str, take: str, body: str) -> str:
    """A heading, a sentence with what to take away, and a body of HTML."""
    return f'<section>\n<h2>{escape(title)}</h2>\n<p class="take">{escape(take)}</p>\n{body}\n</section>\n'


def figure(svg: str, caption: str) -> str:
    """A plot over its caption."""
    return f"<figure>{_scrolling(svg, 'plot')}<figcaption>{escape(caption)}</figcaption></figure>"


def preformatted(text: str, label: str) -> str:
    """Lines that stay as they are."""
    return _scrolling(f"<pre>{escape(text.rstrip())}</pre>", label)


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str | int]],
    *,
    numbers: Set[int],
    label: str,
    chosen: Sequence[int] = (),
) -> str:
    """Rows under a header; the columns in ``numbers`` stand to the right, and rows in ``chosen`` stand out."""
    head = "".join(_cell("th", name, right=place in numbers) for place, name in enumerate(header))
    lines = []
    for number, row in enumerate(rows):
        mark = ' class="chosen"' if number in chosen else ""
        cells = "".join(_cell("td", value, right=place in numbers) for place, value in enumerate(row))
        lines.append(f"<tr{mark}>{cells}</tr>")
    return _scrolling(f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>", label)


def _cell(kind: str, value: str | int, *, right: bool) -> str:
    mark = ' class="n"' if right else ""
    return f"<{kind}{mark}>{escape(value if isinstance(value, str) else f'{value:,}')}</{kind}>"


def _scrolling(body: str, label: str) -> str:
    """What is too wide for the page scrolls inside itself, with the keyboard too."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}">{body}</div>'
