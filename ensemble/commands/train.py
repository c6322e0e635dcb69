"""The command `ens train`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from checkpoints.training.settings import Settings
from ensemble.commands.options import PATH, ROOT, json_option, torch_extra
from ensemble.errors import OptionError
from ensemble.events import SILENT
from ensemble.terminal import TERMINAL, show

if TYPE_CHECKING:
    from checkpoints.data.folds import Folds
    from checkpoints.data.mask_contest import Row
    from ensemble.labels import LabelSpace

_DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(Settings)}


def _text(name: str) -> str:
    """Return the default of three values as it is typed."""
    return ",".join(map(str, _DEFAULTS[name]))


@click.command()
@click.argument("train_dir", type=PATH)
@click.option("--arch", required=True, help="Any timm architecture.")
@click.option("--member", required=True, help="The member's name: its folder, and what its folds are averaged under.")
@click.option(
    "-o", "folder", type=PATH, default=Path(ROOT), show_default=True, help="Where members have their folders."
)
@click.option(
    "--folds", default="5", show_default=True, help="How many, or a CSV of id,fold with a line for each person."
)
@click.option("--only-fold", type=click.IntRange(min=0), help="Train this fold alone.")
@click.option("--boxes", "boxes_path", type=PATH, help="Train on the faces whose boxes ens crop wrote.")
@click.option("--margin", type=float, default=0.2, show_default=True, help="Around a box, as a share of its side.")
@click.option(
    "--fallback-share",
    type=float,
    default=_DEFAULTS["fallback_share"],
    show_default=True,
    help="The share of faces that is learned as if none had been found.",
)
@click.option("--fixes", multiple=True, help="Corrections of the data, see ens data; may be repeated.")
@click.option("--without", multiple=True, help="Leave out the fixes of this source; may be repeated.")
@click.option("--age-cut", type=int, default=60, show_default=True, help="58 or 59: train those as 60 and over.")
@click.option("--init", type=PATH, help="Start from the weights of this file; its head is dropped.")
@click.option("--pretrained", is_flag=True, help="Start from timm's weights, from its cache or the network.")
@click.option(
    "--freeze",
    type=click.IntRange(min=0),
    default=_DEFAULTS["freeze"],
    show_default=True,
    help="Leave the first N layer groups.",
)
@click.option(
    "--head",
    type=click.Choice(["flat", "axes"]),
    default=_DEFAULTS["head"],
    show_default=True,
    help="One output a class, or a head for each axis of the classes, whose log-probabilities add up to theirs.",
)
@click.option("--size", default="224", show_default=True, help="Input size in pixels: 224, or HEIGHTxWIDTH.")
@click.option(
    "--resize",
    type=click.Choice(["squash", "center", "pad"]),
    default="squash",
    show_default=True,
    help="How an image comes to that size.",
)
@click.option(
    "--interpolation",
    type=click.Choice(["nearest", "bilinear", "bicubic", "lanczos"]),
    default="bilinear",
    show_default=True,
)
@click.option("--mean", default=_text("mean"), show_default=True, help="R,G,B in 0..1.")
@click.option("--std", default=_text("std"), show_default=True, help="R,G,B in 0..1.")
@click.option(
    "--epochs",
    type=click.IntRange(min=1),
    default=_DEFAULTS["epochs"],
    show_default=True,
    help="How many times every image is seen.",
)
@click.option(
    "--batch", type=click.IntRange(min=1), default=_DEFAULTS["batch"], show_default=True, help="Images at a time."
)
@click.option(
    "--accumulate",
    type=click.IntRange(min=1),
    default=_DEFAULTS["accumulate"],
    show_default=True,
    help="Batches a step.",
)
@click.option("--balanced", is_flag=True, help="Show every class equally often.")
@click.option(
    "--lr",
    "learning_rate",
    type=float,
    default=_DEFAULTS["learning_rate"],
    show_default=True,
    help="The highest learning rate.",
)
@click.option(
    "--weight-decay",
    type=click.FloatRange(min=0),
    default=_DEFAULTS["weight_decay"],
    show_default=True,
    help="How fast weights shrink.",
)
@click.option(
    "--optimizer",
    type=click.Choice(["adamw", "adam", "sgd"]),
    default=_DEFAULTS["optimizer"],
    show_default=True,
    help="The rule by which weights are changed.",
)
@click.option(
    "--schedule",
    type=click.Choice(["onecycle", "cosine", "constant"]),
    default=_DEFAULTS["schedule"],
    show_default=True,
    help="How the learning rate falls after the warm-up.",
)
@click.option(
    "--warm-up",
    type=float,
    default=_DEFAULTS["warm_up"],
    show_default=True,
    help="The share of steps with a rising rate.",
)
@click.option("--layer-decay", type=float, help="How much slower each layer group below learns, e.g. 0.75 for a vit.")
@click.option("--ema", type=float, help="Score and keep averaged weights, e.g. 0.998.")
@click.option("--clip", type=float, help="The largest norm of a gradient.")
@click.option(
    "--loss", default=_DEFAULTS["loss"], show_default=True, help="ce, focal, f1 or a mixture: 0.6*focal+0.4*f1."
)
@click.option(
    "--gamma",
    type=float,
    default=_DEFAULTS["gamma"],
    show_default=True,
    help="How much the focal loss leaves out easy images.",
)
@click.option(
    "--smoothing",
    "label_smoothing",
    type=float,
    default=_DEFAULTS["label_smoothing"],
    show_default=True,
    help="The share of a label that is spread over all classes.",
)
@click.option(
    "--class-weights", default=_DEFAULTS["class_weights"], show_default=True, help="none, ins, isns or ens:<beta>."
)
@click.option(
    "--augment",
    default=_DEFAULTS["augment"],
    show_default=True,
    help="none, flip, light, default, strong or a TOML file.",
)
@click.option(
    "--cutmix",
    type=click.Choice(["none", "plain", "half"]),
    default=_DEFAULTS["cutmix"],
    show_default=True,
    help="Paste a part of another image: any rectangle, or a left or right half.",
)
@click.option("--mixup", type=float, metavar="ALPHA", help="Blend images in pairs, e.g. 0.2; with --cutmix in turn.")
@click.option(
    "--erasing",
    type=float,
    default=_DEFAULTS["erasing"],
    show_default=True,
    help="Erase a rectangle of this share of the images.",
)
@click.option("--pseudo", type=PATH, multiple=True, help="Predictions to learn from as well; may be repeated.")
@click.option("--pseudo-images", type=PATH, help="The folder of the images that they predict.")
@click.option("--pseudo-boxes", type=PATH, help="The faces in those, for a training with --boxes.")
@click.option(
    "--min-confidence",
    type=float,
    default=0.95,
    show_default=True,
    help="The probability from which on a predicted class is taken for true.",
)
@click.option(
    "--max-share", type=float, default=0.5, show_default=True, help="The share of a fold's images that may be such."
)
@click.option("--patience", type=click.IntRange(min=1), help="Stop after so many epochs without a better macro F1.")
@click.option(
    "--keep",
    type=click.Choice(["best", "last"]),
    default=_DEFAULTS["keep"],
    show_default=True,
    help="The epoch to keep; the scores of best are a little too good, as it is chosen on the held-out people.",
)
@click.option("--bf16", is_flag=True, help="Compute in bfloat16 where that is safe.")
@click.option("--fp16", is_flag=True, help="Compute in float16 where that is safe: for GPUs without bfloat16.")
@click.option("--log", type=click.Choice(["wandb", "tensorboard"]), help="Besides the CSV that is always written.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:<index>.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of all that is drawn.")
@click.option("--fresh", is_flag=True, help="Train again what is finished or was begun with other settings.")
@json_option
def train(
    train_dir: Path,
    member: str,
    folder: Path,
    folds: str,
    only_fold: int | None,
    boxes_path: Path | None,
    margin: float,
    pseudo: tuple[Path, ...],
    pseudo_images: Path | None,
    pseudo_boxes: Path | None,
    min_confidence: float,
    max_share: float,
    fixes: tuple[str, ...],
    without: tuple[str, ...],
    age_cut: int,
    size: str,
    resize: Any,
    interpolation: Any,
    mean: str,
    std: str,
    log: Any,
    device: str,
    seed: int,
    fresh: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Train a member over folds by person, to one checkpoint a fold and its out-of-fold predictions.

    \b
    Example: ens train train --arch resnet18 --member r18 --init r18.pth --loss focal --class-weights ins
    """
    with torch_extra("train"):
        from checkpoints.data.dataset import read_dataset
        from checkpoints.data.image_cache import fallback_crop
        from checkpoints.training.distributed import join
        from checkpoints.training.pseudo_labels import read_pseudo
        from checkpoints.training.train_member import train_member

        team, device = join(device)
    if bool(pseudo) != (pseudo_images is not None) or (pseudo_boxes is not None and not pseudo):
        raise OptionError(
            "E204",
            "--pseudo and --pseudo-images, the folder of what was predicted, go together; --pseudo-boxes needs both",
        )
    from ensemble.card import Preprocess, parse_size, parse_triple
    from ensemble.images.face_boxes import Boxes, read_boxes, read_faces

    listener = TERMINAL if team.is_main else SILENT
    faces = None if boxes_path is None else read_faces(boxes_path)[0]
    crop = None if faces is None else fallback_crop(faces, margin)
    data = read_dataset(train_dir, fixes=fixes, without=without, age_cut=age_cut, listener=listener)
    rows = data.rows
    chosen = Settings(
        preprocess=Preprocess(parse_size(size), resize, interpolation, face=crop),
        labels=data.labels,
        mean=parse_triple(mean, "--mean"),
        std=parse_triple(std, "--std"),
        **settings,
    )
    with team.watched(), team.main_first():
        dealt = _deal(folds, folder, rows, data.labels)
    if only_fold is not None and only_fold >= dealt.count:
        raise OptionError("E204", f"--only-fold must be below {dealt.count}, got {only_fold}")
    extra = None
    if pseudo and pseudo_images is not None:
        extra = read_pseudo(
            pseudo,
            pseudo_images,
            rows,
            dealt,
            data.labels,
            min_confidence=min_confidence,
            max_share=max_share,
            boxes=None if pseudo_boxes is None else read_boxes(pseudo_boxes),
            listener=listener,
        )
    done = train_member(
        rows,
        dealt,
        member=member,
        settings=chosen,
        seed=seed,
        out=folder,
        boxes=None if faces is None else Boxes({face.id: face.box for face in faces}),
        pseudo=extra,
        only_fold=only_fold,
        fresh=fresh,
        device=device,
        team=team,
        log=log,
        listener=listener,
    )
    team.end()
    if not team.is_main:
        return
    lines = [f"{t.path}  macro F1 {t.macro_f1:.4f} in epoch {t.epoch}  {t.seconds:.0f} s" for t in done.trained]
    lines += [f"fold {fold} was finished" for fold in done.kept]
    lines += [f"{done.oof}  out-of-fold macro F1 {done.macro_f1:.4f}"] if done.oof is not None else []
    value = {
        "folder": str(done.folder),
        "folds": [{"path": str(t.path), "macro_f1": t.macro_f1, "epoch": t.epoch} for t in done.trained],
        "kept": list(done.kept),
        "oof": None if done.oof is None else str(done.oof),
        "macro_f1": done.macro_f1,
    }
    show(value, "\n".join(lines), as_json=as_json)


def _deal(folds: str, folder: Path, rows: Sequence[Row], labels: LabelSpace) -> Folds:
    """The folds of a file, those that the members in a folder share, or new ones for them to share."""
    from checkpoints.data.folds import make_folds, read_folds, write_folds

    shared = folder / "folds.csv"
    if not folds.isdecimal():
        return read_folds(Path(folds), rows)
    if not shared.exists():
        dealt = make_folds(rows, folds=int(folds), seed=0, labels=labels)
        write_folds(shared, dealt)
        return dealt
    dealt = read_folds(shared, rows)
    if dealt.count != int(folds):
        raise OptionError("E204", f"{shared} has {dealt.count} folds, --folds is {folds}", hint="all members share it")
    return dealt
