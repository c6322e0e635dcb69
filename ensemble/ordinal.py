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


def require_ordinal(labels: LabelSpace, names: Sequence[str], *, head: str, activation: str) -> None:
    """Check what `--ordinal` of a training or a probe names against the classes and the head.

    Raises:
        OptionError: E204 as `ordered_positions`, when an image may have several labels, or when a head of one output
            per class has to order one axis of several.
    """
    if not names:
        return
    if activation == "sigmoid":
        message = "--ordinal needs images of one class each, and these may have several labels"
        raise OptionError("E204", message, hint="leave out --ordinal")
    ordered_positions(labels, names)
    axes = [axis.name for axis in labels.axes]
    if head == "flat" and len(axes) > 1:
        message = (
            f"--ordinal {names[0]}: the classes have the axes {', '.join(axes)}, and the head has one output per class"
        )
        raise OptionError("E204", message, hint="add --head axes")
