"""Contest metrics equal scikit-learn or an independent computation, with ties, absent classes and in resamples."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics as sk

from ensemble.arrays import Floats
from ensemble.errors import OptionError
from ensemble.metrics import bootstrap, macro_f1
from ensemble.scoring.answers import ScoredAnswers, resample_weights
from ensemble.scoring.catalog import METRIC_NAMES, find_metric

ROWS = 300


def exclusive(seed: int, classes: int, *, absent: bool = False, ties: bool = True) -> ScoredAnswers:
    """Return answers better than chance, with ties from rounding, and without the second class if ``absent``."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(classes, size=ROWS)
    if absent:
        truth[truth == 1] = 0
    p = rng.dirichlet(np.ones(classes), size=ROWS) + 0.3 * np.eye(classes)[truth]
    p = np.round(p, 2) + 0.01 if ties else p
    p = p / p.sum(axis=1, keepdims=True)
    return ScoredAnswers(truth, p.argmax(axis=1), p, classes)


def several(seed: int, labels: int = 6, *, absent: bool = False) -> ScoredAnswers:
    """Return answers of independent labels with ties; some images have none."""
    rng = np.random.default_rng(seed)
    truth = rng.random((ROWS, labels)) < 0.3
    if absent:
        truth[:, 1] = False
    p = np.round(np.clip(rng.random((ROWS, labels)) * 0.7 + 0.3 * truth, 0.01, 0.99), 2)
    return ScoredAnswers(truth, p >= 0.5, p, labels)


def isic(truth: Floats, p: Floats) -> float:
    """Return ISIC 2024's partial AUC, as its published metric computes it."""
    scaled = sk.roc_auc_score(1 - truth, -p, max_fpr=0.2)
    return float(0.5 * 0.2**2 + (0.2 - 0.5 * 0.2**2) / 0.5 * (scaled - 0.5))


def padded(truth: Floats, p: Floats) -> float:
    """Return BirdCLEF 2023's padded cmAP, as its published metric computes it."""
    ones = np.ones((5, truth.shape[1]))
    return float(sk.average_precision_score(np.concatenate([truth, ones]), np.concatenate([p, ones]), average="macro"))


def apk(actual: list[int], predicted: list[int], k: int) -> float:
    """Return AP@k, written as in the benchmark code that contests link to."""
    score, hits = 0.0, 0
    for i, one in enumerate(predicted[:k]):
        if one in actual:
            hits += 1
            score += hits / (i + 1)
    return score / min(len(actual), k) if actual else 0.0


def ranked(p: Floats) -> list[list[int]]:
    """Return the classes of each row, the most probable first, the earlier one on ties."""
    return [sorted(range(len(row)), key=lambda c: (-row[c], c)) for row in p]


Expected = Callable[[ScoredAnswers], float]
Y: Callable[[ScoredAnswers], Floats] = lambda a: np.asarray(a.truth)  # noqa: E731
D: Callable[[ScoredAnswers], Floats] = lambda a: np.asarray(a.decided)  # noqa: E731


def names_of(a: ScoredAnswers) -> list[int]:
    """Return all class numbers."""
    return list(range(a.classes))


def hot(a: ScoredAnswers) -> Floats:
    """Return the truth of exclusive classes one-hot."""
    return np.asarray(np.eye(a.classes)[a.truth.astype(int)], dtype=np.float64)


def present(a: ScoredAnswers) -> list[int]:
    """Return the classes that occur."""
    return sorted(set(a.truth.tolist()))


MULTICLASS: dict[str, Expected] = {
    "accuracy": lambda a: sk.accuracy_score(Y(a), D(a)),
    "balanced-accuracy": lambda a: sk.balanced_accuracy_score(Y(a), D(a)),
    "hamming-loss": lambda a: sk.hamming_loss(Y(a), D(a)),
    "mcc": lambda a: sk.matthews_corrcoef(Y(a), D(a)),
    "kappa": lambda a: sk.cohen_kappa_score(Y(a), D(a), labels=names_of(a)),
    "linear-kappa": lambda a: sk.cohen_kappa_score(Y(a), D(a), labels=names_of(a), weights="linear"),
    "qwk": lambda a: sk.cohen_kappa_score(Y(a), D(a), labels=names_of(a), weights="quadratic"),
    "mae": lambda a: sk.mean_absolute_error(Y(a), D(a)),
    "rmse": lambda a: sk.root_mean_squared_error(Y(a), D(a)),
    "macro-f1": lambda a: sk.f1_score(Y(a), D(a), labels=names_of(a), average="macro", zero_division=0),
    "weighted-f1": lambda a: sk.f1_score(Y(a), D(a), average="weighted", zero_division=0),
    "micro-f1": lambda a: sk.f1_score(Y(a), D(a), average="micro"),
    "macro-f2": lambda a: sk.fbeta_score(Y(a), D(a), beta=2, labels=names_of(a), average="macro", zero_division=0),
    "log-loss": lambda a: sk.log_loss(Y(a), a.probabilities, labels=names_of(a)),
    "brier": lambda a: sk.brier_score_loss(Y(a), a.probabilities, labels=names_of(a)),
    "roc-auc": lambda a: float(np.mean([sk.roc_auc_score(hot(a)[:, c], a.known()[:, c]) for c in present(a)])),
    "roc-auc-weighted": lambda a: float(
        np.average(
            [sk.roc_auc_score(hot(a)[:, c], a.known()[:, c]) for c in present(a)],
            weights=[hot(a)[:, c].sum() for c in present(a)],
        )
    ),
    "roc-auc-micro": lambda a: sk.roc_auc_score(hot(a).ravel(), a.known().ravel()),
    "average-precision": lambda a: sk.average_precision_score(hot(a), a.known(), average="macro"),
    "average-precision-weighted": lambda a: sk.average_precision_score(hot(a), a.known(), average="weighted"),
    "average-precision-micro": lambda a: sk.average_precision_score(hot(a), a.known(), average="micro"),
    "padded-cmap": lambda a: padded(hot(a), a.known()),
    "top-2-accuracy": lambda a: sk.top_k_accuracy_score(Y(a), a.known(), k=2, labels=names_of(a)),
    "map@3": lambda a: float(np.mean([apk([t], r, 3) for t, r in zip(Y(a), ranked(a.known()), strict=True)])),
    "lrap": lambda a: sk.label_ranking_average_precision_score(hot(a), a.known()),
}
BINARY: dict[str, Expected] = {
    "roc-auc": lambda a: sk.roc_auc_score(Y(a), a.known()[:, 1]),
    "roc-auc@0.1": lambda a: sk.roc_auc_score(Y(a), a.known()[:, 1], max_fpr=0.1),
    "partial-auc@0.8": lambda a: isic(Y(a), a.known()[:, 1]),
    "average-precision": lambda a: sk.average_precision_score(Y(a), a.known()[:, 1]),
    "f1": lambda a: sk.f1_score(Y(a), D(a)),
    "binary-f0.5": lambda a: sk.fbeta_score(Y(a), D(a), beta=0.5),
    "brier": lambda a: sk.brier_score_loss(Y(a), a.known()[:, 1]),
    "log-loss": lambda a: sk.log_loss(Y(a), a.known()[:, 1]),
    "mcc": lambda a: sk.matthews_corrcoef(Y(a), D(a)),
}
LABELS: dict[str, Expected] = {
    "accuracy": lambda a: sk.accuracy_score(Y(a), D(a)),
    "hamming-loss": lambda a: sk.hamming_loss(Y(a), D(a)),
    "macro-f1": lambda a: sk.f1_score(Y(a), D(a), average="macro", zero_division=0),
    "micro-f1": lambda a: sk.f1_score(Y(a), D(a), average="micro"),
    "weighted-f1": lambda a: sk.f1_score(Y(a), D(a), average="weighted", zero_division=0),
    "sample-f1": lambda a: sk.f1_score(Y(a), D(a), average="samples", zero_division=0),
    "sample-f2": lambda a: sk.fbeta_score(Y(a), D(a), beta=2, average="samples", zero_division=0),
    "mcc": lambda a: float(np.mean([sk.matthews_corrcoef(Y(a)[:, c], D(a)[:, c]) for c in names_of(a)])),
    "log-loss": lambda a: float(
        np.mean([sk.log_loss(Y(a)[:, c], a.known()[:, c], labels=[0, 1]) for c in names_of(a)])
    ),
    "brier": lambda a: float(np.mean((a.known() - Y(a)) ** 2)),
    "average-precision": lambda a: sk.average_precision_score(Y(a), a.known(), average="macro"),
    "average-precision-micro": lambda a: sk.average_precision_score(Y(a), a.known(), average="micro"),
    "padded-cmap": lambda a: padded(Y(a).astype(float), a.known()),
    "roc-auc": lambda a: float(
        np.mean([sk.roc_auc_score(Y(a)[:, c], a.known()[:, c]) for c in names_of(a) if Y(a)[:, c].any()])
    ),
    "partial-auc@0.8": lambda a: float(
        np.mean([isic(Y(a)[:, c].astype(int), a.known()[:, c]) for c in names_of(a) if Y(a)[:, c].any()])
    ),
    "lrap": lambda a: sk.label_ranking_average_precision_score(Y(a), a.known()),
    "lwlrap": lambda a: sk.label_ranking_average_precision_score(
        Y(a)[Y(a).any(axis=1)], a.known()[Y(a).any(axis=1)], sample_weight=Y(a)[Y(a).any(axis=1)].sum(axis=1)
    ),
    "map@3": lambda a: float(
        np.mean(
            [apk(np.flatnonzero(t).tolist(), r, 3) for t, r in zip(Y(a), ranked(a.known()), strict=True)],
        )
    ),
}


def check(name: str, expected: Expected, answers: ScoredAnswers) -> None:
    """Compare a metric on all images, and on a resample given as weights and as repeated rows."""
    metric = find_metric(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns about absent classes
        assert metric.once(answers) == pytest.approx(expected(answers), abs=1e-9)
        (weights,) = resample_weights(answers.rows, None, resamples=3, seed=1)
        found = metric.score(answers, weights)
        for row, value in zip(weights, found, strict=True):
            rows = np.repeat(np.arange(answers.rows), row.astype(int))
            part = answers.take(rows)
            if name != "padded-cmap":
                assert metric.once(part) == pytest.approx(value, abs=1e-9)
            assert value == pytest.approx(expected(part), abs=1e-9)


@pytest.mark.parametrize("name", MULTICLASS)
@pytest.mark.parametrize(("absent", "ties"), [(False, True), (True, True), (False, False)])
def test_metrics_of_exclusive_classes_equal_scikit_learn(name: str, absent: bool, ties: bool) -> None:
    """Each metric of five classes equals scikit-learn's, also with ties, without one class, and in resamples."""
    check(name, MULTICLASS[name], exclusive(7, 5, absent=absent, ties=ties))


@pytest.mark.parametrize("name", BINARY)
def test_metrics_of_two_classes_equal_scikit_learn(name: str) -> None:
    """Each metric of two classes equals scikit-learn's of the positive one, also in resamples."""
    check(name, BINARY[name], exclusive(3, 2))


@pytest.mark.parametrize("name", LABELS)
@pytest.mark.parametrize("absent", [False, True])
def test_metrics_of_labels_equal_scikit_learn(name: str, absent: bool) -> None:
    """Each metric of independent labels equals scikit-learn's, also where a label applies nowhere."""
    check(name, LABELS[name], several(5, absent=absent))


def test_resamples_are_those_of_the_bootstrap_of_confusion_matrices() -> None:
    """Whole clusters are drawn, with the same draws for the same seed, in chunks of any size."""
    answers = exclusive(2, 4)
    clusters = [str(i // 3) for i in range(ROWS)]
    expected = macro_f1(
        bootstrap(answers.truth.astype(int), np.asarray(answers.decided), classes=4, clusters=clusters, resamples=20)
    )
    chunks = list(resample_weights(ROWS, clusters, resamples=20, seed=0, at_most=7))
    assert [len(chunk) for chunk in chunks] == [7, 7, 6]
    found = np.concatenate([find_metric("macro-f1").score(answers, chunk) for chunk in chunks])
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_every_name_is_known_and_near_misses_are_suggested() -> None:
    """All listed names parse; a misspelled one is an error that names the nearest."""
    for name in METRIC_NAMES:
        assert find_metric(name).title
    with pytest.raises(OptionError, match="did you mean quadratic-kappa"):
        find_metric("quadratic_kapa")
    with pytest.raises(OptionError, match="from 0"):
        find_metric("macro-f0")


def test_a_metric_refuses_answers_of_another_kind() -> None:
    """Sample F1 needs several labels, kappa one class, and binary F1 two classes."""
    for name, is_exclusive, classes in (("sample-f1", True, 3), ("qwk", False, 3), ("binary-f1", True, 3)):
        with pytest.raises(OptionError, match="is for"):
            find_metric(name).require_fits(exclusive=is_exclusive, classes=classes)


def test_a_function_of_the_user_is_a_metric(tmp_path: Path) -> None:
    """The function gets classes and probabilities, repeated rows in a resample, and may say that less is better."""
    path = tmp_path / "mine.py"
    path.write_text(
        "def score(truth, p):\n    return float((p.argmax(1) != truth).mean())\nscore.greater_is_better = False\n"
        "def broken(truth, p):\n    return p[0, 99]\n"
    )
    metric, answers = find_metric(f"{path}:score"), exclusive(1, 4)
    assert not metric.greater_is_better
    assert metric.once(answers) == pytest.approx(1 - find_metric("accuracy").once(answers))
    (weights,) = resample_weights(ROWS, None, resamples=4, seed=0)
    np.testing.assert_allclose(metric.score(answers, weights), 1 - find_metric("accuracy").score(answers, weights))
    with pytest.raises(OptionError, match=r"fails on truth .*IndexError"):
        find_metric(f"{path}:broken").once(answers)
    with pytest.raises(OptionError, match="has no function 'nothing'"):
        find_metric(f"{path}:nothing")
    with pytest.raises(OptionError, match="does not exist"):
        find_metric(f"{tmp_path / 'other.py'}")


def test_a_metric_of_the_user_that_exits_is_an_error(tmp_path: Path) -> None:
    """sys.exit(0) in the function would end the command with 0 and without a score."""
    path = tmp_path / "own.py"
    path.write_text("import sys\ndef score(truth, p):\n    sys.exit(0)\n")
    answers = exclusive(0, 3)
    with pytest.raises(OptionError, match=r"fails on truth .*SystemExit"):
        find_metric(str(path)).score(answers, np.ones((1, answers.rows)))


def test_constant_answers_have_no_correlation_whatever_the_weights() -> None:
    """Weights whose sums differ in the last digit do not make a correlation of rounding errors."""
    rng = np.random.default_rng(13)
    weights = rng.random((5, 120)) + 0.05
    truth = rng.integers(2, size=120)
    p = np.tile([0.3, 0.7], (120, 1))
    constant = ScoredAnswers(truth, np.ones(120, dtype=np.intp), p, 2)
    assert find_metric("mcc").score(constant, weights).tolist() == [0.0] * 5
    labels = ScoredAnswers(np.stack([truth == 1, truth == 0], axis=1), np.ones((120, 2), dtype=bool), p, 2)
    assert find_metric("mcc").score(labels, weights).tolist() == [0.0] * 5
    none = ScoredAnswers(np.zeros((120, 2), dtype=bool), p > 0.5, p, 2)
    assert np.isnan(find_metric("lwlrap").once(none))
    assert find_metric("average-precision-micro").once(none) == 0
