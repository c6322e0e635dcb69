"""LabelSpace: the classes in the order of a prediction's columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ensemble.arrays import Classes
from ensemble.errors import DataError, PredictionError, cut_text

SEPARATOR = " / "
MAX_CLASSES = 100_000
"""Of a label space: a small file can name axes whose product is more than any memory holds."""
_MAX_LETTERS = 20_000_000  # of all class names together


@dataclass(frozen=True, slots=True)
class Axis:
    """One attribute of a class, such as ``gender``, and its possible values."""

    name: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LabelSpace:
    """The classes, in the order of a prediction's columns: the product of one or more axes, the last changing fastest.

    Two predictions may be blended when their label spaces are equal, or when they have the same classes in another
    order (see `permutation`).

    Raises:
        DataError: E331 when an axis is empty, has no name or repeats a value.
    """

    axes: tuple[Axis, ...]

    def __post_init__(self) -> None:
        if not self.axes:
            raise DataError("E331", "a label space needs at least one axis, got none")
        if len({axis.name for axis in self.axes}) != len(self.axes):
            raise DataError("E331", f"axes need different names, got {[axis.name for axis in self.axes]}")
        for axis in self.axes:
            if not axis.name or not axis.values or not all(axis.values):
                raise DataError("E331", f"axis {axis.name!r} needs a name and values that are not empty")
            if len(set(axis.values)) != len(axis.values):
                raise DataError("E331", f"axis {axis.name!r} names a value twice: {', '.join(axis.values)}")
        self._require_few()
        if len(set(self.names)) != len(self):
            raise DataError("E331", "two combinations of the axes have the same class name")

    def _require_few(self) -> None:
        """Check the number of classes and the length of their names before they are made."""
        count = math.prod(self.shape)
        if count > MAX_CLASSES:
            raise DataError(
                "E331", f"{len(self.axes):,} axes make {_shown(count)} classes; {MAX_CLASSES:,} are allowed"
            )
        letters = sum(count // len(axis.values) * sum(map(len, axis.values)) for axis in self.axes)
        letters += count * len(SEPARATOR) * (len(self.axes) - 1)
        if letters > _MAX_LETTERS:
            raise DataError("E331", f"the names of {count:,} classes have {_shown(letters)} letters, far too many")

    @classmethod
    def flat(cls, names: Sequence[str] | int) -> LabelSpace:
        """Return a label space of one axis; a number is short for the names ``"0"`` to ``"n-1"``.

        Raises:
            DataError: E331 when there are more than `MAX_CLASSES`.
        """
        count = names if isinstance(names, int) else len(names)
        if count > MAX_CLASSES:
            raise DataError("E331", f"{_shown(count)} classes; {MAX_CLASSES:,} are allowed")
        values = [str(i) for i in range(names)] if isinstance(names, int) else names
        return cls((Axis("class", tuple(values)),))

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each class, such as ``worn / male / under 30``."""
        return tuple(SEPARATOR.join(values) for values in product(*(axis.values for axis in self.axes)))

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of values of each axis; their product is the number of classes."""
        return tuple(len(axis.values) for axis in self.axes)

    def __len__(self) -> int:
        return math.prod(self.shape)

    def along(self, axis: str, classes: ArrayLike) -> Classes:
        """Return the values on one axis for an array of classes: ``class // 6`` for ``mask`` in mask18, and so on."""
        position = [a.name for a in self.axes].index(axis)
        found: Classes = np.unravel_index(np.asarray(classes, dtype=np.intp), self.shape)[position]
        return found

    def permutation(self, other: LabelSpace, *, owner: str) -> NDArray[np.intp]:
        """Return indices ``p`` such that ``logits_of_other[:, p]`` has this space's column order.

        ``owner`` is the member that ``other`` belongs to, for the message.

        Raises:
            PredictionError: E501 when the classes are not the same set.
        """
        if set(self.names) != set(other.names):
            missing = sorted(set(self.names) - set(other.names)) or sorted(set(other.names) - set(self.names))
            raise PredictionError(
                "E501",
                f"{owner} has {len(other)} classes, not the same {len(self)} as the others (see {missing[0]!r})",
            )
        position = {name: i for i, name in enumerate(other.names)}
        return np.array([position[name] for name in self.names], dtype=np.intp)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values, which `from_dict` reads."""
        return {"axes": [{"name": axis.name, "values": list(axis.values)} for axis in self.axes]}

    @classmethod
    def from_dict(cls, value: Any) -> LabelSpace:
        """Read ``{"axes": [{"name": ..., "values": [...]}, ...]}`` or a plain list of class names.

        Raises:
            DataError: E331 when the value is neither.
        """
        if isinstance(value, list) and all(isinstance(name, str) for name in value):
            return cls.flat(value)
        axes = value.get("axes") if isinstance(value, dict) else None
        if not isinstance(axes, list) or not all(_is_axis(axis) for axis in axes):
            raise DataError("E331", f"a label space is a list of names or has axes, got {cut_text(str(value), 80)}")
        return cls(tuple(Axis(axis["name"], tuple(axis["values"])) for axis in axes))


def _shown(count: int) -> str:
    return f"{count:,}" if count < 10**12 else "more than 10^12"


def _is_axis(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return False
    values = value.get("values")
    return isinstance(values, list) and all(isinstance(name, str) for name in values)


MASK18 = LabelSpace(
    (
        Axis("mask", ("worn", "incorrect", "none")),
        Axis("gender", ("male", "female")),
        Axis("age", ("under 30", "30 to 59", "60 and over")),
    )
)
"""The 18 classes of the mask contest: ``mask * 6 + gender * 3 + age``."""
