"""The command `ens audit`."""

from __future__ import annotations

import os
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import click

from checkpoints.data.table_options import TableOptions
from ensemble.commands.option_groups import grouped_command
from ensemble.commands.options import PATH, ROOT, json_option, progress_options
from ensemble.commands.output_paths import FOLDER
from ensemble.commands.table_group import TABLE
from ensemble.commands.train_input import DataOptions, read_images
from ensemble.events import Notice
from ensemble.terminal import TERMINAL, show

if TYPE_CHECKING:
    from checkpoints.data.dataset import Dataset
    from ensemble.predictions.dataset import Predictions


@grouped_command(TABLE, collect={"table": TableOptions}, short_help="Find wrong labels, copies and outliers")
@click.argument("train_dir", type=PATH)
@click.option(
    "--oof", type=PATH, multiple=True, help="Out-of-fold predictions, from which labels are judged; repeatable."
)
@click.option(
    "--as",
    "kind",
    type=click.Choice(["logits", "probabilities"]),
    help="Content of tables and arrays of --oof.",
)
@click.option(
    "--recipe",
    "recipe_path",
    type=PATH,
    help="Saved recipe of ens blend: judge by its blend of --oof.  [default: a weight per model and axis is fitted]",
)
@click.option(
    "--join",
    multiple=True,
    help="Axis or label that has one value per group: the evidence of the group's images is joined; none for no "
    "axis; repeatable.  [default: recognized and said]",
)
@click.option(
    "--evaluation", type=PATH, help="Folder of the evaluation images, to find copies of them in the training set."
)
@click.option("--folds", "fold_file", type=PATH, help="CSV of id,fold, as in ens train.  [default: the table's own]")
@click.option("--fixes", multiple=True, help="CSV of label fixes that are applied first, or contest; repeatable.")
@click.option("--without", multiple=True, help="Ignore the fixes of this source; repeatable.")
@click.option(
    "--sure",
    type=float,
    default=0.95,
    show_default=True,
    help="Probability of being wrong from which a label becomes a fix.",
)
@click.option(
    "--crops",
    type=click.Choice(["auto", "yes", "no"]),
    default="auto",
    show_default=True,
    help="Look for cropped copies, too: auto does for up to 50,000 images.",
)
@click.option("-j", "--workers", type=click.IntRange(1, 512), help="Worker threads.  [default: number of cores]")
@click.option(
    "-o",
    "folder",
    type=FOLDER,
    default=Path(ROOT, "audit"),
    show_default=True,
    help="Folder for audit.csv, audit.html and fixes.csv.",
)
@progress_options
@json_option
def audit(
    train_dir: Path,
    oof: tuple[Path, ...],
    kind: str | None,
    recipe_path: Path | None,
    join: tuple[str, ...],
    evaluation: Path | None,
    fold_file: Path | None,
    fixes: tuple[str, ...],
    without: tuple[str, ...],
    sure: float,
    crops: str,
    workers: int | None,
    folder: Path,
    class_names: str | None,
    table: TableOptions,
    as_json: bool,
) -> None:
    """Find labels that are probably wrong, copies of images (re-encoded, resized, cropped, mirrored), and outliers.

    Delete the whole lines of fixes.csv whose labels are right, then give the file to ens train --fixes.

    Example: ens audit train --oof runs/r18/oof --evaluation eval/images -o runs/audit
    """
    from checkpoints.audit.audit import AuditSettings, audit_dataset, keep_audit
    from checkpoints.audit.audit_html import write_audit_page
    from checkpoints.audit.findings import findings_table, fixes_table
    from checkpoints.data.folds import read_folds
    from ensemble.blend.recipe import read_recipe
    from ensemble.files import require_writable, write_atomic
    from ensemble.images.listing import list_images

    joined = () if join == ("none",) else join or None
    settings = AuditSettings(sure, {"yes": True, "no": False}.get(crops), joined, workers)
    recipe = None if recipe_path is None else read_recipe(recipe_path)
    require_writable(folder.parent)
    data = read_images(train_dir, DataOptions(fixes, without), table, class_names, listener=TERMINAL)
    listing = None if evaluation is None else list_images(evaluation)
    with keep_audit(
        folder, data, () if listing is None else listing.paths, settings=settings, listener=TERMINAL
    ) as kept:
        found = audit_dataset(
            data,
            predictions=_read(oof, kind, data),
            evaluation=evaluation,
            folds=None if fold_file is None else read_folds(fold_file, data.rows),
            recipe=recipe,
            settings=settings,
            kept=kept,
            listener=TERMINAL,
        )
        csv, fixed = fixes_table(data, found.findings)
        written = [write_atomic(folder / "audit.csv", findings_table(found.findings))]
        others = {} if listing is None else dict(zip(listing.ids, map(Path, map(str, listing.paths)), strict=True))
        pictures = {row.id: row.path for row in data.rows}
        written.append(write_audit_page(folder / "audit.html", found, pictures, others))
        _keep_other(folder / "fixes.csv", csv)
        written.append(write_atomic(folder / "fixes.csv", csv))
    value = found.as_dict() | {"fixes": fixed, "written": [str(path) for path in written]}
    show(value, "\n".join([found.render(), f"{fixed:,} label fixes", *map(str, written)]), as_json=as_json)


def _keep_other(path: Path, content: bytes) -> None:
    """Rename label fixes of other content, which may have been edited, to the first free name."""
    if path.is_file() and path.read_bytes() != content:
        names = (path.with_name(f"{path.stem}.{number}{path.suffix}") for number in count(1))
        free = next(place for place in names if not os.path.lexists(place))
        path.rename(free)
        TERMINAL.notice(Notice("W864", f"{path} had other fixes, which are kept as {free.name}", path))


def _read(oof: tuple[Path, ...], kind: str | None, data: Dataset) -> list[Predictions]:
    from ensemble.predictions.external import NO_OPTIONS
    from ensemble.predictions.read_members import read_members

    options = replace(NO_OPTIONS, kind=kind, activation=data.activation)  # type: ignore[arg-type]
    return read_members(oof, data.labels, options=options, listener=TERMINAL) if oof else []
