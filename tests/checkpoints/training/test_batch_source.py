"""Batches are the same whether a thread or processes make them; processes that die are an error, not a wait."""

from __future__ import annotations

import multiprocessing
import os
import signal

import numpy as np
import pytest

from checkpoints.data.image_cache import DecodedImages
from checkpoints.training.augment import parse_policy
from checkpoints.training.batch_source import BatchSource, choose_workers
from checkpoints.training.batches import LabeledImages
from checkpoints.training.sampler import Order
from ensemble.errors import ModelError

pytestmark = pytest.mark.slow

COUNT = 12


def images() -> LabeledImages:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (COUNT, 24, 16, 3), dtype=np.uint8)
    fallback_index = np.full(COUNT, -1)
    fallback_index[[2, 7]] = (0, 1)
    labels = np.arange(COUNT) % 3
    return LabeledImages(DecodedImages(pixels, pixels[:2] // 2, fallback_index), labels, labels)


ORDER = [Order(part, np.zeros_like(part)) for part in np.array([[3, 2, 11, 7], [0, 9, 1, 5], [4, 6, 8, 10]])]


def test_processes_make_the_batches_of_a_thread_until_one_is_killed() -> None:
    """A worker process gives the bytes and targets of the thread in two epochs; a killed one ends the next with E440.

    One test, since a process takes seconds to start. Afterwards no process is left.
    """
    with BatchSource(images(), "default", seed=5) as source:
        expected = [list(source.epoch(ORDER, number)) for number in (1, 2)]
    assert not np.array_equal(expected[0][0][0], expected[1][0][0])
    with BatchSource(images(), "default", seed=5, workers=1) as source:
        for number, epoch in enumerate(expected, 1):
            for (pixels, targets), (others, same) in zip(source.epoch(ORDER, number), epoch, strict=True):
                np.testing.assert_array_equal(pixels, others)
                np.testing.assert_array_equal(targets, same)
        batches = source.epoch(ORDER * 4, 3)
        next(batches)
        (worker,) = multiprocessing.active_children()
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(ModelError, match="was killed") as caught:
            list(batches)
    assert caught.value.code == "E440"
    assert "--device cpu" in (caught.value.hint or "")
    assert not multiprocessing.active_children()


def test_only_a_gpu_with_albumentations_gets_processes() -> None:
    """The CPU and the policies of numpy take a thread; on a GPU each training of a machine gets its share of cores."""
    policy = parse_policy("default")
    assert choose_workers("cpu", policy) == 0
    assert choose_workers("cuda", parse_policy("light")) == 0
    assert choose_workers("cuda", None) == 0
    assert 1 <= choose_workers("cuda", policy, processes=64) <= choose_workers("cuda", policy) <= 8
