"""Budget: the members that this machine can run on all images in the time there is."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ensemble.early_exit import Cell
from ensemble.errors import OptionError
from ensemble.events import SILENT, Listener, Notice

_SECONDS = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True, slots=True)
class Fit:
    """What fits into ``budget`` seconds: the members ``kept`` and ``left_out``, heaviest first.

    ``speed`` is seconds an image and member, all its views, on one worker; ``expected`` seconds are those of what is
    kept, ``whole`` those of all members; ``weight`` is the share of the ensemble that is kept.
    """

    budget: float
    kept: tuple[str, ...]
    left_out: tuple[str, ...]
    weight: float
    expected: float
    whole: float
    speed: Mapping[str, float]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return asdict(self)


def parse_budget(text: str) -> float:
    """Seconds from ``90m``, ``2h`` or ``5400s``.

    Raises:
        OptionError: E204 when the text has another form or is not above 0.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text.strip())
    if found is None or float(found[1]) <= 0:
        raise OptionError("E204", f"--budget takes a time such as 90m, 2h or 5400s, got {text!r}")
    return float(found[1]) * _SECONDS[found[2]]


def measure(run: Callable[[], object]) -> float:
    """The seconds that one call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def fit_members(
    cells: Sequence[Cell],
    speed: Mapping[str, float],
    *,
    decoding: float,
    images: int,
    workers: int,
    budget: float,
    listener: Listener = SILENT,
) -> Fit:
    """The longest row of members, heaviest first, that fits; the first is kept in any case.

    ``speed`` and ``decoding`` are seconds an image on one worker; nothing is counted on an early exit.
    """
    weight: dict[str, float] = {}
    for cell in cells:
        weight[cell.member] = weight.get(cell.member, 0.0) + cell.weight
    ranked = sorted(weight, key=lambda member: (-weight[member], speed[member], member))
    spent = [images * (decoding + sum(speed[m] for m in ranked[: k + 1])) / workers for k in range(len(ranked))]
    count = max(1, sum(seconds <= budget for seconds in spent))
    kept, left_out = tuple(ranked[:count]), tuple(ranked[count:])
    fit = Fit(budget, kept, left_out, sum(weight[m] for m in kept), spent[count - 1], spent[-1], dict(speed))
    if spent[0] > budget:
        listener.notice(Notice("W532", f"even {kept[0]} alone needs about {spent[0]:.0f} s of the {budget:.0f} s"))
    if left_out:
        what = f"{', '.join(left_out)} left out, {1 - fit.weight:.1%} of the weight"
        listener.notice(Notice("W532", f"the whole recipe needs about {spent[-1]:.0f} s of {budget:.0f} s: {what}"))
    return fit
