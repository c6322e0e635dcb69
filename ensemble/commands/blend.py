"""The command `ens blend`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ensemble.commands.options import (
    PATH,
    conflict,
    given_options,
    json_option,
    missing_option,
    named,
    progress_options,
)
from ensemble.commands.output_paths import CSV, JSON
from ensemble.commands.recipe_options import NAMES, RecipeExtras, recipe_options
from ensemble.commands.sheet_options import rows_options, sheet_options, table_options
from ensemble.terminal import TERMINAL, show

if TYPE_CHECKING:
    from ensemble.labels import LabelSpace
    from ensemble.learn.choose_recipe import ChosenRecipe, GivenWeights, LearnFrom
    from ensemble.predictions.external import ExternalOptions
    from ensemble.predictions.truth import TruthOptions
    from ensemble.submission.rows import RowMap
    from ensemble.submission.sheet import AnswerSheet
    from ensemble.submission.sheet_options import SheetOptions

_WEIGHTS = ("pool_name", "weights", "views", "rule_name", *NAMES)
_SMOOTHED_LATER = (
    '; to smooth, add a line such as "smoothing": {"kernel": [0.2, 0.6, 0.2]} to a saved recipe and --apply it'
)
_LEARNING = ("method", "metric", "transductive", "seed")


@click.command(short_help="Blend predictions into a submission")
@click.argument("predictions", nargs=-1, required=True, type=PATH)
@click.option("-o", "output", type=CSV, required=True, help="The submission to write.")
@click.option("--like", type=PATH, help="Sample submission: header, ids in order and spelling, kind of answers.")
@rows_options
@click.option(
    "--pool",
    "pool_name",
    default="linear",
    show_default=True,
    help="linear, logit, geometric, power:<p>, hard or rank.",
)
@click.option(
    "--weights", help="Weights of the groups, such as a=2,b=1; a member without folds is a group.  [default: equal]"
)
@click.option("--views", help="Weights of the views, such as identity=1,hflip=1.  [default: all views, equal weights]")
@click.option(
    "--rule",
    "rule_name",
    type=click.Choice(["argmax", "per-axis"]),
    default="argmax",
    show_default=True,
    help="Decide for the most probable class, or per axis of the label space.",
)
@recipe_options
@table_options("logits", "probabilities", "classes", oof=True)
@click.option(
    "--labels",
    default="mask18",
    show_default=True,
    help="Label space of tables and arrays: mask18, a number of classes, or a file of class names.",
)
@click.option(
    "--oof", type=PATH, multiple=True, help="Learn from these out-of-fold predictions: folders or files; repeatable."
)
@click.option("--truth", type=PATH, help="Ground-truth CSV for --oof (columns ImageID, ans, optional person).")
@click.option(
    "--method",
    default="auto",
    show_default=True,
    help="Blending method to learn: mean, pool, greedy, ...; auto takes the best if it clearly beats the mean.",
)
@click.option(
    "--metric",
    default="macro-f1",
    show_default=True,
    help="Metric to optimize: macro-f1, accuracy, balanced-accuracy, nll, macro-f1:<axis>, roc-auc, quadratic-kappa, "
    "or any other of ens evaluate.",
)
@click.option("--transductive", is_flag=True, help="Fit the learned macro-F1 rule to the images being classified.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Random seed.")
@click.option("--save", type=JSON, help="Write the recipe to this file.")
@click.option("--apply", "recipe_path", type=PATH, help="Apply a saved recipe instead of the options above.")
@sheet_options
@missing_option
@progress_options
@json_option
def blend(
    predictions: tuple[Path, ...],
    output: Path,
    like: Path | None,
    row_map: RowMap | None,
    pool_name: str,
    weights: str | None,
    views: str | None,
    rule_name: str,
    extras: RecipeExtras,
    tables: ExternalOptions,
    labels: str,
    oof: tuple[Path, ...],
    truth: Path | None,
    method: str,
    metric: str,
    transductive: bool,
    seed: int,
    save: Path | None,
    recipe_path: Path | None,
    sheet: SheetOptions,
    allow_missing: bool,
    as_json: bool,
) -> None:
    """Soft-vote predictions into a submission: views within a member, folds within a group, groups by weight.

    With --oof and --truth the weights are learned; by default they are adopted only where they beat the mean on other
    people.

    \b
    Example: ens blend runs/preds/* --like eval/info.csv -o submission.csv --save blend.json
    """
    from ensemble.blend.blend import blend as run_blend
    from ensemble.blend.combine import answers_of, combine_answers
    from ensemble.files import require_different, write_atomic
    from ensemble.ids import without_ids
    from ensemble.label_file import parse_labels
    from ensemble.learn.choose_recipe import LearnFrom, choose_recipe
    from ensemble.predict.result import render_unread
    from ensemble.predictions.members import common_images
    from ensemble.predictions.read_members import read_members
    from ensemble.submission.recognize import read_sheet
    from ensemble.submission.sheet_options import default_sheet
    from ensemble.submission.write import write_submission

    read = {"--like": like, "--apply": recipe_path, "--truth": truth}
    require_different({"-o": output, "--save": save}, read | named("PREDICTIONS", predictions) | named("--oof", oof))
    _require_one_source(recipe_path, oof, truth)
    sheet = _about_positive(sheet, recipe_path, metric if truth is not None else None)
    space = parse_labels(labels)
    external = replace(tables, id_column=sheet.id_column)
    found = read_members(predictions, space, options=external, listener=TERMINAL)
    common = common_images(found, allow_missing=allow_missing)
    names = common.members[0].labels
    sample = (
        None
        if like is None
        else read_sheet(like, names, options=sheet, independent=common.independent, listener=TERMINAL)
    )
    given = _parse_weights(pool_name, weights, views, rule_name, extras)
    source: GivenWeights | LearnFrom | Path = recipe_path or given
    if truth is not None:
        held_out = read_members(oof, space, options=external.for_oof(), beside=(truth,), listener=TERMINAL)
        source = LearnFrom(held_out, truth, method, metric, seed, transductive, _truth_columns(sheet, sample, names))
    chosen = _with_rows(choose_recipe(common.members, source, listener=TERMINAL), extras)
    ids = None if sample is None or row_map is not None else without_ids(sample.ids, common.missing)
    blended = run_blend(common.members, chosen.recipe, ids=ids, listener=TERMINAL)
    answers, missing = answers_of(blended), common.missing
    if row_map is not None:
        rows = combine_answers(answers, chosen.recipe, row_map, missing=missing, sheet=sample, listener=TERMINAL)
        answers, missing = rows.submission, rows.missing
    sample = sample or default_sheet(answers.ids, names, options=sheet, independent=common.independent)
    write_submission(output, answers, sheet=sample, missing=missing, listener=TERMINAL)
    chosen = _with_positive(chosen, sample, names)
    if save is not None:
        write_atomic(save, chosen.recipe.to_json().encode())
    summary = {"path": str(output), "rows": len(answers), "filled": list(blended.filled)}
    summary |= {"missing": list(common.missing), "recipe": json.loads(chosen.recipe.to_json())}
    show(summary, f"{_render_chosen(chosen)}{render_unread(blended.filled, common.missing)}{output}", as_json=as_json)


def _is_contest_metric(text: str) -> bool:
    from ensemble.learn.objective import METRICS

    return text.partition(":")[0] not in METRICS


def _about_positive(sheet: SheetOptions, recipe_path: Path | None, metric: str | None) -> SheetOptions:
    """Return the options with the positive class of a saved recipe; a learned metric may be about it as well."""
    from ensemble.blend.recipe import read_recipe

    recorded = None if recipe_path is None else read_recipe(recipe_path).positive
    return replace(sheet, scored=metric is not None and _is_contest_metric(metric), recorded=recorded)


def _with_rows(chosen: ChosenRecipe, extras: RecipeExtras) -> ChosenRecipe:
    """Return a recipe that smooths over the groups of a table with that table."""
    from ensemble.blend.row_table import with_row_table

    return replace(chosen, recipe=with_row_table(chosen.recipe, extras.row_table, listener=TERMINAL))


def _truth_columns(options: SheetOptions, sample: AnswerSheet | None, labels: LabelSpace) -> TruthOptions:
    """Return what the options say about the ground truth; a sample of one probability says which class is positive."""
    from ensemble.predictions.truth import truth_columns

    columns = truth_columns(options)
    if sample is None or sample.positive is None:
        return columns
    return replace(columns, positive=labels.names[sample.positive])


def _with_positive(chosen: ChosenRecipe, sample: AnswerSheet, labels: LabelSpace) -> ChosenRecipe:
    """Record the one of two classes whose probability is written, where the recipe has none."""
    if sample.positive is None or chosen.recipe.positive is not None or len(labels) != 2:
        return chosen
    return replace(chosen, recipe=replace(chosen.recipe, positive=labels.names[sample.positive]))


def _render_chosen(chosen: ChosenRecipe) -> str:
    from ensemble.blend.recipe import render_recipe
    from ensemble.learn.table import render_learned

    table = "" if chosen.learned is None else f"{render_learned(chosen.learned)}\n"
    return f"{table}{render_recipe(chosen.recipe)}\n"


def _require_one_source(recipe_path: Path | None, oof: tuple[Path, ...], truth: Path | None) -> None:
    """Check that the recipe is either saved, learned or given.

    Raises:
        OptionError: E204 otherwise.
    """
    if bool(oof) != (truth is not None):
        raise conflict("--oof and --truth need each other")
    if not oof and (learning := given_options(_LEARNING)):
        raise conflict(f"{learning} can only be used with --oof and --truth")
    if recipe_path is not None and oof:
        raise conflict("--apply and --oof exclude each other")
    if (recipe_path is not None or oof) and (given := given_options(_WEIGHTS)):
        source = "--apply brings" if recipe_path is not None else "--oof learns"
        later = _SMOOTHED_LATER if "--smooth" in given else ""
        raise conflict(f"{source} its own pool, weights, views and rule; leave out {given}{later}")


def _parse_weights(pool: str, weights: str | None, views: str | None, rule: str, extras: RecipeExtras) -> GivenWeights:
    from ensemble.blend.pooling import parse_pool
    from ensemble.blend.recipe import parse_weights
    from ensemble.images.views import expand_views
    from ensemble.learn.choose_recipe import GivenWeights

    return GivenWeights(
        pool=parse_pool(pool),
        weights=None if weights is None else parse_weights(weights),
        view_weights=None if views is None else expand_views(parse_weights(views)),
        per_axis=rule == "per-axis",
        class_weights=extras.class_weights,
        thresholds=extras.thresholds,
        smoothing=extras.smoothing,
    )
