"""Start several models on GPUs: as many as fit into memory, with one batch size and their views fused in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ensemble.errors import DeviceMemoryError
from ensemble.events import SILENT, Listener, Notice
from ensemble.images.views import View, parse_views
from ensemble.runtime.device import Device
from ensemble.runtime.gpu_parity import compare_kinds, expect_later
from ensemble.runtime.gpu_start import GpuStarter
from ensemble.runtime.io_binding import SharedBatchSize
from ensemble.runtime.model_file import ModelFile
from ensemble.runtime.session import Session
from ensemble.thread_pool import thread_pool


def start_gpu_sessions(
    models: Mapping[str, ModelFile],
    *,
    device: Device,
    rows: int,
    views: Sequence[View] = (),
    in_turn: bool = False,
    pool: int = 0,
    listener: Listener = SILENT,
) -> dict[str, Session]:
    """Start models on one or more GPUs for batches of ``rows`` images; without ``views`` for the image as it is.

    With more than two views the batch is smaller: a network computes at most ``2 * rows`` views of images at once. If
    not all models fit into memory, ``in_turn`` returns the first ones that do, with the notice W608; otherwise, and if
    not even one fits, the batch is halved until they do. With a ``pool``, on CUDA, they run on a `DevicePool` of so
    many images, one view at a time. Each kind of network is compared with the CPU, see `compare_kinds`.

    Raises:
        ModelError, DeviceError: see `start_session`; E602 when not even a batch of one fits, E606 when the logits
            differ from the CPU's.
    """
    views = tuple(views) or parse_views("identity")
    shape = SharedBatchSize(rows)
    while shape.rows * len(views) > 2 * rows and shape.halve(shape.rows):
        pass
    with thread_pool(1, "ens-cpu") as executor:
        # onnxruntime on the CPU computes what the GPUs are compared with while those start
        expected = expect_later(executor, models, views) if device.is_gpu else {}
        try:
            sessions = _start_what_fits(models, GpuStarter(device, shape, views, listener, pool), in_turn=in_turn)
            compare_kinds(sessions, models, expected, views, listener, pool=pool)
        finally:
            for future in expected.values():
                future.cancel()
    return sessions


def _start_what_fits(models: Mapping[str, ModelFile], starter: GpuStarter, *, in_turn: bool) -> dict[str, Session]:
    """Start the models with smaller batches until they fit, or with ``in_turn`` the first ones that do."""
    shape, listener = starter.shape, starter.listener
    while True:
        sessions: dict[str, Session] = {}
        try:
            for name, session in starter.start(models):
                sessions[name] = session  # noqa: PERF403 - those before an error are kept
            return sessions
        except DeviceMemoryError as err:
            if in_turn and sessions:
                fit = f"{len(sessions)} of {len(models)} models fit on {starter.device} at once"
                listener.notice(Notice("W608", f"{fit}, the others run afterwards"))
                return sessions
            if not shape.halve(shape.rows):
                raise
            listener.notice(Notice("W602", f"{err.message}; continuing with {shape.rows}"))
