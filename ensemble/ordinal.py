"""The ordered axes of a label space, and the model of their values: cumulative links.

An image has one score, and a value is reached with the probability ``sigmoid(link)``, where the link is the score minus
the threshold of the value (McCullagh 1980, "Regression Models for Ordinal Data", equation 2.1; CORAL, Cao et al. 2020).
Trainings compute it in torch, probes in numpy and exported probes in ONNX; all by the sum of `join_values`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ensemble.errors import OptionError

if TYPE_CHECKING:
    from ensemble.labels import Axis, LabelSpace

_NUMBER = re.compile(r"\d+(?:\.\d+)?")


def join_values(reached: Any, passed: Any, gaps: Any, join: Callable[[Sequence[Any]], Any]) -> Any:
    """Return the log-probabilities ``(N, K)`` of ordered values, as an array or tensor like the arguments.

    ``reached`` and ``passed`` ``(N, K - 1)`` are ``log sigmoid(link)`` and ``log sigmoid(-link)`` of each value but the
    lowest, and ``gaps`` ``(K - 2,)`` are ``log(1 - exp(upper - lower))`` of the links of neighboring values. A value
    between two links has ``s(a) - s(b) = s(a) s(-b) (1 - exp(b - a))`` with the sigmoid ``s``, the link ``a`` of itself
    and ``b`` of the next one: in logarithms nothing cancels. ``join`` puts columns side by side.
    """
    return join([passed[:, :1], reached[:, :-1] + passed[:, 1:] + gaps, reached[:, -1:]])


def describe_order(axis: Axis) -> str:
    """Return the values of an axis in their order; of more than twelve, the first and the last."""
    values = axis.values
    return " < ".join(values) if len(values) <= 12 else f"{values[0]} < ... < {values[-1]}"


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


def require_told_order(labels: LabelSpace, names: Sequence[str], *, option: str = "--ordinal") -> None:
    """Check that the order of the values of these axes is not merely that of the alphabet.

    Names that are not in the order of the alphabet were put in order by someone, and the numbers in names may tell it:
    10-19 < 20-29. The alphabet alone has 100-109 < 20-29, 30-59 < <30, and middle < old < young.

    Raises:
        OptionError: E204 when sorted names tell no order; ``option`` is what the axes were given to.
    """
    for axis in labels.axes:
        values = axis.values
        if axis.name not in names or list(values) != sorted(values):
            continue
        found = [_NUMBER.search(value) for value in values]
        numbers = [float(one[0]) for one in found if one is not None]
        if len(numbers) == len(values) and all(a < b for a, b in pairwise(numbers)):
            continue
        raise OptionError(
            "E204",
            f"{option} {axis.name}: the order of the values is that of the alphabet, {describe_order(axis)}",
            hint="write the names in their true order into a file, one per line, and give it with --labels names.txt",
        )


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
