"""Labeled images in memory, their normalization, and predictions of them in batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from checkpoints.data.image_cache import DecodedImages
from checkpoints.loading.channels import network_channels
from checkpoints.training.settings import TrainSettings
from ensemble.arrays import Logits, Mask, Pixels

_EVAL_BATCH = 256


@dataclass(frozen=True, slots=True, eq=False)
class LabeledImages:
    """Decoded images and, for each, the class to train on and the class to score on, both ``(N,)`` int64.

    Where an image may have several labels, both are ``(N, L)``, 1 for the labels that it has and 0 for the others.
    ``soft_targets``, float32, are what the loss takes in place of the targets, if there are any.
    """

    decoded: DecodedImages
    targets: NDArray[np.int64]
    labels: NDArray[np.int64]
    soft_targets: NDArray[np.float32] | None = None

    @property
    def loss_targets(self) -> NDArray[np.int64] | NDArray[np.float32]:
        """The targets of the loss, a row per image."""
        return self.targets if self.soft_targets is None else self.soft_targets

    def with_soft_targets(self, soft_targets: NDArray[np.float32]) -> LabeledImages:
        """Return the images with other targets of the loss, a row per image."""
        return replace(self, soft_targets=soft_targets)

    def __getitem__(self, chosen: Mask) -> LabeledImages:
        pixels, index = self.decoded.pixels[chosen], self.decoded.fallback_index[chosen]
        decoded = replace(self.decoded, pixels=pixels, fallback_index=index)
        soft = None if self.soft_targets is None else self.soft_targets[chosen]
        return LabeledImages(decoded, self.targets[chosen], self.labels[chosen], soft)

    def concatenate(self, others: LabeledImages) -> LabeledImages:
        """Return these images followed by the others; both have soft targets, or neither."""
        soft = None
        if self.soft_targets is not None and others.soft_targets is not None:
            soft = np.concatenate([self.soft_targets, others.soft_targets])
        first, second = self.decoded, others.decoded
        index = np.where(second.fallback_index < 0, -1, second.fallback_index + len(first.fallback))
        decoded = DecodedImages(
            np.concatenate([first.pixels, second.pixels]),
            np.concatenate([first.fallback, second.fallback]),
            np.concatenate([first.fallback_index, index]),
        )
        return LabeledImages(
            decoded,
            np.concatenate([self.targets, others.targets]),
            np.concatenate([self.labels, others.labels]),
            soft,
        )


def normalize(pixels: torch.Tensor, settings: TrainSettings) -> torch.Tensor:
    """Return ``(B, H, W, 3)`` uint8 pixels as the model's input, ``(B, planes, H, W)`` float32.

    Pixels of the file's own channels are ``(B, H, W, planes)`` float32, and scaled as the card says.
    """
    channels = settings.preprocess.channels
    if settings.preprocess.kept:
        low, high = settings.preprocess.scale
        mean, std = pixels.new_tensor(settings.mean), pixels.new_tensor(settings.std)
        return (((pixels - low) / (high - low) - mean) / std).permute(0, 3, 1, 2)
    if channels != "rgb":
        pixels = network_channels(pixels.permute(0, 3, 1, 2), channels).permute(0, 2, 3, 1)
    images = pixels / 255
    mean, std = images.new_tensor(settings.mean), images.new_tensor(settings.std)
    return ((images - mean) / std).permute(0, 3, 1, 2)


@torch.no_grad()
def predict_pixels(
    model: torch.nn.Module, pixels: Pixels, settings: TrainSettings, *, view: Callable[[Pixels], Pixels] = np.asarray
) -> Logits:
    """Return the logits ``(N, C)``, float32, of ``(N, H, W, 3)`` images, with the model in eval mode."""
    model.eval()
    device = next(model.parameters()).device
    logits = [
        model(normalize(torch.from_numpy(np.ascontiguousarray(view(batch))).to(device), settings)).cpu()
        for batch in np.split(pixels, range(_EVAL_BATCH, len(pixels), _EVAL_BATCH))
    ]
    found: Logits = torch.cat(logits).numpy()
    return found
