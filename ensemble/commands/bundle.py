"""The command `ens bundle`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ensemble.commands.options import PATH, json_option, progress_options
from ensemble.commands.output_paths import FOLDER
from ensemble.terminal import TERMINAL, show

if TYPE_CHECKING:
    from ensemble.bundle.bundle import BundleKind

ONLY_FOR = {
    ("hub",): ("scores", "push"),
    ("hub", "kaggle"): ("title",),
    ("kaggle",): ("name", "budget", "pythons"),
    ("kaggle", "triton"): ("gpu",),
    ("folder", "hub", "triton"): ("check_images", "boxes"),
}


@click.command(short_help="Write a folder that hands an ensemble over")
@click.argument("recipe_path", metavar="RECIPE", type=PATH)
@click.option("--models", type=PATH, required=True, multiple=True, help="Models or folders of them; repeatable.")
@click.option(
    "--for",
    "kind",
    type=click.Choice(["folder", "hub", "kaggle", "triton"]),
    required=True,
    help="folder: the fused file, a script and the labels; hub: with a model card for the Hugging Face Hub; kaggle: a "
    "dataset with all packages, for notebooks without network; triton: a model repository for a Triton server.",
)
@click.option("-o", "folder", type=FOLDER, required=True, help="Folder to write.")
@click.option("--check-images", type=PATH, help="Compare on 16 images of this folder instead of drawn pictures.")
@click.option("--boxes", type=PATH, help="Face boxes of --check-images, for models trained on face crops.")
@click.option("--license", "license_name", help="License of the ensemble: CC-BY-4.0.")
@click.option("--scores", type=PATH, help="Scores for the model card, as ens evaluate --json prints them.")
@click.option("--title", help="Heading of the model card, or title of the dataset.  [default: the folder's name]")
@click.option("--push", metavar="USER/NAME", help="Upload the folder to this repository of the Hugging Face Hub.")
@click.option("--name", metavar="USER/NAME", help="Name of the dataset on Kaggle.")
@click.option("--budget", help="Time limit of the notebook, such as 90m or 8h: members that exceed it are left out.")
@click.option(
    "--python",
    "pythons",
    multiple=True,
    metavar="VERSION",
    help="Version of Python in the notebook; repeatable.  [default: 3.11, 3.12 and 3.13]",
)
@click.option("--gpu", is_flag=True, help="Run on a GPU: the package of onnxruntime for CUDA, or the GPUs of Triton.")
@progress_options
@json_option
def bundle(
    recipe_path: Path,
    models: tuple[Path, ...],
    kind: BundleKind,
    folder: Path,
    check_images: Path | None,
    boxes: Path | None,
    license_name: str | None,
    scores: Path | None,
    title: str | None,
    push: str | None,
    name: str | None,
    budget: str | None,
    pythons: tuple[str, ...],
    gpu: bool,
    as_json: bool,
) -> None:
    """Write a folder with everything that someone else needs to run an ensemble.

    \b
    Example: ens bundle blend.json --models models --for hub -o masks --license mit --check-images eval/images
    """
    from ensemble.blend.recipe import read_recipe
    from ensemble.bundle.bundle import BundleOptions
    from ensemble.bundle.bundle import bundle as run_bundle
    from ensemble.bundle.hub import push as upload
    from ensemble.bundle.hub import read_scores
    from ensemble.bundle.wheels import PYTHONS
    from ensemble.commands.options import conflict, given_options
    from ensemble.fuse.verify import CheckImages
    from ensemble.images.face_boxes import read_boxes

    if boxes is not None and check_images is None:
        raise conflict("--boxes are those of --check-images")
    for only, names in ONLY_FOR.items():
        if kind not in only and (given := given_options(names)):
            raise conflict(f"{given}: only for --for {' and '.join(only)}")
    options = BundleOptions(
        license=license_name,
        scores=None if scores is None else read_scores(scores),
        title=title,
        name=name,
        budget=budget,
        pythons=pythons or PYTHONS,
        gpu=gpu,
    )
    done = run_bundle(
        read_recipe(recipe_path),
        models,
        folder,
        kind,
        images=CheckImages(check_images, boxes=None if boxes is None else read_boxes(boxes)),
        options=options,
        listener=TERMINAL,
    )
    show(done.as_dict(), str(done), as_json=as_json)
    if push is not None:
        address = upload(folder, list(done.files), push)
        show({"address": address}, address, as_json=as_json)
