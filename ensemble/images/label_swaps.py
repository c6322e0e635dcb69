"""Views that exchange labels: a mirrored image shows left on the right, so its predictions are exchanged back.

``hflip:left=right`` mirrors the images and exchanges the columns of ``left`` and ``right``. They are names of classes
or labels, values of an axis, or words within them: ``left=right`` also exchanges ``left knee`` and ``right knee``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ensemble.arrays import Logits
from ensemble.errors import OptionError, enumerate_some
from ensemble.labels import SEPARATOR, LabelSpace

Swaps = tuple[tuple[str, str], ...]


def parse_swaps(parts: Sequence[str], *, view: str) -> Swaps:
    """Parse ``left=right`` for each of the parts.

    Raises:
        OptionError: E201 when one has another form, or a name is exchanged twice.
    """
    pairs = [tuple(side.strip() for side in part.split("=")) for part in parts]
    names = [name for pair in pairs for name in pair]
    if any(len(pair) != 2 for pair in pairs) or not all(names) or len(set(names)) != len(names):
        raise OptionError("E201", f"{view!r}: labels are exchanged as left=right, each name once")
    return tuple((first, second) for first, second in pairs)


def swapped_columns(swaps: Swaps, labels: LabelSpace, *, member: str) -> NDArray[np.intp]:
    """Return for each column the one it is exchanged with, itself for most: a permutation that is its own inverse.

    Raises:
        OptionError: E201 when a name is in no class, or the counterpart of a class does not exist.
    """
    position = {name: label for label, name in enumerate(labels.names)}
    others = dict(zip(labels.names, labels.names, strict=True))
    for first, second in swaps:
        values = {value for axis in labels.axes for value in axis.values} | set(labels.names)
        exact = first in values or second in values
        moved = 0
        for name, before in others.items():
            parts = [before] if before in {first, second} else before.split(SEPARATOR)
            others[name] = SEPARATOR.join(_exchange(part, first, second, exact=exact) for part in parts)
            moved += others[name] != before
        if not moved:
            some = enumerate_some(list(labels.names), limit=5)
            raise OptionError("E201", f"{member} has no classes to exchange by {first}={second}; it has {some}")
    for name, other in others.items():
        if other not in position:
            raise OptionError("E201", f"{member}: {name!r} would be exchanged with {other!r}, which is not a class")
    return np.array([position[other] for other in others.values()], dtype=np.intp)


def _exchange(text: str, first: str, second: str, *, exact: bool) -> str:
    other = {first: second, second: first}
    if exact:
        return other.get(text, text)
    # underscores separate words too, which \b does not see
    words = rf"(?<![^\W_])({re.escape(first)}|{re.escape(second)})(?![^\W_])"
    return re.sub(words, lambda match: other[match[1]], text)


def restore(swaps: Swaps, logits: Logits, labels: LabelSpace, *, member: str) -> Logits:
    """Return a view's logits ``(N, C)`` as those of the image itself."""
    if not swaps:
        return logits
    return np.ascontiguousarray(logits[:, swapped_columns(swaps, labels, member=member)])
