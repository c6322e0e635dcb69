"""In which order the images of an epoch are learned, and how that order is cut into batches."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Order:
    """Numbers of images ``(N,)`` int64; where one is there several times, each has a turn of its own, from 0."""

    images: NDArray[np.int64]
    turns: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, chosen: slice) -> Order:
        return Order(self.images[chosen], self.turns[chosen])


def draw_order(targets: NDArray[np.int64], *, balanced: bool, generator: torch.Generator) -> Order:
    """All images of ``targets`` ``(N,)`` once; or, ``balanced``, N of them with each class that is there equally often.

    A class's images then come again only when all of it were there; the rest of the division goes to classes by lot.
    """
    mixed = torch.randperm(len(targets), generator=generator).numpy()
    if not balanced:
        return Order(mixed, np.zeros_like(mixed))
    classes = np.unique(targets)
    most = torch.randperm(len(classes), generator=generator).numpy() < len(targets) % len(classes)
    images: list[NDArray[np.int64]] = []
    turns: list[NDArray[np.int64]] = []
    for number, extra in zip(classes, most, strict=True):
        own = np.flatnonzero(targets == number)
        wanted = len(targets) // len(classes) + int(extra)
        rounds = -(-wanted // len(own))
        shuffled = [own[torch.randperm(len(own), generator=generator).numpy()] for _ in range(rounds)]
        images.append(np.concatenate(shuffled)[:wanted])
        turns.append(np.repeat(np.arange(rounds), len(own))[:wanted])
    return Order(np.concatenate(images)[mixed], np.concatenate(turns)[mixed])


def count_steps(images: int, *, batch: int, accumulate: int) -> int:
    """The optimiser's steps of an epoch.

    Images beyond a whole step wait for the next epoch's order: a last batch of few would spoil the batch statistics.
    """
    return max(1, images // (batch * accumulate))


def cut_steps(order: Order, *, batch: int, accumulate: int) -> list[list[Order]]:
    """For each step of the optimiser its ``accumulate`` batches, which are smaller where there are too few images."""
    size = min(batch * accumulate, len(order))
    steps = count_steps(len(order), batch=batch, accumulate=accumulate)
    borders = np.linspace(0, size, min(accumulate, size) + 1).round().astype(int).tolist()
    return [
        [order[step * size + start : step * size + stop] for start, stop in pairwise(borders)] for step in range(steps)
    ]
