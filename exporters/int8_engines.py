"""Run and time networks in the engine that an int8 file is for: onnxruntime, or OpenVINO where the scheme says so."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import onnx

from ensemble.arrays import Logits, Pixels
from ensemble.card import ModelCard
from ensemble.errors import ModelError
from ensemble.runtime.error_text import explain_error
from ensemble.runtime.machine import available_cores
from ensemble.runtime.model_file import INPUT, LOGITS
from ensemble.runtime.openvino import UnavailableError, build_runtime
from exporters.int8_schemes import Scheme
from exporters.int8_timing import Times, time_nodes
from exporters.verify import ExportedModel

_RUNS = (5, 40)  # at least and at most, of one image each
_SECONDS = 0.4
_MOST_PARALLEL = 8  # calls: each takes the memory of its activations
_KEPT = 3  # networks: float32, and integers with either kind of ranges


def start_engine(model: bytes, card: ModelCard, scheme: Scheme) -> Callable[[Pixels], Logits]:
    """Return a function from images ``(N, H, W, 3)`` to logits ``(N, C)``.

    Raises:
        ModelError: E436 when OpenVINO is not installed, or cannot build the network.
    """
    if not scheme.inputs_only:
        session = ExportedModel(model, card)
        return lambda batch: session.run(batch)[LOGITS]
    try:
        runtime = build_runtime(model, bf16=False)
    except (UnavailableError, RuntimeError) as err:
        message = f"{card.member} (int8): OpenVINO does not build the network: {explain_error(err)}"
        raise ModelError("E436", message, hint="export with --quantization asymmetric, for ONNX Runtime") from err
    return lambda batch: runtime.run([LOGITS], {INPUT: batch})[0]


class Engines:
    """Starts the networks of one export, and keeps the last ones: the same network answers for several sets of images.

    Several threads may use them at once.

    To start an EfficientNet-B3 in OpenVINO takes as long as 12 images of 300 px do.
    """

    def __init__(self, card: ModelCard, scheme: Scheme) -> None:
        self._card, self.scheme = card, scheme
        # a call computes on one core in OpenVINO, on all of them in onnxruntime
        self.parallel = min(available_cores(), _MOST_PARALLEL) if scheme.inputs_only else 1
        self._starting = threading.Lock()
        self._kept: dict[bytes, Callable[[Pixels], Logits]] = {}

    def start(self, model: bytes) -> Callable[[Pixels], Logits]:
        """Return a function from images to logits, see `start_engine`."""
        with self._starting:
            run = self._kept.pop(model, None) or start_engine(model, self._card, self.scheme)
            while len(self._kept) >= _KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[model] = run
        return run


def time_network(proto: onnx.ModelProto, engines: Engines, pixels: Pixels) -> Times:
    """Return the microseconds of one image on one core: of each node in onnxruntime, of the whole in OpenVINO."""
    if not engines.scheme.inputs_only:
        return time_nodes(proto, pixels)
    run = engines.start(proto.SerializeToString(deterministic=True))
    found: list[float] = []
    began = time.process_time()
    while len(found) < _RUNS[0] or (len(found) < _RUNS[1] and time.process_time() - began < _SECONDS):
        place = len(found) % len(pixels)
        started = time.process_time()
        run(pixels[place : place + 1])
        found.append((time.process_time() - started) * 1e6)
    return Times({"network": min(found)})
