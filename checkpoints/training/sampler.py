"""The order of the images in an epoch, and its division into batches."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Order:
    """Indices of images, ``(N,)`` int64; ``repeats`` counts from 0 how often each one has come before."""

    images: NDArray[np.int64]
    repeats: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, chosen: slice) -> Order:
        return Order(self.images[chosen], self.repeats[chosen])


def balanced_classes(targets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the class ``(N,)`` by which images are balanced: the class, or the rarest of the labels ``(N, L)``.

    Images without a label are a class of their own.
    """
    if targets.ndim == 1:
        return targets
    counts = np.where(targets > 0, targets.sum(axis=0), np.iinfo(np.int64).max)
    rarest: NDArray[np.int64] = np.where(targets.any(axis=1), counts.argmin(axis=1), targets.shape[1])
    return rarest


def draw_order(targets: NDArray[np.int64], *, balanced: bool, generator: torch.Generator) -> Order:
    """Return all images of ``targets`` ``(N,)`` once or, if ``balanced``, N images with each class equally often.

    An image is then repeated only after all others of its class; the remainder of the division goes to random classes.
    """
    shuffle = torch.randperm(len(targets), generator=generator).numpy()
    if not balanced:
        return Order(shuffle, np.zeros_like(shuffle))
    classes = np.unique(targets)
    extras = torch.randperm(len(classes), generator=generator).numpy() < len(targets) % len(classes)
    images: list[NDArray[np.int64]] = []
    repeats: list[NDArray[np.int64]] = []
    for number, extra in zip(classes, extras, strict=True):
        own = np.flatnonzero(targets == number)
        wanted = len(targets) // len(classes) + int(extra)
        rounds = -(-wanted // len(own))
        shuffled = [own[torch.randperm(len(own), generator=generator).numpy()] for _ in range(rounds)]
        images.append(np.concatenate(shuffled)[:wanted])
        repeats.append(np.repeat(np.arange(rounds), len(own))[:wanted])
    return Order(np.concatenate(images)[shuffle], np.concatenate(repeats)[shuffle])


def count_steps(images: int, *, batch: int, accumulate: int) -> int:
    """Return the number of optimizer steps per epoch.

    Images beyond the last whole step are left to later epochs: a small last batch would distort the batch statistics.
    """
    return max(1, images // (batch * accumulate))


def cut_steps(order: Order, *, batch: int, accumulate: int) -> list[list[Order]]:
    """Return the ``accumulate`` batches of each optimizer step; they are smaller if there are too few images."""
    size = min(batch * accumulate, len(order))
    steps = count_steps(len(order), batch=batch, accumulate=accumulate)
    borders = np.linspace(0, size, min(accumulate, size) + 1).round().astype(int).tolist()
    return [
        [order[step * size + start : step * size + stop] for start, stop in pairwise(borders)] for step in range(steps)
    ]
