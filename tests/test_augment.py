"""Augmentation is seeded by image, refuses what albumentations would ignore, and CutMix mixes by area."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from checkpoints.augment import cutmix, parse_policy
from ensemble.errors import OptionError
from tests.toys import picture


def test_a_seed_decides_the_pixels_whatever_came_before() -> None:
    """The default policy gives the same pixels for the same seed in any order, and others for another seed."""
    pixels = picture(0)
    policy = parse_policy("default")
    assert policy is not None
    forward = [policy(pixels, seed) for seed in range(6)]
    backward = [policy(pixels, seed) for seed in reversed(range(6))][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(forward, backward, strict=True))
    assert len({found.tobytes() for found in forward}) > 3


@pytest.mark.parametrize(
    "line", ['name = "Nothing"', 'name = "GaussNoise"\nvar_limit = [1, 2]', 'name = "Resize"\nheight = 8\nwidth = 8']
)
def test_a_policy_that_would_be_ignored_is_refused(tmp_path: Path, line: str) -> None:
    """An unknown transform, a parameter that albumentations ignores with a warning, and another size are E204."""
    (tmp_path / "p.toml").write_text(f"[[transform]]\n{line}\n")
    with pytest.raises(OptionError):
        parse_policy(str(tmp_path / "p.toml"))


@pytest.mark.parametrize("half", [False, True])
def test_cutmix_mixes_targets_as_it_mixes_pixels(half: bool) -> None:
    """Where each image is its own class's constant, the share of each value in an image is its target."""
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 10, 8)
    mixed, targets = cutmix(images, torch.eye(4), half=half, generator=torch.Generator().manual_seed(3))
    shares = torch.stack([(mixed == value).float().mean(dim=(1, 2, 3)) for value in range(4)], dim=1)
    torch.testing.assert_close(targets, shares)
    assert not torch.equal(targets, torch.eye(4))


def test_the_simple_policies_mirror_and_light() -> None:
    """`flip` gives the image or its mirror image, both at times; `light` scales each channel by at most 1.26."""
    pixels = picture(1)
    flip, light = parse_policy("flip"), parse_policy("light")
    assert flip is not None
    assert light is not None
    made = [flip(pixels, seed) for seed in range(12)]
    mirrored = [np.array_equal(found, pixels[:, ::-1]) for found in made]
    assert 0 < sum(mirrored) < 12
    for seed, found in enumerate(made):
        assert mirrored[seed] or np.array_equal(found, pixels)
        lit = light(pixels, seed).astype(float)
        assert (lit <= np.minimum(255, found * 1.26 + 0.5)).all()
        assert (lit >= np.minimum(255, found * 0.76) - 0.5).all()
        assert not np.array_equal(lit, found)
