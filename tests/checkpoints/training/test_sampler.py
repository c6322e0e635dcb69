"""The order of an epoch: each image once, or each class equally often, divided into steps and batches."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from checkpoints.training.sampler import cut_steps, draw_order

pytestmark = pytest.mark.slow

TARGETS = np.repeat([0, 3, 4], [50, 20, 3])


@pytest.mark.parametrize("seed", range(3))
def test_plain_and_balanced_orders(seed: int) -> None:
    """By default each image comes once; balanced, classes differ by at most one, and so do the images of a class."""
    plain = draw_order(TARGETS, balanced=False, generator=torch.Generator().manual_seed(seed))
    assert sorted(plain.images.tolist()) == list(range(73))
    assert not plain.repeats.any()
    balanced = draw_order(TARGETS, balanced=True, generator=torch.Generator().manual_seed(seed))
    shown = Counter(TARGETS[balanced.images].tolist())
    assert sorted(shown.values()) == [24, 24, 25]
    of_image = Counter(balanced.images.tolist())
    for number in (0, 3, 4):
        counts = [of_image[i] for i in np.flatnonzero(number == TARGETS).tolist()]
        assert max(counts) - min(counts) <= 1
    for image, count in of_image.items():
        assert sorted(balanced.repeats[balanced.images == image].tolist()) == list(range(count))
    again = draw_order(TARGETS, balanced=True, generator=torch.Generator().manual_seed(seed + 1))
    assert not np.array_equal(balanced.images, again.images)


def test_accumulated_batches_are_a_larger_one_in_pieces() -> None:
    """Two batches of 8 per step have the images of one of 16; too few images make one step of smaller batches."""
    order = draw_order(TARGETS, balanced=False, generator=torch.Generator().manual_seed(0))
    whole = cut_steps(order, batch=16, accumulate=1)
    pieces = cut_steps(order, batch=8, accumulate=2)
    assert [len(part) for step in pieces for part in step] == [8] * 8
    for one, two in zip(whole, pieces, strict=True):
        assert one[0].images.tolist() == [i for part in two for i in part.images.tolist()]
    assert [len(part) for part in cut_steps(order[:5], batch=8, accumulate=2)[0]] == [2, 3]
    assert [len(part) for part in cut_steps(order[:2], batch=8, accumulate=3)[0]] == [1, 1]
