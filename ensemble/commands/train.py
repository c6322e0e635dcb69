"""The command `ens train`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import click

from checkpoints.data.table_options import TableOptions
from checkpoints.training.settings import CutMix, KeepEpoch, Optimizer, Schedule, TrainSettings
from ensemble.commands.option_groups import OptionGroup, field_option, grouped_command
from ensemble.commands.options import (
    CHANNELS,
    PATH,
    RESIZERS,
    ROOT,
    InterpolationChoice,
    conflict,
    json_option,
    progress_options,
    torch_extra,
)
from ensemble.commands.output_paths import FOLDER, MEMBER
from ensemble.commands.table_group import TABLE
from ensemble.commands.train_input import (
    FACE_OPTIONS,
    FIX_OPTIONS,
    DataOptions,
    InputOptions,
    channel_values,
    join_processes,
    read_training,
    refuse_early,
)
from ensemble.errors import FileError, OptionError
from ensemble.events import Listener
from ensemble.terminal import show

if TYPE_CHECKING:
    from checkpoints.data.folds import Folds
    from checkpoints.data.mask_contest import Row
    from checkpoints.training.pseudo_labels import PseudoLabels
    from ensemble.labels import LabelSpace


@dataclass(frozen=True, slots=True)
class FoldOptions:
    """The folds, and which of them to train.

    Raises:
        OptionError: E204 when there are fewer than two folds, or the one to train is none of them.
    """

    folds: str = "5"
    repeats: int = 1
    only_fold: int | None = None

    def __post_init__(self) -> None:
        count = int(self.folds) if self.folds.isdecimal() else None  # else a file
        if count is not None and count < 2:
            raise OptionError("E204", f"folds must be 2 or more, got {count}")
        if count is not None and self.only_fold is not None and self.only_fold >= count:
            raise OptionError("E204", f"--only-fold must be below {count}, got {self.only_fold}")


@dataclass(frozen=True, slots=True)
class PseudoOptions:
    """Predictions whose confident classes are used as labels.

    Raises:
        OptionError: E204 when one of predictions and images is given without the other, or boxes without both.
    """

    pseudo: tuple[Path, ...] = ()
    pseudo_images: Path | None = None
    pseudo_boxes: Path | None = None
    min_confidence: float = 0.95
    max_share: float = 0.5

    def __post_init__(self) -> None:
        has_images, has_boxes = self.pseudo_images is not None, self.pseudo_boxes is not None
        if bool(self.pseudo) != has_images or (has_boxes and not self.pseudo):
            raise conflict("--pseudo and --pseudo-images need each other, and --pseudo-boxes needs both")


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """The member's name, folder and log, and whether to replace an earlier training."""

    member: str
    folder: Path = Path(ROOT)
    log: Literal["wandb", "tensorboard"] | None = None
    fresh: bool = False


_setting = partial(field_option, TrainSettings)
_AT_LEAST_1 = click.IntRange(min=1)
DATA = OptionGroup(
    "Data",
    (
        *FIX_OPTIONS,
        *FACE_OPTIONS,
        _setting("fallback_share", "Share of the detected faces to crop as if none had been detected."),
        _setting("balanced", "Sample all classes equally often; of several labels, the rarest of an image counts."),
    ),
)
_FOLDS = OptionGroup(
    "Folds",
    (
        field_option(FoldOptions, "folds", "Number of folds, or a CSV of id,fold with one line per person or group."),
        field_option(
            FoldOptions,
            "repeats",
            "Number of fold splits to train, each with its own folds.",
            type=click.IntRange(1, 20),
        ),
        field_option(FoldOptions, "only_fold", "Train only this fold, counted from 0.", type=click.IntRange(min=0)),
    ),
)
MODEL = OptionGroup(
    "Model",
    (
        _setting("arch", "Any timm architecture."),
        _setting("head", "One output per class, or one head per axis.", type=click.Choice(["flat", "axes"])),
        _setting(
            "ordinal",
            "Axis whose values are ordered (several axes: with --head axes): one score and thresholds; repeatable.",
            metavar="AXIS",
        ),
        _setting("init", "Initial weights; the head of the file is dropped.", type=PATH),
        _setting("pretrained", "Start from timm's pretrained weights, from its cache or the network."),
        _setting("freeze", "Freeze the first N layer groups.", type=click.IntRange(min=0), metavar="N"),
        field_option(InputOptions, "size", "Input size in pixels: 224, or HEIGHTxWIDTH."),
        field_option(
            InputOptions,
            "resize",
            "How to resize an image to the input size.",
            type=click.Choice(["squash", "center", "pad"]),
        ),
        field_option(InputOptions, "interpolation", "Resampling filter.", type=InterpolationChoice()),
        field_option(InputOptions, "resizer", "Library whose resizing is used.", type=click.Choice(RESIZERS)),
        field_option(
            InputOptions,
            "channels",
            "Channels of the network's input, or 1 to 4 of the file itself.",
            type=click.Choice(CHANNELS),
        ),
        field_option(
            InputOptions, "scale", "Stored values that become 0 and 1, for --channels 1 to 4.", metavar="LOW,HIGH"
        ),
        _setting("mean", "Mean of the pixels, in 0..1 or 0..255.", type=channel_values("--mean"), metavar="R,G,B"),
        _setting("std", "Standard deviation, in the range of --mean.", type=channel_values("--std"), metavar="R,G,B"),
    ),
)
OPTIMIZATION = OptionGroup(
    "Optimization",
    (
        _setting("epochs", "Number of epochs.", type=_AT_LEAST_1),
        _setting("batch", "Batch size, over all processes.", type=_AT_LEAST_1),
        _setting("accumulate", "Batches per optimizer step.", type=_AT_LEAST_1),
        _setting("optimizer", "Optimizer.", type=click.Choice(get_args(Optimizer))),
        _setting("learning_rate", "Maximum learning rate.", flag="--lr"),
        _setting("schedule", "Learning rate schedule.", type=click.Choice(get_args(Schedule))),
        _setting("warm_up", "Warm-up, as a share of all steps."),
        _setting("weight_decay", "Weight decay.", type=click.FloatRange(min=0)),
        _setting("layer_decay", "Learning rate factor from each layer group to the one below, e.g. 0.75.", type=float),
        _setting("clip", "Maximum norm of the gradient.", type=float),
        _setting("ema", "Decay of an exponential moving average of the weights, e.g. 0.998.", type=float),
        _setting(
            "swa", "Average the weights after each of the last N epochs.", type=click.IntRange(min=2), metavar="N"
        ),
        _setting("loss", "ce, focal, f1 or a sum such as 0.6*focal+0.4*f1; for several labels bce, asl and so on."),
        _setting("gamma", "Gamma of the focal loss."),
        _setting("gamma_negative", "Gamma of the absent labels in asl, the asymmetric loss.", type=float),
        _setting("gamma_positive", "Gamma of the present labels in asl.", type=float),
        _setting("clip_negative", "Probability below which an absent label does not count in asl.", type=float),
        _setting("label_smoothing", "Label smoothing.", flag="--smoothing"),
        _setting(
            "label_distribution",
            "Gaussian over the neighbors of a value as target: age=4 (years), or class=0.5 (values); repeatable.",
            metavar="AXIS=SIGMA",
        ),
        _setting("class_weights", "Class weights in the loss: none, ins, isns or ens:<beta>."),
        _setting("pos_weight", "Weight of present against absent labels: none, balanced, sqrt or a number."),
        _setting("patience", "Stop after this many epochs without a better score.", type=_AT_LEAST_1),
        _setting(
            "keep",
            "Epoch to keep; the scores of best are optimistic, as the hold-out part chooses it.",
            type=click.Choice(get_args(KeepEpoch)),
        ),
        _setting("bf16", "Use bfloat16 mixed precision."),
        _setting("fp16", "Use float16 mixed precision, for GPUs without bfloat16."),
    ),
)
AUGMENTATION = OptionGroup(
    "Augmentation",
    (
        _setting("augment", "none, flip, light, default, strong or a TOML file."),
        _setting(
            "cutmix", "CutMix with any rectangle, or with a left or right half.", type=click.Choice(get_args(CutMix))
        ),
        _setting("mixup", "MixUp with this alpha, e.g. 0.2; alternates with --cutmix.", type=float, metavar="ALPHA"),
        _setting("erasing", "Share of the images with random erasing."),
    ),
)
_PSEUDO_LABELS = OptionGroup(
    "Pseudo-labels",
    (
        field_option(PseudoOptions, "pseudo", "Predictions to use as labels; repeatable.", type=PATH),
        field_option(PseudoOptions, "pseudo_images", "Folder of the predicted images.", type=PATH),
        field_option(PseudoOptions, "pseudo_boxes", "Face boxes of the predicted images.", type=PATH),
        field_option(PseudoOptions, "min_confidence", "Minimum probability of the predicted class."),
        field_option(PseudoOptions, "max_share", "Maximum share of pseudo-labeled images in a fold."),
    ),
)
OUTPUT = OptionGroup(
    "Output",
    (
        field_option(
            OutputOptions, "member", "Name of the member: its folder, and the group of its folds.", type=MEMBER
        ),
        field_option(OutputOptions, "folder", "Parent folder of the members.", flag="-o", type=FOLDER),
        field_option(OutputOptions, "log", "Logger besides the CSV file.", type=click.Choice(["wandb", "tensorboard"])),
        field_option(OutputOptions, "fresh", "Replace an earlier training instead of resuming it."),
    ),
)
RUN = OptionGroup(
    "Run",
    (
        click.Option(
            ["--device"],
            default="auto",
            show_default=True,
            help="auto, cpu, cuda or cuda:<index>; only auto falls back to the CPU.",
        ),
        click.Option(["--seed"], type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Random seed."),
    ),
)
_COLLECTED = {
    "data": DataOptions,
    "table": TableOptions,
    "split": FoldOptions,
    "input_": InputOptions,
    "settings": TrainSettings,
    "pseudo": PseudoOptions,
    "output": OutputOptions,
}


@grouped_command(
    *(DATA, TABLE, _FOLDS, MODEL, OPTIMIZATION, AUGMENTATION, _PSEUDO_LABELS, OUTPUT, RUN),
    collect=_COLLECTED,
    short_help="Train a member over folds",
)
@click.argument("train_dir", type=PATH)
@progress_options
@json_option
def train(
    train_dir: Path,
    data: DataOptions,
    table: TableOptions,
    class_names: str | None,
    split: FoldOptions,
    input_: InputOptions,
    settings: TrainSettings,
    pseudo: PseudoOptions,
    output: OutputOptions,
    device: str,
    seed: int,
    as_json: bool,
) -> None:
    """Train a member over folds: one checkpoint per fold, and out-of-fold predictions.

    TRAIN_DIR is a folder per class, a table of images and labels (see ens data), or the mask contest's folder. No two
    folds share a person, or another group that the table names.

    \b
    Example: ens train train --arch resnet18 --member r18 --init r18.pth --loss focal --class-weights ins
    """
    _require_paths(pseudo)
    refuse_early(train_dir, data, input_, settings, device)
    processes = join_processes("train", settings, device)
    distributed, listener = processes.distributed, processes.listener
    with torch_extra("train"):
        from checkpoints.training.job import TrainJob
        from checkpoints.training.shared_folds import read_or_make_folds
        from checkpoints.training.train_repeats import train_repeats

    training = read_training(train_dir, data, table, class_names, input_, settings, listener=listener)
    dataset, boxes = training.dataset, training.boxes
    jobs = []
    for repeat in range(split.repeats):
        shared = read_or_make_folds(
            split.folds, repeat, split.repeats, output.folder, training.dataset, listener=listener
        )
        found = _read_pseudo_labels(pseudo, dataset.rows, shared.folds, dataset.labels, listener)
        jobs.append(
            TrainJob(
                *(dataset.rows, shared.folds, output.member, training.settings, output.folder, seed, boxes, found),
                logger=output.log,
                folds_file=shared.file,
                repeat=repeat,
            )
        )
    trained = train_repeats(
        jobs, only_fold=split.only_fold, fresh=output.fresh, distributed=distributed, listener=listener
    )
    distributed.end()
    if distributed.is_main:
        show(trained.as_dict(), trained.render(), as_json=as_json)


def _read_pseudo_labels(
    options: PseudoOptions, rows: Sequence[Row], folds: Folds, labels: LabelSpace, listener: Listener
) -> PseudoLabels | None:
    from checkpoints.training.pseudo_labels import PseudoLabelSource, read_pseudo_labels
    from ensemble.images.face_boxes import read_boxes

    if options.pseudo_images is None:
        return None
    source = PseudoLabelSource(
        options.pseudo,
        options.pseudo_images,
        options.min_confidence,
        options.max_share,
        boxes=None if options.pseudo_boxes is None else read_boxes(options.pseudo_boxes),
    )
    return read_pseudo_labels(source, rows, folds, labels, listener=listener)


def _require_paths(pseudo: PseudoOptions) -> None:
    for path in pseudo.pseudo:
        if not path.exists():
            raise FileError("E707", f"--pseudo {path} does not exist", path=path)
    if pseudo.pseudo_images is not None and not pseudo.pseudo_images.is_dir():
        raise FileError("E707", f"--pseudo-images {pseudo.pseudo_images} is not a folder", path=pseudo.pseudo_images)
