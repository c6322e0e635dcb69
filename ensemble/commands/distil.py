"""The command `ens distil`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

from checkpoints.data.table_options import TableOptions
from checkpoints.training.settings import KeepEpoch, TrainSettings
from ensemble.commands.option_groups import OptionGroup, field_option, grouped_command
from ensemble.commands.options import PATH, conflict, json_option, progress_options, torch_extra
from ensemble.commands.table_group import TABLE
from ensemble.commands.train import AUGMENTATION, DATA, MODEL, OPTIMIZATION, OUTPUT, RUN, OutputOptions
from ensemble.commands.train_input import DataOptions, InputOptions, join_processes, read_training, refuse_early
from ensemble.events import SILENT, Listener, Recorder
from ensemble.terminal import show

if TYPE_CHECKING:
    from checkpoints.data.folds import Folds
    from checkpoints.data.mask_contest import Row
    from checkpoints.training.job import TrainJob
    from checkpoints.training.teacher_labels import Unlabeled
    from checkpoints.training.train_member import TrainedMember
    from ensemble.blend.recipe import Recipe
    from ensemble.labels import LabelSpace
    from ensemble.learn.student import StudentComparison
    from ensemble.learn.teacher import Teacher
    from ensemble.predictions.dataset import Predictions
    from exporters.finished_models import FinishedModel

_PICTURES = 16


@dataclass(frozen=True, slots=True)
class TeacherOptions:
    """The predictions by which the recipe labels the training images, and how they are learned from.

    Raises:
        OptionError: E204 when one of predictions and images without labels is given alone, or boxes without both.
    """

    oof: tuple[Path, ...] = ()
    predictions: tuple[Path, ...] = ()
    temperature: float = 2.0
    teacher_share: float = 0.9
    folds: Path | None = None
    only_fold: int | None = None
    pseudo: tuple[Path, ...] = ()
    pseudo_images: Path | None = None
    pseudo_boxes: Path | None = None

    def __post_init__(self) -> None:
        if not self.oof and (not self.predictions or self.folds is None):
            message = "--oof is missing: the out-of-fold predictions of the recipe's members"
            raise conflict(message, hint="--predictions will do, if --folds tells which images each fold held out")
        has_images, has_boxes = self.pseudo_images is not None, self.pseudo_boxes is not None
        if bool(self.pseudo) != has_images or (has_boxes and not self.pseudo):
            raise conflict("--pseudo and --pseudo-images need each other, and --pseudo-boxes needs both")


_teacher = partial(field_option, TeacherOptions)
_TEACHER = OptionGroup(
    "Teacher",
    (
        _teacher(
            "oof",
            "Out-of-fold predictions of all members of the recipe; repeatable.  [default: those of --predictions that "
            "--folds held out]",
            type=PATH,
        ),
        _teacher(
            "predictions",
            "Predictions of the training images by all models of the recipe: each fold learns from those that held out "
            "what it holds out; repeatable.  [default: learn from --oof]",
            type=PATH,
        ),
        _teacher("temperature", "Temperature of teacher and student in the loss."),
        _teacher("teacher_share", "Share of the loss that is measured against the teacher, not against the labels."),
        _teacher(
            "folds",
            "CSV of id,fold with one line per person or group.  [default: the folds of the members]",
            type=PATH,
        ),
        _teacher(
            "only_fold",
            "Train only this fold, counted from 0; the student is compared with the blend once all are trained.",
            type=click.IntRange(min=0),
        ),
        _teacher("pseudo", "Predictions of images without labels, by all models; repeatable.", type=PATH),
        _teacher("pseudo_images", "Folder of the images without labels.", type=PATH),
        _teacher("pseudo_boxes", "Face boxes of the images without labels.", type=PATH),
    ),
)
_LAST = click.Option(
    ["--keep", "keep"],
    type=click.Choice(get_args(KeepEpoch)),
    default="last",
    show_default=True,
    help="Epoch to keep; the scores of best are optimistic, as the hold-out part chooses it.",
)
_OPTIMIZATION = OptionGroup(
    OPTIMIZATION.heading, tuple(_LAST if option.name == "keep" else option for option in OPTIMIZATION.options)
)
_COLLECTED = {
    "teacher": TeacherOptions,
    "data": DataOptions,
    "table": TableOptions,
    "input_": InputOptions,
    "settings": TrainSettings,
    "output": OutputOptions,
}


@grouped_command(
    *(_TEACHER, DATA, TABLE, MODEL, _OPTIMIZATION, AUGMENTATION, OUTPUT, RUN),
    collect=_COLLECTED,
    short_help="Train one network to answer like a blend",
)
@click.argument("recipe", type=PATH)
@click.argument("train_dir", type=PATH)
@progress_options
@json_option
def distil(
    recipe: Path,
    train_dir: Path,
    teacher: TeacherOptions,
    data: DataOptions,
    table: TableOptions,
    class_names: str | None,
    input_: InputOptions,
    settings: TrainSettings,
    output: OutputOptions,
    device: str,
    seed: int,
    as_json: bool,
) -> None:
    """Train one network per fold to answer like a blend: verified members, and out-of-fold predictions.

    RECIPE is the blend.json of ens blend, TRAIN_DIR that of ens train. The folds are those of the recipe's members;
    what the recipe has learned is learned again without the images of each fold.

    \b
    Example: ens distil blend.json train --oof runs/a/oof --predictions runs/seen --arch resnet18 --member small
    """
    heard = Recorder()
    blend_recipe, predictions, oof = _read_teacher(recipe, teacher, heard)  # before torch is loaded
    refuse_early(train_dir, data, input_, settings, device)
    processes = join_processes("distil", settings, device)
    distributed, listener = processes.distributed, processes.listener
    with torch_extra("distil"):
        import exporters.export  # noqa: F401 - a missing package is said before anything else
        from checkpoints.data.truth_table import training_truth
        from checkpoints.training.distillation import Distillation
        from checkpoints.training.job import TrainJob
        from checkpoints.training.teacher_labels import teacher_labels
        from checkpoints.training.train_member import choose_folds, train_member
    from checkpoints.data.member_folds import folds_of_images
    from ensemble.learn.teacher import make_teacher

    distillation = Distillation(teacher.temperature, teacher.teacher_share)
    for notice in heard.notices:
        listener.notice(notice)
    training = read_training(train_dir, data, table, class_names, input_, settings, listener=listener)
    dataset = training.dataset
    unlabeled = _read_unlabeled(teacher, blend_recipe.labels, listener)  # before the recipe is learned again per fold
    folds = _find_folds(teacher, oof, dataset.rows)
    wanted = choose_folds(folds, teacher.only_fold)
    truth = training_truth(dataset, folds)
    model = make_teacher(blend_recipe, oof, truth, folds_of_images(folds, dataset.rows), listener=listener)
    labels = teacher_labels(
        model,
        dataset.rows,
        distillation,
        predictions=predictions,
        unlabeled=unlabeled,
        listener=listener,
    )
    job = TrainJob(
        *(dataset.rows, folds, output.member, training.settings, output.folder, seed, training.boxes, labels.pseudo),
        logger=output.log,
        folds_file=output.folder / "folds.csv",
        teacher=labels.soft,
    )
    trained = train_member(
        job, only_fold=teacher.only_fold, fresh=output.fresh, distributed=distributed, listener=listener
    )
    distributed.end()
    if not distributed.is_main:
        return
    # the last fold may have replaced the weights of others by their means (--swa)
    exported = _export(job, wanted if trained.oof is None else range(folds.count), listener)
    found = _compare(model, trained, output.member, optimistic=labels.optimistic)
    first = "student and blend are compared once all folds are trained" if found is None else found.render()
    how = ", of the student alone in the view identity, without what the recipe learned"
    lines = [first, trained.render(how=how), *(one.line for one in exported)]
    comparison = None if found is None else found.as_dict()
    values = trained.as_dict() | {"models": [dict(one.values) for one in exported], "comparison": comparison}
    show(values, "\n".join(lines), as_json=as_json)


def _compare(teacher: Teacher, trained: TrainedMember, group: str, *, optimistic: bool) -> StudentComparison | None:
    """Return the student's comparison with its teacher, None while folds are missing."""
    from ensemble.learn.student import compare_student
    from ensemble.predictions.read_members import read_members

    if trained.oof is None:
        return None
    student = [one for one in read_members([trained.oof], teacher.truth.labels) if one.group == group]
    return compare_student(teacher, student, optimistic=optimistic)


def _read_teacher(
    path: Path, teacher: TeacherOptions, listener: Listener
) -> tuple[Recipe, list[Predictions], list[Predictions]]:
    """Return the recipe, ``--predictions`` and ``--oof``, whose folds are all there.

    Raises:
        EnsError: as `read_recipe`, `read_members` and `fold_of_images`.
    """
    from checkpoints.data.member_folds import fold_of_images
    from ensemble.blend.recipe import read_recipe
    from ensemble.predictions.read_members import read_members

    recipe = read_recipe(path)
    predictions = read_members(teacher.predictions, recipe.labels, listener=listener) if teacher.predictions else []
    oof = read_members(teacher.oof, recipe.labels, listener=listener) if teacher.oof else predictions
    if teacher.folds is None:
        fold_of_images(oof)
    return recipe, predictions, oof


def _find_folds(teacher: TeacherOptions, oof: list[Predictions], rows: tuple[Row, ...]) -> Folds:
    from checkpoints.data.folds import read_folds
    from checkpoints.data.member_folds import folds_of_members, require_same_folds

    folds = folds_of_members(oof, rows) if teacher.folds is None else read_folds(teacher.folds, rows)
    if teacher.oof:  # --predictions are of images beside those that were held out
        require_same_folds(folds, oof, rows)
    return folds


def _read_unlabeled(options: TeacherOptions, labels: LabelSpace, listener: Listener) -> Unlabeled | None:
    from checkpoints.training.teacher_labels import Unlabeled
    from ensemble.images.face_boxes import read_boxes
    from ensemble.predictions.read_members import read_members

    if options.pseudo_images is None:
        return None
    return Unlabeled(
        read_members(options.pseudo, labels, listener=listener),
        options.pseudo_images,
        None if options.pseudo_boxes is None else read_boxes(options.pseudo_boxes),
    )


def _export(job: TrainJob, folds: Sequence[int], listener: Listener) -> list[FinishedModel]:
    """Export the student of each fold, verified on images that it did not see; what a stopped export wrote is kept."""
    from checkpoints.loading.open import open_checkpoint
    from exporters.export import ImageSet, export
    from exporters.finished_models import FinishedModel, FinishedModels

    paths = [job.folder / f"fold{fold}.safetensors" for fold in folds]
    checked = [_check_rows(job, fold) for fold in folds]
    images = [row.path for rows in checked for row in rows]
    finished = FinishedModels(job.folder, paths, (job.fingerprint(),), images)
    found: list[FinishedModel] = []
    for number, (path, rows) in enumerate(zip(paths, checked, strict=True)):
        listener.progress("export", number, len(paths))
        model = finished.find(path, listener)
        if model is None:
            ids = tuple(row.id for row in rows)
            boxes = None if job.boxes is None or job.settings.preprocess.face is None else job.boxes.select(ids)
            shown = ImageSet(ids, tuple(row.path for row in rows), boxes)
            checkpoint = open_checkpoint(path, listener=listener)
            exported = export(checkpoint, job.folder, check_images=shown, listener=SILENT if number else listener)
            model = FinishedModel(exported.card.member, exported.path, exported.describe(), exported.as_dict())
            finished.add(path, model)
        found.append(model)
    listener.progress("export", len(paths), len(paths))
    finished.end()
    return found


def _check_rows(job: TrainJob, fold: int) -> list[Row]:
    """Return some of the images that a fold held out."""
    import numpy as np

    rows = [job.rows[i] for i in np.flatnonzero(job.folds.holdout(job.rows, fold)).tolist()]
    return rows[:: max(1, len(rows) // _PICTURES)][:_PICTURES]
