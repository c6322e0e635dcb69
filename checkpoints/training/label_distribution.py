"""Targets that spread over the neighbors of a value, on axes whose values are in order.

Geng 2016, "Label Distribution Learning", and Gao et al. 2017, "Deep Label Distribution Learning With Label Ambiguity".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from checkpoints.data.mask_contest import AGE_GROUPS, Row
from checkpoints.training.settings import TrainSettings
from ensemble.arrays import Floats
from ensemble.errors import OptionError
from ensemble.events import SILENT, Listener, Notice
from ensemble.labels import MASK18, LabelSpace
from ensemble.ordinal import ordered_positions
from ensemble.text.plain_numbers import to_float

_OPTION = "--label-distribution"


@dataclass(frozen=True, slots=True)
class LabelSpread:
    """A Gaussian over the values of an axis; ``sigma`` is its standard deviation, in years or in values."""

    axis: str
    sigma: float


def parse_spread(text: str) -> LabelSpread:
    """Parse ``age=4``: an axis and the standard deviation.

    Raises:
        OptionError: E204 when the text is something else, or the number is not above 0 and finite.
    """
    axis, _, number = text.rpartition("=")
    try:
        sigma = to_float(number)
    except ValueError:
        sigma = math.nan
    if not axis or not math.isfinite(sigma) or sigma <= 0:
        raise OptionError("E204", f"{_OPTION} takes AXIS=SIGMA with a number above 0, such as age=4, got {text!r}")
    return LabelSpread(axis, sigma)


def require_valid_spreads(settings: TrainSettings) -> None:
    """Check that the axes of the label distributions are axes of the classes with three values or more.

    Raises:
        OptionError: E204 when they are not, or images may have several labels.
    """
    spreads = [parse_spread(text) for text in settings.label_distribution]
    if spreads and settings.activation == "sigmoid":
        raise OptionError("E204", f"{_OPTION} needs images of one class each, and these may have several labels")
    ordered_positions(settings.labels, [spread.axis for spread in spreads], option=_OPTION)


def spread_targets(
    rows: Sequence[Row], settings: TrainSettings, *, borders: Sequence[float] | None, listener: Listener = SILENT
) -> NDArray[np.float32] | None:
    """Return the targets of the loss, ``(N, C)`` float32 with rows that sum to 1; None without label distributions.

    With ``borders``, those of `age_borders`, ages are spread in years: each age group has what the Gaussian around the
    person's age has between the borders of the group. Other axes are spread over the numbers of their values. An image
    whose class does not follow from its age, such as one of a label fix, keeps its age group. I473 says all of it.
    """
    if not settings.label_distribution:
        return None
    labels = settings.labels
    targets = np.array([row.target for row in rows], dtype=np.int64)
    spreads = {spread.axis: spread.sigma for spread in map(parse_spread, settings.label_distribution)}
    total: Floats = np.ones((len(rows), 1))
    for axis in labels.axes:
        values = labels.along(axis.name, targets)
        part = np.eye(len(axis.values))[values]
        if axis.name in spreads:
            spread = _SpreadAxis(axis.name, len(axis.values), spreads[axis.name])
            if axis.name == "age" and borders is not None:
                part = spread.over_years(rows, values, borders, listener)
            else:
                part = spread.over_values(values, listener)
        total = (total[:, :, None] * part[:, None, :]).reshape(len(rows), -1)
    return total.astype(np.float32)


def age_borders(rows: Sequence[Row], labels: LabelSpace) -> tuple[float, ...] | None:
    """Return the ages in years between the groups of the mask contest, None where the rows have no ages.

    ``--age-cut`` moves the last one.
    """
    if labels != MASK18 or all(row.age is None for row in rows):
        return None
    moved = [row.age for row in rows if row.moved is not None and row.age is not None]
    return (*(first - 0.5 for first in AGE_GROUPS[:-1]), min([AGE_GROUPS[-1], *moved]) - 0.5)


@dataclass(frozen=True, slots=True)
class _SpreadAxis:
    """An axis of ``count`` values, and the standard deviation of the Gaussian over them."""

    name: str
    count: int
    sigma: float

    def over_values(self, values: NDArray[np.intp], listener: Listener) -> Floats:
        """Return the shares ``(N, count)`` of a Gaussian over the numbers of the values."""
        weights = np.exp(-(((np.arange(self.count) - values[:, None]) / self.sigma) ** 2) / 2)
        found: Floats = weights / weights.sum(axis=1, keepdims=True)
        self._say("a Gaussian over the numbers of the values", "values", found, values, listener)
        return found

    def over_years(
        self, rows: Sequence[Row], values: NDArray[np.intp], borders: Sequence[float], listener: Listener
    ) -> Floats:
        """Return what a Gaussian around each person's age has between the borders of the groups, ``(N, count)``."""
        years = np.array([math.nan if row.age is None else row.age for row in rows])
        edges = (np.array([-math.inf, *borders, math.inf]) - years[:, None]) / self.sigma
        from scipy.stats import norm  # it takes seconds to load, and `parse_spread` does not need it

        found: Floats = np.diff(norm.cdf(edges), axis=1)
        odd = np.isnan(years) | (np.digitize(years, borders) != values)
        found[odd] = np.eye(self.count)[values[odd]]
        how = f"a Gaussian around each age, cut at {' and '.join(f'{border:g}' for border in borders)} years"
        how += f" ({odd.sum():,} of {len(rows):,} images keep their group)" if odd.any() else ""
        self._say(how, "years", found, values, listener)
        return found

    def _say(self, how: str, unit: str, found: Floats, values: NDArray[np.intp], listener: Listener) -> None:
        own = found[np.arange(len(values)), values].mean()
        message = f"targets of {self.name}: {how}, standard deviation {self.sigma:g} {unit}"
        listener.notice(Notice("I473", f"{message}; {own:.0%} of an image's target is its own value on average"))
