"""Members that hardly help, found by their agreement with a reference."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import cohen_kappa_score

from ensemble.blend.blend import blend
from ensemble.blend.odd_members import cohen_kappa, find_odd, most_agreement
from ensemble.blend.recipe import make_recipe
from ensemble.events import Recorder
from ensemble.metrics import confusion_matrix
from tests.support.members import draw_logits, make_member


@pytest.mark.parametrize("seed", range(3))
def test_kappa_is_scikit_learns(seed: int) -> None:
    """Cohen's kappa equals scikit-learn's to 1e-12."""
    rng = np.random.default_rng(seed)
    truth, answers = rng.integers(4, size=(2, 300))
    answers[:150] = truth[:150]
    counts = confusion_matrix(truth, answers, classes=4)
    assert cohen_kappa(counts) == pytest.approx(cohen_kappa_score(truth, answers), abs=1e-12)


def test_the_assignment_is_scipys() -> None:
    """The permutation is that of scipy's solver, also where several have the same sum."""
    rng = np.random.default_rng(0)
    for most in (2, 5, 50) * 30:
        size = int(rng.integers(1, 15))
        counts = rng.integers(0, most, (size, size)).astype(np.float64)
        assert np.array_equal(most_agreement(counts), linear_sum_assignment(-counts)[1])


def test_a_permutation_is_found_and_undone() -> None:
    """The permutation that is named turns the member's columns back."""
    rng = np.random.default_rng(0)
    truth = rng.integers(5, size=400)
    answers = np.where(rng.random(400) < 0.8, truth, rng.integers(5, size=400))
    moved_to = np.array([3, 0, 4, 1, 2])  # class c is written in column moved_to[c]
    found = find_odd(truth, moved_to[answers], classes=5)
    assert found is not None
    assert found.permutation == tuple(moved_to.tolist())
    assert find_odd(truth, answers, classes=5) is None


@pytest.mark.parametrize("count", [40, 300])
def test_chance_is_named_from_fifty_images_on(count: int) -> None:
    """Answers that are drawn at random are named, but not on the evidence of forty images."""
    rng = np.random.default_rng(1)
    truth, answers = rng.integers(3, size=(2, count))
    assert (find_odd(truth, answers, classes=3) is not None) == (count == 300)


def test_the_odd_one_of_three_is_named_without_a_truth() -> None:
    """Without a ground truth a member is compared with the others, and of two members neither is blamed."""
    logits = draw_logits(0, 200)
    good = [make_member(name, logits + 0.5 * draw_logits(seed, 200)) for name, seed in (("a", 1), ("b", 2), ("c", 3))]
    moved = make_member("moved", logits[:, [2, 0, 1, 3]])
    for members, expected in ((good, []), ([*good, moved], ["moved"]), ([good[0], moved], [])):
        heard = Recorder()
        blend(members, make_recipe(members), listener=heard)
        said = [notice.message.partition(" ")[0] for notice in heard.notices if notice.code == "W508"]
        assert said == expected
