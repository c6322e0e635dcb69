"""Augmentation is seeded by image, refuses what albumentations would ignore, and CutMix mixes by area."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import beta, kstest
from torchvision.transforms import v2

from checkpoints.training.augment import cutmix, erase, image_seed, mixup, parse_policy
from ensemble.errors import OptionError
from tests.support.toys import picture

pytestmark = pytest.mark.slow


def test_transforms_are_drawn_independently(tmp_path: Path) -> None:
    """Of two transforms that each apply to half of the images, all four combinations come about equally often."""
    recipe = tmp_path / "two.toml"
    one = '[[transform]]\nname = "InvertImg"\np = 0.5\n'
    recipe.write_text(one + one.replace("InvertImg", "HorizontalFlip"), encoding="utf-8")
    policy = parse_policy(str(recipe))
    assert policy is not None
    pixels = np.array([[[0, 0, 0], [10, 10, 10]]], dtype=np.uint8).repeat(2, axis=0)
    corners = [int(policy(pixels, image_seed(0, 1, image))[0, 0, 0]) for image in range(400)]
    counts = [corners.count(corner) for corner in (0, 10, 255, 245)]
    assert sum(counts) == 400
    assert min(counts) > 70  # each is 100 on average; all transforms seeded alike give 200, 0, 0 and 200


@pytest.mark.parametrize("name", ["default", "strong"])
def test_a_seed_decides_the_pixels_whatever_came_before(name: str) -> None:
    """A policy gives the same pixels for the same seed in any order, and others for another seed."""
    pixels = picture(0)
    policy = parse_policy(name)
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


def test_mixup_is_that_of_torchvision() -> None:
    """For the pair and the share that were drawn, images and targets are those of torchvision's MixUp."""
    generator = torch.Generator().manual_seed(1)
    images, targets = torch.rand(2, 3, 4, 5), torch.eye(2)
    found, mixed = mixup(images, targets, alpha=0.4, generator=generator)
    share = mixed[0, 0].item()
    assert 0 < share < 1

    class Drawn:
        def sample(self, shape: object) -> torch.Tensor:
            return torch.tensor([share])

    theirs = v2.MixUp(alpha=0.4)
    theirs._dist = Drawn()
    expected = theirs(images, targets)
    torch.testing.assert_close((found, mixed), expected)


def test_mixup_draws_shares_from_a_beta_distribution() -> None:
    """The shares of many batches pass a Kolmogorov-Smirnov test against Beta(0.4, 0.4), and fail it against (1, 1)."""
    generator = torch.Generator().manual_seed(0)
    shares: list[float] = []
    while len(shares) < 400:
        # two images: the pair is a swap half of the time, and then the targets show the share
        mixed = mixup(torch.zeros(2, 3, 1, 1), torch.eye(2), alpha=0.4, generator=generator)[1]
        if mixed[0, 1] > 0:
            shares.append(mixed[0, 0].item())
    assert kstest(shares, beta(0.4, 0.4).cdf).pvalue > 0.01
    assert kstest(shares, beta(1, 1).cdf).pvalue < 0.01


def test_erasing_clears_one_rectangle_of_some_images() -> None:
    """About the share of images has one rectangle of zeros, a fiftieth to a third of the area; Python's draws go on."""
    images = torch.ones(400, 3, 40, 30)
    random.seed(5)
    erased = erase(images, share=0.3, generator=torch.Generator().manual_seed(1))
    drawn = random.random()
    random.seed(5)
    assert drawn == random.random()
    assert bool((images == 1).all())
    again = erase(images, share=0.3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(erased, again)
    hit = [image for image in (erased == 0).numpy() if image.any()]
    assert 80 < len(hit) < 160
    for holes in hit:
        assert np.array_equal(holes[0], holes[1])
        rows, columns = np.flatnonzero(holes[0].any(axis=1)), np.flatnonzero(holes[0].any(axis=0))
        area = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
        assert holes[0].sum() == area
        assert 0.015 < area / 1200 < 0.36
