"""The command `ens data`."""

from __future__ import annotations

from pathlib import Path

import click

from checkpoints.data.table_options import TableOptions
from ensemble.commands.option_groups import grouped_command
from ensemble.commands.options import PATH, ROOT, conflict, json_option, progress_options, torch_extra
from ensemble.commands.output_paths import CSV, HTML, PARQUET
from ensemble.commands.table_group import TABLE
from ensemble.commands.train_input import DataOptions, read_images
from ensemble.terminal import TERMINAL, show


@grouped_command(TABLE, collect={"table": TableOptions}, short_help="Check and describe training data")
@click.argument("train_dir", type=PATH)
@click.option("-o", "path", type=PARQUET, default=Path(ROOT, "data.parquet"), show_default=True, help="Output table.")
@click.option("--html", type=HTML, help="Also write an HTML page with images of every class.")
@click.option("--truth", "truth_path", type=CSV, help="Also write the classes and groups as a CSV for --truth.")
@click.option(
    "--folds",
    "fold_file",
    type=PATH,
    help="CSV of id,fold with one line per person or group, for a column fold of --truth.  [default: the table's own]",
)
@click.option("--fixes", multiple=True, help="CSV of label fixes (id,field,value,source), or contest; repeatable.")
@click.option("--without", multiple=True, help="Ignore the fixes of this source; repeatable.")
@click.option(
    "--age-cut",
    type=click.Choice(["58", "59", "60"]),
    default="60",
    show_default=True,
    help="Train people of this age or older as 60 and over; scores keep the true border.",
)
@click.option("--boxes", type=PATH, help="Face boxes written by ens crop: also count the images with a face.")
@click.option("-j", "--workers", type=click.IntRange(1, 512), help="Worker threads.  [default: number of cores]")
@progress_options
@json_option
def data(
    train_dir: Path,
    path: Path,
    html: Path | None,
    truth_path: Path | None,
    fold_file: Path | None,
    fixes: tuple[str, ...],
    without: tuple[str, ...],
    age_cut: str,
    class_names: str | None,
    boxes: Path | None,
    workers: int | None,
    table: TableOptions,
    as_json: bool,
) -> None:
    """Check and describe training data: a folder per class, a table of images and labels, or the mask contest's folder.

    A table may have any column names, several labels per image, groups and folds; what is recognized is said.

    Example: ens data train.csv --html data.html
    """
    with torch_extra("data"):
        from checkpoints.data.folds import read_folds
        from checkpoints.data.scarce import tell_scarce
        from checkpoints.data.summary import scan_images, summarize, write_rows
        from checkpoints.data.summary_html import write_summary_page
        from checkpoints.data.truth_table import truth_table
    from ensemble.files import require_different, require_writable, write_atomic
    from ensemble.images.face_boxes import read_boxes

    if fold_file is not None and truth_path is None:
        raise conflict("--folds is for the column fold of --truth")
    read = {"TRAIN_DIR": train_dir, "--boxes": boxes, "--folds": fold_file}
    require_different({"-o": path, "--html": html, "--truth": truth_path}, read)
    for file in (one for one in (path, html, truth_path) if one is not None):
        require_writable(file.parent)
    options = DataOptions(fixes, without, int(age_cut))
    found = read_images(train_dir, options, table, class_names, listener=TERMINAL)
    folds = found.folds if fold_file is None else read_folds(fold_file, found.rows)
    tell_scarce(found.rows, found.labels, found.unit, listener=TERMINAL)
    faces = None if boxes is None else read_boxes(boxes)
    if faces is not None:
        faces.select([row.id for row in found.rows])  # an image without an entry is found before all are decoded
    scanned = scan_images(found.rows, workers=workers, listener=TERMINAL)
    summary = summarize(found, scanned, boxes=faces)
    written = [write_rows(path, found, scanned)]
    if html is not None:
        written.append(write_summary_page(html, found, summary))
    if truth_path is not None:
        written.append(write_atomic(truth_path, truth_table(found.rows, found.labels, found.activation, folds=folds)))
    value = summary.as_dict() | {"written": [str(file) for file in written]}
    show(value, "\n".join([summary.render(), *map(str, written)]), as_json=as_json)
