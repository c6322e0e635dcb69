"""The command `ens fuse`."""

from __future__ import annotations

from pathlib import Path

import click

from ensemble.commands.options import PATH, json_option, progress_options
from ensemble.commands.output_paths import ONNX
from ensemble.terminal import TERMINAL, show


@click.command(short_help="Make one ONNX file of a recipe and its models")
@click.argument("recipe_path", metavar="RECIPE", type=PATH)
@click.option("--models", type=PATH, required=True, multiple=True, help="Models or folders of them; repeatable.")
@click.option("-o", "output", type=ONNX, required=True, help="The ONNX file to write.")
@click.option("--check-images", type=PATH, help="Compare on 16 images of this folder instead of drawn pictures.")
@click.option("--boxes", type=PATH, help="Face boxes of --check-images, for models trained on face crops.")
@click.option("--members", is_flag=True, help="Give each member's probabilities, too.")
@click.option("--maps", is_flag=True, help="Give the strongest member's class-activation maps, too.")
@click.option("--license", "license_name", help="License of the file, kept in its card: CC-BY-4.0.")
@progress_options
@json_option
def fuse(
    recipe_path: Path,
    models: tuple[Path, ...],
    output: Path,
    check_images: Path | None,
    boxes: Path | None,
    members: bool,
    maps: bool,
    license_name: str | None,
    as_json: bool,
) -> None:
    """Make one ONNX file of a recipe and its models: pixels of any size in, probabilities and class out.

    Resizing, views, pools, bias and decision are in the graph. The file is compared with ens submit before it is
    written.

    \b
    Example: ens fuse blend.json --models models -o ensemble.onnx --check-images eval/images
    """
    from ensemble.blend.recipe import read_recipe
    from ensemble.commands.options import conflict, named
    from ensemble.files import require_different
    from ensemble.fuse.fuse import FuseOptions
    from ensemble.fuse.fuse import fuse as run_fuse
    from ensemble.fuse.verify import CheckImages
    from ensemble.images.face_boxes import read_boxes
    from ensemble.runtime.model_file import find_models

    require_different({"-o": output}, {"RECIPE": recipe_path} | named("--models", find_models(models)))
    if boxes is not None and check_images is None:
        raise conflict("--boxes are those of --check-images")
    done = run_fuse(
        read_recipe(recipe_path),
        models,
        output,
        images=CheckImages(check_images, boxes=None if boxes is None else read_boxes(boxes)),
        options=FuseOptions(members=members, maps=maps, license=license_name),
        listener=TERMINAL,
    )
    show(done.as_dict(), str(done), as_json=as_json)
