"""Compare models on GPUs with onnxruntime on the CPU: one of each kind of network in full, the others in passing.

The folds of a member run the same kernels with the same options. So one of them is compared logit by logit; of the
others it is checked that their logits are finite and of the size that they have on the CPU's side of the first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future
from functools import partial

import numpy as np

from ensemble.arrays import Logits, Pixels
from ensemble.events import Listener
from ensemble.images.views import View
from ensemble.runtime.device import Device
from ensemble.runtime.gpu_start import fill, model_inputs, retry_on_oom
from ensemble.runtime.machine import available_cores
from ensemble.runtime.model_file import ModelFile
from ensemble.runtime.parity import ON_GPUS, draw_pictures, near_ties_of, notify_parity, require_close, row_scales
from ensemble.runtime.session import Session, start_session

_APART = 8.0  # times the median row scale of the first of the kind: a fold that differs more is compared in full

NetworkKind = tuple[object, ...]


def kind_of(model: ModelFile) -> NetworkKind:
    """Return what two models must have in common to run the same kernels."""
    card = model.card
    return (card.arch, card.precision, card.preprocess, card.mean, card.std, len(card.labels))


def expect_later(
    pool: Executor, models: Mapping[str, ModelFile], views: Sequence[View]
) -> dict[NetworkKind, Future[Logits]]:
    """Compute the logits of the first model of each kind on the CPU, in ``pool``."""
    firsts: dict[NetworkKind, Future[Logits]] = {}
    for model in models.values():
        if kind_of(model) not in firsts:
            firsts[kind_of(model)] = pool.submit(_expect, model, views)
    return firsts


def compare_kinds(
    sessions: Mapping[str, Session],
    models: Mapping[str, ModelFile],
    expected: Mapping[NetworkKind, Future[Logits]],
    views: Sequence[View],
    listener: Listener,
    *,
    pool: int = 0,
) -> None:
    """Compare the first session of each kind with ``expected``, and check the others; a suspicious one is compared too.

    Raises:
        DeviceError: E604 when logits are not finite, E606 when they differ.
    """
    scales: dict[NetworkKind, float] = {}
    for name, session in sessions.items() if expected else ():
        kind = kind_of(models[name])
        size = session.card.preprocess.size
        for one in session.device.each:
            found = _answer(session, one, views, draw_pictures(size), listener, pool=pool)
            scale = float(np.median(row_scales(found)))
            if kind in scales and scales[kind] / _APART < scale < _APART * scales[kind]:
                continue
            wanted = _expect(models[name], views) if kind in scales else expected[kind].result()
            who = f"{session.card.member} on {one}"
            limit, near_ties = ON_GPUS[session.card.precision], near_ties_of(session.card)
            parity = require_close(wanted, found, who=who, limit=limit, near_ties=near_ties)
            notify_parity(parity, who=who, listener=listener)
        scales.setdefault(kind, scale)


def _turns(pictures: Pixels, views: Sequence[View]) -> list[tuple[int, View]]:
    """Return pairs of a test image and a view, so that all of both occur."""
    return [(i % len(pictures), views[i % len(views)]) for i in range(max(len(pictures), len(views)))]


def _expect(model: ModelFile, views: Sequence[View]) -> Logits:
    pictures = draw_pictures(model.card.preprocess.size)
    reference = start_session(model, threads=available_cores())
    turns = _turns(pictures, views)
    return np.concatenate([reference.run(view.apply(pictures[i : i + 1])) for i, view in turns])


def _answer(
    session: Session, device: Device, views: Sequence[View], pictures: Pixels, listener: Listener, *, pool: int
) -> Logits:
    card = session.card
    inputs = model_inputs({card.preprocess: pictures}, views)[card.preprocess]
    buffers = fill(session, device, inputs, pool=pool)
    try:
        logits = retry_on_oom(session, partial(session.run_views, buffers), listener)
    finally:
        buffers.close()
    return np.stack([logits[view.name][i] for i, view in _turns(pictures, views)])
