"""Find which of two classes a single probability is of."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ensemble.errors import ColumnsError, PositiveClassError
from ensemble.submission.class_names import Mismatch, fold_name, match_columns

_POSITIVE = {"1", "true", "yes", "y", "positive", "pos", "present", "malignant", "abnormal", "fake", "tumor", "tumour"}
_NEGATIVE = {"0", "false", "no", "n", "negative", "neg", "absent", "benign", "normal", "real", "healthy", "none"}
_NOT = re.compile(r"^(?:no|not|non|without|un)\b\s*")


def find_positive(names: Sequence[str], column: str, named: str | None, *, recorded: str | None = None) -> int:
    """Return the number of the class whose probability is written in a column.

    It is the class that is ``named``; or the one that the column is named after; or the one that a recipe ``recorded``;
    or the one that its name tells apart from the other, such as ``yes`` from ``no``, ``1`` from ``0``, or ``mask`` from
    ``no mask``.

    Raises:
        PredictionError: E542 when the names do not tell, E541 when the class that is named is none.
    """
    if named is not None:
        if named not in names:
            raise ColumnsError("E541", f"--positive {named!r} is not one of the classes {', '.join(names)}")
        return list(names).index(named)
    if len(names) == 1:
        return 0
    if len(names) != 2:
        raise PositiveClassError(
            "E542", f"a single probability is of one class, and there are {len(names)}: {', '.join(names[:5])}"
        )
    for label, name in enumerate(names):
        match = match_columns([column], [name])
        if not isinstance(match, Mismatch) and not _is_number_match(match.how):
            return label
    if recorded is not None and recorded in names:
        return list(names).index(recorded)
    folded = [fold_name(name) for name in names]
    found = [
        label
        for label, (name, other) in enumerate(zip(folded, folded[::-1], strict=True))
        if (name in _POSITIVE and other not in _POSITIVE)
        or (other in _NEGATIVE and name not in _NEGATIVE)
        or (_NOT.sub("", other) == name != other)
    ]
    if len(found) != 1:
        raise PositiveClassError(
            "E542",
            f"column {column!r} has one probability, and {names[0]!r} or {names[1]!r}: the names do not tell",
            hint=f"name it: --positive {names[1]!r}" if " " in names[1] else f"name it: --positive {names[1]}",
        )
    return found[0]


def _is_number_match(how: str | None) -> bool:
    return how is not None and "number" in how
