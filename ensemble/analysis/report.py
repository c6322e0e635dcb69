"""Gather the facts about a blend, its members and its predictions from what the other commands have written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ensemble.analysis.disagreements import Disagreement, find_disagreements
from ensemble.analysis.evaluate import Scores
from ensemble.analysis.evidence import EvidenceMap, draw_evidence
from ensemble.analysis.fold_scores import score_fold_average
from ensemble.analysis.report_facts import (
    BlendQuality,
    ClassDistribution,
    LearnedChoice,
    MemberAgreement,
    MemberSummary,
    MissingSection,
    RunRecords,
    ViewSummary,
)
from ensemble.analysis.report_inputs import ReportFiles, ReportInputs, gather_inputs
from ensemble.blend.recipe import Recipe
from ensemble.errors import PredictionError
from ensemble.events import SILENT, Listener, Notice
from ensemble.labels import LabelSpace
from ensemble.predictions.truth import NO_COLUMNS, TruthOptions


@dataclass(frozen=True, slots=True, eq=False)
class Report:
    """Everything the page shows; what is None or empty is not shown, and ``missing`` says why.

    ``averaged`` are the scores of the blend as if the folds of each member had been averaged out of fold.
    """

    images: int
    out_of_fold: bool
    runs: RunRecords
    notices: tuple[Notice, ...]
    members: tuple[MemberSummary, ...]
    recipe: Recipe
    choice: LearnedChoice | None
    quality: BlendQuality | None
    views: ViewSummary
    agreement: MemberAgreement | None
    distribution: ClassDistribution | None
    disagreements: tuple[Disagreement, ...]
    missing: tuple[MissingSection, ...]
    commands: tuple[str, ...]
    evidence: Mapping[str, tuple[EvidenceMap, ...]] = field(default_factory=dict)
    averaged: Scores | None = None

    @property
    def labels(self) -> LabelSpace:
        """The classes."""
        return self.recipe.labels


def report(
    predictions: Sequence[Path],
    *,
    recipe: Path | None = None,
    truth: Path | None = None,
    oof: Sequence[Path] = (),
    images: Path | None = None,
    commands: Sequence[str] = (),
    columns: TruthOptions = NO_COLUMNS,
    listener: Listener = SILENT,
) -> Report:
    """Gather the facts about test predictions and their blend, with equal weights if there is no ``recipe``.

    ``truth`` is the ground truth of the out-of-fold predictions if there are any, else of the test predictions.
    ``commands`` are shown as the way to reproduce the page, and ``columns`` are those of the ground truth.

    Raises:
        OptionError: E204 when ``oof`` comes without ``truth``.
        EnsError: as `read_predictions`, `read_recipe`, `read_truth`, `gather_folds`, `blend`, `evaluate` and
            `list_images`; E514 when the record of a run is damaged, E518 when that of a learned recipe is, E548 when
            several labels may apply to an image.
    """
    inputs = gather_inputs(
        predictions, recipe=recipe, truth=truth, oof=oof, files=ReportFiles(columns), listener=listener
    )
    return report_of(inputs, images=images, commands=commands)


def report_of(
    inputs: ReportInputs, *, images: Path | None, commands: Sequence[str], models: Sequence[Path] = ()
) -> Report:
    """Gather the facts about predictions that have been read, as `report` does.

    With ``models`` and ``images``, the evidence of the members that contradict each other is drawn.

    Raises:
        PredictionError: E548 when several labels may apply to an image.
        EnsError: as `evaluate`, `list_images` and `draw_evidence`.
    """
    if inputs.independent:
        raise PredictionError("E548", "the members have several labels: their report is that of label_report")
    test, scored, choice, known = inputs.test, inputs.scored, inputs.choice, inputs.truth
    if choice is not None and choice.views:
        views = ViewSummary(choice.views, choice.metric)
    else:
        views = ViewSummary() if known is None else ViewSummary.of(scored.members, known)
    several, alone = len(test.members) > 1, inputs.alone
    shown_truth = None if inputs.out_of_fold else known
    disagreements = find_disagreements(alone, test.blended, shown_truth, images) if several else ()
    averaged = None
    if inputs.out_of_fold and known is not None:
        averaged = score_fold_average(scored.members, scored.recipe, test.members, known)
    evidence: dict[str, tuple[EvidenceMap, ...]] = {}
    if models and images is not None:
        evidence = draw_evidence(disagreements, images, models, listener=inputs.recorder)
    return Report(
        images=len(test.blended),
        out_of_fold=inputs.out_of_fold,
        runs=inputs.runs,
        notices=inputs.notices,
        members=MemberSummary.of_each(scored.members, scored.recipe, known),
        recipe=test.recipe,
        choice=choice,
        quality=None if known is None else BlendQuality.of(scored.blended, known),
        views=views,
        agreement=MemberAgreement.of(alone, test.recipe.labels) if several else None,
        distribution=None if known is None else ClassDistribution.of(known, test.blended),
        disagreements=disagreements,
        evidence=evidence,
        averaged=averaged,
        missing=(
            *inputs.missing_options(images),
            *([MissingSection("Test-time augmentation", views.problem)] if views.problem else []),
            *([] if evidence or not several else [_MAPS]),
            *([] if several else [MissingSection("Agreement and disagreements", "predictions of two or more members")]),
        ),
        commands=tuple(commands),
    )


_MAPS = MissingSection(
    "Evidence maps of the disagreements", "--models DIR, exported with ens export --features, and --images DIR"
)


def summary_of(report: Report) -> str:
    """Summarize the result in a sentence."""
    choice, quality = report.choice, report.quality
    if choice is not None and choice.row is not None:
        row = choice.row
        found = (
            f"{choice.method}: {choice.metric} {row.nested:.4f} (95 % CI {row.low:.3f} to {row.high:.3f}) in nested "
            "cross-validation"
        )
        if row is choice.table[0]:
            return f"{found}, the mean of probabilities"
        return f"{found}, {row.gain:+.4f} ± {row.error:.4f} over the mean of probabilities"
    if quality is None:
        count = len(report.members)
        return f"{count} {'member' if count == 1 else 'members'}, {report.images:,} images, no ground truth"
    score = quality.scores.macro_f1
    found = f"Macro F1 {score.value:.4f} (95 % CI {score.low:.3f} to {score.high:.3f})"
    scored = [(member.scores.macro_f1.value, member.name) for member in report.members if member.scores is not None]
    if len(scored) < 2:
        return found
    best, name = max(scored)
    gain = quality.scores.macro_f1.value - best
    return f"{found}, {abs(gain):.4f} {'below' if gain < 0 else 'above'} the best single member ({name})"


def subtitle_of(report: Report) -> str:
    """Say on which images the scores are, and how many images were predicted."""
    if report.quality is None:
        return f"Ensemble report · {report.images:,} test images"
    found = report.quality.evaluation
    persons = "" if found.persons is None else f" of {found.persons:,} persons"
    kind = "out-of-fold" if report.out_of_fold else "test"
    more = f" · {report.images:,} test images" if report.out_of_fold else ""
    return f"Ensemble report · scored on {found.images:,} {kind} images{persons}{more}"
