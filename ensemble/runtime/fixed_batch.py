"""Models of one batch size on GPUs, run together: all is put on a stream, waited for once and copied back once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import numpy as np

from ensemble.arrays import Logits
from ensemble.card import Preprocess
from ensemble.runtime.device import Device
from ensemble.runtime.device_pool import DevicePool
from ensemble.runtime.io_binding import BoundSession, DeviceBuffers, SharedBatchSize


@dataclass(slots=True, eq=False)
class FixedBatchModel:
    """One model on its devices: one `BoundSession` per device, rebuilt when the shared batch size has shrunk.

    ``views`` are the views' names in the order of the graph's output, ``build`` starts the network on a device, and
    ``seconds`` is what a batch took when it started.
    """

    preprocess: Preprocess
    classes: int
    views: Sequence[str]
    shape: SharedBatchSize
    device: Device
    build: Callable[[Device, int], BoundSession]
    streams: Mapping[Device, int | None] = field(default_factory=dict)
    seconds: float = 0.0
    bound: dict[Device, BoundSession] = field(default_factory=dict)

    def split(self, logits: Logits) -> dict[str, Logits]:
        """Return ``(n, views, C)`` by view, each ``(n, C)``."""
        return {name: np.ascontiguousarray(logits[:, place]) for place, name in enumerate(self.views)}

    def on(self, device: Device, rows: int) -> BoundSession:
        """Return the model on one of the devices for a batch of ``rows``."""
        found = self.bound.get(device)
        if found is None or found.rows != rows:
            self.bound.pop(device, None)
            found = None  # free its memory before the next one is built
            found = self.build(device, rows)
            self.bound[device] = found
        return found


Guard = Callable[[FixedBatchModel], AbstractContextManager[None]]


def run_models(
    models: Sequence[FixedBatchModel], buffers: DeviceBuffers | DevicePool, guard: Guard = lambda _: nullcontext()
) -> list[Logits]:
    """Return the logits ``(n, views, C)`` of each model for the batch in ``buffers``, all of one `SharedBatchSize`.

    All is put on the device's stream before anything is waited for. What fails for one model fails inside its
    ``guard``; what only shows in the end, inside that of the last.
    """
    rows, device = models[0].shape.rows, buffers.device
    stream = models[0].streams.get(device)
    bound = []
    for model in models:
        with guard(model):
            bound.append(model.on(device, rows))
            buffers.users.add(bound[-1])
    with guard(models[-1]):
        preprocesses = {one.preprocess for one in models}
        pieces = {preprocess: buffers.pieces(preprocess, rows=rows) for preprocess in preprocesses}
        if buffers.outputs.reserve(bound, [len(pieces[model.preprocess]) for model in models]):
            for one in buffers.users:
                one.forget()
    for number in range(max(map(len, pieces.values()))):
        fronts = set()
        for model, session in zip(models, bound, strict=True):
            with guard(model):
                if number >= len(pieces[model.preprocess]):
                    continue
                if session.front is not None and session.front not in fronts:
                    session.front.run(pieces[model.preprocess][number])
                    fronts.add(session.front)
                session.enqueue(pieces[model.preprocess][number], buffers.outputs, number)
    with guard(models[-1]):
        fetched = buffers.outputs.fetch(stream)
    found = []
    for model, session in zip(models, bound, strict=True):
        parts = [buffers.outputs.logits(fetched, session, number) for number in range(len(pieces[model.preprocess]))]
        found.append(np.concatenate(parts)[: buffers.count(model.preprocess)])
    return found
