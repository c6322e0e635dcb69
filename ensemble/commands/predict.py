"""The command `ens predict`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ensemble.commands.options import PATH, ROOT, conflict, given_options, json_option, progress_options, run_options
from ensemble.commands.output_paths import FOLDER
from ensemble.terminal import TERMINAL, show

if TYPE_CHECKING:
    from ensemble.predict.options import RunOptions


@click.command(short_help="Predict images with ONNX models")
@click.argument("models", nargs=-1, required=True, type=PATH)
@click.option("--images", required=True, help="The folder of the images; or a URL, tar shards, Parquet.")
@click.option("--ids", type=PATH, help="A CSV that lists the images, such as info.csv; by default all in the folder.")
@click.option("--id-column", metavar="NAME", help="Column of the ids in --ids.  [default: by its name]")
@click.option("--boxes", type=PATH, help="The face boxes that ens crop wrote, for models trained on face crops.")
@click.option("--tta", is_flag=True, help="Also predict the horizontal flip.")
@click.option(
    "--views",
    help="More views: hflip, vflip, rot90, shift:<px>, scale:<factor>, crop5; hflip:left=right exchanges labels.",
)
@click.option(
    "-o", "folder", type=FOLDER, default=Path(ROOT, "preds"), show_default=True, help="The folder of the predictions."
)
@run_options
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Run on this machine or on a Ray cluster.",
)
@click.option("--address", help="Address of the Ray cluster, such as auto or host:6379; without it one starts here.")
@progress_options
@json_option
def predict(
    models: tuple[Path, ...],
    images: str,
    ids: Path | None,
    id_column: str | None,
    boxes: Path | None,
    tta: bool,
    views: str | None,
    folder: Path,
    options: RunOptions,
    engine: str,
    address: str | None,
    as_json: bool,
) -> None:
    """Predict images with models; run the same command again to resume.

    \b
    Example: ens predict models/*.onnx --images eval/images --ids eval/info.csv --tta -o runs/preds
    """
    from ensemble.fuse.detect import is_fused
    from ensemble.images.face_boxes import read_boxes
    from ensemble.images.listing import read_ids
    from ensemble.images.views import parse_views
    from ensemble.predict.predict import predict as run_predict
    from ensemble.runtime.machine import available_cores
    from ensemble.runtime.model_file import find_models

    wanted = ",".join(part for part in ("identity", "hflip" if tta else "", views or "") if part)
    if not images.strip():
        raise conflict("--images is empty")
    if address is not None and engine != "ray":
        raise conflict("--address needs --engine ray")
    if options.memory is not None and engine == "ray":
        raise conflict("--memory cannot be used with --engine ray")
    found = find_models(models)

    listed = None
    if ids is not None:
        listed = read_ids(ids, id_column=id_column, classes=partial(_classes_of, found[0]), listener=TERMINAL)
    if len(found) == 1 and is_fused(found[0]):
        if given := given_options(("tta", "views", "engine", "address", "batch", "memory", "device", "on_bad_image")):
            raise conflict(f"{given}: not for a fused file, which has its views inside and runs on the CPU")
        from ensemble.fuse.predict_fused import predict_fused

        fused = predict_fused(
            found[0],
            Path(images),
            folder,
            ids=listed,
            boxes=None if boxes is None else read_boxes(boxes),
            threads=options.workers or available_cores(),
            listener=TERMINAL,
        )
        show(fused.as_dict(), str(fused), as_json=as_json)
        return
    run = partial(
        run_predict,
        found,
        images,
        folder,
        views=parse_views(wanted),
        ids=listed,
        boxes=None if boxes is None else read_boxes(boxes),
        options=options,
    )
    if engine == "ray":
        from ensemble.predict.ray_worker import connect

        with connect(address, store=sum(path.stat().st_size for path in found if path.is_file())) as cluster:
            done = run(cluster=cluster)
    else:
        done = run()
    show(done.as_dict(), done.render(), as_json=as_json)


def _classes_of(model: Path) -> tuple[str, ...]:
    """Return the names of a model's classes."""
    from ensemble.fuse.detect import is_fused
    from ensemble.runtime.model_file import read_model

    if is_fused(model):
        from ensemble.fuse.fused_card import read_fused_card

        return read_fused_card(model).recipe.labels.names
    return read_model(model).card.labels.names
