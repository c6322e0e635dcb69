"""Another class mix among the images to be blended: it is found, and the mean is kept where the choice needs it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax

from ensemble.arrays import Classes, Floats
from ensemble.events import Recorder
from ensemble.learn.class_mix import compare_class_mix, estimate_frequencies
from ensemble.learn.learn import learn
from ensemble.predictions.dataset import Predictions
from ensemble.predictions.truth import Truth
from tests.support.members import make_member

LONG_TAIL, EVEN = np.array([0.8, 0.15, 0.05]), np.full(3, 1 / 3)


def draw(mix: Floats, *, seed: int, rows: int = 900, sharpness: float = 1.0) -> tuple[Floats, Classes]:
    """Log-probabilities ``(N, 3)`` of a member trained on an even mix, of images drawn with ``mix``."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(3, size=rows, p=mix)
    seen = np.eye(3)[truth] + 0.7 * rng.normal(size=(rows, 3))
    return log_softmax(sharpness * seen / 0.7**2, axis=-1), truth


def test_frequencies_are_found_from_calibrated_probabilities() -> None:
    """Probabilities that are calibrated for an even mix give the frequencies of a long-tailed one."""
    log_p, truth = draw(LONG_TAIL, seed=0, rows=20_000)
    found = estimate_frequencies(np.exp(log_p), EVEN)
    np.testing.assert_allclose(found, np.bincount(truth) / len(truth), atol=0.02)


@pytest.mark.parametrize(("mix", "differs"), [(LONG_TAIL, False), (EVEN, True)])
def test_a_mix_differs_beyond_chance_alone(mix: Floats, differs: bool) -> None:
    """Two draws of one mix do not differ, of two mixes they do."""
    learned, truth = draw(LONG_TAIL, seed=1)
    applied, _ = draw(mix, seed=2)
    p = np.exp(applied)
    found = compare_class_mix(np.exp(learned), np.arange(len(truth)), truth, p, calibrated=p, seed=0)
    assert found.differs == differs


def members_of(log_p: Floats, *, seed: int) -> list[Predictions]:
    rng = np.random.default_rng(seed)
    return [make_member(name, log_p + 0.2 * rng.normal(size=log_p.shape)) for name in ("a", "b", "c")]


def test_the_mean_is_kept_where_the_gain_is_one_of_the_class_mix() -> None:
    """A bias learned from a long tail is not adopted for images of an even mix, and the warning names both mixes."""
    log_p, truth = draw(LONG_TAIL, seed=3)
    members = members_of(log_p, seed=0)
    known = Truth(members[0].ids, truth, tuple(members[0].ids), members[0].labels)
    alike, other = (members_of(draw(mix, seed=4)[0], seed=1) for mix in (LONG_TAIL, EVEN))
    heard = Recorder()
    chosen = learn(members, known, metric="accuracy", repeats=1, applied_to=alike, listener=heard)
    assert chosen.method in {"calibrated", "pool"}
    assert "W527" not in [notice.code for notice in heard.notices]
    kept = learn(members, known, metric="accuracy", repeats=1, applied_to=other, listener=heard)
    assert kept.method not in {"calibrated", "pool"}
    (said,) = [notice.message for notice in heard.notices if notice.code == "W527"]
    assert "0 " in said
    assert "%" in said
    # the probabilities themselves are not re-weighted
    assert not kept.fitted.bias.any()
