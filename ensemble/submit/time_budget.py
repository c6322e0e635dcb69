"""Time budget: the members that this machine can run on all images in the given time."""

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
from ensemble.predict.batch_size import SIZES
from ensemble.predict.crash_note import note, noted, read_note, tell_died
from ensemble.predict.inputs import Inputs
from ensemble.predict.options import RunOptions
from ensemble.predict.pipeline import Batch, Pipeline, Work
from ensemble.runtime.device import Device
from ensemble.runtime.machine import available_cores
from ensemble.runtime.start import start_sessions
from ensemble.submit.chunks import Plan
from ensemble.submit.early_exit import ForwardPass
from ensemble.text.json_types import require_type

_MEASURED = 16  # images
_SECONDS = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True, slots=True)
class BudgetFit:
    """The members that fit into ``budget`` seconds, ``kept``, and those ``left_out``, heaviest first.

    ``speed`` is seconds per image and member, all its views, on one worker; ``expected`` seconds are those of what is
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
        """Return JSON-ready values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Speed:
    """Seconds per image on one worker: ``forward`` by member, with all its views, and of ``decoding``."""

    forward: Mapping[str, float]
    decoding: float


def parse_budget(text: str) -> float:
    """Return the seconds of ``90m``, ``2h`` or ``5400s``.

    Raises:
        OptionError: E204 when the text has another form or is not above 0.
    """
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smh])", text.strip())
    if found is None or float(found[1]) <= 0:
        raise OptionError("E204", f"--budget takes a time such as 90m, 2h or 5400s, got {text!r}")
    return float(found[1]) * _SECONDS[found[2]]


def fit_to_budget(
    plan: Plan,
    inputs: Inputs,
    path: Path,
    *,
    seconds: float,
    device: Device,
    options: RunOptions,
) -> BudgetFit:
    """Measure every member on the first images and choose; a run that resumes keeps the choice in ``path``.

    Raises:
        FileError, ModelError, DeviceError: see `start_session` and `Session.run`.
    """
    listing, workers = inputs.listing, options.workers or available_cores()
    parts = [plan.fingerprint(listing, device).values, seconds, workers]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    if options.fresh:
        files.remove(path)
    elif path.is_file():
        fit = _read_fit(path, key, options.listener)
        if fit is not None:
            return fit
    pipeline = Pipeline(
        inputs,
        on_gpu=device.is_gpu,
        workers=workers,
        sizes=() if options.batch else SIZES,
        listener=options.listener,
    )
    with noted([path.parent]):
        speed = _measure(plan, listing, path.parent, pipeline, device, options.listener)
    fit = fit_members(
        plan.passes,
        speed,
        images=len(listing),
        # a GPU is fed by one thread
        workers=len(device.each) if device.is_gpu else workers,
        budget=seconds,
        listener=options.listener,
    )
    files.write_atomic(path, json.dumps({"key": key, "fit": fit.as_dict()}, indent=1).encode() + b"\n")
    return fit


def _read_fit(path: Path, key: str, listener: Listener) -> BudgetFit | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if value["key"] != key:
            return None
        fields = value["fit"]
        require_type(fields, BudgetFit, "fit")
        fit = BudgetFit(**fields | {name: tuple(fields[name]) for name in ("kept", "left_out")})
    except (OSError, ValueError, KeyError, TypeError) as err:
        listener.notice(Notice("W705", f"{path.name} cannot be read and is measured again: {err}", path))
        return None
    if fit.left_out:
        listener.notice(Notice("W532", f"as in the run before: {', '.join(fit.left_out)} left out for the budget"))
    return fit


def _measure(
    plan: Plan, listing: Listing, folder: Path, pipeline: Pipeline, device: Device, listener: Listener
) -> Speed:
    """Measure on the first images."""
    rows = range(min(_MEASURED, len(listing)))
    if read_note(folder):
        tell_died(len(rows), listener)
        pipeline.known |= find_faults(listing, rows, listener=listener)
    note(folder, 0, 0)
    sessions = start_sessions(plan.models, device=device, rows=len(rows))
    spent = dict.fromkeys(sessions, 0.0)

    def run_passes(_work: Work, read: Batch) -> None:
        for one in plan.passes if read.rows else ():
            session = sessions[one.member]
            start = time.perf_counter()
            pipeline.ask(session, plan.views[one.view].apply(read.pixels[session.card.preprocess]))
            spent[one.member] += time.perf_counter() - start

    for _ in pipeline.map(run_passes, [Work(rows, tuple(sessions.values()))]):
        pass
    reading = sum(pipeline.watch.seconds.get(stage, 0.0) for stage in ("read", "decode", "resize"))
    read_rows = max(1, pipeline.watch.rows.get("resize", 0))
    return Speed({name: seconds / read_rows for name, seconds in spent.items()}, reading / read_rows)


def fit_members(
    passes: Sequence[ForwardPass],
    speed: Speed,
    *,
    images: int,
    workers: int,
    budget: float,
    listener: Listener = SILENT,
) -> BudgetFit:
    """Keep as many members as fit, heaviest first; the first is kept in any case.

    An early exit is not counted on.
    """
    weight: dict[str, float] = {}
    for one in passes:
        weight[one.member] = weight.get(one.member, 0.0) + one.weight
    ranked = sorted(weight, key=lambda member: (-weight[member], speed.forward[member], member))
    spent = [
        images * (speed.decoding + sum(speed.forward[m] for m in ranked[: k + 1])) / workers for k in range(len(ranked))
    ]
    count = max(1, sum(seconds <= budget for seconds in spent))
    kept, left_out = tuple(ranked[:count]), tuple(ranked[count:])
    fit = BudgetFit(
        budget, kept, left_out, sum(weight[m] for m in kept), spent[count - 1], spent[-1], dict(speed.forward)
    )
    if spent[0] > budget:
        listener.notice(Notice("W532", f"even {kept[0]} alone needs about {spent[0]:.0f} s of the {budget:.0f} s"))
    if left_out:
        what = f"{', '.join(left_out)} left out, {1 - fit.weight:.1%} of the weight"
        listener.notice(Notice("W532", f"the whole recipe needs about {spent[-1]:.0f} s of {budget:.0f} s: {what}"))
    return fit
