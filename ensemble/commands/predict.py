"""The command `ens predict`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from ensemble.commands.options import PATH, ROOT, bad_image_option, conflict, json_option
from ensemble.terminal import TERMINAL, show


@click.command(short_help="Predict images with ONNX models")
@click.argument("models", nargs=-1, required=True, type=PATH)
@click.option("--images", required=True, help="The folder of the images; or a URL, tar shards, Parquet.")
@click.option("--ids", type=PATH, help="A CSV that lists the images, such as info.csv; by default all in the folder.")
@click.option("--boxes", type=PATH, help="The face boxes that ens crop wrote, for models trained on face crops.")
@click.option("--tta", is_flag=True, help="Also predict the horizontal flip.")
@click.option("--views", help="More views: hflip, vflip, rot90, shift:<px>, scale:<factor>, crop5.")
@click.option(
    "--device",
    default="auto",
    show_default=True,
    help="auto, cpu, cuda, cuda:N, cuda:N,M, tensorrt, openvino, openvino:bf16; never replaced.",
)
@click.option(
    "-o", "folder", type=PATH, default=Path(ROOT, "preds"), show_default=True, help="Where to put the predictions."
)
@click.option(
    "-b",
    "--batch",
    type=click.IntRange(1, 4096),
    help="Images at once.  [default: what a trial finds on the CPU, 128 on a GPU]",
)
@click.option("-j", "--workers", type=click.IntRange(1, 512), help="Worker threads.  [default: the cores there are]")
@click.option("--memory", help="Memory to keep to, such as 4G or 512M.  [default: half of what is available]")
@click.option(
    "--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True, help="Where it runs."
)
@click.option("--address", help="The Ray cluster, such as auto or host:6379; by default one is started here.")
@click.option("--fresh", is_flag=True, help="Throw away what an earlier run left in the folder.")
@bad_image_option
@json_option
def predict(
    models: tuple[Path, ...],
    images: str,
    ids: Path | None,
    boxes: Path | None,
    tta: bool,
    views: str | None,
    device: str,
    folder: Path,
    batch: int | None,
    workers: int | None,
    memory: str | None,
    engine: str,
    address: str | None,
    fresh: bool,
    on_bad_image: Any,
    as_json: bool,
) -> None:
    """Predict images with models; a run that was stopped goes on where it was.

    \b
    Example: ens predict models/*.onnx --images eval/images --ids eval/info.csv --tta -o runs/preds
    """
    from ensemble.images.face_boxes import read_boxes
    from ensemble.images.listing import read_ids
    from ensemble.images.views import parse_views
    from ensemble.predict.memory_budget import parse_memory
    from ensemble.predict.predict import predict as run_predict
    from ensemble.runtime.model_file import find_models

    wanted = ",".join(part for part in ("identity", "hflip" if tta else "", views or "") if part)
    if address is not None and engine != "ray":
        raise conflict("--address needs --engine ray")
    if memory is not None and engine == "ray":
        raise conflict("--memory cannot be used with --engine ray")
    found = find_models(models)
    run = partial(
        run_predict,
        found,
        images,
        folder,
        views=parse_views(wanted),
        ids=None if ids is None else read_ids(ids, listener=TERMINAL),
        boxes=None if boxes is None else read_boxes(boxes),
        device=device,
        batch=batch,
        workers=workers,
        memory=None if memory is None else parse_memory(memory),
        fresh=fresh,
        on_bad_image=on_bad_image,
        listener=TERMINAL,
    )
    if engine == "ray":
        from ensemble.predict.ray_worker import connect

        with connect(address, store=sum(path.stat().st_size for path in found if path.is_file())) as cluster:
            done = run(cluster=cluster)
    else:
        done = run()
    show(done.as_dict(), done.render(), as_json=as_json)
