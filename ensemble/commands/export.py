"""The command `ens export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ensemble.commands.options import (
    CHANNELS,
    PATH,
    RESIZERS,
    ROOT,
    InterpolationChoice,
    json_option,
    progress_options,
    require_torch_extra,
    torch_extra,
)
from ensemble.commands.output_paths import FOLDER, MEMBER
from ensemble.terminal import TERMINAL, show

if TYPE_CHECKING:
    from checkpoints.loading.head_options import HeadRequest
    from checkpoints.loading.open_options import OpenOptions
    from ensemble.card import Channels, Interpolation, NearTies, Precision, Quantization, Resize, Resizer
    from exporters.accuracy_gate import ImageSet
    from exporters.finished_models import FinishedModel
    from exporters.make_card import ExportOptions
    from exporters.request import ExportRequest


@click.command(short_help="Convert checkpoints to verified ONNX files")
@click.argument("checkpoints", nargs=-1, required=True, type=PATH)
@click.option(
    "-o", "folder", type=FOLDER, default=Path(ROOT, "models"), show_default=True, help="Output folder for the models."
)
@click.option("--arch", help="timm architecture.  [default: inferred from the weights if possible]")
@click.option(
    "--arch-option",
    "arch_options",
    multiple=True,
    metavar="KEY=VALUE",
    help="Option of timm's create_model that the weights do not show: global_pool=max, bn_eps=1e-3.",
)
@click.option(
    "--weights",
    metavar="NAME",
    help="Weights to export if a file contains several: raw, ema, or a part of a name such as fold1.  [default: ema]",
)
@click.option(
    "--head-layers", help="Layers of the head, where the weights do not tell: linear,relu,linear or cosine:30."
)
@click.option("--head-name", help="Name of the head to export if a file contains several.")
@click.option(
    "--leave-out", multiple=True, help="Prefix of the names of tensors that do not belong to the network; repeatable."
)
@click.option(
    "--labels",
    help="Label space: mask18, a number of classes, or a file of class names (JSON, CSV or one per line) or axes.",
)
@click.option("--size", help="Input size in pixels: 224, or HEIGHTxWIDTH.")
@click.option(
    "--resize", type=click.Choice(["squash", "center", "pad"]), help="How to resize images to the input size."
)
@click.option("--interpolation", type=InterpolationChoice(), help="Interpolation when resizing.")
@click.option(
    "--resizer",
    type=click.Choice(RESIZERS),
    help="Library that resized the images in training.  [default: pillow]",
)
@click.option(
    "--channels",
    type=click.Choice(CHANNELS),
    help="Channels of the network's input, made from RGB in the graph, or 1 to 4 of the file itself.  [default: rgb]",
)
@click.option("--scale", metavar="LOW,HIGH", help="Stored values that become 0 and 1, for --channels 1 to 4.")
@click.option("--crop-pct", type=float, help="Fraction of the resized image to keep, around its center.")
@click.option("--mean", help="Normalization mean: one value per channel, in 0..1 or 0..255.")
@click.option("--std", help="Normalization standard deviation: one value per channel, in the range of --mean.")
@click.option("--member", type=MEMBER, help="Name of the member.  [default: the file name]")
@click.option("--fold", type=click.IntRange(min=0), help="Fold that the checkpoint was not trained on.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "int8"]),
    default="fp32",
    show_default=True,
    help="Numeric precision of the exported model.",
)
@click.option(
    "--quantization",
    type=click.Choice(["asymmetric", "symmetric", "openvino"]),
    help="Quantization of int8: asymmetric for CPUs, symmetric for TensorRT, openvino for SiLU and other activation "
    "functions in float32, which is fast in OpenVINO alone.  [default: openvino for networks with such functions where "
    "OpenVINO is installed, else asymmetric]",
)
@click.option("--calibrate", type=PATH, help="Folder of images to calibrate int8 on and to compare it with float32 on.")
@click.option(
    "--truth", type=PATH, help="Ground-truth CSV (ImageID, ans, optional person): also limit the loss of macro F1."
)
@click.option(
    "--least-agreement",
    type=float,
    metavar="SHARE",
    help="Share of the answers that must stay those of float32, from 0.5 to below 1.  "
    "[default: int8 0.98, with --truth 0.95; fp16 0.995]",
)
@click.option(
    "--near-ties",
    type=click.Choice(["fp32", "int8"]),
    help="Precision that answers images whose two highest int8 logits are close; with fp32 the file holds both "
    "networks where the check needs it.  [default: fp32]",
)
@click.option("--features", is_flag=True, help="Also output the features before pooling, for ens explain.")
@click.option("--check-images", type=PATH, help="Verify on the images in this folder instead of the built-in ones.")
@click.option("--boxes", type=PATH, help="Face boxes of these images from ens crop, for models trained on face crops.")
@click.option("--dry-run", is_flag=True, help="Say what the checkpoints hold and what would be done; write nothing.")
@progress_options
@json_option
def export(
    checkpoints: tuple[Path, ...],
    folder: Path,
    arch: str | None,
    arch_options: tuple[str, ...],
    weights: str | None,
    head_layers: str | None,
    head_name: str | None,
    leave_out: tuple[str, ...],
    labels: str | None,
    size: str | None,
    resize: Resize | None,
    interpolation: Interpolation | None,
    resizer: Resizer | None,
    channels: Channels | None,
    scale: str | None,
    crop_pct: float | None,
    mean: str | None,
    std: str | None,
    member: str | None,
    fold: int | None,
    precision: Precision,
    quantization: Quantization | None,
    calibrate: Path | None,
    truth: Path | None,
    least_agreement: float | None,
    near_ties: NearTies | None,
    features: bool,
    check_images: Path | None,
    boxes: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Convert checkpoints to self-describing .onnx files, each verified against PyTorch before it is written.

    Settings default to those of the checkpoint or of timm; options override them.

    \b
    Example: ens export r18.pth -o models --labels mask18 --size 224 --resize squash --check-images eval/images

    \b
    Example: ens export runs/r18/fold0.safetensors --precision int8 --calibrate train/images --truth truth.csv
    """
    from exporters.request import ExportRequest

    judged_on = (check_images, calibrate, truth, boxes)
    request = ExportRequest(checkpoints, precision, quantization, member, *judged_on, least_agreement, near_ties)
    if not dry_run:
        require_torch_extra("export")  # torch itself is loaded once the options are read, as it takes seconds
    from ensemble.card import parse_size
    from ensemble.label_file import parse_labels
    from exporters.make_card import ExportOptions

    means, stds = _parse_mean_and_std(mean, std, kept=(channels or "rgb").isdecimal())
    options = ExportOptions(
        labels=None if labels is None else parse_labels(labels),
        size=None if size is None else parse_size(size),
        mean=means,
        std=stds,
        resize=resize,
        interpolation=interpolation,
        resizer=resizer,
        channels=channels,
        scale=_parse_scale(scale),
        crop_pct=crop_pct,
        member=member,
        fold=fold,
        precision=precision,
        quantization=quantization,
        least_agreement=least_agreement,
        near_ties=near_ties or "fp32",
        features=features,
    )
    _require_sizes(options)
    how = _how_to_open(arch, arch_options, weights, _head_request(head_layers, head_name, leave_out, options))
    _plan_or_export(request, folder, options, how, dry_run=dry_run, as_json=as_json)


def _require_sizes(options: ExportOptions) -> None:
    """Refuse a size or a crop that no network takes before torch is loaded."""
    from ensemble.card import Preprocess

    Preprocess(options.size or (224, 224), crop_pct=1.0 if options.crop_pct is None else options.crop_pct)


def _plan_or_export(
    request: ExportRequest, folder: Path, options: ExportOptions, how: OpenOptions, *, dry_run: bool, as_json: bool
) -> None:
    if dry_run:
        _show_plan(request, folder, options, how, as_json=as_json)
    else:
        done = _export_all(request, folder, options, how, quiet=as_json)
        if as_json:
            show([model.values for model in done], "", as_json=True)


def _parse_scale(scale: str | None) -> tuple[float, float] | None:
    from ensemble.channel_values import parse_scale

    return None if scale is None else parse_scale(scale)


def _parse_mean_and_std(
    mean: str | None, std: str | None, *, kept: bool
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    from ensemble.channel_values import parse_channel_values, scale_channel_values
    from ensemble.events import Notice

    means, stds = (
        None if text is None else parse_channel_values(text, option)
        for text, option in ((mean, "--mean"), (std, "--std"))
    )
    if kept:
        return means, stds
    means, stds, scaled = scale_channel_values(means, stds)
    if scaled:
        TERMINAL.notice(Notice("I451", "--mean and --std are for channels in 0..255: they are divided by 255"))
    return means, stds


def _how_to_open(
    arch: str | None, arch_options: tuple[str, ...], weights: str | None, head: HeadRequest
) -> OpenOptions:
    from checkpoints.loading.arch_options import parse_arch_options
    from checkpoints.loading.open_options import OpenOptions
    from checkpoints.loading.timm_tables import row_of

    if arch is not None and row_of(arch) is None:
        from checkpoints.loading.architectures import resolve_architecture

        resolve_architecture(arch)
    return OpenOptions(arch=arch, arch_options=parse_arch_options(arch_options), weights=weights, head=head)


def _show_plan(
    request: ExportRequest, folder: Path, options: ExportOptions, how: OpenOptions, *, as_json: bool
) -> None:
    from exporters.plan import Judged, plan_exports, render_plan

    _, gate = _list_images(request)
    judged = Judged(gate, request.truth)
    with torch_extra("export"):
        plans = plan_exports(request.checkpoints, folder, options, how, judged=judged, listener=TERMINAL)
    show([plan.as_dict() for plan in plans], render_plan(plans), as_json=as_json)


def _head_request(
    head_layers: str | None, head_name: str | None, leave_out: tuple[str, ...], options: ExportOptions
) -> HeadRequest:
    from checkpoints.loading.head_options import HeadRequest, parse_head_layers

    layers, scale = (None, 1.0) if head_layers is None else parse_head_layers(head_layers)
    return HeadRequest(layers=layers, scale=scale, name=head_name, labels=options.labels, leave_out=leave_out)


def _list_images(request: ExportRequest) -> tuple[ImageSet | None, ImageSet | None]:
    """Return the images to verify on, and those that int8 is calibrated and judged on, or fp16 with a truth."""
    from ensemble.images.face_boxes import read_boxes
    from ensemble.images.listing import list_images
    from exporters.accuracy_gate import ImageSet

    boxes = None if request.boxes is None else read_boxes(request.boxes)

    def list_set(root: Path) -> ImageSet:
        listing = list_images(root, listener=TERMINAL)
        return ImageSet(listing.ids, listing.paths, None if boxes is None else boxes.select(listing.ids))

    checked = None if request.check_images is None else list_set(request.check_images)
    judges = checked if request.truth is not None else None
    return checked, judges if request.calibrate is None else list_set(request.calibrate)


def _export_all(
    request: ExportRequest, folder: Path, options: ExportOptions, how: OpenOptions, *, quiet: bool
) -> list[FinishedModel]:
    from dataclasses import replace

    from ensemble.files import require_writable

    # all that can be refused is refused before the first export
    require_writable(folder)
    with torch_extra("export"):
        from exporters.export import export as run_export
    from exporters.export_steps import KeptSteps
    from exporters.finished_models import FinishedModel, FinishedModels
    from exporters.plan import find_all, name_members, stored_members

    paths = find_all(request.checkpoints)
    names = {} if options.member is not None else name_members(paths, stored_members(paths), TERMINAL)
    checked, gate = _list_images(request)
    inputs = (request.check_images, request.calibrate, request.truth, request.boxes)
    finished = FinishedModels(folder, paths, (options, how, request, sorted(names.items())), inputs)
    done: list[FinishedModel] = []
    for number, path in enumerate(paths):
        TERMINAL.progress("export", number, len(paths))
        model = finished.find(path, TERMINAL)
        if model is None:
            wanted = replace(options, member=names[path]) if path in names else options
            key = finished.key_of(path, (wanted, how, replace(request, checkpoints=())))
            with KeptSteps(folder, key, listener=TERMINAL) as steps:
                exported = run_export(
                    how.open(path, listener=TERMINAL),
                    folder,
                    options=replace(wanted, taken=tuple(other.member for other in done)),
                    check_images=checked,
                    gate_images=gate,
                    truth=request.truth,
                    steps=steps,
                    listener=TERMINAL,
                )
                model = FinishedModel(exported.card.member, exported.path, exported.describe(), exported.as_dict())
                finished.add(path, model)
        done.append(model)
        if not quiet:
            show(None, model.line, as_json=False)
    TERMINAL.progress("export", len(paths), len(paths))
    finished.end()
    return done
