"""Compare a student with the blend that taught it: network passes, and scores out of fold over the same people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ensemble.arrays import Floats
from ensemble.blend.pooling import LINEAR
from ensemble.blend.recipe import Group, Recipe
from ensemble.learn.cross_validation import CandidateAnswers, LearningData, bootstrap_scores, score_answers
from ensemble.learn.objective import Metric
from ensemble.learn.teacher import Answers, Teacher, answer_by_folds, count_passes, metric_of, recipes_of_folds
from ensemble.metrics import interval
from ensemble.predictions.dataset import Predictions
from ensemble.predictions.out_of_fold import gather_folds
from ensemble.predictions.truth import Truth
from ensemble.scoring.answers import ScoredAnswers, resample_weights

_VIEW = "identity"
_TINY = np.finfo(np.float64).tiny


@dataclass(frozen=True, slots=True)
class StudentComparison:
    """The passes and the scores out of fold of a student and of its teacher.

    Passes are answers of one network about one view of an image. ``difference`` is the student's score minus that of
    the teacher, with its 95 % interval over ``units`` people, or images where people are not known. An ``optimistic``
    one is of a student whose labels came from models that were trained on the images it is scored on. ``decided_by``
    says how the answers of both became classes or labels.
    """

    metric: str
    student: float
    teacher: float
    difference: float
    low: float
    high: float
    units: int
    people: bool
    student_passes: int
    teacher_passes: int
    optimistic: bool
    decided_by: str

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)

    def render(self) -> str:
        """Return one line."""
        share = 100 * self.student_passes / self.teacher_passes
        where = f"over {self.units:,} {'people' if self.people else 'images'}"
        note = " (optimistic: see W391)" if self.optimistic else ""
        return (
            f"student and blend, {self.metric} out of fold, decided by {self.decided_by}: "
            f"{self.student:.4f} in one view, the blend's {self.teacher:.4f}: "
            f"{self.difference:+.4f} ({self.low:+.4f} to {self.high:+.4f} {where}){note}; "
            f"{self.student_passes} passes per image, the blend has {self.teacher_passes} ({share:.0f} %)"
        )


def compare_student(
    teacher: Teacher, student: Sequence[Predictions], *, optimistic: bool = False, seed: int = 0
) -> StudentComparison:
    """Compare a student's out-of-fold predictions, in the view identity, with the teacher's answers.

    Both decide in the same way: what the recipe has learned (temperature, bias, rule) is learned for the student as
    well, per fold without its images; a rule that was given is used for both.

    Raises:
        EnsError: as `gather_folds` and `recipes_of_folds`.
    """
    truth, recipe = teacher.truth, teacher.recipe
    (gathered,) = gather_folds([_one_view(one) for one in student], truth)
    own = recipe if recipe.learned is not None else _alone(recipe, gathered)
    recipes = recipes_of_folds(own, [gathered], truth, teacher.fold)
    answers = answer_by_folds(recipes, [gathered], truth, teacher.fold)
    metric = metric_of(recipe, truth.labels)
    person = _number_people(truth)
    (one, ones), (other, others) = (_score(metric, truth, person, each, seed) for each in (answers, teacher.answers))
    low, high = interval(ones - others)
    return StudentComparison(
        metric=metric.title,
        student=one,
        teacher=other,
        difference=one - other,
        low=low,
        high=high,
        units=int(person.max()) + 1,
        people=truth.persons is not None,
        student_passes=len(student),
        teacher_passes=count_passes(recipe),
        optimistic=optimistic,
        decided_by=_decided_by(recipe),
    )


def _decided_by(recipe: Recipe) -> str:
    if recipe.learned is not None:
        return "what the recipe learned, learned again per fold for each"
    if recipe.rule != "argmax":
        return "the recipe's rule"
    return "a probability of one half" if recipe.activation == "sigmoid" else "the most probable class"


def _one_view(member: Predictions) -> Predictions:
    return replace(member, logits={_VIEW: member.logits[_VIEW]})


def _alone(recipe: Recipe, student: Predictions) -> Recipe:
    """Return the recipe's rule for one member in place of its groups."""
    return Recipe(
        pool=LINEAR,
        views={_VIEW: 1.0},
        groups={student.group: Group(1.0, {student.member: student.sha256})},
        labels=recipe.labels,
        rule=recipe.rule,
        transductive=recipe.transductive,
        activation=recipe.activation,
    )


def _number_people(truth: Truth) -> np.ndarray[Any, np.dtype[np.intp]]:
    names = truth.ids if truth.persons is None else truth.persons
    return np.unique(np.asarray(names), return_inverse=True)[1]


def _score(
    metric: Metric, truth: Truth, person: np.ndarray[Any, np.dtype[np.intp]], answers: Answers, seed: int
) -> tuple[float, Floats]:
    """Return the score, and that of each resample of people, which are the same for all answers."""
    p = answers.probabilities
    if truth.applies is not None:
        scored = ScoredAnswers(truth.applies, answers.decided, p, p.shape[1])
        drawn = resample_weights(len(p), person, resamples=metric.resamples, seed=seed)
        once = metric.score_answers(scored, np.ones((1, len(p))))
        return float(once[0]), np.concatenate([metric.score_answers(scored, weights) for weights in drawn])
    log_p = np.log(np.maximum(p, _TINY))
    data = LearningData(log_p[np.newaxis], truth.classes, person, keep=metric.needs_probabilities)
    of_truth = log_p[np.arange(len(p)), truth.classes]
    kept = p[np.newaxis] if metric.needs_probabilities else None
    given = CandidateAnswers(np.asarray(answers.decided, dtype=np.intp)[np.newaxis], of_truth[np.newaxis], kept)
    return score_answers(metric, data, given), bootstrap_scores(metric, data, given, seed=seed)
