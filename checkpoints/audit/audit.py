"""`ens audit`: label errors, copies within and across training and evaluation, copies in two folds, outliers."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit, softmax

from checkpoints.audit.findings import KINDS, SAME_FILE, Finding
from checkpoints.audit.label_errors import (
    LEAST_SCORE,
    JudgedAxis,
    LabelError,
    LabelErrors,
    find_label_errors,
    find_several_label_errors,
)
from checkpoints.audit.near_duplicates import WINDOWS, NearDuplicate, find_near_duplicates
from checkpoints.audit.outliers import find_outliers
from checkpoints.audit.thumbnails import Thumbnails, make_thumbnails
from checkpoints.data.dataset import Dataset
from checkpoints.data.folds import Folds
from checkpoints.data.mask_contest import Row
from checkpoints.data.truth_table import training_truth
from ensemble.arrays import Floats
from ensemble.blend.held_out import blend_held_out
from ensemble.blend.recipe import Recipe
from ensemble.errors import OptionError, PredictionError, enumerate_some
from ensemble.events import SILENT, Listener, Notice
from ensemble.images.listing import list_images
from ensemble.kept_arrays import KeptArrays
from ensemble.predictions.dataset import Predictions
from ensemble.predictions.match_members import join_folds
from ensemble.predictions.out_of_fold import gather_folds
from ensemble.predictions.truth import Truth

MOST_CROPPED = 50_000  # images; the search for crops takes time that grows with their square
_CROP_SECONDS = 1200 / 50_000**2  # of a core per squared image: an extrapolation of one block of 512 images
_DESCRIBED = 10  # axes
_SAME_LABELS = "audit the labels that were trained on: with that table, --fixes and --labels"
_SAME_IMAGES = "give the predictions of every fold, and with --fixes the fixes by which the training dropped images"


@dataclass(frozen=True, slots=True)
class AuditSettings:
    """The settings of an audit.

    A label error becomes a fix if its score is at least ``sure``. ``crops`` also looks for cropped copies: None does so
    for up to `MOST_CROPPED` images. ``join`` names the axes whose value is the group's, by default recognized. As
    many ``workers`` decode images, by default one per core.

    Raises:
        OptionError: E204 when ``sure`` is not between 0 and 1.
    """

    sure: float = 0.95
    crops: bool | None = None
    join: tuple[str, ...] | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.sure <= 1:
            raise OptionError("E204", f"--sure must be between 0 and 1, got {self.sure}")


DEFAULT = AuditSettings()


@dataclass(frozen=True, slots=True)
class Audit:
    """The findings of an audit of ``images`` training and ``evaluation`` images, label errors first, by score.

    ``models`` are those whose predictions judged the labels, and ``axes`` tell how.
    """

    images: int
    evaluation: int
    findings: tuple[Finding, ...]
    models: tuple[str, ...] = ()
    axes: tuple[JudgedAxis, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the counts as JSON-ready values."""
        counts = Counter(one.kind for one in self.findings)
        axes = {axis.axis: axis.as_dict(self.models) for axis in self.axes}
        sizes = {"images": self.images, "evaluation": self.evaluation}
        return sizes | {kind: counts[kind] for kind in KINDS} | {"axes": axes}

    def render(self) -> str:
        """Return the counts as text."""
        counts = Counter(one.kind for one in self.findings)
        sure = sum(one.sure for one in self.findings if one.kind == "label")
        noisiest = sorted(self.axes, key=lambda axis: -axis.noise)[:_DESCRIBED]
        lines = [axis.render(self.models) for axis in self.axes if axis in noisiest]
        more = len(self.axes) - len(lines)
        lines += [f"{more:,} more labels, of fewer wrong values, are in --json"] * (more > 0)
        lines += [
            f"{counts['label']:,} labels with a score of {LEAST_SCORE} or more may be wrong, {sure:,} of them are sure",
            f"{counts['leak']:,} copies of evaluation images, {counts['folds']:,} copies of images of another fold",
            f"{counts['duplicate']:,} other copies, {counts['outlier']:,} outliers",
            f"{counts['unreadable']:,} images could not be read",
        ]
        return "\n".join(lines)


def audit_dataset(
    data: Dataset,
    *,
    predictions: Sequence[Predictions] = (),
    evaluation: Path | None = None,
    folds: Folds | None = None,
    recipe: Recipe | None = None,
    settings: AuditSettings = DEFAULT,
    kept: KeptArrays | None = None,
    listener: Listener = SILENT,
) -> Audit:
    """Audit a training set; ``predictions`` are out-of-fold, without them no label is judged.

    ``evaluation`` is a folder of images that training must not contain. ``folds`` are those of the training, by default
    the table's own. With a ``recipe`` labels are judged by its blend, without one by the models with a weight per axis.
    Thumbnails and copies that are ``kept`` are not searched for again (`keep_audit`).

    Raises:
        DataError: E3xx when the folder cannot be listed or the predictions are of other images.
        OptionError: E204 when a recipe comes without predictions, an axis to join does not exist, or the folder
            ``evaluation`` has training images themselves.
        PredictionError: E5xx when the predictions are not out-of-fold, see `gather_folds`, have other classes, or are
            not those of the recipe.
    """
    # images are listed and predictions are matched before any image is read
    listing = None if evaluation is None else list_images(evaluation, listener=listener)
    if listing is not None:
        _require_apart(data.rows, listing.paths, evaluation)
    folds = folds or data.folds
    models, judged = _judge_labels(data, predictions, recipe, settings, folds, listener)
    findings = [_label_finding(data.rows[error.row], error, settings.sure) for error in judged.errors]
    paths = [row.path for row in data.rows] + ([] if listing is None else list(listing.paths))
    count = len(data.rows)
    crops = settings.crops if settings.crops is not None else len(paths) <= MOST_CROPPED
    if not crops and settings.crops is None:
        listener.notice(Notice("W861", _why_no_crops(len(paths))))
    thumbnails = make_thumbnails([Path(path) for path in paths], workers=settings.workers, kept=kept, listener=listener)
    pairs = find_near_duplicates(thumbnails, crops=crops, kept=kept, listener=listener)
    names = [row.id for row in data.rows] + ([] if listing is None else list(listing.ids))
    copies = [_copy_finding(data.rows, names, paths, thumbnails, folds, pair) for pair in pairs]
    findings += sorted((one for one in copies if one is not None), key=lambda one: (KINDS.index(one.kind), -one.score))
    mine = Thumbnails(thumbnails.grey[:count], thumbnails.sizes[:count], thumbnails.faults)
    findings += [
        Finding("outlier", one.score, names[one.row], data.rows[one.row].person, why=one.why)
        for one in find_outliers(mine)
    ]
    findings += [
        Finding("unreadable", 1.0, names[row], data.rows[row].person if row < count else "", why=err.message)
        for row, err in sorted(thumbnails.faults.items())
    ]
    return Audit(count, len(paths) - count, tuple(findings), models, judged.axes)


def keep_audit(
    folder: Path,
    data: Dataset,
    evaluation: Sequence[Any] = (),
    *,
    settings: AuditSettings = DEFAULT,
    listener: Listener = SILENT,
) -> KeptArrays:
    """Return what is kept in a folder of an audit of these images; ``evaluation`` are the paths of the others.

    Files of other sizes or times are other images. I863 says that something was found.
    """
    found = [(str(path), *_size_and_time(path)) for path in (*(row.path for row in data.rows), *evaluation)]
    kept = KeptArrays(folder, "audit", f"{found} {settings.crops} {WINDOWS.tolist()}")
    if kept.resumed:
        text = f"{kept.resumed:,} steps of an audit that did not end are kept"
        listener.notice(Notice("I863", text, folder))
    return kept


def _size_and_time(path: Any) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def _why_no_crops(images: int) -> str:
    """Return the message that cropped copies are not looked for, with the time that this would take."""
    hours = images**2 * _CROP_SECONDS / 3600
    long = f"{hours:.0f} hours" if hours >= 2 else f"{max(1, round(60 * hours))} minutes"
    return f"{images:,} images: cropped copies are not looked for; --crops yes does, for about {long} of one core"


def _judge_labels(
    data: Dataset,
    predictions: Sequence[Predictions],
    recipe: Recipe | None,
    settings: AuditSettings,
    folds: Folds | None,
    listener: Listener,
) -> tuple[tuple[str, ...], LabelErrors]:
    """Return the names of the models, and what they say about the labels."""
    if not predictions:
        if recipe is not None:
            raise OptionError("E204", "--recipe needs --oof, the out-of-fold predictions of its models")
        listener.notice(Notice("I862", "no label is judged without out-of-fold predictions: --oof names them"))
        return (), LabelErrors((), ())
    truth = training_truth(data, folds)
    if recipe is not None:
        names: tuple[str, ...] = ("recipe",)
        blended = blend_held_out(recipe, predictions, truth, listener=listener).blended
        columns = truth.labels.permutation(blended.labels, owner="the recipe")
        place_of = {name: place for place, name in enumerate(blended.ids)}
        probabilities = [blended.probabilities[[place_of[name] for name in truth.ids]][:, columns]]
    else:
        members = _gather(predictions, truth, listener)
        names = tuple(member.member for member in members)
        probabilities = [mean_probability(member) for member in members]
    groups = truth.persons or ()
    if truth.applies is not None:
        return names, find_several_label_errors(probabilities, truth.applies, data.labels, groups, join=settings.join)
    return names, find_label_errors(probabilities, truth.classes, data.labels, groups, join=settings.join)


def _gather(predictions: Sequence[Predictions], truth: Truth, listener: Listener) -> list[Predictions]:
    """Return one member per group in the order of the labels; errors say what to do about training labels."""
    for one in predictions:
        if set(one.labels.names) != set(truth.labels.names):
            apart = sorted(set(one.labels.names) ^ set(truth.labels.names))
            message = f"{one.member} has {len(one.labels)} classes, and the labels {len(truth.labels)}"
            raise PredictionError("E501", f"{message}; not in both: {enumerate_some(apart)}", hint=_SAME_LABELS)
    return gather_folds(
        join_folds(predictions, listener=listener), truth, pass_over=True, hint=_SAME_IMAGES, listener=listener
    )


def _require_apart(rows: Sequence[Row], others: Sequence[Any], folder: Path | None) -> None:
    """Check that no evaluation image is the file of a training image: its fix would drop what is to be trained on."""
    places = {os.path.realpath(str(path)) for path in others}
    same = [row.id for row in rows if os.path.realpath(str(row.path)) in places]
    if same:
        message = f"{folder} has {len(same):,} of the {len(rows):,} training images themselves: {enumerate_some(same)}"
        raise OptionError("E204", message, hint="--evaluation is the folder of the images to predict")


def _label_finding(row: Row, error: LabelError, sure: float) -> Finding:
    why = f"joined over {error.joined} images" if error.joined > 1 else ""
    values = (error.axis, error.given, error.suggested)
    return Finding("label", error.score, row.id, row.person, *values, why=why, sure=error.score >= sure)


def mean_probability(member: Predictions) -> Floats:
    """Return the probabilities ``(N, C)`` by which a model judges the labels: the mean of its views."""
    turn = expit if member.independent else lambda logits: softmax(logits, axis=1)
    return np.asarray(np.mean([turn(logits.astype(np.float64)) for logits in member.logits.values()], axis=0))


def _copy_finding(
    rows: Sequence[Row],
    names: Sequence[str],
    paths: Sequence[Any],
    images: Thumbnails,
    folds: Folds | None,
    pair: NearDuplicate,
) -> Finding | None:
    """Return the finding about the training image of a pair, or None if both are evaluation images."""
    count = len(rows)
    copy, of = (pair.copy, pair.of) if pair.copy < count else (pair.of, pair.copy)
    if copy >= count:
        return None
    why = _relation(paths, images, pair)
    one = Finding("leak", pair.likeness, names[copy], rows[copy].person, other=names[of], why=why, sure=True)
    if of >= count:
        return one
    # of two training images, the later one is the copy to drop, unless it shows more
    if not pair.cropped and of > copy:
        copy, of = of, copy
    one = replace(one, kind="duplicate", id=names[copy], group=rows[copy].person, other=names[of])
    given, other = (
        "|".join(map(str, row.present)) if row.present is not None else str(row.label) for row in (rows[copy], rows[of])
    )
    if folds is not None and folds.of_person[rows[copy].person] != folds.of_person[rows[of].person]:
        one = replace(one, kind="folds")
    if given != other:
        return replace(one, why=f"{why}, with another label", sure=False)
    return one


def _relation(paths: Sequence[Any], images: Thumbnails, pair: NearDuplicate) -> str:
    """Return how the two files differ."""
    words = ["mirrored"] if pair.mirrored else []
    if pair.cropped:
        words.append("cropped")
    elif (images.sizes[pair.copy] != images.sizes[pair.of]).any():
        words.append("resized")
    if not words:
        same = Path(paths[pair.copy]).read_bytes() == Path(paths[pair.of]).read_bytes()
        words.append(SAME_FILE if same else "re-encoded")
    return SAME_FILE if words == [SAME_FILE] else f"{' and '.join(words)} copy"
