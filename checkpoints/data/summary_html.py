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
from ensemble.errors import DataError
from ensemble.files import write_atomic
from ensemble.images.decode import read_image

_SIDE = 96  # px of a thumbnail, about 3 kB
_PER_CLASS = 12
_THUMBNAILS = 200  # over all classes: the page stays below 2 MB, even if every image is noise
_STYLE = """body{font:14px/1.45 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse}td,th{padding:.15rem .6rem;text-align:left}td.n{text-align:right}
.bar{background:#4878a8;height:.8rem}.ages{display:flex;align-items:flex-end;height:9rem;gap:1px}
.ages div{flex:1;background:#4878a8}.ages .moved{background:#d08030}.ages .cut{border-left:2px solid #c02020}
figure{display:inline-block;margin:.15rem}figcaption{font-size:.65rem;max-width:96px;overflow:hidden;white-space:nowrap}
"""


def write_summary_page(path: Path, data: Dataset, summary: DatasetSummary) -> Path:
    """Write the page; it has no external references.

    Raises:
        FileError: E701 or E702 when it cannot be written.
    """
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>Training data</title><style>{_STYLE}</style>",
        f"<h1>{escape(summary.title())}</h1>",
        "<h2>Labels</h2>" if summary.label_counts else "<h2>Classes</h2>",
        _bars(summary.classes, summary.unit),
        *(
            f"<h2>{escape(axis)}</h2>{_bars(counts, summary.unit)}"
            for axis, counts in summary.axes.items()
            if len(summary.axes) > 1
        ),
        _ages(summary),
        *(
            f"<h2>{escape(title)}</h2><ul>{''.join(f'<li>{escape(line)}</li>' for line in lines[:100])}</ul>"
            for title, lines in (
                ("Unreadable", list(summary.unreadable)),
                (_capital(summary.contradictions_title()), [" = ".join(group) for group in summary.contradictions]),
                ("Label fixes", list(summary.fixes)),
            )
            if lines
        ),
        "<h2>Images</h2>",
        *_sheets(data),
        "</html>",
    ]
    return write_atomic(path, "\n".join(parts).encode())


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _bars(counts: tuple[Count, ...], unit: Unit) -> str:
    most = max((count.images for count in counts), default=0) or 1
    rows = []
    for count in counts:
        face = "" if count.with_face is None else f"<td class=n>{count.with_face:.1%} with a face"
        groups = "" if unit == IMAGES else f"<td class=n>{count.people:,} {escape(unit.plural)}"
        rows.append(
            f"<tr><td>{escape(count.name)}{groups}<td class=n>{count.images:,} images{face}"
            f"<td style='width:24rem'><div class=bar style='width:{100 * count.images / most:.1f}%'></div>"
        )
    return f"<table>{''.join(rows)}</table>"


def _ages(summary: DatasetSummary) -> str:
    """Return the age histogram; the line is the age cut."""
    if not summary.ages:
        return ""
    most = max(summary.ages.values())
    bars = []
    for age in range(min(summary.ages), max(summary.ages) + 1):
        people = summary.ages.get(age, 0)
        kinds = ["moved"] * (summary.age_cut <= age < 60) + ["cut"] * (age == summary.age_cut)
        bars.append(
            f"<div class='{' '.join(kinds)}' style='height:{100 * people / most:.1f}%' title='{age}: {people}'></div>"
        )
    return (
        f"<h2>Ages</h2><div class=ages>{''.join(bars)}</div>"
        f"<p>{min(summary.ages)} to {max(summary.ages)} years; "
        f"people of {summary.age_cut} and over are trained as 60 and over.</p>"
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
        sheets.append(f"<h3>{escape(data.labels.names[label])}</h3>{figures}")
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
