"""Gather the facts about a blend, its members and its predictions from what the other commands have written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ensemble.analysis.disagreements import Disagreement, find_disagreements
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
from ensemble.blend.blend import Blended, blend
from ensemble.blend.recipe import Recipe, make_recipe, read_recipe
from ensemble.errors import OptionError, PredictionError
from ensemble.events import SILENT, Listener, Notice, Recorder
from ensemble.labels import LabelSpace
from ensemble.predictions.dataset import Predictions, find_predictions, read_predictions, require_none_missing
from ensemble.predictions.members import common_images, members_by_name
from ensemble.predictions.out_of_fold import gather_folds
from ensemble.predictions.truth import NO_COLUMNS, Truth, TruthOptions, read_truth
from ensemble.submission.write import notice_missing


@dataclass(frozen=True, slots=True, eq=False)
class Report:
    """Everything the page shows; what is None or empty is not shown, and ``missing`` says why."""

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

    @property
    def labels(self) -> LabelSpace:
        """The classes."""
        return self.recipe.labels


@dataclass(frozen=True, slots=True, eq=False)
class _Blend:
    """Members, the recipe that blends them, and their blend."""

    members: Sequence[Predictions]
    recipe: Recipe
    blended: Blended


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
    if oof and truth is None:
        raise OptionError("E204", "--oof needs --truth, the ground truth of the out-of-fold images")
    recorder = Recorder(listener)
    folders = [folder for path in predictions for folder in find_predictions(path)]
    read = list(members_by_name([read_predictions(folder) for folder in folders]).values())
    common = common_images(read, allow_missing=True)
    if common.independent:
        raise PredictionError("E548", "the report is about one class per image, and the members have several labels")
    members = common.members
    if common.missing:
        notice_missing(common.missing, recorder)
    used = make_recipe(members) if recipe is None else read_recipe(recipe)
    choice = LearnedChoice.of(used)
    test = _Blend(members, used, blend(members, used, listener=recorder))
    known = None if truth is None else read_truth(truth, used.labels, options=columns, listener=recorder)
    if known is not None and not oof:
        require_none_missing(read, known.ids)
    scored = _blend_out_of_fold(used, oof, known, recorder) if oof and known is not None else test
    if choice is not None and choice.views:
        views = ViewSummary(choice.views, choice.metric)
    else:
        views = ViewSummary() if known is None else ViewSummary.of(scored.members, known)
    # each member's own predictions, in the order of the blend
    alone = {m.member: blend([m], make_recipe([m]), ids=test.blended.ids) for m in members}
    several = len(members) > 1
    return Report(
        images=len(test.blended),
        out_of_fold=bool(oof),
        runs=RunRecords.read(folders),
        notices=tuple(recorder.notices),
        members=MemberSummary.of_each(scored.members, scored.recipe, known),
        recipe=used,
        choice=choice,
        quality=None if known is None else BlendQuality.of(scored.blended, known),
        views=views,
        agreement=MemberAgreement.of(alone, used.labels) if several else None,
        distribution=None if known is None else ClassDistribution.of(known, test.blended),
        disagreements=find_disagreements(alone, test.blended, None if oof else known, images) if several else (),
        missing=(
            *_missing_options(recipe=recipe, learned=choice is not None, truth=truth, oof=oof, images=images),
            *([MissingSection("Test-time augmentation", views.problem)] if views.problem else []),
            *([] if several else [MissingSection("Agreement and disagreements", "predictions of two or more members")]),
        ),
        commands=tuple(commands),
    )


def summary_of(report: Report) -> str:
    """Summarise the result in a sentence."""
    choice, quality = report.choice, report.quality
    if choice is not None and choice.row is not None:
        row = choice.row
        found = f"{choice.method}: {choice.metric} {row.nested:.4f} in nested cross-validation"
        if row is choice.table[0]:
            return f"{found}, the mean of probabilities"
        return f"{found}, {row.gain:+.4f} ± {row.error:.4f} over the mean of probabilities"
    if quality is None:
        count = len(report.members)
        return f"{count} {'member' if count == 1 else 'members'}, {report.images:,} images, no ground truth"
    found = f"Macro F1 {quality.scores.macro_f1.value:.4f}"
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


def _missing_options(
    *, recipe: Path | None, learned: bool, truth: Path | None, oof: Sequence[Path], images: Path | None
) -> Iterator[MissingSection]:
    """Yield the sections for which an option is missing."""
    if truth is None:
        yield MissingSection(
            "Scores, confusion matrix, F1 per class, calibration, test-time augmentation and class distribution",
            "--truth CSV with the ground truth of the predictions; or --oof PRED... --truth CSV, to score on the "
            "training images",
        )
    elif not oof:
        yield MissingSection("Out-of-fold scores", "--oof PRED... with --truth for the training images")
    if not learned:
        yield MissingSection(
            "Candidates",
            "--recipe blend.json, as written by ens blend PRED... --oof ... --truth ... --save blend.json",
        )
    if images is None:
        yield MissingSection("Thumbnails of the disagreements", "--images DIR")
    if recipe is None:
        yield MissingSection("The recipe of the submission", "--recipe blend.json")


def _blend_out_of_fold(recipe: Recipe, oof: Sequence[Path], truth: Truth, listener: Listener) -> _Blend:
    """Blend out-of-fold predictions, one member per group, with the weights of the recipe."""
    read = [read_predictions(folder) for path in oof for folder in find_predictions(path)]
    gathered = gather_folds(read, truth)
    adapted = _for_groups(recipe, gathered)
    return _Blend(gathered, adapted, blend(gathered, adapted, listener=listener))


def _for_groups(recipe: Recipe, gathered: Sequence[Predictions]) -> Recipe:
    """Return the recipe with each group's members replaced by one member of the group's name."""
    sha256 = {member.member: member.sha256 for member in gathered}
    missing, extra = sorted(recipe.groups.keys() - sha256), sorted(sha256.keys() - recipe.groups)
    if missing or extra:
        raise PredictionError(
            "E517",
            f"the out-of-fold predictions have the groups {', '.join(sha256)}, the recipe has "
            f"{', '.join(recipe.groups)}",
            hint="give the same models in PRED and with --oof; groups are matched by name",
        )
    groups = {name: replace(group, members={name: sha256[name]}) for name, group in recipe.groups.items()}
    return replace(recipe, groups=groups)
