"""Select a candidate only if its gain is clear, and correct the gain for having selected the best of many.

The best of many candidates looks better than it is (the winner's curse). The selection is therefore repeated in every
bootstrap resample of people and scored on the people left out of it: the bootstrap bias-corrected cross-validation of
Tsamardinos, Greasidou and Borboudakis, "Bootstrapping the out-of-sample predictions for efficient and accurate
cross-validation", Machine Learning 107 (2018).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ensemble.arrays import Floats

_ROUNDING = 1e-9


def select_candidate(gains: ArrayLike, errors: ArrayLike) -> int:
    """Return the index of the selected candidate, given gains ``(K,)`` over the first and their standard errors.

    It is the candidate with the largest gain minus one standard error, or the first if none of these is above 0.
    """
    margin = np.asarray(gains, np.float64) - np.asarray(errors, np.float64)
    best = int(margin.argmax())
    # identical members differ by rounding alone, and that difference has a tiny standard error
    return best if margin[best] > _ROUNDING else 0


def bias_corrected_gain(in_bag: Floats, out_of_bag: Floats) -> float:
    """Return the expected gain of selecting among K candidates over always keeping the first.

    ``in_bag`` and ``out_of_bag`` ``(K, R)`` are the candidates' scores on the people drawn in each of R bootstrap
    resamples, and on the people left out of it.
    """
    gains = in_bag - in_bag[0]
    errors = gains.std(axis=1, ddof=1)
    selected = [select_candidate(gain, errors) for gain in gains.T]
    return float((out_of_bag[selected, np.arange(len(selected))] - out_of_bag[0]).mean())
