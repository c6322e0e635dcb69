"""The ordered axes of a label space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ensemble.errors import OptionError

if TYPE_CHECKING:
    from ensemble.labels import LabelSpace


def ordered_positions(labels: LabelSpace, names: Sequence[str], *, option: str = "--ordinal") -> tuple[int, ...]:
    """Return the positions of the axes with these names, in the order of the label space.

    Raises:
        OptionError: E204 when an axis is unknown, is named twice or has fewer than three values; ``option`` is what
            the names were given to.
    """
    known = [axis.name for axis in labels.axes]
    for name in names:
        if name not in known:
            raise OptionError("E204", f"{option}: there is no axis {name!r}; the classes have {', '.join(known)}")
        values = labels.axes[known.index(name)].values
        if len(values) < 3:
            raise OptionError(
                "E204",
                f"{option}: {name} has the values {', '.join(values)}; an order tells something for three or more",
                hint=f"leave out {option} {name}",
            )
    if len(set(names)) != len(names):
        raise OptionError("E204", f"{option} names an axis twice: {', '.join(names)}")
    return tuple(sorted(known.index(name) for name in names))
