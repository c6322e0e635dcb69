"""The command `ens blend`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ensemble.commands.options import PATH, json_option, missing_option
from ensemble.errors import OptionError
from ensemble.terminal import TERMINAL, show


@click.command(short_help="Blend predictions into a submission")
@click.argument("predictions", nargs=-1, required=True, type=PATH)
@click.option("-o", "output", type=PATH, required=True, help="The submission to write.")
@click.option("--like", type=PATH, help="The sample submission: its header, order and spelling of the ids.")
@click.option("--pool", "pool_name", help="linear, logit, geometric, power:<p> or hard.  [default: linear]")
@click.option("--weights", help="Weights of the groups: a=2,b=1; a member without folds is a group.  [default: equal]")
@click.option("--views", help="Weights of the views: identity=1,hflip=1.  [default: all, equal]")
@click.option(
    "--rule", "rule_name", type=click.Choice(["argmax", "per-axis"]), help="How to decide.  [default: argmax]"
)
@click.option("--as", "kind", type=click.Choice(["logits", "probabilities", "classes"]), help="What files hold.")
@click.option("--labels", default="mask18", show_default=True, help="Their classes: mask18, a number, or a JSON file.")
@click.option("--oof", type=PATH, multiple=True, help="Learn from these out-of-fold predictions; may be repeated.")
@click.option("--truth", type=PATH, help="What is true of them: a CSV with ImageID, ans and person.")
@click.option("--method", help="The way to blend: mean, pool, greedy, ...  [default: auto, by what it gains]")
@click.option("--metric", help="macro-f1, accuracy, balanced-accuracy, nll, macro-f1:age, ...  [default: macro-f1]")
@click.option("--transductive", is_flag=True, help="Fit the learned macro-F1 rule to the images it decides about.")
@click.option("--seed", type=click.IntRange(min=0), help="Of what is drawn while learning.  [default: 0]")
@click.option("--save", type=PATH, help="Write the recipe to this file.")
@click.option("--apply", "recipe_path", type=PATH, help="Apply a recipe that was saved, instead of the options above.")
@missing_option
@json_option
def blend(
    predictions: tuple[Path, ...],
    output: Path,
    like: Path | None,
    pool_name: str | None,
    weights: str | None,
    views: str | None,
    rule_name: str | None,
    kind: Any,
    labels: str,
    transductive: bool,
    oof: tuple[Path, ...],
    truth: Path | None,
    save: Path | None,
    recipe_path: Path | None,
    allow_missing: bool,
    as_json: bool,
    **learning: Any,
) -> None:
    """Soft-vote predictions into a submission: views inside a member, folds inside a group, groups by weight.

    With --oof and --truth the weights are learned; by default they are adopted only where they beat the mean on other
    people.

    \b
    Example: ens blend runs/preds/* --like eval/info.csv -o submission.csv --save blend.json
    """
    from ensemble.blend.blend import blend as run_blend
    from ensemble.blend.pooling import parse_pool
    from ensemble.blend.recipe import make_recipe, parse_weights, read_recipe, render_recipe
    from ensemble.files import require_different, write_atomic
    from ensemble.ids import without_ids
    from ensemble.images.views import expand_views
    from ensemble.labels import parse_labels
    from ensemble.predict.result import render_unread
    from ensemble.predictions.external import read_members
    from ensemble.predictions.members import common_images
    from ensemble.submission.format import read_format, write_submission

    require_different({"-o": output, "--save": save}, {"--like": like, "--apply": recipe_path, "--truth": truth})
    learning = {name: value for name, value in learning.items() if value is not None}
    if bool(oof) != (truth is not None) or ((learning or transductive) and not oof):
        needing = "--method, --metric, --transductive and --seed need both"
        raise OptionError("E204", f"--oof and --truth go together, and {needing}")
    if (recipe_path or oof) and (weights or views or pool_name or rule_name or (recipe_path and oof)):
        source = "--apply brings" if recipe_path else "--oof learns"
        raise OptionError("E204", f"{source} its own pool, weights, views and rule", hint="leave those options out")
    sample = None if like is None else read_format(like, listener=TERMINAL)
    space, table = parse_labels(labels), ""
    common = common_images(read_members(predictions, space, kind=kind), allow_missing=allow_missing)
    members, missing = common.members, common.missing
    if recipe_path is not None:
        recipe = read_recipe(recipe_path)
    elif truth is not None:
        from ensemble.learn.learned_recipe import learn_from_folds, learned_recipe

        learned = learn_from_folds(read_members(oof, space, kind=kind), truth, listener=TERMINAL, **learning)
        recipe, table = learned_recipe(learned, members, transductive=transductive), learned.render() + "\n"
    else:
        recipe = make_recipe(
            members,
            per_axis=rule_name == "per-axis",
            pool=parse_pool(pool_name or "linear"),
            weights=None if weights is None else parse_weights(weights),
            view_weights=None if views is None else expand_views(parse_weights(views)),
        )
    ids = None if sample is None else without_ids(sample.ids, missing)
    blended = run_blend(members, recipe, ids=ids, listener=TERMINAL)
    write_submission(output, blended.ids, blended.classes, like=sample, missing=missing, listener=TERMINAL)
    if save is not None:
        write_atomic(save, recipe.to_json().encode())
    unread = {"filled": list(blended.filled), "missing": list(missing)}
    summary = {"path": str(output), "rows": len(blended), **unread, "recipe": json.loads(recipe.to_json())}
    lines = f"{table}{render_recipe(recipe)}\n{render_unread(blended.filled, missing)}"
    show(summary, f"{lines}{output}", as_json=as_json)
