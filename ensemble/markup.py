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
    wrapping: Set[int] = frozenset(),
    chosen: Sequence[int] = (),
) -> str:
    """Rows under a header; the columns in ``numbers`` stand to the right, those in ``wrapping`` break lines, rows in
    ``chosen`` stand out.
    """
    head = "".join(_cell("th", name, "n" if place in numbers else "") for place, name in enumerate(header))
    lines = []
    for number, row in enumerate(rows):
        mark = ' class="chosen"' if number in chosen else ""
        kinds = ("n" if place in numbers else "wrap" if place in wrapping else "" for place in range(len(row)))
        cells = "".join(_cell("td", value, kind) for value, kind in zip(row, kinds, strict=True))
        lines.append(f"<tr{mark}>{cells}</tr>")
    return _scrolling(f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>", label)


def _cell(tag: str, value: str | int, kind: str) -> str:
    mark = f' class="{kind}"' if kind else ""
    return f"<{tag}{mark}>{escape(value if isinstance(value, str) else f'{value:,}')}</{tag}>"


def _scrolling(body: str, label: str) -> str:
    """What is too wide for the page scrolls inside itself, with the keyboard too."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}">{body}</div>'
