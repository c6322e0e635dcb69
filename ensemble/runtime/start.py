"""Start the models of a run on its device, whichever kind of device that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ensemble.events import SILENT, Listener
from ensemble.images.views import View
from ensemble.runtime.device import Device
from ensemble.runtime.gpu_sessions import start_gpu_sessions
from ensemble.runtime.model_file import ModelFile
from ensemble.runtime.session import Session, start_session


def start_sessions(
    models: Mapping[str, ModelFile],
    *,
    device: Device,
    rows: int,
    views: Sequence[View] = (),
    in_turn: bool = False,
    pool: int = 0,
    listener: Listener = SILENT,
) -> dict[str, Session]:
    """Start one session per model, by the keys of ``models``.

    ``rows``, ``views``, ``in_turn`` and ``pool`` concern GPUs alone, see `start_gpu_sessions`: with ``in_turn`` only
    the first models that the memory holds are returned. On any other device all models start, for batches of any size.

    Raises:
        ModelError, DeviceError: see `start_session` and `start_gpu_sessions`.
    """
    if device.is_gpu:
        return start_gpu_sessions(
            models, device=device, rows=rows, views=views, in_turn=in_turn, pool=pool, listener=listener
        )
    return {name: start_session(model, device=device, listener=listener) for name, model in models.items()}
