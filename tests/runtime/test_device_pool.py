"""A chunk is copied to a GPU once, and each run gathers its rows and its view there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ensemble.images.views import parse_views
from ensemble.runtime import device_pool
from ensemble.runtime.device import Device
from ensemble.runtime.device_pool import DevicePool
from ensemble.runtime.gpu_sessions import start_gpu_sessions
from ensemble.runtime.model_file import ModelFile, read_model
from ensemble.runtime.session import start_session
from tests.support import toys
from tests.support.gpus import FakeGpus, fake_gpus

CUDA = Device("cuda")
VIEWS = parse_views("hflip,scale:1.25")


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeGpus]:
    with fake_gpus(monkeypatch, tmp_path) as fake:
        yield fake


@pytest.fixture
def model(tmp_path: Path) -> ModelFile:
    return read_model(toys.write_model(tmp_path, toys.card("a"), proto=toys.convolutional_proto(toys.card("a"))))


def test_any_rows_in_any_view_have_the_logits_of_the_host(model: ModelFile, gpus: FakeGpus) -> None:
    """Rows out of order, in views that are gathered and one that is computed, of two chunks, one of them smaller."""
    session = start_gpu_sessions({"a": model}, device=CUDA, rows=4, pool=12)["a"]
    plain, pool, preprocess = start_session(model), DevicePool(CUDA, 12), model.card.preprocess
    for count in (12, 5):
        pixels = np.stack([toys.picture(seed + count, size=(16, 12)) for seed in range(count)])
        pool.load({preprocess: pixels})
        for view in VIEWS:
            for rows in (np.arange(count), np.array([3, 0, 4]), np.array([2])):
                pool.choose(preprocess, view, rows)
                found = session.run_views(pool)["identity"]
                expected = plain.run(view.apply(pixels[rows]))
                np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    pool.close()


def test_fewer_rows_are_fewer_runs_and_no_pixels_are_copied_again(
    model: ModelFile, gpus: FakeGpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of twelve rows in batches of four, five open ones take two runs of front and network instead of three, and bring
    nothing but their numbers to the device.
    """
    session = start_gpu_sessions({"a": model}, device=CUDA, rows=4, pool=12)["a"]
    pool, preprocess, view = DevicePool(CUDA, 12), model.card.preprocess, VIEWS[1]
    copied: list[tuple[int, ...]] = []
    copy = DevicePool._copy

    def counting(self: DevicePool, key: Any, array: Any, count: int) -> None:
        copied.append(array.shape)
        copy(self, key, array, count)

    monkeypatch.setattr(device_pool.DevicePool, "_copy", counting)
    pool.load({preprocess: np.zeros((12, 16, 12, 3), dtype=np.uint8)})
    runs = []
    for rows in (np.arange(12), np.arange(5)):
        pool.choose(preprocess, view, rows)
        gpus.runs = gpus.waits = 0
        session.run_views(pool)
        runs.append((gpus.runs, gpus.waits))
    assert runs == [(6, 1), (4, 1)]
    assert [shape for shape in copied if len(shape) == 4] == [(12, 16, 12, 3)]
    pool.close()
