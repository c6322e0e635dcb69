"""Plain-text tables for people."""

from __future__ import annotations

from collections.abc import Sequence


def render_columns(header: Sequence[str], rows: Sequence[Sequence[str | float | None]]) -> str:
    """Aligned columns under a header, text to the left and numbers to the right; fractions have four digits."""
    cells = [[_text(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    right = [any(isinstance(row[i], int | float) for row in rows) for i in range(len(header))]
    lines = [
        "  ".join(
            cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in [header, *cells]
    ]
    return "\n".join(lines) + "\n"


def _text(cell: str | float | None) -> str:
    if cell is None:
        return "-"
    return f"{cell:,}" if isinstance(cell, int) else f"{cell:.4f}" if isinstance(cell, float) else cell
