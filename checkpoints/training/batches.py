"""Images in memory, cut into batches: augmented to learn from, plain to predict."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from checkpoints.data.image_cache import Photos
from checkpoints.training.augment import Policy, Simple, image_seed
from checkpoints.training.sampler import Order
from checkpoints.training.settings import Settings
from ensemble.arrays import Logits, Mask, Pixels

_EVALUATED_AT_ONCE = 256


@dataclass(frozen=True, slots=True, eq=False)
class Images:
    """Photos and, for each, the class to learn and the class to be scored on, both ``(N,)`` int64."""

    photos: Photos
    targets: NDArray[np.int64]
    labels: NDArray[np.int64]

    def __getitem__(self, chosen: Mask) -> Images:
        photos = replace(self.photos, pixels=self.photos.pixels[chosen], instead=self.photos.instead[chosen])
        return Images(photos, self.targets[chosen], self.labels[chosen])

    def joined(self, others: Images) -> Images:
        """These and then the others."""
        mine, theirs = self.photos, others.photos
        moved = np.where(theirs.instead < 0, theirs.instead, theirs.instead + len(mine.fallback))
        photos = Photos(
            np.concatenate([mine.pixels, theirs.pixels]),
            np.concatenate([mine.fallback, theirs.fallback]),
            np.concatenate([mine.instead, moved]),
        )
        return Images(
            photos,
            np.concatenate([self.targets, others.targets]),
            np.concatenate([self.labels, others.labels]),
        )


def batches(
    seen: Images, order: Sequence[Order], policy: Policy | Simple | None, *, seed: int, epoch: int
) -> Iterator[tuple[Pixels, NDArray[np.int64]]]:
    """The batches of one epoch; the next one is made while the model works on this one."""

    def make(batch: Order) -> tuple[Pixels, NDArray[np.int64]]:
        chosen = batch.images
        pixels, instead = seen.photos.pixels[chosen], seen.photos.instead[chosen]
        pixels[instead >= 0] = seen.photos.fallback[instead[instead >= 0]]
        if policy is not None:
            for row, (image, turn) in enumerate(zip(chosen.tolist(), batch.turns.tolist(), strict=True)):
                # an image that comes again in an epoch is another variant of itself
                again = (turn,) if turn else ()
                pixels[row] = policy(pixels[row], image_seed(seed, epoch, image + 1, *again))
        return pixels, seen.targets[chosen]

    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(make, order[0])
        for chosen in order[1:]:
            ready, ahead = ahead, pool.submit(make, chosen)
            yield ready.result()
        yield ahead.result()


def normalise(pixels: torch.Tensor, settings: Settings) -> torch.Tensor:
    """``(B, H, W, 3)`` uint8 to what the model takes, ``(B, 3, H, W)``."""
    images = pixels / 255
    mean, std = images.new_tensor(settings.mean), images.new_tensor(settings.std)
    return ((images - mean) / std).permute(0, 3, 1, 2)


@torch.no_grad()
def predict_pixels(
    model: torch.nn.Module, pixels: Pixels, settings: Settings, *, view: Callable[[Pixels], Pixels] = np.asarray
) -> Logits:
    """The logits ``(N, C)`` of ``(N, H, W, 3)`` images, in float32, as a model in eval mode gives them."""
    model.eval()
    device = next(model.parameters()).device
    answers = [
        model(normalise(torch.from_numpy(np.ascontiguousarray(view(batch))).to(device), settings)).cpu()
        for batch in np.split(pixels, range(_EVALUATED_AT_ONCE, len(pixels), _EVALUATED_AT_ONCE))
    ]
    found: Logits = torch.cat(answers).numpy()
    return found
