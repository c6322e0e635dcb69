"""The summary of a training set as one offline HTML page: bars, an age histogram, and a contact sheet per class."""

from __future__ import annotations

import base64
import io
from collections import defaultdict
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from checkpoints.data.columns import IMAGES, Unit
from checkpoints.data.dataset import Dataset
from checkpoints.data.mask_contest import Row
from checkpoints.data.summary import Count, DatasetSummary
from ensemble.analysis.html import Tile, render_document, scrolling, section
from ensemble.errors import DataError
from ensemble.files import write_atomic
from ensemble.images.decode import read_image

_SIDE = 96  # px of a thumbnail, about 3 kB
_PER_CLASS = 12
_THUMBNAILS = 200  # over all classes: the page stays below 2 MB, even if every image is noise


def write_summary_page(path: Path, data: Dataset, summary: DatasetSummary) -> Path:
    """Write the page; it has no external references.

    Raises:
        FileError: E701 or E702 when it cannot be written.
    """
    charts = [_bars(summary.classes, summary.unit)]
    if len(summary.axes) > 1:
        charts += [f"<h3>{escape(axis)}</h3>{_bars(counts, summary.unit)}" for axis, counts in summary.axes.items()]
    title = "Labels" if summary.label_counts else "Classes"
    body = section(title, _balance(summary), "".join(charts)) + _ages(summary)
    lists = (
        ("Unreadable", "Files that could not be read as images.", list(summary.unreadable)),
        (
            _capital(summary.contradictions_title()),
            "Images with the same pixels.",
            [" = ".join(group) for group in summary.contradictions],
        ),
        ("Label fixes", "Corrections that were applied.", list(summary.fixes)),
    )
    for heading, what, lines in lists:
        if not lines:
            continue
        items = "".join(f"<li>{escape(line)}</li>" for line in lines[:100])
        more = f" The first 100 of {len(lines):,}." if len(lines) > 100 else ""
        body += section(heading, f"{what}{more}", f"<ul>{items}</ul>")
    body += section("Images", "A few images of each class, spread over it.", "".join(_sheets(data)))
    tiles = [Tile("Images", f"{summary.images:,}", ""), Tile(title, f"{len(summary.classes):,}", "")]
    if summary.unit != IMAGES:
        tiles.insert(1, Tile(_capital(summary.unit.plural), f"{summary.people:,}", "no two folds share one"))
    return write_atomic(
        path, render_document(summary.title(), subtitle="Training data", tiles=tiles, body=body).encode()
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _bars(counts: tuple[Count, ...], unit: Unit) -> str:
    most = max((count.images for count in counts), default=0) or 1
    has_face, grouped = any(count.with_face is not None for count in counts), unit != IMAGES
    head = "<th>class</th>" + f'<th class="n">{escape(unit.plural)}</th>' * grouped + '<th class="n">images</th>'
    head += '<th class="n">with a face</th>' * has_face
    rows = []
    for count in counts:
        face = "" if count.with_face is None else f'<td class="n">{count.with_face:.1%}</td>'
        rows.append(
            f'<tr><td>{escape(count.name)}</td>{f"""<td class="n">{count.people:,}</td>""" * grouped}'
            f'<td class="n">{count.images:,}</td>{face or "<td></td>" * has_face}'
            f'<td class="chart"><div class="bar" style="width:{100 * count.images / most:.1f}%"></div></td></tr>'
        )
    scale = f'<th><div class="scale"><span>0</span><span>{most / 2:,.0f}</span><span>{most:,} images</span></div></th>'
    table = f"<table><thead><tr>{head}{scale}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return scrolling(table, "images per class")


def _balance(summary: DatasetSummary) -> str:
    """Summarize how unequal the classes are."""
    counts = sorted(summary.classes, key=lambda count: count.images)
    if len(counts) < 2:
        return summary.title()
    rare, common = counts[0], counts[-1]
    return f"The rarest is {rare.name} ({rare.images:,} images), the most frequent {common.name} ({common.images:,})."


def _ages(summary: DatasetSummary) -> str:
    """Return the age histogram; the line is the age cut."""
    if not summary.ages:
        return ""
    most, first, last = max(summary.ages.values()), min(summary.ages), max(summary.ages)
    bars = []
    for age in range(first, last + 1):
        people = summary.ages.get(age, 0)
        kinds = ["moved"] * (summary.age_cut <= age < 60) + ["cut"] * (age == summary.age_cut)
        bars.append(
            f"<div class='{' '.join(kinds)}' style='height:{100 * people / most:.1f}%' title='{age}: {people}'></div>"
        )
    marks = "".join(f"<span>{age}</span>" for age in sorted({first, (first + last) // 2, last}))
    colors = [("var(--accent)", "people of this age")]
    if summary.age_cut < 60:
        colors.append(("var(--second)", "trained as 60 and over"))
    legend = "".join(f'<span><b style="background:{color}"></b>{text}</span>' for color, text in colors)
    return section(
        "Ages",
        f"{first} to {last} years; people of {summary.age_cut} and over are trained as 60 and over. The highest bar is "
        f"{most:,} people.",
        f'<div class="ages">{"".join(bars)}</div><div class="scale">{marks}</div>'
        f'<div class="legend">{legend}<span>line: the age cut, {summary.age_cut}</span></div>',
    )


def _sheets(data: Dataset) -> list[str]:
    by_class: dict[int, list[Row]] = defaultdict(list)
    for row in data.rows:
        for label in (row.label,) if row.present is None else row.present:
            by_class[label].append(row)
    each = max(1, min(_PER_CLASS, _THUMBNAILS // max(1, len(by_class))))
    sheets = []
    for label in sorted(by_class)[:_THUMBNAILS]:
        rows = by_class[label]
        # spread over the class: consecutive images are often of one person
        chosen = np.linspace(0, len(rows) - 1, min(each, len(rows))).round().astype(int).tolist()
        figures = "".join(image_figure(rows[i].path, rows[i].id) for i in chosen)
        sheets.append(f'<h3>{escape(data.labels.names[label])}</h3><div class="thumbnails">{figures}</div>')
    return sheets


def image_figure(path: Path, caption: str) -> str:
    """Render a thumbnail above its caption, or the code of the error where the image cannot be read."""
    try:
        image = Image.fromarray(read_image(path).pixels)
    except DataError as err:
        return f"<figure>{escape(err.code)}<figcaption>{escape(caption)}</figcaption></figure>"
    image.thumbnail((_SIDE, _SIDE))
    data = io.BytesIO()
    image.save(data, "JPEG", quality=72)
    code = base64.b64encode(data.getvalue()).decode()
    name = escape(caption, quote=True)
    return f'<figure><img src="data:image/jpeg;base64,{code}" alt="{name}"><figcaption>{name}</figcaption></figure>'
