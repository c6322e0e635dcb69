"""Gather the facts about members of several labels per image and their blend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ensemble.analysis.label_facts import (
    LabelAgreement,
    LabelDispute,
    LabelMember,
    LabelsQuality,
    decisions_of,
    decisions_of_each,
    find_disputes,
)
from ensemble.analysis.metric_estimates import MetricScore
from ensemble.analysis.report_facts import LearnedChoice, MissingSection, RunRecords
from ensemble.analysis.report_inputs import ReportInputs
from ensemble.arrays import Floats
from ensemble.blend.recipe import Recipe
from ensemble.events import Notice
from ensemble.labels import LabelSpace
from ensemble.predictions.truth import Truth

HEADLINE = "macro-f1"


@dataclass(frozen=True, slots=True, eq=False)
class LabelReport:
    """Everything the page shows; what is None or empty is not shown, and ``missing`` says why.

    ``predicted`` ``(C,)`` counts the test images that get each label, ``together`` ``(C, C)`` those that get both.
    """

    images: int
    out_of_fold: bool
    runs: RunRecords
    notices: tuple[Notice, ...]
    members: tuple[LabelMember, ...]
    recipe: Recipe
    choice: LearnedChoice | None
    quality: LabelsQuality | None
    agreement: LabelAgreement | None
    together: Floats
    disputes: tuple[LabelDispute, ...]
    missing: tuple[MissingSection, ...]
    commands: tuple[str, ...]

    @property
    def labels(self) -> LabelSpace:
        """The labels."""
        return self.recipe.labels

    @property
    def predicted(self) -> Floats:
        """The number of test images that get each label, ``(C,)``."""
        return np.diagonal(self.together)


def label_report_of(inputs: ReportInputs, *, images: Path | None, commands: Sequence[str]) -> LabelReport:
    """Gather the facts about predictions of several labels per image.

    Raises:
        EnsError: as `list_images`; E330 when the ground truth is of other images.
    """
    test, scored, truth = inputs.test, inputs.scored, inputs.truth
    several = len(test.members) > 1
    decided = decisions_of(test.blended).astype(np.float64)
    shown: Truth | None = None if inputs.out_of_fold else truth
    own = decisions_of_each(inputs.alone, test.blended)
    return LabelReport(
        images=len(test.blended),
        out_of_fold=inputs.out_of_fold,
        runs=inputs.runs,
        notices=inputs.notices,
        members=LabelMember.of_each(scored, truth),
        recipe=test.recipe,
        choice=inputs.choice,
        quality=None if truth is None else LabelsQuality.of(scored.blended, test.recipe, truth),
        agreement=LabelAgreement.of(own) if several else None,
        together=decided.T @ decided,
        disputes=find_disputes(inputs.alone, test.blended, shown, images) if several else (),
        missing=(
            *inputs.missing_options(images),
            *([] if several else [MissingSection("Agreement and disagreements", "predictions of two or more members")]),
        ),
        commands=tuple(commands),
    )


def summary_of_labels(report: LabelReport) -> str:
    """Summarize the result in a sentence."""
    choice, quality = report.choice, report.quality
    if choice is not None and choice.row is not None:
        row = choice.row
        found = f"{choice.method}: {choice.metric} {row.nested:.4f} in nested cross-validation"
        if row is choice.table[0]:
            return f"{found}, the mean of probabilities"
        return f"{found}, {row.gain:+.4f} ± {row.error:.4f} over the mean of probabilities"
    count = len(report.members)
    if quality is None:
        members = f"{count} {'member' if count == 1 else 'members'} of {len(report.labels)} labels"
        return f"{members}, {report.images:,} images, no ground truth"
    headline = _value(quality.scores)
    assert headline is not None, "F scores are always defined"
    title = quality.scores[HEADLINE].title
    found = f"{title[0].upper()}{title[1:]} {headline:.4f} over {len(report.labels)} labels"
    scored = [(value, one.name) for one in report.members if (value := _value(one.scores)) is not None]
    if len(scored) < 2:
        return found
    best, name = max(scored)
    gain = headline - best
    return f"{found}, {abs(gain):.4f} {'below' if gain < 0 else 'above'} the best single member ({name})"


def subtitle_of_labels(report: LabelReport) -> str:
    """Say on which images the scores are, and how many images were predicted."""
    quality = report.quality
    if quality is None:
        return f"Ensemble report · several labels per image · {report.images:,} test images"
    persons = "" if quality.persons is None else f" of {quality.persons:,} persons"
    kind = "out-of-fold" if report.out_of_fold else "test"
    more = f" · {report.images:,} test images" if report.out_of_fold else ""
    scored = f"scored on {quality.images:,} {kind} images{persons}"
    return f"Ensemble report · several labels per image · {scored}{more}"


def _value(scores: Mapping[str, MetricScore]) -> float | None:
    estimate = scores[HEADLINE].estimate if scores else None
    return None if estimate is None else estimate.value
