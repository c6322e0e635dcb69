"""Read what a report is about: predictions, their recipe, and the ground truth, and blend them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ensemble.analysis.report_facts import LearnedChoice, MissingSection, RunRecords
from ensemble.blend.blend import Blended, blend
from ensemble.blend.held_out import BlendedMembers, blend_held_out
from ensemble.blend.recipe import make_recipe, read_recipe
from ensemble.errors import OptionError
from ensemble.events import SILENT, Listener, Notice, Recorder
from ensemble.labels import MASK18, LabelSpace
from ensemble.predictions.dataset import require_none_missing
from ensemble.predictions.external import NO_OPTIONS, ExternalOptions
from ensemble.predictions.match_members import match_out_of_fold
from ensemble.predictions.members import common_images, members_by_name
from ensemble.predictions.read_members import find_members, read_members
from ensemble.predictions.truth import NO_COLUMNS, Truth, TruthOptions, read_truth
from ensemble.submission.write import notice_missing


@dataclass(frozen=True, slots=True)
class ReportFiles:
    """The reading of files: ``columns`` of the ground truth, ``tables`` of predictions and their ``labels``."""

    columns: TruthOptions = NO_COLUMNS
    tables: ExternalOptions = NO_OPTIONS
    labels: LabelSpace = MASK18


NO_FILES = ReportFiles()


@dataclass(frozen=True, slots=True, eq=False)
class ReportInputs:
    """The predictions for the test images as ``test``, and as ``scored`` those that ``truth`` is the ground truth of.

    ``alone`` has each test member's own predictions, in the order of the blend.
    """

    test: BlendedMembers
    scored: BlendedMembers
    truth: Truth | None
    choice: LearnedChoice | None
    runs: RunRecords
    out_of_fold: bool
    given_recipe: bool
    alone: dict[str, Blended]
    recorder: Recorder

    @property
    def independent(self) -> bool:
        """True if several labels may apply to an image."""
        return self.test.blended.independent

    @property
    def notices(self) -> tuple[Notice, ...]:
        """The notices of reading and blending."""
        return tuple(self.recorder.notices)

    def missing_options(self, images: Path | None) -> Iterator[MissingSection]:
        """Yield the sections for which an option is missing; ``images`` is the folder of the test images."""
        if self.truth is None:
            of_classes = "confusion matrix, F1 per class, calibration, test-time augmentation and class distribution"
            of_labels = "labels, thresholds, calibration and label distribution"
            yield MissingSection(
                f"Scores, {of_labels if self.independent else of_classes}",
                "--truth CSV with the ground truth of the predictions; or --oof PRED... --truth CSV, to score on the "
                "training images",
            )
        elif not self.out_of_fold:
            yield MissingSection("Out-of-fold scores", "--oof PRED... with --truth for the training images")
        if self.choice is None:
            yield MissingSection(
                "Candidates",
                "--recipe blend.json, as written by ens blend PRED... --oof ... --truth ... --save blend.json",
            )
        if images is None:
            yield MissingSection("Thumbnails of the disagreements", "--images DIR")
        if not self.given_recipe:
            yield MissingSection("The recipe of the submission", "--recipe blend.json")


def gather_inputs(
    predictions: Sequence[Path],
    *,
    recipe: Path | None = None,
    truth: Path | None = None,
    oof: Sequence[Path] = (),
    files: ReportFiles = NO_FILES,
    listener: Listener = SILENT,
) -> ReportInputs:
    """Read and blend test predictions, and out-of-fold ones where there are any; see `ensemble.analysis.report`.

    Raises:
        OptionError: E204 when ``oof`` comes without ``truth``.
        EnsError: as `read_members`, `match_out_of_fold`, `read_recipe`, `read_truth`, `gather_folds` and `blend`; E514
            when the record of a run is damaged, E518 when that of a learned recipe is.
    """
    if oof and truth is None:
        raise OptionError("E204", "--oof needs --truth, the ground truth of the out-of-fold images")
    recorder = Recorder(listener)
    stored = None if recipe is None else read_recipe(recipe)
    labels = files.labels if stored is None else stored.labels
    tables = files.tables if stored is None else replace(files.tables, activation=stored.activation)
    beside = (truth, recipe, tables.ids)
    found = read_members(predictions, labels, options=tables, beside=beside, listener=recorder)
    read = list(members_by_name(found).values())
    common = common_images(read, allow_missing=True)
    members = common.members
    held_out = read_members(oof, labels, options=tables.for_oof(), beside=beside, listener=recorder)
    if stored is None and held_out:
        held_out, found = match_out_of_fold(held_out, members, listener=recorder)
        members = tuple(found)
    if common.missing:
        notice_missing(common.missing, recorder)
    used = stored or make_recipe(members)
    choice = LearnedChoice.of(used)
    test = BlendedMembers(members, used, blend(members, used, listener=recorder))
    known = None
    if truth is not None:
        known = read_truth(truth, used.labels, options=files.columns, independent=common.independent, listener=recorder)
    if known is not None and not oof:
        require_none_missing(read, known.ids)
    scored = blend_held_out(used, held_out, known, listener=recorder) if held_out and known is not None else test
    return ReportInputs(
        test=test,
        scored=scored,
        truth=known,
        choice=choice,
        runs=RunRecords.read(find_members(predictions, classes=len(labels), beside=beside)),
        out_of_fold=bool(oof),
        given_recipe=recipe is not None,
        alone={m.member: blend([m], make_recipe([m]), ids=test.blended.ids) for m in members},
        recorder=recorder,
    )
