"""The findings of an audit as one offline HTML page of thumbnails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from checkpoints.audit.audit import Audit
from checkpoints.audit.findings import Finding, FindingKind
from checkpoints.data.summary_html import image_figure
from ensemble.analysis.html import Tile, render_document, section
from ensemble.files import write_atomic

_MOST = {"label": 120, "leak": 40, "folds": 40, "duplicate": 40, "outlier": 24, "unreadable": 0}
_LISTED = 100
_TITLES: Mapping[FindingKind, str] = {
    "label": "Labels that are probably wrong",
    "leak": "Copies of evaluation images",
    "folds": "Copies of images of another fold",
    "duplicate": "Other copies in the training set",
    "outlier": "Outliers",
    "unreadable": "Unreadable images",
}
_NAMES: Mapping[FindingKind, str] = {
    "label": "suspected label errors",
    "leak": "copies of evaluation images",
    "folds": "copies across folds",
    "duplicate": "other copies",
    "outlier": "outliers",
    "unreadable": "unreadable images",
}
_SUMMARIES: Mapping[FindingKind, str] = {
    "label": "The given value and the more probable one, with the score of the error: 1 is the surest.",
    "leak": "A training image beside the evaluation image that it is a copy of, with their likeness.",
    "folds": "An image beside its copy that another fold holds out, with their likeness: the fold's score is too high.",
    "duplicate": "An image beside its copy, with their likeness.",
    "outlier": "Images unlike all others, with the score of the difference.",
    "unreadable": "Files that could not be read as images.",
}
_LEGEND = '<div class="legend"><span><b style="background:var(--second)"></b>sure: among the label fixes</span></div>'


def write_audit_page(path: Path, audit: Audit, images: Mapping[str, Path], evaluation: Mapping[str, Path]) -> Path:
    """Write the page; ``images`` and ``evaluation`` have the files by id. Sure findings have a colored edge.

    Raises:
        FileError: E701 or E702 when it cannot be written.
    """
    body = ""
    for kind, title in _TITLES.items():
        ones = [one for one in audit.findings if one.kind == kind]
        if ones:
            content = _list(ones) if kind == "unreadable" else _cards(ones, kind, images, evaluation)
            body += section(f"{title}: {len(ones):,}", _SUMMARIES[kind], content)
    sure = sum(one.sure for one in audit.findings)
    tiles = [
        Tile("Training images", f"{audit.images:,}", ""),
        Tile("Findings", f"{len(audit.findings):,}", f"{sure:,} of them sure"),
    ]
    if audit.evaluation:
        tiles.insert(1, Tile("Evaluation images", f"{audit.evaluation:,}", "compared with the training images"))
    counts = [f"{count:,} {_NAMES[kind]}" for kind in _NAMES if (count := sum(o.kind == kind for o in audit.findings))]
    summary = f"{', '.join(counts) if counts else 'Nothing'} found in {audit.images:,} training images"
    return write_atomic(path, render_document(summary, subtitle="Audit", tiles=tiles, body=body).encode())


def _list(findings: Sequence[Finding]) -> str:
    items = "".join(f"<li>{escape(one.id)}: {escape(one.why)}</li>" for one in findings[:_LISTED])
    return f"<ul>{items}</ul>{_more(len(findings) - _LISTED)}"


def _cards(
    findings: Sequence[Finding], kind: FindingKind, images: Mapping[str, Path], evaluation: Mapping[str, Path]
) -> str:
    distinct = _distinct(findings)
    shown = distinct[: _MOST[kind]]
    cards = "".join(_card(one, images, evaluation) for one in shown)
    legend = _LEGEND if any(one.sure for one in shown) else ""
    return f'{legend}<div class="findings">{cards}</div>{_more(len(distinct) - len(shown))}'


def _more(count: int) -> str:
    return f'<p class="note">{count:,} more are in the table.</p>' if count > 0 else ""


def _distinct(findings: Sequence[Finding]) -> list[Finding]:
    """Return the findings, with one image for those of a group that were joined."""
    seen: dict[tuple[str, ...], Finding] = {}
    for one in findings:
        joined = one.kind == "label" and bool(one.why)
        seen.setdefault((one.group, one.axis) if joined else (one.id, one.axis, one.other), one)
    return list(seen.values())


def _card(one: Finding, images: Mapping[str, Path], evaluation: Mapping[str, Path]) -> str:
    figures = image_figure(images[one.id], one.id)
    if one.other:
        places = evaluation if one.kind == "leak" else images
        figures += image_figure(places[one.other], one.other)
    what = f"{escape(one.axis)}: {escape(one.given)} &rarr; {escape(one.suggested)}" if one.kind == "label" else ""
    lines = [f"{one.score:.3f}", what, escape(one.why)]
    text = "".join(f"<p>{line}</p>" for line in lines if line)
    text += "".join(f'<p class="muted">{escape(name)}</p>' for name in (one.id, one.other) if name)
    mark = " sure" if one.sure else ""
    return f'<div class="finding{mark}"><div class="thumbnails">{figures}</div>{text}</div>'
