"""The engines of an int8 export: each network is started once, and several batches run at once."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest

from ensemble.arrays import Logits, Pixels
from ensemble.events import Recorder
from exporters import int8_engines
from exporters.accuracy_gate import predict_logits
from exporters.int8_engines import Engines
from exporters.int8_schemes import ASYMMETRIC, OPENVINO
from tests.support import toys

pytestmark = pytest.mark.slow


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The models that were started, one after the other; each answers with its first byte."""
    found: list[bytes] = []

    def start(model: bytes, *_: object) -> Callable[[Pixels], Logits]:
        found.append(model)
        return lambda batch: np.full((len(batch), 2), model[0], dtype=np.float32)

    monkeypatch.setattr(int8_engines, "start_engine", start)
    return found


def test_the_last_networks_are_kept(started: list[bytes]) -> None:
    """float32 and integers with either kind of ranges answer for several sets of images; a fourth takes their place."""
    engines = Engines(toys.card("net"), ASYMMETRIC)
    batch = np.zeros((2, 4, 4, 3), dtype=np.uint8)
    for model in (b"a", b"b", b"c", b"a", b"c", b"b"):
        assert engines.start(model)(batch)[0, 0] == model[0]
    assert started == [b"a", b"b", b"c"]
    engines.start(b"d")  # in the place of the one that was used least recently
    engines.start(b"c")
    engines.start(b"a")
    assert started == [b"a", b"b", b"c", b"d", b"a"]


def test_several_threads_start_a_network_once(started: list[bytes]) -> None:
    """Calls of OpenVINO compute on one core each, so several run at once; those of onnxruntime take all cores."""
    engines = Engines(toys.card("net"), OPENVINO)
    assert engines.parallel >= 1
    assert Engines(toys.card("net"), ASYMMETRIC).parallel == 1
    threads = [threading.Thread(target=engines.start, args=(b"a",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert started == [b"a"]


@pytest.mark.parametrize("side", [8, 256])
def test_batches_in_parallel_are_put_in_their_places(side: int) -> None:
    """Whichever ends first: all rows are there, in order, with several batches at work at once."""
    together = threading.Barrier(3, timeout=60)
    pixels = np.zeros((24, side, side, 3), dtype=np.uint8)
    pixels[:, 0, 0, 0] = np.arange(24)
    sizes: list[int] = []

    def run(batch: Pixels) -> Logits:
        together.wait()
        sizes.append(len(batch))
        return batch[:, 0, 0, :1].astype(np.float32)

    heard = Recorder()
    found = predict_logits(run, pixels, parallel=3, listener=heard)
    np.testing.assert_array_equal(found[:, 0], np.arange(24))
    # a large image takes as much memory as several small ones
    assert set(sizes) == ({4} if side == 8 else {2})
    np.testing.assert_array_equal(predict_logits(lambda one: one[:, 0, 0, :1].astype(np.float32), pixels), found)
