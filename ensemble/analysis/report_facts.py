"""The facts that a report shows, each computed by its own constructor."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ensemble.analysis.disagreements import predicted_classes
from ensemble.analysis.evaluate import Evaluation, Scores, evaluate
from ensemble.arrays import Floats
from ensemble.blend.blend import Blended, blend
from ensemble.blend.pooling import normalize
from ensemble.blend.recipe import Recipe, make_recipe
from ensemble.errors import OptionError, PredictionError, TooLittleTruthError
from ensemble.events import Notice
from ensemble.labels import LabelSpace
from ensemble.learn.learn import learn
from ensemble.learn.objective import title_of
from ensemble.learn.result import CandidateScore
from ensemble.learn.view_gains import ViewGain
from ensemble.metrics import Reliability, confusion_matrix, reliability
from ensemble.predict.predict import RUN
from ensemble.predictions.dataset import Predictions
from ensemble.predictions.truth import Truth, true_classes
from ensemble.text.json_types import require_field_types, require_type

_METRIC = "macro F1"
_RECORD: Mapping[str, Any] = {
    "member": str,
    "device": str,
    "images": int,
    "views": tuple[str, ...],
    "at_once": int | None,
    "batch": int,
    "workers": int,
    "computed": int,
    "seconds": Mapping[str, float],
    "notices": tuple[Mapping[str, Any], ...],
}


@dataclass(frozen=True, slots=True)
class RunRecord:
    """The record of a run that `ens predict` keeps beside its predictions.

    ``own`` are the seconds of this member, ``wall`` those of the whole run.
    """

    member: str
    device: str
    images: int
    views: tuple[str, ...]
    at_once: int
    workers: int
    computed: int
    own: float
    wall: float
    notices: tuple[Notice, ...]

    @classmethod
    def read(cls, folder: Path) -> RunRecord | None:
        """Read the record of a prediction folder; None where there is none.

        Raises:
            PredictionError: E514 when it is damaged.
        """
        path = folder / RUN
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            require_type(value, Mapping[str, Any], "the record")
            require_field_types(value, _RECORD)
            return cls(
                member=value["member"],
                device=value["device"],
                images=value["images"],
                views=tuple(value["views"]),
                at_once=value.get("at_once") or value["batch"],
                workers=value["workers"],
                computed=value["computed"],
                own=value["seconds"]["own"],
                wall=value["seconds"]["wall"],
                notices=tuple(Notice(notice["code"], notice["message"]) for notice in value["notices"]),
            )
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AssertionError) as err:
            raise PredictionError(
                "E514", f"{path} cannot be read: {err}", path=path, hint="remove the file: only the report reads it"
            ) from err


@dataclass(frozen=True, slots=True)
class RunRecords:
    """The records of all prediction folders, and the names of the folders without one."""

    found: tuple[RunRecord, ...]
    unrecorded: tuple[str, ...]

    @classmethod
    def read(cls, folders: Sequence[Path]) -> RunRecords:
        """Read the record of each folder; files of other tools have none.

        Raises:
            PredictionError: E514 when one is damaged.
        """
        records = [(path.name, RunRecord.read(path) if path.is_dir() else None) for path in folders]
        return cls(
            tuple(record for _, record in records if record is not None),
            tuple(name for name, record in records if record is None),
        )


@dataclass(frozen=True, slots=True)
class MemberSummary:
    """A member or group of folds: its weight in the blend, and its scores where the ground truth is known."""

    name: str
    weight: float
    views: tuple[str, ...]
    scores: Scores | None

    @classmethod
    def of_each(cls, members: Sequence[Predictions], recipe: Recipe, truth: Truth | None) -> tuple[MemberSummary, ...]:
        """Summarize the members of a recipe; a group's weight is divided equally among its members."""
        shares = normalize({name: group.weight for name, group in recipe.groups.items()})
        weights = {
            member: shares[name] / len(group.members)
            for name, group in recipe.groups.items()
            for member in group.members
        }
        return tuple(
            cls(
                member.member,
                weights[member.member],
                tuple(member.logits),
                None if truth is None else evaluate(blend([member], make_recipe([member])), truth).scores[0],
            )
            for member in members
        )


@dataclass(frozen=True, slots=True)
class LearnedChoice:
    """The record in a learned recipe: the chosen candidate ``method``, the table behind the choice, and the views."""

    method: str
    metric: str
    why: str
    table: tuple[CandidateScore, ...]
    views: tuple[ViewGain, ...]

    @property
    def row(self) -> CandidateScore | None:
        """The row of the chosen candidate."""
        return next((row for row in self.table if row.candidate == self.method), None)

    @classmethod
    def of(cls, recipe: Recipe) -> LearnedChoice | None:
        """Take it from a recipe; None for a recipe that was not learned.

        Raises:
            PredictionError: E518 when it is damaged.
        """
        found = recipe.learned
        if found is None:
            return None
        try:
            require_field_types(found, {"table": tuple[CandidateScore, ...], "views": tuple[ViewGain, ...]}, "learned")
            return cls(
                method=found["method"],
                metric=title_of(found["metric"], recipe.labels, exclusive=recipe.activation == "softmax"),
                why=found["why"],
                table=tuple(
                    CandidateScore(**{key: row[key] for key in row if key != "optimism"}) for row in found["table"]
                ),
                views=tuple(ViewGain(**view) for view in found.get("views", ())),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OptionError) as err:
            raise PredictionError("E518", f"the learning record of the recipe cannot be read: {err}") from err


@dataclass(frozen=True, slots=True, eq=False)
class BlendQuality:
    """The blend against the ground truth.

    ``confusion`` ``(C, C)`` counts true class by predicted class, and ``axes`` does so per axis.
    """

    evaluation: Evaluation
    confusion: Floats
    axes: Mapping[str, Floats]
    reliability: Reliability

    @property
    def scores(self) -> Scores:
        """The scores of the blend."""
        return self.evaluation.scores[0]

    @classmethod
    def of(cls, blended: Blended, truth: Truth) -> BlendQuality:
        """Compare a blend with the ground truth of the same images.

        Raises:
            DataError: E330 when the images are not the same.
        """
        evaluation = evaluate(blended, truth)
        true = true_classes(blended.ids, truth)
        labels = blended.labels
        axes = {
            axis.name: confusion_matrix(
                labels.along(axis.name, true), labels.along(axis.name, blended.classes), classes=len(axis.values)
            )
            for axis in labels.axes
        }
        confusion = confusion_matrix(true, blended.classes, classes=len(labels))
        return cls(evaluation, confusion, axes, reliability(true, blended.probabilities))


@dataclass(frozen=True, slots=True)
class ViewSummary:
    """The gain of each view beside the first in ``metric``; ``problem`` says why there is none, or is empty."""

    gains: tuple[ViewGain, ...] = ()
    metric: str = _METRIC
    problem: str = ""

    @classmethod
    def of(cls, members: Sequence[Predictions], truth: Truth) -> ViewSummary:
        """Measure the gain of each view in the plain mean of the members."""
        if all(len(member.logits) == 1 for member in members):
            return cls(problem="predict with --tta or --views: these predictions have only one view")
        try:
            return cls(learn(members, truth, method="mean", repeats=1).view_gains)
        except TooLittleTruthError as err:
            return cls(problem=f"more ground truth: {err.message}")


@dataclass(frozen=True, slots=True, eq=False)
class MemberAgreement:
    """``shares`` ``(M, M)`` is the share of images for which two members predict the same class."""

    members: tuple[str, ...]
    shares: Floats

    @classmethod
    def of(cls, alone: Mapping[str, Blended], labels: LabelSpace) -> MemberAgreement:
        """Compare the predicted classes of members, whose images are in the same order."""
        classes = np.stack([predicted_classes(one, labels) for one in alone.values()])
        return cls(tuple(alone), np.stack([(classes == own).mean(axis=1) for own in classes]))


@dataclass(frozen=True, slots=True)
class ClassDistribution:
    """The number of images per class, ``(C,)``, in the ground truth and in the predictions for the test images."""

    truth: tuple[int, ...]
    predicted: tuple[int, ...]

    @classmethod
    def of(cls, truth: Truth, blended: Blended) -> ClassDistribution:
        """Count the images of each class."""
        count = partial(np.bincount, minlength=len(blended.labels))
        return cls(tuple(count(truth.classes).tolist()), tuple(count(blended.classes).tolist()))


@dataclass(frozen=True, slots=True)
class MissingSection:
    """A section that the report lacks, and the input that would add it."""

    section: str
    remedy: str
