"""The metrics by name: ``--metric`` of `ens evaluate` and of learned blending."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from ensemble.arrays import Floats
from ensemble.errors import OptionError
from ensemble.scoring import counted, curves, probabilistic
from ensemble.scoring.answers import ScoredAnswers
from ensemble.scoring.custom import read_custom
from ensemble.text.plain_numbers import to_float

Score = Callable[[ScoredAnswers, Floats], Floats]
Kind = Literal["decisions", "probabilities", "ranking", "order"]


@dataclass(frozen=True, slots=True)
class ContestMetric:
    """A metric: ``score`` maps answers and the weights of R resamples ``(R, N)`` to values ``(R,)``.

    ``kind`` says what it depends on: the decided classes, the probabilities, their order within an image, or
    only that within a column.
    ``only`` restricts it to ``exclusive`` classes or to independent ``labels``; ``vectorized`` is False for functions
    of users, which take one resample at a time. ``by_class`` returns the values of the classes ``(R, C)``, where the
    metric is a mean over them.
    """

    name: str
    title: str
    kind: Kind
    score: Score
    greater_is_better: bool = True
    only: Literal["exclusive", "labels"] | None = None
    classes: int | None = None
    vectorized: bool = True
    by_class: Score | None = None

    def once(self, answers: ScoredAnswers) -> float:
        """Return the score of all images."""
        return float(self.score(answers, np.ones((1, answers.rows)))[0])

    def require_fits(self, *, exclusive: bool, classes: int) -> None:
        """Check that the metric is for such answers.

        Raises:
            OptionError: E204 when it is not.
        """
        if self.only is not None and (self.only == "exclusive") != exclusive:
            have = "one class per image" if exclusive else "several labels per image"
            need = "one class per image" if self.only == "exclusive" else "several labels per image"
            raise OptionError("E204", f"{self.name} is for {need}, and these predictions have {have}")
        if self.classes is not None and exclusive and classes != self.classes:
            raise OptionError(
                "E204", f"{self.name} is for {self.classes} classes, and these predictions have {classes}"
            )


def _area(area: Callable[[curves.Curve], Floats], average: str, *, absent: float = np.nan) -> Score:
    return partial(probabilistic.mean_area, area=area, average=average, absent=absent)


def _decided(name: str, title: str, score: Score, *, up: bool = True, exclusive: bool = False) -> ContestMetric:
    return ContestMetric(name, title, "decisions", score, up, "exclusive" if exclusive else None)


def _ordered(name: str, title: str, score: Score) -> ContestMetric:
    by_class = None
    if isinstance(score, partial) and score.keywords.get("average") in {"macro", "weighted"}:
        by_class = partial(probabilistic.per_column, area=score.keywords["area"])
    return ContestMetric(name, title, "order", score, by_class=by_class)


_AVERAGES = ("macro", "weighted", "micro")
_METRICS: Mapping[str, ContestMetric] = {
    metric.name: metric
    for metric in (
        _decided("accuracy", "accuracy", counted.accuracy),
        _decided("balanced-accuracy", "balanced accuracy", counted.balanced_accuracy),
        _decided("hamming-loss", "Hamming loss", counted.hamming_loss, up=False),
        _decided("mcc", "Matthews correlation", counted.matthews),
        _decided("kappa", "Cohen's kappa", partial(counted.kappa, power=0), exclusive=True),
        _decided("linear-kappa", "linear weighted kappa", partial(counted.kappa, power=1), exclusive=True),
        _decided("quadratic-kappa", "quadratic weighted kappa", partial(counted.kappa, power=2), exclusive=True),
        _decided("mae", "mean absolute error", partial(counted.distance, power=1), up=False, exclusive=True),
        _decided("rmse", "root mean squared error", partial(counted.distance, power=2), up=False, exclusive=True),
        ContestMetric("log-loss", "log loss", "probabilities", probabilistic.log_loss, False),
        ContestMetric("brier", "Brier score", "probabilities", probabilistic.brier, False),
        ContestMetric("ece", "calibration error", "probabilities", probabilistic.calibration_error, False),
        ContestMetric(
            "lrap", "label ranking AP", "probabilities", partial(probabilistic.label_ranking, by_label=False)
        ),
        ContestMetric("lwlrap", "lwlrap", "probabilities", partial(probabilistic.label_ranking, by_label=True)),
        _ordered("roc-auc", "ROC AUC", _area(curves.roc_auc, "macro")),
        _ordered("roc-auc-weighted", "weighted ROC AUC", _area(curves.roc_auc, "weighted")),
        _ordered("roc-auc-micro", "micro ROC AUC", _area(curves.roc_auc, "micro")),
        _ordered("average-precision", "average precision", _area(curves.average_precision, "macro", absent=0.0)),
        _ordered(
            "average-precision-weighted",
            "weighted average precision",
            _area(curves.average_precision, "weighted", absent=0.0),
        ),
        _ordered(
            "average-precision-micro", "micro average precision", _area(curves.average_precision, "micro", absent=0.0)
        ),
    )
}
_ALIASES = {
    "nll": "log-loss",
    "logloss": "log-loss",
    "cross-entropy": "log-loss",
    "auc": "roc-auc",
    "roc-auc-macro": "roc-auc",
    "roc-auc-ovr": "roc-auc",
    "map": "average-precision",
    "mean-average-precision": "average-precision",
    "average-precision-macro": "average-precision",
    "cmap": "average-precision",
    "padded-cmap": "average-precision-padded@5",
    "average-precision-padded": "average-precision-padded@5",
    "qwk": "quadratic-kappa",
    "quadratic-weighted-kappa": "quadratic-kappa",
    "matthews": "mcc",
    "f1": "binary-f1",
    "f1-macro": "macro-f1",
    "f1-weighted": "weighted-f1",
    "f1-micro": "micro-f1",
    "f1-samples": "sample-f1",
    "samples-f1": "sample-f1",
    "subset-accuracy": "accuracy",
    "brier-score": "brier",
    "label-ranking-average-precision": "lrap",
    "pauc": "partial-auc@0.8",
    "partial-auc": "partial-auc@0.8",
}
METRIC_NAMES = (
    *_METRICS,
    "macro-f1",
    "weighted-f1",
    "micro-f1",
    "sample-f1",
    "binary-f1",
    "top-5-accuracy",
    "map@5",
    "partial-auc@0.8",
    "roc-auc@0.1",
    "average-precision-padded@5",
)
"""All names, those with a number as an example."""


def find_metric(text: str) -> ContestMetric:
    """Return a metric by name.

    Numbers are free: ``macro-f2`` (also ``weighted-``, ``micro-``, ``sample-``, ``binary-``), ``top-5-accuracy``,
    ``map@5``, ``partial-auc@0.8`` (the area where the true-positive rate is above 0.8), ``roc-auc@0.1`` (up to that
    false-positive rate), ``average-precision-padded@5``. ``file.py:function`` is a function of the user.

    Raises:
        OptionError: E204 when the metric is unknown or its number out of range, or as `read_custom`.
    """
    if ".py:" in text or text.endswith(".py"):
        custom = read_custom(text)
        return ContestMetric(
            text, custom.title, "probabilities", custom.score, custom.greater_is_better, vectorized=False
        )
    folded = text.strip().lower().replace("_", "-").replace(" ", "-")
    name = _ALIASES.get(folded, folded)
    found = _METRICS.get(name) or _with_number(name)
    if found is None:
        known = sorted({*METRIC_NAMES, *_ALIASES})
        near = difflib.get_close_matches(name, known, 1)
        meant = f" (did you mean {near[0]}?)" if near else ""
        raise OptionError(
            "E204", f"unknown metric {text!r}{meant}; choose one of {', '.join(METRIC_NAMES)}, or file.py:function"
        )
    return found


def _with_number(name: str) -> ContestMetric | None:
    match = re.fullmatch(r"(macro|weighted|micro|sample|binary)-f([0-9]+(?:\.[0-9]+)?)", name)
    if match:
        beta = _in_range(name, match[2], 0.01, 100)
        score = partial(counted.f_score, beta=beta, average=match[1])
        only: Literal["labels"] | None = "labels" if match[1] == "sample" else None
        classes = 2 if match[1] == "binary" else None
        by_class = partial(counted.class_f, beta=beta) if match[1] in {"macro", "weighted"} else None
        title = f"{match[1]} F{match[2]}"
        return ContestMetric(name, title, "decisions", score, True, only, classes, by_class=by_class)
    match = re.fullmatch(r"(?:top-?([0-9]+)(?:-accuracy)?|(?:accuracy|top)@([0-9]+))", name)
    if match:
        k = int(_in_range(name, match[1] or match[2], 1, 1000))
        return ContestMetric(name, f"top-{k} accuracy", "ranking", partial(probabilistic.top_accuracy, k=k))
    match = re.fullmatch(r"map@([0-9]+)", name)
    if match:
        k = int(_in_range(name, match[1], 1, 1000))
        score = partial(probabilistic.mean_average_precision_at, k=k)
        return ContestMetric(name, f"MAP@{k}", "ranking", score)
    match = re.fullmatch(r"(partial-auc|pauc|roc-auc)@(0?\.[0-9]+)", name)
    if match:
        bound = _in_range(name, match[2], 1e-6, 1 - 1e-6)
        if match[1] == "roc-auc":
            return _ordered(
                name, f"ROC AUC up to FPR {bound:g}", _area(partial(curves.roc_auc_up_to, max_fpr=bound), "macro")
            )
        area = partial(curves.partial_auc_above, min_tpr=bound)
        return _ordered(name, f"partial AUC above TPR {bound:g}", _area(area, "macro"))
    match = re.fullmatch(r"average-precision-padded@([0-9]+)", name)
    if match:
        rows = int(_in_range(name, match[1], 1, 1000))
        score = partial(probabilistic.padded_average_precision, rows=rows)
        return _ordered(name, f"average precision padded with {rows}", score)
    return None


def _in_range(name: str, text: str, low: float, high: float) -> float:
    value = to_float(text)
    if not low <= value <= high:
        raise OptionError("E204", f"{name}: the number must be from {low:g} to {high:g}")
    return value
