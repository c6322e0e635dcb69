"""The findings of an audit as one offline HTML page of thumbnails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from checkpoints.audit.audit import Audit
from checkpoints.audit.findings import Finding, FindingKind
from checkpoints.data.summary_html import image_figure
from ensemble.files import write_atomic

_MOST = {"label": 120, "leak": 40, "folds": 40, "duplicate": 40, "outlier": 24, "unreadable": 0}
_TITLES: Mapping[FindingKind, str] = {
    "label": "Labels that are probably wrong",
    "leak": "Copies of evaluation images",
    "folds": "Copies of images of another fold",
    "duplicate": "Other copies in the training set",
    "outlier": "Outliers",
    "unreadable": "Unreadable images",
}
_STYLE = """body{font:14px/1.45 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#222}
figure{margin:0}figcaption{font-size:.65rem;max-width:96px;overflow:hidden;white-space:nowrap}
.finding{display:inline-flex;flex-direction:column;gap:.2rem;margin:.25rem;padding:.4rem;border:1px solid #ccc;
vertical-align:top;max-width:13rem}.pair{display:flex;gap:.3rem}.sure{border-color:#c02020}p{margin:0}
"""


def write_audit_page(path: Path, audit: Audit, images: Mapping[str, Path], evaluation: Mapping[str, Path]) -> Path:
    """Write the page; ``images`` and ``evaluation`` have the files by id. Sure findings have a red border.

    Raises:
        FileError: E701 or E702 when it cannot be written.
    """
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>Audit</title><style>{_STYLE}</style>",
        f"<h1>Audit of {audit.images:,} training images</h1>",
        *(f"<p>{escape(line)}</p>" for line in audit.render().splitlines()),
    ]
    for kind, title in _TITLES.items():
        ones = [one for one in audit.findings if one.kind == kind]
        if ones:
            shown = _distinct(ones)[: _MOST[kind]]
            parts.append(f"<h2>{escape(title)}: {len(ones):,}</h2>")
            parts += [_render(one, images, evaluation) for one in shown]
            if len(shown) < len(ones):
                parts.append(f"<p>{len(ones) - len(shown):,} more are in the table.</p>")
    return write_atomic(path, "\n".join([*parts, "</html>"]).encode())


def _distinct(findings: Sequence[Finding]) -> list[Finding]:
    """Return the findings, with one image for those of a group that were joined."""
    seen: dict[tuple[str, ...], Finding] = {}
    for one in findings:
        joined = one.kind == "label" and bool(one.why)
        seen.setdefault((one.group, one.axis) if joined else (one.id, one.axis, one.other), one)
    return list(seen.values())


def _render(one: Finding, images: Mapping[str, Path], evaluation: Mapping[str, Path]) -> str:
    figures = [image_figure(images[one.id], one.id)]
    if one.other:
        places = evaluation if one.kind == "leak" else images
        figures.append(image_figure(places[one.other], one.other))
    what = f"{one.axis}: {one.given} &rarr; {one.suggested}" if one.kind == "label" else ""
    if what:
        what = f"{escape(one.axis)}: {escape(one.given)} &rarr; {escape(one.suggested)}"
    lines = [f"{one.score:.3f} {what}", escape(one.why), escape(one.group)]
    text = "".join(f"<p>{line}</p>" for line in lines if line)
    mark = " sure" if one.sure else ""
    return f"<div class='finding{mark}'><div class=pair>{''.join(figures)}</div>{text}</div>"
