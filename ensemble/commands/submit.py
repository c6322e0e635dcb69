"""The command `ens submit`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ensemble.commands.options import PATH, ROOT, conflict, json_option, missing_option, progress_options, run_options
from ensemble.commands.output_paths import CSV, FOLDER
from ensemble.commands.recipe_options import smooth_table_option
from ensemble.commands.sheet_options import oof_table_options, rows_options, sheet_options
from ensemble.terminal import TERMINAL, show

if TYPE_CHECKING:
    from ensemble.predict.options import RunOptions
    from ensemble.predictions.external import ExternalOptions
    from ensemble.submission.rows import RowMap
    from ensemble.submission.sheet_options import SheetOptions
    from ensemble.submit.exit_thresholds import Goal


@click.command(short_help="Apply a saved recipe to images")
@click.argument("recipe_path", metavar="RECIPE", type=PATH)
@click.option("--images", type=PATH, required=True, help="The folder of the images.")
@click.option("--models", type=PATH, required=True, multiple=True, help="Models or folders of them; repeatable.")
@click.option("-o", "output", type=CSV, required=True, help="The submission to write.")
@click.option("--like", type=PATH, help="The sample submission: its header, order and spelling of the ids.")
@click.option(
    "--early-exit", help="Stop early: exact, a share of predictions to keep (0.999), or a metric loss (macro-f1:0.003)."
)
@click.option(
    "--oof",
    type=PATH,
    multiple=True,
    help="Out-of-fold predictions; required unless --early-exit is exact; repeatable.",
)
@oof_table_options
@click.option("--truth", type=PATH, help="Ground-truth CSV of --oof (columns ImageID, ans, optional person).")
@click.option("--budget", help="Time budget, such as 90m, 2h or 5400s. Members that exceed it are left out, and named.")
@click.option("--boxes", type=PATH, help="Face boxes written by ens crop, for models trained on face crops.")
@click.option(
    "--work", type=FOLDER, default=Path(ROOT, "submit"), show_default=True, help="Folder of intermediate results."
)
@smooth_table_option
@rows_options
@sheet_options
@run_options
@missing_option
@progress_options
@json_option
def submit(
    recipe_path: Path,
    images: Path,
    models: tuple[Path, ...],
    output: Path,
    like: Path | None,
    early_exit: str | None,
    oof: tuple[Path, ...],
    oof_tables: ExternalOptions,
    truth: Path | None,
    budget: str | None,
    boxes: Path | None,
    work: Path,
    smooth_table: Path | None,
    row_map: RowMap | None,
    sheet: SheetOptions,
    options: RunOptions,
    allow_missing: bool,
    as_json: bool,
) -> None:
    """Apply a saved recipe to images and write the submission; run the same command again to resume.

    With --early-exit exact, members that cannot change an image's predicted class are skipped; the submission is
    the same.

    \b
    Example: ens submit blend.json --images eval/images --models models --like eval/info.csv -o submission.csv
    """
    from ensemble.blend.recipe import read_recipe
    from ensemble.blend.row_table import with_row_table
    from ensemble.files import require_different
    from ensemble.images.face_boxes import read_boxes
    from ensemble.predictions.read_members import read_members
    from ensemble.submission.recognize import read_sheet
    from ensemble.submit.destination import Destination
    from ensemble.submit.submit import EarlyExit
    from ensemble.submit.submit import submit as run_submit
    from ensemble.submit.time_budget import parse_budget

    own = {f"{name} of --work": work / name for name in ("errors.csv", "_run.json", "budget.json")}
    require_different(
        {"-o": output} | own, {"RECIPE": recipe_path, "--like": like, "--truth": truth, "--smooth-table": smooth_table}
    )
    goal = parse_early_exit(early_exit, oof, truth)
    seconds = None if budget is None else parse_budget(budget)
    recipe = read_recipe(recipe_path)
    sheet = replace(sheet, recorded=recipe.positive)
    form = (
        None
        if like is None
        else read_sheet(
            like, recipe.labels, options=sheet, independent=recipe.activation == "sigmoid", listener=TERMINAL
        )
    )
    ids = None if form is None or row_map is not None else form.ids
    recipe = with_row_table(recipe, smooth_table, ids=ids, listener=TERMINAL)
    leaving = None
    if early_exit is not None:
        tables = replace(oof_tables, id_column=sheet.id_column, activation=recipe.activation)
        leaving = EarlyExit(
            goal, read_members(oof, recipe.labels, options=tables, beside=(truth,), listener=TERMINAL), truth
        )
    done = run_submit(
        recipe,
        images,
        models,
        Destination(output, work, form, allow_missing, row_map, sheet),
        early_exit=leaving,
        budget=seconds,
        boxes=None if boxes is None else read_boxes(boxes),
        options=options,
    )
    show(done.as_dict(), done.render(), as_json=as_json)


def parse_early_exit(text: str | None, oof: Sequence[Path], truth: Path | None) -> Goal | None:
    """The goal of --early-exit; None for exact, and without the option.

    Raises:
        OptionError: E204 when it is neither, or does not go with --oof and --truth.
    """
    from ensemble.submit.exit_thresholds import parse_goal
    from ensemble.submit.submit import EXACT

    goal = None if text in (None, EXACT) else parse_goal(str(text))
    if (goal is not None) != bool(oof) or (truth is not None and not oof):
        raise conflict("--early-exit needs --oof (unless it is exact), and --oof and --truth need --early-exit")
    return goal
