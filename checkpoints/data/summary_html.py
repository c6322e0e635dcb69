"""A training set as one offline HTML page: bars, ages with the cut drawn in, and a contact sheet a class."""

from __future__ import annotations

import base64
import io
from collections import defaultdict
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from checkpoints.data.dataset import Dataset
from checkpoints.data.mask_contest import Row
from checkpoints.data.summary import Count, Description
from ensemble.errors import DataError
from ensemble.files import write_atomic
from ensemble.images.decode import read_image

_SIDE = 96  # px of a thumbnail, about 3 kB
_PER_CLASS = 12
_THUMBNAILS = 200  # of all classes together: the page stays below 2 MB, even where each is noise
_STYLE = """body{font:14px/1.45 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse}td,th{padding:.15rem .6rem;text-align:left}td.n{text-align:right}
.bar{background:#4878a8;height:.8rem}.ages{display:flex;align-items:flex-end;height:9rem;gap:1px}
.ages div{flex:1;background:#4878a8}.ages .moved{background:#d08030}.ages .cut{border-left:2px solid #c02020}
figure{display:inline-block;margin:.15rem}figcaption{font-size:.65rem;max-width:96px;overflow:hidden;white-space:nowrap}
"""


def write_gallery(path: Path, data: Dataset, description: Description) -> Path:
    """Write the page; it refers to nothing outside itself.

    Raises:
        FileError: E701 or E702 when it cannot be written.
    """
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>Training data</title><style>{_STYLE}</style>",
        f"<h1>{description.images:,} images of {description.people:,} people</h1>",
        "<h2>Classes</h2>",
        _bars(description.classes),
        *(
            f"<h2>{escape(axis)}</h2>{_bars(counts)}"
            for axis, counts in description.axes.items()
            if len(description.axes) > 1
        ),
        _ages(description),
        *(
            f"<h2>{escape(title)}</h2><ul>{''.join(f'<li>{escape(line)}</li>' for line in lines[:100])}</ul>"
            for title, lines in (
                ("Unreadable", list(description.unreadable)),
                ("The same image in several classes", [" = ".join(group) for group in description.contradictions]),
                ("Label fixes", list(description.fixes)),
            )
            if lines
        ),
        "<h2>Pictures</h2>",
        *_sheets(data),
        "</html>",
    ]
    return write_atomic(path, "\n".join(parts).encode())


def _bars(counts: tuple[Count, ...]) -> str:
    most = max((count.images for count in counts), default=0) or 1
    rows = []
    for count in counts:
        face = "" if count.with_face is None else f"<td class=n>{count.with_face:.1%} with a face"
        rows.append(
            f"<tr><td>{escape(count.name)}<td class=n>{count.people:,} people<td class=n>{count.images:,} images{face}"
            f"<td style='width:24rem'><div class=bar style='width:{100 * count.images / most:.1f}%'></div>"
        )
    return f"<table>{''.join(rows)}</table>"


def _ages(description: Description) -> str:
    """People by age, from the youngest to the oldest; the line is where training begins the oldest group."""
    if not description.ages:
        return ""
    most = max(description.ages.values())
    bars = []
    for age in range(min(description.ages), max(description.ages) + 1):
        people = description.ages.get(age, 0)
        kinds = ["moved"] * (description.age_cut <= age < 60) + ["cut"] * (age == description.age_cut)
        bars.append(
            f"<div class='{' '.join(kinds)}' style='height:{100 * people / most:.1f}%' title='{age}: {people}'></div>"
        )
    return (
        f"<h2>Ages</h2><div class=ages>{''.join(bars)}</div>"
        f"<p>{min(description.ages)} to {max(description.ages)} years; "
        f"training takes people from {description.age_cut} on for 60 and over.</p>"
    )


def _sheets(data: Dataset) -> list[str]:
    by_class: dict[int, list[Row]] = defaultdict(list)
    for row in data.rows:
        by_class[row.label].append(row)
    each = max(1, min(_PER_CLASS, _THUMBNAILS // len(by_class)))
    sheets = []
    for label in sorted(by_class)[:_THUMBNAILS]:
        rows = by_class[label]
        # from all over the class: neighbours are often one person
        chosen = np.linspace(0, len(rows) - 1, min(each, len(rows))).round().astype(int).tolist()
        sheets.append(f"<h3>{escape(data.labels.names[label])}</h3>{''.join(_thumbnail(rows[i]) for i in chosen)}")
    return sheets


def _thumbnail(row: Row) -> str:
    try:
        image = Image.fromarray(read_image(row.path).pixels)
    except DataError as err:
        return f"<figure>{escape(err.code)}<figcaption>{escape(row.id)}</figcaption></figure>"
    image.thumbnail((_SIDE, _SIDE))
    data = io.BytesIO()
    image.save(data, "JPEG", quality=72)
    code = base64.b64encode(data.getvalue()).decode()
    name = escape(row.id, quote=True)
    return f'<figure><img src="data:image/jpeg;base64,{code}" alt="{name}"><figcaption>{name}</figcaption></figure>'
