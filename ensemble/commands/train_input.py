"""The options of `ens train`, `distil` and `probe` about their images, and the images that they name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ensemble.commands.option_groups import field_option
from ensemble.commands.options import PATH, torch_extra
from ensemble.events import SILENT, Listener
from ensemble.terminal import TERMINAL

if TYPE_CHECKING:
    from checkpoints.data.dataset import Dataset
    from checkpoints.data.table_options import TableOptions
    from checkpoints.training.distributed import DistributedContext
    from checkpoints.training.settings import TrainSettings
    from ensemble.card import Align, Channels, Interpolation, Preprocess, Resize, Resizer
    from ensemble.images.face_boxes import Boxes


@dataclass(frozen=True, slots=True)
class DataOptions:
    """Corrections of the training data, and the face boxes."""

    fixes: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    age_cut: int = 60
    boxes: Path | None = None
    margin: float | None = None
    align: Align | None = None


@dataclass(frozen=True, slots=True)
class InputOptions:
    """The preprocessing of images for the model."""

    size: str = "224"
    resize: Resize = "squash"
    interpolation: Interpolation = "bilinear"
    resizer: Resizer = "pillow"
    channels: Channels = "rgb"
    scale: str | None = None

    def preprocess(self) -> Preprocess:
        """Return the preprocessing, without a face crop."""
        from ensemble.card import Preprocess, parse_size
        from ensemble.channel_values import parse_scale

        own = Preprocess(
            parse_size(self.size), self.resize, self.interpolation, resizer=self.resizer, channels=self.channels
        )
        return own if self.scale is None else replace(own, scale=parse_scale(self.scale))


@dataclass(frozen=True, slots=True)
class Processes:
    """The processes that train together, and who hears of it: the terminal of the main one, nobody elsewhere."""

    distributed: DistributedContext
    listener: Listener


def refuse_early(
    train_dir: Path, data: DataOptions, input_: InputOptions, settings: TrainSettings, device: str
) -> None:
    """Check what needs neither torch nor an image, as torch takes seconds to load.

    Raises:
        EnsError: as `require_torch_device`, `fit_channels`, `require_readable` and `require_files`.
    """
    from checkpoints.torch_device import require_torch_device
    from checkpoints.training.setting_words import require_readable
    from checkpoints.training.settings import fit_channels

    require_torch_device(device)
    require_readable(fit_channels(settings, input_.preprocess(), listener=SILENT))
    require_files(train_dir, data.boxes)


def require_files(train_dir: Path, boxes: Path | None) -> None:
    """Check that the training images and the file of face boxes exist.

    Raises:
        DataError: E316 when there are no images.
        FileError: E707 when there are no boxes.
    """
    from ensemble.errors import DataError, FileError

    if not train_dir.exists():
        raise DataError("E316", f"{train_dir} is not a folder", path=train_dir)
    if boxes is not None and not boxes.is_file():
        raise FileError("E707", f"{boxes} is not a file", path=boxes)


def join_processes(command: str, settings: TrainSettings, device: str) -> Processes:
    """Return the processes that train on the device; an unknown architecture is an error before slower imports.

    Raises:
        OptionError: E205 when the extra ``torch`` is not installed.
        EnsError: as `init_distributed` and `resolve_architecture`.
    """
    with torch_extra(command):
        from checkpoints.loading.architectures import resolve_architecture
        from checkpoints.training.distributed import init_distributed

        distributed = init_distributed(device, listener=TERMINAL)
        resolve_architecture(settings.arch)
    if distributed.is_main:
        return Processes(distributed, TERMINAL)
    TERMINAL.close()  # one process tells the progress of all
    return Processes(distributed, SILENT)


def channel_values(option: str) -> Callable[[str], tuple[float, ...]]:
    """Return the parser of an option that takes one number per channel."""

    def convert(text: str) -> tuple[float, ...]:
        from ensemble.channel_values import parse_channel_values

        return parse_channel_values(text, option)

    return convert


@dataclass(frozen=True, slots=True, eq=False)
class Training:
    """The training images, the settings that fit them, and the boxes of their faces for a face crop."""

    dataset: Dataset
    settings: TrainSettings
    boxes: Boxes | None


_data = partial(field_option, DataOptions)
FIX_OPTIONS = (
    _data("fixes", "CSV of label fixes (id,field,value,source), or contest; repeatable."),
    _data("without", "Ignore the fixes of this source; repeatable."),
    _data("age_cut", "Train people of this age or older as 60 and over: 58, 59 or 60."),
)
FACE_OPTIONS = (
    _data("boxes", "Train on face crops, with the boxes written by ens crop.", type=PATH),
    _data(
        "margin",
        "Margin around a face, as a share of its longer side.  [default: 0.2; aligned to arcface 0, to dlib 0.25]",
        type=float,
    ),
    _data(
        "align",
        "Turn faces upright by their five points, to the square that ArcFace's or dlib's networks take.",
        type=click.Choice(["arcface", "dlib"]),
    ),
)


def read_images(
    train_dir: Path, data: DataOptions, table: TableOptions, class_names: str | None, *, listener: Listener
) -> Dataset:
    """Read the training images and their labels.

    Raises:
        EnsError: as `read_dataset` and `parse_class_names`.
    """
    from checkpoints.data.dataset import read_dataset
    from ensemble.label_file import parse_class_names

    return read_dataset(
        train_dir,
        fixes=data.fixes,
        without=data.without,
        age_cut=data.age_cut,
        labels=None if class_names is None else parse_class_names(class_names),
        table=table,
        listener=listener,
    )


def read_training(
    train_dir: Path,
    data: DataOptions,
    table: TableOptions,
    class_names: str | None,
    input_: InputOptions,
    settings: TrainSettings,
    *,
    listener: Listener,
) -> Training:
    """Read the training images and fit the settings to them; the settings are checked before.

    Raises:
        EnsError: as `check_settings`, `read_faces`, `choose_crop`, `read_images`, `fit_classes` and
            `require_told_order`.
    """
    from checkpoints.training.label_distribution import parse_spread
    from checkpoints.training.ordered_axes import fit_classes
    from checkpoints.training.own_channels import fit_own_channels
    from checkpoints.training.preflight import check_settings
    from checkpoints.training.settings import fit_channels
    from ensemble.images.face_boxes import Boxes, read_faces
    from ensemble.images.face_crop import choose_crop, tell_faces
    from ensemble.ordinal import require_told_order

    settings = fit_channels(settings, input_.preprocess(), listener=listener)
    check_settings(settings)
    faces = None if data.boxes is None else read_faces(data.boxes).faces
    crop = choose_crop(faces, data.margin, data.align)
    tell_faces(faces, listener)
    dataset = read_images(train_dir, data, table, class_names, listener=listener)
    settings = fit_own_channels(settings, [r.path for r in dataset.rows], scale=input_.scale, listener=listener)
    settings = replace(settings, preprocess=replace(settings.preprocess, face=crop))
    settings = fit_classes(settings, dataset.labels, dataset.activation, listener=listener)
    if class_names is None:
        require_told_order(settings.labels, settings.ordinal)
        spread = [parse_spread(text).axis for text in settings.label_distribution]
        require_told_order(settings.labels, spread, option="--label-distribution")
    return Training(dataset, settings, None if faces is None else Boxes({face.id: face.box for face in faces}))
