"""Render matrices of counts or shares as tables: labels stay in sight, and lines separate the groups of the axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

import numpy as np

from ensemble.analysis.html import framed, scrolling, section
from ensemble.arrays import Floats
from ensemble.labels import LabelSpace


def confusion_table(counts: Floats, names: Sequence[str], levels: Sequence[int], *, label: str) -> str:
    """Render counts ``(C, C)`` of true class (row) by predicted class, shaded by the share of the row.

    ``levels`` are those of `group_levels`.
    """
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    cells = [[f"{int(count):,}" if count else "" for count in row] for row in counts]
    return matrix_table(shares, cells, names, levels, corner="true class \\ predicted", label=label)


_MOST_MEMBERS = 24


def agreement_section(
    shares: Floats, names: Sequence[str], *, caption: str, of_two: Callable[[str, str, str], str]
) -> str:
    """Render the agreement ``(M, M)`` between members, those that agree least if there are many.

    ``of_two`` writes the sentence about the only two members: their names, and their agreement in percent.
    """
    apart = shares.copy()
    np.fill_diagonal(apart, 2)
    least = [names[i] for i in divmod(int(apart.argmin()), len(apart))]
    low = float(apart.min())
    np.fill_diagonal(apart, -1)
    most = [names[i] for i in divmod(int(apart.argmax()), len(apart))]
    high = float(apart.max())
    summary = of_two(most[0], most[1], f"{high:.1%}")
    if len(names) > 2:
        summary = (
            f"{most[0]} and {most[1]} agree most ({high:.1%}), {least[0]} and {least[1]} least ({low:.1%}). Of members "
            "of equal quality, those that agree less add more."
        )
    shown = sorted(np.argsort(shares.mean(axis=1), kind="stable")[:_MOST_MEMBERS].tolist())
    if len(shown) < len(names):
        caption += f" Shown are the {len(shown)} of {len(names)} members that agree least with the others."
    drawn = _agreement_table(shares[np.ix_(shown, shown)], [names[i] for i in shown], label="agreement between members")
    return section("Agreement between members", summary, framed(drawn, caption))


def _agreement_table(shares: Floats, names: Sequence[str], *, label: str) -> str:
    """Render shares ``(M, M)``, shaded from the lowest to 1."""
    low = float(shares.min())
    scaled = 0.08 + 0.92 * (shares - low) / max(1 - low, 1e-12)
    cells = [[f"{share:.0%}" for share in row] for row in shares]
    return matrix_table(scaled, cells, names, [0] * len(names), corner="", label=label)


def together_table(counts: Floats, names: Sequence[str], *, label: str) -> str:
    """Render the images ``(C, C)`` to which two labels apply, on the diagonal one, shaded by share of the row."""
    shares = counts / np.maximum(np.diagonal(counts), 1)[:, np.newaxis]
    np.fill_diagonal(shares, 0)
    cells = [[f"{int(count):,}" if count else "" for count in row] for row in counts]
    return matrix_table(shares, cells, names, [0] * len(names), corner="label \\ and this label", label=label)


def matrix_table(
    shades: Floats,
    cells: Sequence[Sequence[str]],
    names: Sequence[str],
    levels: Sequence[int],
    *,
    corner: str,
    label: str,
) -> str:
    """Render a square matrix of text, each cell shaded by 0 to 1; the first row and column do not scroll away."""
    lines = [f' class="line{level}"' if level else "" for level in levels]
    head = "".join(
        f'<th scope="col"{line}><span>{escape(name)}</span></th>' for name, line in zip(names, lines, strict=True)
    )
    rows = []
    for row, (name, texts) in enumerate(zip(names, cells, strict=True)):
        shown = "".join(
            f'<td{_classes(levels[column], row == column)} style="--s:{shades[row, column] * 100:.0f}%"'
            f' title="{escape(f"{name} / {names[column]}")}">{escape(text)}</td>'
            for column, text in enumerate(texts)
        )
        rows.append(f'<tr{lines[row]}><th scope="row">{escape(name)}</th>{shown}</tr>')
    table = (
        f'<table class="matrix"><thead><tr><th class="corner">{escape(corner)}</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )
    return scrolling(table, label, kind="window")


def group_levels(labels: LabelSpace) -> list[int]:
    """Return for each class the line before it: 2 where the first axis changes, 1 where another but the last does."""
    axes = [labels.along(axis.name, np.arange(len(labels))) for axis in labels.axes[:-1]]
    levels = [0] * len(labels)
    for number, values in reversed(list(enumerate(axes))):
        for place in np.flatnonzero(np.diff(values)) + 1:
            levels[place] = 1 if number else 2
    return levels


def _classes(level: int, is_diagonal: bool) -> str:
    kinds = [f"line{level}"] * bool(level) + ["own"] * is_diagonal
    return f' class="{" ".join(kinds)}"' if kinds else ""
