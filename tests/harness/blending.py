"""Compare `auto`, the mean and every candidate on predictions with a known truth, over many draws.

    python -m tests.harness.blending [--settings A,C,folds,...] [--draws 10] [--people 250]
    python -m tests.harness.blending --oof DIR... --truth CSV [--test DIR... --test-truth CSV] [--people 100,250,500]

Without ``--oof`` the settings are simulated, with fixed random seeds; with it, people are drawn from the out-of-fold
predictions, and what was learned from them is applied to the test predictions (all folds of a group averaged, as a
submission has them), or to the people that were not drawn where no test predictions are given. A line per method: its
score minus that of the mean, on the same draws, with the standard error of that difference and its worst draw; below
them the gain that `auto` printed beside the gain that was found, and how often that is in the printed interval. Both
gains depend on the people that were drawn: in simulated contests, where thousands of people can be asked for, one rule
learned from those is scored on the drawn people, and the difference of its gains is printed as that of the people.
AutoGluon's ensemble selection and `hillclimbers`
take part where they are installed. pytest does not collect this file.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble.blend.blend import Blended, blend
from ensemble.blend.pooling import log_softmax
from ensemble.blend.recipe import make_recipe
from ensemble.labels import MASK18
from ensemble.learn.candidates import FitOptions, Fitted, fit_candidates
from ensemble.learn.cross_validation import LearningData, apply_candidate, score_answers
from ensemble.learn.learn import learn
from ensemble.learn.learned_recipe import learned_recipe
from ensemble.learn.learning_data import sort_images, stack_new
from ensemble.learn.objective import parse_metric
from ensemble.learn.result import Learned, MemberView
from ensemble.predictions.dataset import Predictions
from ensemble.predictions.out_of_fold import gather_folds
from ensemble.predictions.read_members import read_members
from ensemble.predictions.truth import Truth, read_truth, true_classes
from ensemble.text.text_table import render_columns
from tests.support.simulation import PEOPLE, Contest, Scenario, make_contest, take_rows

EVEN = np.full((2, 3), 100)


@dataclass(frozen=True, slots=True, eq=False)
class Draw:
    """Out-of-fold members and their truth to learn from; test members and their truth to score on.

    ``people`` is the gain of one rule on the people of the test, minus that on those to learn from, in points.
    """

    oof: list[Predictions]
    truth: Truth
    test: list[Predictions]
    test_truth: Truth
    people: float | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """The test scores of one draw by method, the method that `auto` selected, the gain and error that it printed."""

    scores: Mapping[str, float]
    selected: str
    expected: float
    error: float
    seconds: float
    people: float | None


def simulated(name: str, people: int, seed: int) -> Draw:
    """Draw one simulated setting: A, B, C as `tests.support.simulation`, or one that breaks an assumption of them."""
    scenario: Scenario = "C" if name in {"C", "folds-C"} else "B" if name == "B" else "A"
    folds, members = (5, 4) if name.startswith("folds") else (1, 8)
    contest = make_contest(scenario, seed=seed % 5, members=4 if name == "shift" else members)
    if name == "shift":  # trained on even classes, learned from a long tail, applied to even classes
        contest = Contest(tuple(replace(member, tau=1.0) for member in contest.members))
        oof, truth = contest.draw_folds(people, seed=1000 + seed, folds=1)
        return Draw(oof, truth, *contest.draw_folds(1500, seed=5000 + seed, folds=1, mix=EVEN))
    people = 29 if name == "few" else people
    test, test_truth = contest.draw_folds(1500, seed=5000 + seed, folds=folds)
    if name == "absent":
        mix = PEOPLE * (np.arange(6).reshape(2, 3) != 2)
        return Draw(*contest.draw_folds(people, seed=1000 + seed, folds=1, mix=mix), test, test_truth)
    rule = _fixed_rule(scenario, seed % 5, members, folds)
    gains = [_gain(rule, test, test_truth), _gain(rule, *contest.draw_folds(people, seed=1000 + seed, folds=folds))]
    oof, truth = contest.draw_out_of_fold(people, seed=1000 + seed, folds=folds)
    spoil = {"noise": _noise, "constant": _constant, "permuted": _permuted}.get(name)
    if spoil is not None:
        oof, test = ([*kept[:-1], spoil(kept[-1])] for kept in (oof, test))
    return Draw(oof, truth, test, test_truth, gains[0] - gains[1])


@cache
def _fixed_rule(scenario: Scenario, number: int, members: int, folds: int) -> Mapping[str, Fitted]:
    """Return the mean and a rule learned from the mean of all folds on 3,000 people of a contest."""
    data = _average(
        *make_contest(scenario, seed=number, members=members).draw_folds(3000, seed=900 + number, folds=folds)
    )
    options = FitOptions(np.full(members, 1 / members), MASK18, parse_metric("macro-f1", MASK18).score_classes, 0)
    return fit_candidates(("mean", "factored+f1"), options, data.log_p, data.truth, data.log_g)


def _average(members: Sequence[Predictions], truth: Truth) -> LearningData:
    """Return the mean of the folds of each member, on the images of their truth in the order of their ids."""
    views = [MemberView(group, "identity") for group in sorted({one.group for one in members})]
    folds = stack_new(members, views, MASK18)
    images = sort_images(truth)
    log_p = np.stack([np.log(np.exp(one).mean(axis=0)) for one in folds])
    log_g = np.stack([one.mean(axis=0) for one in folds])
    return LearningData(log_p, truth.classes[images.order], images.person, log_g)


def _gain(rule: Mapping[str, Fitted], members: Sequence[Predictions], truth: Truth) -> float:
    data, metric = _average(members, truth), parse_metric("macro-f1", MASK18)
    mean, other = (score_answers(metric, data, apply_candidate(fitted, data)) for fitted in rule.values())
    return 100 * (other - mean)


def _noise(member: Predictions) -> Predictions:
    rng = np.random.default_rng(len(member))
    return replace(member, logits={view: rng.normal(size=v.shape).astype(v.dtype) for view, v in member.logits.items()})


def _constant(member: Predictions) -> Predictions:
    return replace(member, logits={view: np.zeros_like(values) for view, values in member.logits.items()})


def _permuted(member: Predictions) -> Predictions:
    columns = np.random.default_rng(0).permutation(len(member.labels))
    return replace(member, logits={view: values[:, columns] for view, values in member.logits.items()})


SETTINGS = ("A", "B", "C", "folds", "folds-C", "shift", "absent", "few", "noise", "constant", "permuted")


def take_people(
    members: Sequence[Predictions], truth: Truth, rows: NDArray[np.intp]
) -> tuple[list[Predictions], Truth]:
    """Return the members' predictions of some images of the truth, and their truth."""
    kept = {truth.ids[row] for row in rows}
    taken = [take_rows(one, np.flatnonzero([name in kept for name in one.ids])) for one in members]
    persons = None if truth.persons is None else tuple(truth.persons[row] for row in rows)
    return (
        [replace(one, holdout_sha256=None) for one in taken],
        Truth(tuple(truth.ids[row] for row in rows), truth.classes[rows], persons, truth.labels),
    )


def drawn(everyone: Draw, people: int, seed: int, *, split: bool) -> Draw:
    """Draw people from the out-of-fold predictions; with ``split`` the others are the test."""
    truth = everyone.truth
    persons = np.array(truth.ids if truth.persons is None else truth.persons)
    chosen = np.random.default_rng(seed).permutation(np.unique(persons))[:people]
    inside = np.isin(persons, chosen)
    oof, known = take_people(everyone.oof, truth, np.flatnonzero(inside))
    if not split:
        return Draw(oof, known, everyone.test, everyone.test_truth)
    return Draw(oof, known, *take_people(everyone.oof, truth, np.flatnonzero(~inside)))


def evaluate(draw: Draw, *, metric: str = "macro-f1", repeats: int = 2) -> Result:
    """Learn on the out-of-fold members, and score every method on the test members."""
    started = time.perf_counter()
    test = draw.test
    scored = parse_metric(metric, draw.truth.labels)

    def score(answers: Blended) -> float:
        return 100 * scored.score_classes(true_classes(answers.ids, draw.test_truth), answers.classes)

    learned = learn(gather_folds(draw.oof, draw.truth), draw.truth, metric=metric, repeats=repeats, applied_to=test)
    seconds = time.perf_counter() - started
    scores = {"mean": score(blend(test, make_recipe(test)))}
    for name, fitted in learned.candidates.items():
        scores[name] = score(blend(test, learned_recipe(replace(learned, method=name, fitted=fitted), test)))
    scores["auto"] = scores[learned.method]
    scores |= _peers(draw, learned, score)
    error = next(row.error for row in learned.table if row.candidate == learned.method)
    return Result(scores, learned.method, 100 * learned.expected_gain, 100 * error, seconds, draw.people)


def _peers(draw: Draw, learned: Learned, score: Callable[[Blended], float]) -> dict[str, float]:
    """Return the scores of the ensemble selections of other packages, where they are installed."""
    gathered = gather_folds(draw.oof, draw.truth)
    p = [np.exp(log_softmax(one.logits[view])) for one in gathered for view in sorted(one.logits)]
    found = {}
    for name, weigh in (("autogluon", _autogluon), ("hillclimbers", _hillclimbers)):
        weights = weigh(p, draw.truth)
        if weights is not None:
            fitted = replace(
                learned.candidates["mean"], weights=np.asarray(weights, dtype=np.float64) / np.sum(weights)
            )
            found[name] = score(blend(draw.test, learned_recipe(replace(learned, fitted=fitted), draw.test)))
    return found


def _installed(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        return None


def _autogluon(p: Sequence[NDArray[np.float64]], truth: Truth) -> Sequence[float] | None:
    selection = _installed("autogluon.core.models.greedy_ensemble.ensemble_selection")
    metrics = _installed("autogluon.core.metrics")
    if selection is None or metrics is None:
        return None
    ensemble = selection.EnsembleSelection(
        ensemble_size=100, problem_type="multiclass", metric=metrics.get_metric("f1_macro")
    )
    ensemble.fit(list(p), truth.classes)
    return [float(weight) for weight in ensemble.weights_]


def _hillclimbers(p: Sequence[NDArray[np.float64]], truth: Truth) -> Sequence[float] | None:
    """Climb as `hillclimbers` does: from the best member, add the member and weight that improve the score most."""
    if _installed("hillclimbers") is None:
        return None
    metric = parse_metric("macro-f1", truth.labels)

    def value(pooled: NDArray[np.float64]) -> float:
        return metric.score_classes(truth.classes, pooled.argmax(axis=1))

    alone = [value(one) for one in p]
    best = int(np.argmax(alone))
    pooled, top, weights = p[best], alone[best], np.eye(len(p))[best]
    while True:
        tried = [(value((1 - w) * pooled + w * p[i]), w, i) for i in range(len(p)) for w in np.arange(0.01, 0.51, 0.01)]
        found, w, i = max(tried)
        if found <= top:
            return [float(weight) for weight in weights]
        pooled, top, weights = (1 - w) * pooled + w * p[i], found, (1 - w) * weights + w * np.eye(len(p))[i]


def render(title: str, results: Sequence[Result]) -> str:
    """Render one setting: a line per method, then what `auto` selected, printed and found."""
    names = dict.fromkeys(name for one in results for name in one.scores)
    gains = {
        name: np.array([one.scores[name] - one.scores["mean"] for one in results if name in one.scores])
        for name in names
    }
    rows = [(name, _interval(gain), f"{gain.min():+.2f}") for name, gain in gains.items() if len(gain) > 1]
    selected = ", ".join(f"{name} {sum(one.selected == name for one in results)}" for name in _selected(results))
    expected = np.array([one.expected for one in results])
    error = gains["auto"] - expected
    people = np.array([0.0 if one.people is None else one.people for one in results])
    by_people = "" if results[0].people is None else f", {_interval(people)} of it by the people drawn"
    adopted = [i for i, one in enumerate(results) if one.error > 0]
    inside = sum(abs(error[i]) <= 1.96 * results[i].error for i in adopted)
    seconds = np.mean([one.seconds for one in results])
    return (
        f"{title}: {len(results)} draws, mean {np.mean([one.scores['mean'] for one in results]):.2f}\n"
        f"{render_columns(('method', 'gain ± SE', 'worst'), rows)}"
        f"selected: {selected}\n"
        f"expected gain {expected.mean():+.2f}, found {gains['auto'].mean():+.2f}, "
        f"found - expected {_interval(error)}{by_people}; {seconds:.1f} s a draw\n"
        f"found in the printed 95 % interval: {inside} of {len(adopted)} draws that adopted something\n"
    )


def _interval(values: NDArray[np.float64]) -> str:
    """Render a mean and its standard error."""
    return f"{values.mean():+.2f} ± {values.std(ddof=1) / len(values) ** 0.5:.2f}"


def _selected(results: Sequence[Result]) -> Iterator[str]:
    counts: dict[str, int] = {}
    for one in results:
        counts[one.selected] = counts.get(one.selected, 0) + 1
    yield from sorted(counts, key=lambda name: -counts[name])


def _simulate(task: tuple[str, int, int]) -> Result:
    return evaluate(simulated(*task))


def main() -> int:
    """Run the settings or the given predictions, and print a table for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", default=",".join(SETTINGS))
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--people", default="250")
    parser.add_argument("--oof", nargs="+", type=Path)
    parser.add_argument("--truth", type=Path)
    parser.add_argument("--test", nargs="+", type=Path)
    parser.add_argument("--test-truth", type=Path)
    parser.add_argument("-j", "--jobs", type=int, default=1)
    parser.add_argument("--json", type=Path, help="Also write every draw's scores to this file.")
    options = parser.parse_args()
    kept: dict[str, list[Result]] = {}
    with ProcessPoolExecutor(options.jobs) as pool:
        for people in map(int, options.people.split(",")):
            if options.oof is None:
                for name in options.settings.split(","):
                    tasks = [(name, people, seed) for seed in range(options.draws)]
                    kept[f"{name}, {people} people"] = list(pool.map(_simulate, tasks))
                    _say(f"{name}, {people} people", kept)
                continue
            everyone = _read(options)
            split = options.test is None
            title = f"{people} people"
            draws = [drawn(everyone, people, seed, split=split) for seed in range(options.draws)]
            kept[title] = list(pool.map(evaluate, draws))
            _say(title, kept)
    if options.json is not None:
        values = {name: [asdict(one) for one in results] for name, results in kept.items()}
        options.json.write_text(json.dumps(values, default=str))
    return 0


def _say(title: str, kept: Mapping[str, list[Result]]) -> None:
    sys.stdout.write(render(title, kept[title]) + "\n")
    sys.stdout.flush()


def _read(options: argparse.Namespace) -> Draw:
    oof = read_members(options.oof, MASK18)
    truth = read_truth(options.truth, oof[0].labels)
    if options.test is None:
        # the other people's predictions are to be blended: each fold has only some of their images
        return Draw(gather_folds(oof, truth), truth, [], truth)
    test = read_members(options.test, MASK18)
    return Draw(oof, truth, test, read_truth(options.test_truth, test[0].labels))


if __name__ == "__main__":
    sys.exit(main())
