"""The batch size is tried on a run's own images, and only where there are enough of them."""

from __future__ import annotations

import pytest

from ensemble.trial import Trial


def run(trial: Trial, cost: dict[int, list[float]], *, part: int = 256, images: int = 2000) -> list[int]:
    """The sizes of a run's batches, each of which takes the next of its size's seconds an image."""
    sizes = []
    for start in range(0, images, part):
        for batch in trial.cut(range(start, min(start + part, images))):
            size = len(batch)
            seconds = cost.get(size, [1.0])
            trial.learn(size, size * (seconds.pop(0) if len(seconds) > 1 else seconds[0]))
            sizes.append(size)
    return sizes


def test_each_candidate_is_tried_in_turn_and_the_fastest_stays() -> None:
    """Four rounds of 4, 8, 16, 32, then the one of the smallest median, whatever the warm-up took."""
    cost = {4: [9.0, 5.0, 5.0, 5.0], 8: [9.0, 3.0, 90.0, 3.0], 16: [1.0, 4.0, 4.0, 4.0], 32: [6.0]}
    trial = Trial(2000, usual=16)
    sizes = run(trial, cost)
    assert sizes[:16] == [4, 8, 16, 32] * 4
    assert set(sizes[16:]) == {8}
    assert [(sample.batch, sample.seconds, sample.batches) for sample in trial.samples] == [
        (4, 5.0, 3),
        (8, 3.0, 3),
        (16, 4.0, 3),
        (32, 6.0, 3),
    ]


def test_every_image_is_in_one_batch_of_its_part() -> None:
    """With parts that a trial does not divide, sizes add up to the images and none is left over."""
    sizes = run(Trial(2000, usual=16), {}, part=100)
    assert sum(sizes) == 2000
    assert min(sizes) > 0


@pytest.mark.parametrize(("images", "candidates"), [(959, (4, 8, 16, 32)), (5000, (8,)), (5000, ())])
def test_a_run_that_would_not_gain_has_no_trial(images: int, candidates: tuple[int, ...]) -> None:
    """Below 960 images, or with nothing to choose from, all batches are the usual ones."""
    trial = Trial(images, usual=16, candidates=candidates)
    assert set(run(trial, {}, images=960)) == {16}
    assert trial.batch == 16
    assert trial.samples == ()


def test_nothing_is_chosen_before_all_are_measured() -> None:
    """While answers are outstanding, batches are the usual ones."""
    trial = Trial(2000, usual=16)
    for _ in range(16):
        trial.next_batch(256)
    trial.learn(4, 0.1)
    assert trial.next_batch(256) == 16
    assert trial.samples == ()
