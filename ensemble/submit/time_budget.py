"""Budget: the members that this machine can run on all images in the time there is."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ensemble import files
from ensemble.errors import OptionError
from ensemble.events import SILENT, Listener, Notice
from ensemble.images.listing import Listing
from ensemble.images.sandbox import find_faults
from ensemble.predict.crash_note import note, noted, read_note, tell_died
from ensemble.predict.pipeline import Batch, Pipeline, Work
from ensemble.runtime.device import Device
from ensemble.runtime.start import start_sessions
from ensemble.submit.chunks import Plan
from ensemble.submit.early_exit import Cell

_MEASURED = 16  # images
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


def fit_to_budget(
    plan: Plan,
    listing: Listing,
    path: Path,
    *,
    seconds: float,
    pipeline: Pipeline,
    device: Device,
    workers: int,
    fresh: bool = False,
    listener: Listener = SILENT,
) -> Fit:
    """Measure every member on the first images and choose; a run that goes on keeps the choice in ``path``.

    Raises:
        FileError, ModelError, DeviceError: see `start_session` and `Session.run`.
    """
    key = hashlib.sha256(json.dumps([plan.fingerprint(listing, device).values, seconds, workers]).encode()).hexdigest()
    if fresh:
        files.remove(path)
    elif path.is_file():
        fit = _read_fit(path, key, listener)
        if fit is not None:
            return fit
    with noted([path.parent]):
        speed, decoding = _measure(plan, listing, path.parent, pipeline, device, listener)
    fit = fit_members(
        plan.cells,
        speed,
        decoding=decoding,
        images=len(listing),
        # a GPU is fed by one thread
        workers=len(device.each) if device.is_gpu else workers,
        budget=seconds,
        listener=listener,
    )
    files.write_atomic(path, json.dumps({"key": key, "fit": fit.as_dict()}, indent=1).encode() + b"\n")
    return fit


def _read_fit(path: Path, key: str, listener: Listener) -> Fit | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if value["key"] != key:
            return None
        fields = value["fit"]
        fit = Fit(**fields | {name: tuple(fields[name]) for name in ("kept", "left_out")})
    except (OSError, ValueError, KeyError, TypeError) as err:
        listener.notice(Notice("W705", f"{path.name} cannot be read and is done again: {err}", path))
        return None
    if fit.left_out:
        listener.notice(Notice("W532", f"as in the run before: {', '.join(fit.left_out)} left out for the budget"))
    return fit


def _measure(
    plan: Plan, listing: Listing, folder: Path, pipeline: Pipeline, device: Device, listener: Listener
) -> tuple[dict[str, float], float]:
    """Seconds an image of each member, all its views, and of reading it."""
    rows = range(min(_MEASURED, len(listing)))
    if read_note(folder):
        tell_died(len(rows), listener)
        pipeline.known |= find_faults(listing, rows, listener=listener)
    note(folder, 0, 0)
    sessions = start_sessions(plan.models, device=device, rows=len(rows))
    spent = dict.fromkeys(sessions, 0.0)

    def look(_work: Work, read: Batch) -> None:
        for cell in plan.cells if read.rows else ():
            session = sessions[cell.member]
            start = time.perf_counter()
            pipeline.ask(session, plan.views[cell.view].apply(read.pixels[session.card.preprocess]))
            spent[cell.member] += time.perf_counter() - start

    for _ in pipeline.map(look, [Work(rows, tuple(sessions.values()))]):
        pass
    reading = sum(pipeline.watch.seconds.get(stage, 0.0) for stage in ("read", "decode", "resize"))
    read_rows = max(1, pipeline.watch.rows.get("resize", 0))
    return {name: seconds / read_rows for name, seconds in spent.items()}, reading / read_rows


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
