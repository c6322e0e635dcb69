"""The command `ens bundle`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ensemble.commands.options import PATH, json_option
from ensemble.terminal import TERMINAL, show

if TYPE_CHECKING:
    from ensemble.bundle.bundle import BundleKind


@click.command(short_help="Write a folder that hands an ensemble over")
@click.argument("recipe_path", metavar="RECIPE", type=PATH)
@click.option("--models", type=PATH, required=True, multiple=True, help="Models or folders of them; may be repeated.")
@click.option(
    "--for",
    "kind",
    type=click.Choice(["folder", "hub"]),
    required=True,
    help="folder: the fused file, a script and the labels; hub: with a model card for the Hugging Face Hub.",
)
@click.option("-o", "folder", type=PATH, required=True, help="Folder to write.")
@click.option("--check-images", type=PATH, help="Compare on 16 images of this folder instead of drawn pictures.")
@click.option("--boxes", type=PATH, help="Face boxes of --check-images, for models trained on face crops.")
@click.option("--licence", help="Licence of the ensemble: CC-BY-4.0.")
@click.option("--scores", type=PATH, help="Scores for the model card, as ens evaluate --json prints them.")
@click.option("--title", help="Heading of the model card.  [default: the folder's name]")
@click.option("--push", metavar="USER/NAME", help="Upload the folder to this repository of the Hugging Face Hub.")
@json_option
def bundle(
    recipe_path: Path,
    models: tuple[Path, ...],
    kind: BundleKind,
    folder: Path,
    check_images: Path | None,
    boxes: Path | None,
    licence: str | None,
    scores: Path | None,
    title: str | None,
    push: str | None,
    as_json: bool,
) -> None:
    """Write a folder with everything that the next one needs to run an ensemble.

    \b
    Example: ens bundle blend.json --models models --for hub -o masks --licence mit --check-images eval/images
    """
    from ensemble.blend.recipe import read_recipe
    from ensemble.bundle.bundle import BundleOptions
    from ensemble.bundle.bundle import bundle as run_bundle
    from ensemble.bundle.hub import push as upload
    from ensemble.bundle.hub import read_scores
    from ensemble.commands.options import conflict
    from ensemble.fuse.verify import CheckImages
    from ensemble.images.face_boxes import read_boxes

    if boxes is not None and check_images is None:
        raise conflict("--boxes are those of --check-images")
    given = [name for name, value in (("--scores", scores), ("--title", title), ("--push", push)) if value is not None]
    if given and kind != "hub":
        raise conflict(f"{' and '.join(given)} need --for hub")
    done = run_bundle(
        read_recipe(recipe_path),
        models,
        folder,
        kind,
        images=CheckImages(check_images, boxes=None if boxes is None else read_boxes(boxes)),
        options=BundleOptions(licence, None if scores is None else read_scores(scores), title),
        listener=TERMINAL,
    )
    show(done.as_dict(), str(done), as_json=as_json)
    if push is not None:
        address = upload(folder, list(done.files), push)
        show({"address": address}, address, as_json=as_json)
