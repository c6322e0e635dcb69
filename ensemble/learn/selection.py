"""Select a candidate only if its gain is clear, and correct the gain for having selected the best of many.

The pool is selected by its likelihood, which is less noisy than a metric of decided classes: of the calibrated pools
the simplest within one standard error of the best. Then the rule of that pool is selected by the metric: the one that
is derived for the metric, unless another is better by more than one standard error. The result is adopted if its gain
over the mean exceeds one standard error, or 1.5 where there are few people (see `demanded_errors`). If it does
not, the best of the pools without a bias per class is adopted where its likelihood is better than the mean's by as much
and its score is not worse; with few people, clearly not worse.

The best of many candidates looks better than it is (the winner's curse). The selection is therefore repeated in every
bootstrap resample of people and scored on the people left out of it: the bootstrap bias-corrected cross-validation of
Tsamardinos, Greasidou and Borboudakis, "Bootstrapping the out-of-sample predictions for efficient and accurate
cross-validation", Machine Learning 107 (2018).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ensemble.arrays import Floats

CALIBRATED = ("calibrated", "factored", "pool")
"""The pools with a bias per class, the simplest first."""
UNBIASED = ("logit", "scaled", "log-linear", "linear", "greedy")
"""The pools without one, the simplest first."""
_RULES = ("thresholds", "threshold", "ordinal", "f1", "tau", "")
"""The decision rules, those derived for a metric first; the empty one is argmax."""
_ROUNDING = 1e-9


_FEW_PEOPLE = 100
"""People up to which a gain must exceed 1.5 standard errors: with few of them in the rare classes, the bootstrap
underestimates the error. On 100 of 1,000 people of a contest, one standard error adopted a loss in 7 of 24 draws."""


def demanded_errors(people: int) -> float:
    """Return the number of standard errors that a gain must exceed: 1.5 up to 100 people, near one for many."""
    return 1.0 + 0.5 * min(1.0, _FEW_PEOPLE / people)


@dataclass(frozen=True, slots=True, eq=False)
class ResampledScores:
    """One score of K candidates: its value ``(K,)``, and in each of R bootstrap resamples of people ``(K, R)``."""

    value: Floats
    resampled: Floats

    def error(self, one: int, other: int) -> float:
        """Return the standard error of the difference between two candidates."""
        return float((self.resampled[one] - self.resampled[other]).std(ddof=1))

    def at(self, resample: int) -> ResampledScores:
        """Return the scores with the values of one resample; the standard errors stay."""
        return ResampledScores(self.resampled[:, resample], self.resampled)


def select_candidate(
    names: Sequence[str],
    score: ResampledScores,
    likelihood: ResampledScores,
    *,
    elsewhere: ResampledScores | None = None,
    by_score: bool = False,
    errors: float = 1.0,
) -> int:
    """Return the index of the selected candidate, the first of which is the mean; see this module for how.

    ``score`` is the metric, ``likelihood`` the mean log-likelihood of the candidates' probabilities. ``elsewhere`` is
    the metric on another class mix: a candidate is adopted only if it gains there too. With ``by_score``, for metrics
    of order, the likelihood is not regarded: of those to be adopted the one with the most certain gain is selected.
    ``errors`` is the number of standard errors that a gain must exceed.
    """
    index = {name: i for i, name in enumerate(names)}

    def is_adopted(one: int) -> bool:
        # identical members differ by rounding alone, and that difference has a tiny standard error
        situations = [score] if elsewhere is None else [score, elsewhere]
        return all(s.value[one] - s.value[0] - errors * s.error(one, 0) > _ROUNDING for s in situations)

    if by_score:
        clear = [one for one in range(1, len(names)) if is_adopted(one)]
        return max(clear, key=lambda one: score.value[one] - score.error(one, 0), default=0)
    calibrated = [index[name] for name in CALIBRATED if name in index]
    if calibrated:
        pool = _simplest(calibrated, likelihood)
        with_rule = [f"{names[pool]}+{rule}" if rule else names[pool] for rule in _RULES]
        options = [index[name] for name in with_rule if name in index]
        chosen = options[0]
        for option in options[1:]:
            if score.value[option] - score.value[chosen] > score.error(option, chosen):
                chosen = option
        if is_adopted(chosen):
            return chosen
    unbiased = [index[name] for name in UNBIASED if name in index]
    if unbiased:
        best = max(unbiased, key=lambda one: likelihood.value[one])
        likely = likelihood.value[best] - likelihood.value[0] > errors * likelihood.error(best, 0) + _ROUNDING
        situations = [score] if elsewhere is None else [score, elsewhere]
        harmless = all(s.value[best] - s.value[0] >= (errors - 1) * s.error(best, 0) for s in situations)
        if (likely and harmless) or is_adopted(best):
            return best
    others = [i for i, name in enumerate(names) if i and i not in (*calibrated, *unbiased) and "+" not in name]
    adopted = [
        i for i in (*others, *(index[name] for name in names if name.startswith(f"{names[0]}+"))) if is_adopted(i)
    ]
    return max(adopted, key=lambda one: score.value[one] - score.error(one, 0), default=0)


def bias_corrected_gain(
    names: Sequence[str],
    score: ResampledScores,
    likelihood: ResampledScores,
    out_of_bag: Floats,
    *,
    elsewhere: ResampledScores | None = None,
    by_score: bool = False,
    errors: float = 1.0,
) -> float:
    """Return the expected gain of selecting among K candidates over always keeping the first.

    ``out_of_bag`` ``(K, R)`` is the metric on the people left out of each of the R resamples of ``score``.
    """
    resamples = range(out_of_bag.shape[1])
    selected = [
        select_candidate(
            names,
            score.at(r),
            likelihood.at(r),
            elsewhere=None if elsewhere is None else elsewhere.at(r),
            by_score=by_score,
            errors=errors,
        )
        for r in resamples
    ]
    return float((out_of_bag[selected, resamples] - out_of_bag[0]).mean())


def _simplest(pools: Sequence[int], likelihood: ResampledScores) -> int:
    """Return the first pool whose likelihood is within one standard error of the best."""
    best = max(pools, key=lambda one: likelihood.value[one])
    return next(one for one in pools if likelihood.value[one] >= likelihood.value[best] - likelihood.error(one, best))
