"""How many images go through a model at once is tried on a run's own images."""

from __future__ import annotations

import threading

from ensemble.predict.batch_size import SIZES, Sample, Trial


def run(trial: Trial, cost: dict[int, list[float]], *, looks: int = 40, images: int = 16) -> list[int]:
    """The sizes of a run's looks, each of which takes the next of its size's seconds an image."""
    sizes = []
    for _ in range(looks):
        size = trial.next_size(images)
        seconds = cost.get(size, [1.0])
        trial.learn(size, images, images * (seconds.pop(0) if len(seconds) > 1 else seconds[0]))
        sizes.append(size)
    return sizes


def test_sizes_are_tried_in_turn_and_the_fastest_stays() -> None:
    """Four looks at each, then the size of the smallest median, whatever the warm-up took."""
    cost = {1: [9.0, 5.0, 5.1, 5.0], 2: [1.0, 5.1, 5.1, 5.1], 4: [9.0, 4.9, 90.0, 4.9], 8: [9.0, 5.0]}
    trial = Trial((1, 2, 4, 8))
    sizes = run(trial, cost)
    assert sizes[:16] == [1, 1, 2, 2, 4, 4, 8, 8] + [1, 2, 4, 8] * 2
    assert set(sizes[16:]) == {4}
    assert Sample(4, 4.9, 3) in trial.samples
    assert trial.size == 4


def test_what_is_clearly_slower_is_not_tried_again() -> None:
    """After one measured look only sizes within 5 % of the fastest have more, and what is larger has none."""
    trial = Trial(SIZES)
    sizes = run(trial, {1: [1.0], 2: [1.04], 4: [1.06], 8: [2.0], 16: [3.0]})
    assert sizes[:6] == [1, 1, 2, 2, 4, 4]
    assert sizes[6:10] == [1, 2, 1, 2]
    assert set(sizes[10:]) == {1}
    assert [(sample.size, sample.looks) for sample in trial.samples] == [(1, 3), (2, 3), (4, 1)]


def test_a_slow_small_size_keeps_no_larger_one_from_being_tried() -> None:
    """Where more at once is faster, all sizes are tried and the largest stays."""
    trial = Trial(SIZES)
    sizes = run(trial, {1: [5.0], 2: [4.0], 4: [3.0], 8: [2.0], 16: [1.0]})
    assert sizes[:10] == [1, 1, 2, 2, 4, 4, 8, 8, 16, 16]
    assert set(sizes[10:]) == {16}


def test_small_batches_try_only_what_fits() -> None:
    """A batch of five goes at once at most; larger sizes wait for a larger batch."""
    trial = Trial(SIZES)
    assert set(run(trial, {}, images=5)) == {1, 2, 4}
    assert 16 in run(trial, {}, images=16)
    assert Trial((4, 8)).next_size(3) == 3


def test_nothing_is_known_before_a_look_was_measured() -> None:
    """The first look only warms up; until the second the smallest size is the best."""
    trial = Trial(SIZES)
    trial.learn(16, 16, 0.1)
    assert (trial.size, trial.samples) == (1, ())
    trial.learn(16, 16, 1.6)
    assert (trial.size, trial.samples) == (16, (Sample(16, 0.1, 1),))


def test_threads_share_one_trial() -> None:
    """Four threads together take each size as often as one thread would, and none is lost."""
    trial, asked = Trial((1, 2, 4, 8)), list[int]()

    def look() -> None:
        for _ in range(4):
            asked.append(trial.next_size(16))

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(asked) == sorted([1, 2, 4, 8] * 4)
