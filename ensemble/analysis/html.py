"""HTML building blocks (sections, tables, figures) that escape the text they are given, and the style sheet."""

from __future__ import annotations

from collections.abc import Sequence, Set
from html import escape
from typing import NamedTuple


def section(title: str, summary: str, body: str) -> str:
    """Render a heading, a summary sentence, and a body that is HTML already."""
    return f'<section>\n<h2>{escape(title)}</h2>\n<p class="summary">{escape(summary)}</p>\n{body}\n</section>\n'


def figure(svg: str, caption: str) -> str:
    """Render a plot above its caption."""
    return f"<figure>{scrolling(svg, 'plot')}<figcaption>{escape(caption)}</figcaption></figure>"


def framed(html: str, caption: str) -> str:
    """Render HTML that scrolls by itself, such as a matrix, above its caption."""
    return f"<figure>{html}<figcaption>{escape(caption)}</figcaption></figure>"


def preformatted(text: str, label: str) -> str:
    """Render text with its line breaks and spaces kept."""
    return scrolling(f"<pre>{escape(text.rstrip())}</pre>", label)


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str | int]],
    *,
    numbers: Set[int],
    label: str,
    wrapping: Set[int] = frozenset(),
    chosen: Sequence[int] = (),
) -> str:
    """Render rows under a header.

    Columns in ``numbers`` are right-aligned, those in ``wrapping`` break lines, and rows in ``chosen`` are highlighted.
    """
    head = "".join(_cell("th", name, "n" if place in numbers else "") for place, name in enumerate(header))
    lines = []
    for number, row in enumerate(rows):
        mark = ' class="chosen"' if number in chosen else ""
        kinds = ("n" if place in numbers else "wrap" if place in wrapping else "" for place in range(len(row)))
        cells = "".join(_cell("td", value, kind) for value, kind in zip(row, kinds, strict=True))
        lines.append(f"<tr{mark}>{cells}</tr>")
    return scrolling(f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>", label)


def _cell(tag: str, value: str | int, kind: str) -> str:
    mark = f' class="{kind}"' if kind else ""
    return f"<{tag}{mark}>{escape(value if isinstance(value, str) else f'{value:,}')}</{tag}>"


def scrolling(body: str, label: str, *, kind: str = "") -> str:
    """Let content that is wider than the page scroll, also with the keyboard; a ``window`` also scrolls up and down."""
    return (
        f'<div class="{f"scroll {kind}".strip()}" tabindex="0" role="region" aria-label="{escape(label)}">{body}</div>'
    )


# blue and orange of the color-blind safe palette of Okabe and Ito; all text has a contrast ratio above 4.5
PALETTE = """
:root { color-scheme: light dark; --paper: #fbfaf7; --card: #ffffff; --ink: #1d2126; --muted: #59616b;
  --line: #dcdad3; --accent: #0067a5; --second: #b84a00; --heat: #6db3de; --soft: #eef4f8;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
  --mono: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171a; --card: #1b1f23; --ink: #e6e8ea; --muted: #a3abb4;
  --line: #363c43; --accent: #6bbcf0; --second: #f0a03c; --heat: #2a6f9e; --soft: #1e2a33; } }
"""
STYLE = (
    PALETTE
    + """* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.6 var(--sans);
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 20px 72px; }
header p.kind { margin: 0; max-width: none; color: var(--muted); font-size: 14px; }
h1 { margin: 6px 0 24px; font-size: clamp(22px, 3.4vw, 32px); line-height: 1.28; font-weight: 620;
  letter-spacing: -0.012em; max-width: 30em; text-wrap: balance; }
h2 { margin: 0 0 6px; font-size: 20px; line-height: 1.35; font-weight: 620; }
h3 { margin: 24px 0 6px; font-size: 15px; font-weight: 600; }
section { margin-top: 56px; }
p { margin: 0 0 14px; max-width: 68ch; }
p.summary { color: var(--muted); }
ul { margin: 0; padding-left: 20px; max-width: 68ch; }
li { margin: 4px 0; }
dl.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 0; }
dl.tiles div { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px; }
dt { color: var(--muted); font-size: 13px; }
dd { margin: 2px 0 0; font-size: 24px; line-height: 1.25; font-weight: 600; }
dd small { display: block; font-size: 13px; font-weight: 400; color: var(--muted); line-height: 1.45; }
.scroll { overflow-x: auto; max-width: 100%; border: 1px solid var(--line); border-radius: 10px;
  background: var(--card); }
.scroll:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; line-height: 1.45; overflow-wrap: normal; }
th, td { padding: 9px 14px; text-align: left; vertical-align: top; white-space: nowrap; }
th { font-weight: 600; color: var(--muted); font-size: 13px; border-bottom: 1px solid var(--line); }
tbody tr + tr td { border-top: 1px solid var(--line); }
td.n, th.n { text-align: right; }
.scroll > table:not(.matrix) :is(th, td):first-child { position: sticky; left: 0; background: var(--card); }
.scroll > table:not(.matrix) tr.chosen td:first-child { background: var(--soft); }
td.wrap { white-space: normal; min-width: 320px; }
tr.chosen td { background: var(--soft); font-weight: 600; }
.window { overflow: auto; max-height: min(86vh, 900px); width: fit-content; margin: 0 auto; }
table.matrix { border-collapse: separate; border-spacing: 0; width: auto; font-size: 12px; line-height: 1.2; }
table.matrix th { position: sticky; z-index: 1; background: var(--card); color: var(--ink); font-size: 12px;
  font-weight: 400; border: 0; padding: 3px 8px; vertical-align: middle; }
table.matrix thead th { top: 0; border-bottom: 1px solid var(--muted); vertical-align: bottom; padding: 8px 3px; }
table.matrix thead span { writing-mode: vertical-rl; transform: rotate(180deg); margin: 0 auto; display: block; }
table.matrix tbody th { left: 0; text-align: right; border-right: 1px solid var(--muted); }
table.matrix th.corner { left: 0; z-index: 2; color: var(--muted); text-align: left; white-space: normal;
  border-right: 1px solid var(--muted); }
table.matrix td { min-width: 38px; height: 29px; padding: 2px 5px; text-align: center; vertical-align: middle;
  border: 0; border-right: 1px solid var(--line); border-bottom: 1px solid var(--line);
  background: color-mix(in srgb, var(--heat) var(--s), var(--card)); }
table.matrix td.own { font-weight: 650; }
table.matrix .line1:not(tr) { border-left: 1px solid var(--muted); }
table.matrix .line2:not(tr) { border-left: 2px solid var(--ink); }
table.matrix tr.line1 > * { border-top: 1px solid var(--muted); }
table.matrix tr.line2 > * { border-top: 2px solid var(--ink); }
@media (max-width: 600px) { table.matrix tbody th { white-space: normal; max-width: 30vw; min-width: 26vw; } }
figure { margin: 20px 0 0; }
figure .scroll:not(.window) { padding: 14px; }
figcaption { margin-top: 8px; font-size: 14px; color: var(--muted); max-width: 72ch; }
svg { display: block; height: auto; margin: 0 auto; }
svg * { stroke-linejoin: round; stroke-linecap: butt; }
svg text { font-family: var(--sans) !important; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr));
  gap: 16px; align-items: start; }
.pair > * { min-width: 0; }
ol.disagreements { list-style: none; margin: 20px 0 0; padding: 0; max-width: none; display: grid; gap: 16px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 320px), 1fr)); }
ol.disagreements > li { margin: 0; display: flex; gap: 14px; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; padding: 12px; min-width: 0; }
ol.disagreements img { width: 104px; height: 104px; flex: none; border-radius: 6px; }
ol.disagreements div { min-width: 0; font-size: 13px; line-height: 1.45; }
ol.disagreements code { font-size: 12px; color: var(--muted); display: block; }
ol.disagreements p { margin: 0 0 4px; }
ol.disagreements ul { padding-left: 16px; }
ol.disagreements li li { margin: 2px 0; }
ol.disagreements .maps { display: flex; flex-wrap: wrap; gap: 8px; margin-top: 8px; }
ol.disagreements figure { margin: 0; width: 104px; }
ol.disagreements figcaption { font-size: 11px; line-height: 1.35; margin-top: 3px; }
.bar { background: var(--accent); height: 13px; border-radius: 2px; }
td.chart { width: 46%; min-width: 180px; }
.scale { display: flex; justify-content: space-between; font-weight: 400; min-width: 180px; }
.ages { display: flex; align-items: flex-end; height: 150px; gap: 1px; border-bottom: 1px solid var(--muted); }
.ages div { flex: 1; background: var(--accent); }
.ages .moved { background: var(--second); }
.ages .cut { border-left: 2px solid var(--ink); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 10px 0; font-size: 14px; color: var(--muted); }
.legend b { display: inline-block; width: 12px; height: 12px; margin-right: 6px; border-radius: 2px; }
.thumbnails { display: flex; flex-wrap: wrap; gap: 8px; }
.thumbnails figure { margin: 0; width: 96px; }
.thumbnails figcaption { font-size: 11px; margin: 2px 0 0; overflow: hidden; white-space: nowrap;
  text-overflow: ellipsis; }
.findings { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 228px), 1fr)); gap: 12px; }
.finding { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 10px 12px;
  min-width: 0; font-size: 13px; line-height: 1.45; }
.finding.sure { border-left: 4px solid var(--second); }
.finding p { margin: 4px 0 0; }
.muted { color: var(--muted); }
p.note { margin: 8px 0 0; font-size: 14px; color: var(--muted); }
code, pre { font-family: var(--mono); font-size: 13px; }
pre { margin: 0; padding: 14px 16px; white-space: pre; }
aside { margin-top: 56px; border-top: 1px solid var(--line); padding-top: 24px; }
@media print { main { padding: 0; } section { break-inside: avoid; } }
"""
)

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


class Tile(NamedTuple):
    """A number at the top of the page, under its title and with a note."""

    title: str
    value: str
    note: str


def render_document(summary: str, *, subtitle: str, tiles: Sequence[Tile], body: str) -> str:
    """Render the whole file: the summary as its title, tiles, and the sections in ``body``."""
    numbers = "".join(
        f"<div><dt>{escape(t)}</dt><dd>{value}<small>{note}</small></dd></div>" for t, value, note in tiles
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n<title>{escape(summary)}</title>\n<style>{STYLE}</style>\n</head>\n'
        f'<body>\n<main>\n<header>\n<p class="kind">{escape(subtitle)}</p>\n<h1>{escape(summary)}</h1>\n'
        f'<dl class="tiles">{numbers}</dl>\n'
        f"</header>\n{body}</main>\n</body>\n</html>\n"
    )
