"""The command `ens probe`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import click

from checkpoints.data.table_options import TableOptions
from ensemble.commands.option_groups import OptionGroup, field_option, grouped_command
from ensemble.commands.options import (
    CHANNELS,
    PATH,
    RESIZERS,
    ROOT,
    InterpolationChoice,
    json_option,
    progress_options,
)
from ensemble.commands.output_paths import FOLDER, MEMBER
from ensemble.commands.table_group import TABLE
from ensemble.commands.train_input import FACE_OPTIONS, FIX_OPTIONS, DataOptions, read_images, require_files
from ensemble.terminal import TERMINAL, show

if TYPE_CHECKING:
    from checkpoints.probe.open_network import OpenNetwork
    from ensemble.adopt.make_card import AdoptOptions
    from ensemble.card import Align, Channels, Interpolation, Resize, Resizer
    from ensemble.images.face_boxes import Face


@dataclass(frozen=True, slots=True)
class NetworkOptions:
    """The network of the features, and the preprocessing that it was trained with; None is what the file tells."""

    features: tuple[str, ...] = ()
    output: tuple[str, ...] = ()
    layout: Literal["nchw", "nhwc"] | None = None
    size: str | None = None
    resize: Resize | None = None
    interpolation: Interpolation | None = None
    resizer: Resizer | None = None
    crop_pct: float | None = None
    mean: str | None = None
    std: str | None = None
    input_range: Literal["0..1", "-1..1", "0..255"] | None = None
    channels: Channels | None = None

    def adopt_options(self, own: Mapping[str, str]) -> AdoptOptions:
        """Return the options of the preprocessing of a network with settings of its ``own``.

        Raises:
            OptionError: E204 when a value is out of range, or options contradict each other.
        """
        from ensemble.adopt.make_card import AdoptOptions
        from ensemble.card import parse_size
        from ensemble.channel_values import parse_channel_values

        # what a network has for itself stands in place of both ways to say the range of all
        is_own_range = bool({"input-range", "mean", "std"} & set(own))
        mean, std = (own.get(name) or (None if is_own_range else getattr(self, name)) for name in ("mean", "std"))
        size = own.get("size") or self.size
        found: dict[str, Any] = {
            "layout": own.get("layout") or self.layout,
            "input_range": own.get("input-range") or (None if is_own_range else self.input_range),
            "channels": own.get("channels") or self.channels,
        }
        return AdoptOptions(
            **found,
            size=None if size is None else parse_size(size),
            resize=self.resize,
            interpolation=self.interpolation,
            crop_pct=self.crop_pct,
            mean=None if mean is None else parse_channel_values(mean, "--mean"),
            std=None if std is None else parse_channel_values(std, "--std"),
            resizer=self.resizer,
        )


@dataclass(frozen=True, slots=True)
class LearnOptions:
    """The head and the folds."""

    head: Literal["flat", "axes"] = "flat"
    balanced: bool = False
    ordinal: tuple[str, ...] = ()
    folds: str = "5"


@dataclass(frozen=True, slots=True)
class ProbeOutput:
    """The member's name and folder, and whether to replace an earlier one."""

    member: str
    folder: Path = Path(ROOT)
    fresh: bool = False


_network = partial(field_option, NetworkOptions)
_learn = partial(field_option, LearnOptions)
_output = partial(field_option, ProbeOutput)
_NETWORK = OptionGroup(
    "Network",
    (
        click.Option(
            ["--features"],
            multiple=True,
            required=True,
            metavar="FILE[,KEY=VALUE]...",
            help="ONNX file of the network; it is not trained. Repeatable: the features of several are joined. "
            "Keys, for one network: output, layout, size, mean, std, input-range, channels, margin and align.",
        ),
        _network(
            "output",
            "Output, or any value inside the network, with features; repeatable.  [default: the only output, "
            "before its softmax]",
        ),
        _network(
            "layout", "Order of the input's axes, if its shape is ambiguous.", type=click.Choice(["nchw", "nhwc"])
        ),
        _network("size", "Input size in pixels, if the network takes any: 224, or HEIGHTxWIDTH."),
        _network(
            "resize",
            "How to resize images to the input size.  [default: center]",
            type=click.Choice(["squash", "center", "pad"]),
        ),
        _network("interpolation", "Interpolation when resizing.  [default: bilinear]", type=InterpolationChoice()),
        _network(
            "resizer", "Library that resized the images in training.  [default: pillow]", type=click.Choice(RESIZERS)
        ),
        _network(
            "crop_pct",
            "Fraction of the resized image to keep, around its center.  [default: 0.875, or 1]",
            type=float,
        ),
        _network("mean", "Normalization mean: one value per channel in 0..1.  [default: ImageNet's]"),
        _network("std", "Normalization standard deviation: one value per channel in 0..1.  [default: ImageNet's]"),
        _network(
            "input_range",
            "Range that pixels are scaled to, instead of --mean and --std.",
            type=click.Choice(["0..1", "-1..1", "0..255"]),
        ),
        _network(
            "channels",
            "Channels of the network's input, made from RGB in the graph.  [default: rgb, or grey for one]",
            type=click.Choice(CHANNELS),
        ),
    ),
)
_LEARN = OptionGroup(
    "Head and data",
    (
        _learn("head", "One output per class, or one head per axis.", type=click.Choice(["flat", "axes"])),
        _learn("balanced", "Weight the images so that all classes, or values of an axis, count equally."),
        _learn(
            "ordinal",
            "Axis whose values are ordered, such as age (with --head axes): cumulative links; repeatable.",
        ),
        _learn("folds", "Number of folds, or a CSV of id,fold with one line per person or group."),
        *FIX_OPTIONS,
        *FACE_OPTIONS,
    ),
)
_OUTPUT = OptionGroup(
    "Output",
    (
        _output("member", "Name of the member: its folder, and the group of its folds.", type=MEMBER),
        _output("folder", "Parent folder of the members.", flag="-o", type=FOLDER),
        _output("fresh", "Replace an earlier probe of the same name."),
        click.Option(["--seed"], type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Random seed."),
    ),
)
_COLLECTED = {
    "network": NetworkOptions,
    "learn": LearnOptions,
    "data": DataOptions,
    "output_": ProbeOutput,
    "table": TableOptions,
}


@grouped_command(
    *(_NETWORK, _LEARN, TABLE, _OUTPUT),
    collect=_COLLECTED,
    short_help="Train a linear head on a frozen ONNX network",
)
@click.argument("train_dir", type=PATH)
@progress_options
@json_option
def probe(
    train_dir: Path,
    network: NetworkOptions,
    learn: LearnOptions,
    data: DataOptions,
    table: TableOptions,
    class_names: str | None,
    output_: ProbeOutput,
    seed: int,
    as_json: bool,
) -> None:
    """Train a linear head on the features of a frozen ONNX network: a member per fold, and out-of-fold predictions.

    The L2 penalty is chosen within the training part of each fold. TRAIN_DIR and the folds are those of ens train.

    \b
    Example: ens probe train --features face.onnx --input-range -1..1 --head axes --member face
    """
    require_files(train_dir, data.boxes)
    _require_networks(network)
    # what learns takes seconds to load
    from checkpoints.probe.probe_member import ProbeJob, probe_member
    from checkpoints.training.shared_folds import read_or_make_folds
    from ensemble.images.face_boxes import Boxes, read_faces
    from ensemble.images.face_crop import tell_faces
    from ensemble.ordinal import require_told_order

    faces = None if data.boxes is None else read_faces(data.boxes).faces
    tell_faces(faces, TERMINAL)
    # before networks are opened and joined
    dataset = read_images(train_dir, data, table, class_names, listener=TERMINAL)
    if class_names is None:
        require_told_order(dataset.labels, learn.ordinal)
    opened = _open_networks(network, data, faces)
    shared = read_or_make_folds(learn.folds, 0, 1, output_.folder, dataset, listener=TERMINAL)
    job = ProbeJob(
        *(dataset, shared.folds, output_.member, opened, output_.folder, learn.head, seed),
        boxes=None if faces is None else Boxes({face.id: face.box for face in faces}),
        folds_file=shared.file,
        balanced=learn.balanced,
        ordinal=learn.ordinal,
    )
    probed = probe_member(job, fresh=output_.fresh, listener=TERMINAL)
    show(probed.as_dict(), probed.render(), as_json=as_json)


def _require_networks(network: NetworkOptions) -> None:
    from checkpoints.probe.network_spec import parse_network
    from ensemble.errors import FileError

    for spec in map(parse_network, network.features):
        if not spec.path.is_file():
            raise FileError("E707", f"--features {spec.path} is not a file", path=spec.path)


def _open_networks(network: NetworkOptions, data: DataOptions, faces: Sequence[Face] | None) -> OpenNetwork:
    from checkpoints.probe.join_networks import join_networks
    from checkpoints.probe.network_spec import parse_network
    from checkpoints.probe.open_network import open_network
    from ensemble.images.face_crop import choose_crop

    opened = []
    for spec in [parse_network(text) for text in network.features]:
        own = spec.settings
        align = cast("Align | None", own.get("align")) or data.align
        # the margin of another alignment is of another square
        margin = spec.margin if spec.margin is not None else (None if "align" in own else data.margin)
        crop = choose_crop(faces, margin, align)
        options, outputs = network.adopt_options(own), spec.outputs or network.output
        opened.append(open_network(spec.path, options, outputs, face=crop, listener=TERMINAL))
    return join_networks(opened, faces, listener=TERMINAL)
