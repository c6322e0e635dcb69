"""Guard: a candidate is taken only where its gain is clear, and what taking the best of many is worth on other people.

The best of many candidates looks better than it is, because it is also the luckiest. So the choice is made again in
every bootstrap resample of people, and judged by the people that the resample left out (the bootstrap bias correction
of Tsamardinos, Greasidou and Borboudakis, 2018, *Bootstrapping the out-of-sample predictions for efficient and
accurate cross-validation*, Machine Learning 107).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ensemble.arrays import Floats

_ROUNDING = 1e-9


def choose(gain: ArrayLike, error: ArrayLike) -> int:
    """Which of K candidates to take, by gains ``(K,)`` over the first and their standard errors ``(K,)``.

    It is the one whose gain less one error is largest, if that is above 0, else the first.
    """
    clear = np.asarray(gain, np.float64) - np.asarray(error, np.float64)
    best = int(clear.argmax())
    # identical members differ by rounding alone, and rounding has a tiny error too
    return best if clear[best] > _ROUNDING else 0


def expected_gain(drawn: Floats, left_out: Floats) -> float:
    """The gain to expect of choosing among K candidates, over always taking the first.

    ``drawn`` and ``left_out`` ``(K, R)`` are the candidates' scores on the people of R resamples, and on the people
    that each of them left out.
    """
    gains = drawn - drawn[0]
    errors = gains.std(axis=1, ddof=1)
    chosen = [choose(gain, errors) for gain in gains.T]
    return float((left_out[chosen, np.arange(len(chosen))] - left_out[0]).mean())
