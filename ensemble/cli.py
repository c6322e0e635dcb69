"""The command line: each command parses, calls one function and prints the path it wrote.

Nothing but the standard library, click and the errors is imported here before a command runs, so that `ens --help` is
as quick as click itself. What is printed goes through `ensemble.terminal`; errors are met in `ensemble.__main__`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ensemble.errors import FileError, OptionError
from ensemble.terminal import TERMINAL, show

_NEEDS_TORCH = {"torch", "timm", "torchvision", "onnxscript", "safetensors"}
_ROOT = "runs"


class _Ordered(click.Group):
    """Lists the commands in the order of the pipeline, not of the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(self.commands)


@click.group(cls=_Ordered, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="ens-onnx", prog_name="ens")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def ens(debug: bool) -> None:
    """Trained image classifiers to a contest submission you can trust.

    \b
    checkpoints -> ens export -> models/*.onnx -> ens predict --tta -> ens blend -> submission.csv

    Try it all on a toy contest: ens demo
    """


_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
_PATH = click.Path(path_type=Path)


# --------------------------------------------------------------------------------------------------------------- demo
@ens.command()
@click.option("-o", "folder", type=_PATH, default=Path(_ROOT, "demo"), show_default=True, help="Where to put it all.")
@_json
def demo(folder: Path, as_json: bool) -> None:
    """Draw a toy contest, train two small models on it, export, predict, blend and score them.

    Runs on the CPU, without network, in under two minutes. Example: ens demo
    """
    with _torch_extra("demo"):
        from exporters.demo import demo as run_demo
    result = run_demo(folder, listener=TERMINAL)
    show(result.as_dict(), result.render(), as_json=as_json)


# ------------------------------------------------------------------------------------------------------------- export
@ens.command()
@click.argument("checkpoints", nargs=-1, required=True, type=_PATH)
@click.option(
    "-o", "folder", type=_PATH, default=Path(_ROOT, "models"), show_default=True, help="Where to put the models."
)
@click.option("--arch", help="The timm architecture; found out from the weights where that is possible.")
@click.option(
    "--weights", type=click.Choice(["raw", "ema"]), help="Which weights, where a file holds both.  [default: ema]"
)
@click.option("--labels", help="mask18, a number of classes, or a JSON file of class names or axes.")
@click.option("--size", help="Input size in pixels: 224, or HEIGHTxWIDTH.")
@click.option("--resize", type=click.Choice(["squash", "center", "pad"]), help="How an image gets to that size.")
@click.option("--interpolation", type=click.Choice(["nearest", "bilinear", "bicubic", "lanczos"]))
@click.option("--crop-pct", type=float, help="The share of the resized image that is kept, around its centre.")
@click.option("--mean", help="R,G,B in 0..1.")
@click.option("--std", help="R,G,B in 0..1.")
@click.option("--member", help="The member's name; by default the file's.")
@click.option("--fold", type=click.IntRange(min=0), help="Which fold the checkpoint never saw.")
@click.option("--precision", type=click.Choice(["fp32", "fp16"]), default="fp32", show_default=True)
@click.option("--features", is_flag=True, help="Also output the features before pooling, for class-activation maps.")
@click.option(
    "--check-images", type=_PATH, help="Verify on the images of this folder instead of the built-in pictures."
)
@_json
def export(
    checkpoints: tuple[Path, ...],
    folder: Path,
    arch: str | None,
    weights: Any,
    labels: str | None,
    size: str | None,
    mean: str | None,
    std: str | None,
    member: str | None,
    check_images: Path | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Turn checkpoints into self-describing .onnx files, each verified against torch before it gets its name.

    What the checkpoint or timm knows is the default; an option overrides it.

    \b
    Example: ens export r18.pth -o models --labels mask18 --size 224 --resize squash --check-images eval/images
    """
    if member is not None and len(checkpoints) > 1:
        raise OptionError("E204", f"--member names one model, got {len(checkpoints)} checkpoints")
    for path in checkpoints:
        if not path.is_file():
            raise FileError("E707", f"{path} is not a file", path=path)
    with _torch_extra("export"):
        from checkpoints.open import open_checkpoint
        from exporters.export import Exported, ExportOptions
        from exporters.export import export as run_export
    from ensemble.card import parse_size, parse_triple
    from ensemble.labels import parse_labels
    from ensemble.listing import list_images

    options = ExportOptions(
        labels=None if labels is None else parse_labels(labels),
        size=None if size is None else parse_size(size),
        mean=None if mean is None else parse_triple(mean, "--mean"),
        std=None if std is None else parse_triple(std, "--std"),
        member=member,
        **settings,
    )
    pictures = () if check_images is None else list_images(check_images).paths
    done: list[Exported] = []
    for number, path in enumerate(checkpoints):
        TERMINAL.progress("export", number, len(checkpoints))
        exported = run_export(
            open_checkpoint(path, arch=arch, weights=weights, listener=TERMINAL),
            folder,
            options=options,
            check_images=pictures,
            taken=[other.card.member for other in done],
            listener=TERMINAL,
        )
        done.append(exported)
        if not as_json:
            show(None, f"{exported.path}  {exported.card.arch}  {exported.seconds:.1f} s", as_json=False)
    TERMINAL.progress("export", len(checkpoints), len(checkpoints))
    if as_json:
        show([exported.as_dict() for exported in done], "", as_json=True)


# ------------------------------------------------------------------------------------------------------------ predict
@ens.command()
@click.argument("models", nargs=-1, required=True, type=_PATH)
@click.option("--images", type=_PATH, required=True, help="The folder of the images.")
@click.option("--ids", type=_PATH, help="A CSV that lists the images, such as info.csv; by default all in the folder.")
@click.option("--tta", is_flag=True, help="Also predict the horizontal flip.")
@click.option("--views", help="More views: hflip, vflip, rot90, shift:<px>, scale:<factor>, crop5.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N, tensorrt; never replaced.")
@click.option(
    "-o", "folder", type=_PATH, default=Path(_ROOT, "preds"), show_default=True, help="Where to put the predictions."
)
@click.option(
    "-b", "--batch", type=click.IntRange(1, 4096), help="Images at once.  [default: 16 on the CPU, 128 on a GPU]"
)
@click.option("-j", "--workers", type=click.IntRange(1, 512), help="Worker threads.  [default: the cores there are]")
@click.option("--fresh", is_flag=True, help="Throw away what an earlier run left in the folder.")
@_json
def predict(
    models: tuple[Path, ...],
    images: Path,
    ids: Path | None,
    tta: bool,
    views: str | None,
    device: str,
    folder: Path,
    batch: int | None,
    workers: int | None,
    fresh: bool,
    as_json: bool,
) -> None:
    """Predict images with models; a run that was stopped goes on where it was.

    \b
    Example: ens predict models/*.onnx --images eval/images --ids eval/info.csv --tta -o runs/preds
    """
    from ensemble.listing import read_ids
    from ensemble.model_file import find_models
    from ensemble.predict import predict as run_predict
    from ensemble.tta import parse_views

    wanted = ",".join(part for part in ("identity", "hflip" if tta else "", views or "") if part)
    done = run_predict(
        find_models(models),
        images,
        folder,
        views=parse_views(wanted),
        ids=None if ids is None else read_ids(ids, listener=TERMINAL),
        device=device,
        batch=batch,
        workers=workers,
        fresh=fresh,
        listener=TERMINAL,
    )
    show(done.as_dict(), done.render(), as_json=as_json)


# -------------------------------------------------------------------------------------------------------------- blend
@ens.command()
@click.argument("predictions", nargs=-1, required=True, type=_PATH)
@click.option("-o", "output", type=_PATH, required=True, help="The submission to write.")
@click.option("--like", type=_PATH, help="The sample submission: its header, order and spelling of the ids.")
@click.option("--pool", "pool_name", help="linear, logit, geometric, power:<p> or hard.  [default: linear]")
@click.option("--weights", help="Weights of the groups: a=2,b=1; a member without folds is a group.  [default: equal]")
@click.option("--views", help="Weights of the views: identity=1,hflip=1.  [default: all, equal]")
@click.option("--as", "kind", type=click.Choice(["logits", "probabilities"]), help="What CSV and .npz files hold.")
@click.option("--labels", default="mask18", show_default=True, help="Their classes: mask18, a number, or a JSON file.")
@click.option("--oof", type=_PATH, multiple=True, help="Learn from these out-of-fold predictions; may be repeated.")
@click.option("--truth", type=_PATH, help="What is true of them: a CSV with ImageID, ans and person.")
@click.option("--method", help="The way to blend: mean, pool, greedy, ...  [default: auto, by what it gains]")
@click.option("--metric", help="macro-f1, accuracy, balanced-accuracy or nll.  [default: macro-f1]")
@click.option("--seed", type=click.IntRange(min=0), help="Of what is drawn while learning.  [default: 0]")
@click.option("--save", type=_PATH, help="Write the recipe to this file.")
@click.option("--apply", "recipe_path", type=_PATH, help="Apply a recipe that was saved, instead of the options above.")
@_json
def blend(
    predictions: tuple[Path, ...],
    output: Path,
    like: Path | None,
    pool_name: str | None,
    weights: str | None,
    views: str | None,
    kind: Any,
    labels: str,
    oof: tuple[Path, ...],
    truth: Path | None,
    save: Path | None,
    recipe_path: Path | None,
    as_json: bool,
    **learning: Any,
) -> None:
    """Soft-vote predictions into a submission: views inside a member, folds inside a group, groups by weight.

    With --oof and --truth the weights are learned; by default they are adopted only where they beat the mean on other
    people.

    \b
    Example: ens blend runs/preds/* --like eval/info.csv -o submission.csv --save blend.json
    """
    from ensemble.blend import blend as run_blend
    from ensemble.files import require_different, write_atomic
    from ensemble.labels import parse_labels
    from ensemble.members import read_members
    from ensemble.pool import parse_pool
    from ensemble.recipe import make_recipe, parse_weights, read_recipe, render_recipe
    from ensemble.submission import read_format, write_submission
    from ensemble.tta import expand_views

    require_different({"-o": output, "--save": save}, {"--like": like, "--apply": recipe_path, "--truth": truth})
    learning = {name: value for name, value in learning.items() if value is not None}
    if bool(oof) != (truth is not None) or (learning and not oof):
        raise OptionError("E204", "--oof and --truth go together, and --method, --metric and --seed need both")
    if (recipe_path or oof) and (weights or views or pool_name or (recipe_path and oof)):
        source = "--apply brings" if recipe_path else "--oof learns"
        raise OptionError("E204", f"{source} its own pool, weights and views", hint="leave those options out")
    sample = None if like is None else read_format(like, listener=TERMINAL)
    space, table = parse_labels(labels), ""
    members = read_members(predictions, space, kind=kind)
    if recipe_path is not None:
        recipe = read_recipe(recipe_path)
    elif truth is not None:
        from ensemble.adopt import learn_from_folds, learned_recipe

        learned = learn_from_folds(read_members(oof, space, kind=kind), truth, listener=TERMINAL, **learning)
        recipe, table = learned_recipe(learned, members), learned.render() + "\n"
    else:
        recipe = make_recipe(
            members,
            pool=parse_pool(pool_name or "linear"),
            weights=None if weights is None else parse_weights(weights),
            view_weights=None if views is None else expand_views(parse_weights(views)),
        )
    blended = run_blend(members, recipe, ids=None if sample is None else sample.ids, listener=TERMINAL)
    write_submission(output, blended.ids, blended.classes, like=sample, listener=TERMINAL)
    if save is not None:
        write_atomic(save, recipe.to_json().encode())
    summary = {"path": str(output), "rows": len(blended), "recipe": json.loads(recipe.to_json())}
    show(summary, f"{table}{render_recipe(recipe)}\n{output}", as_json=as_json)


# -------------------------------------------------------------------------------------------------------------- check
@ens.command()
@click.argument("submission", type=_PATH)
@click.option("--like", type=_PATH, help="The sample submission to compare with.")
@click.option("--diff", "other", type=_PATH, help="Another submission: say how many rows changed, by axis.")
@click.option("--labels", default="mask18", show_default=True, help="mask18, a number of classes, or a JSON file.")
@_json
def check(submission: Path, like: Path | None, other: Path | None, labels: str, as_json: bool) -> None:
    """List every fault of a submission at once.

    Example: ens check submission.csv --like eval/info.csv
    """
    from ensemble.check import check_submission, invalid, read_submission, render_faults
    from ensemble.labels import parse_labels
    from ensemble.submission import diff_submissions, read_format, render_diff

    space = parse_labels(labels)
    sample = None if like is None else read_format(like, listener=TERMINAL)
    faults = check_submission(submission, sample, space, listener=TERMINAL)
    if faults:
        error = invalid(submission, faults)
        if not as_json:
            show(None, render_faults(faults), as_json=False)
            error.details = ()
        raise error
    answers = read_submission(submission, space, like=sample)
    if other is None:
        show(
            {"path": str(submission), "rows": len(answers), "faults": []},
            f"{submission}: {len(answers):,} rows, no faults",
            as_json=as_json,
        )
        return
    diff = diff_submissions(answers, read_submission(other, space, like=sample))
    show(asdict(diff), render_diff(diff), as_json=as_json)


# ----------------------------------------------------------------------------------------------------------- evaluate
@ens.command()
@click.argument("answers", nargs=-1, required=True, type=_PATH)
@click.option("--truth", type=_PATH, required=True, help="A CSV with ImageID, ans and, for better intervals, person.")
@click.option("--labels", default="mask18", show_default=True, help="For CSV files: mask18, a number, or a JSON file.")
@_json
def evaluate(answers: tuple[Path, ...], truth: Path, labels: str, as_json: bool) -> None:
    """Score predictions (each view and their mean) or submissions, with 95 % bootstrap intervals.

    Example: ens evaluate runs/preds/r18 submission.csv --truth eval_truth.csv
    """
    from ensemble.check import read_submission
    from ensemble.evaluate import evaluate as run_evaluate
    from ensemble.evaluate import read_truth, side_by_side
    from ensemble.labels import parse_labels
    from ensemble.predictions import find_predictions, read_predictions

    found: dict[str, Any] = {}
    for path in answers:
        if path.is_file():
            space = parse_labels(labels)
            found[str(path) if path.name in found else path.name] = run_evaluate(
                read_submission(path, space), read_truth(truth, space, listener=TERMINAL)
            )
        else:
            for folder in find_predictions(path):
                member = read_predictions(folder)
                found[str(folder) if member.member in found else member.member] = run_evaluate(
                    member, read_truth(truth, member.labels, listener=TERMINAL)
                )
    result = side_by_side(found)
    show(result.as_dict(), result.render(), as_json=as_json)


# ------------------------------------------------------------------------------------------------------------- doctor
@ens.command()
@_json
def doctor(as_json: bool) -> None:
    """Say which devices really start, which versions are there, and the line that installs what is missing.

    Example: ens doctor
    """
    from ensemble.doctor import doctor as run_doctor

    diagnosis = run_doctor()
    show(diagnosis.as_dict(), diagnosis.render(), as_json=as_json)


@ens.command("explain-error")
@click.argument("code")
@_json
def explain_error(code: str, as_json: bool) -> None:
    """Say what a code means and what to do about it.

    Example: ens explain-error E314
    """
    from ensemble.codes import CODES

    entry = CODES.get(code.upper())
    if entry is None:
        raise OptionError("E204", f"{code!r} is not a code", hint="codes look like E314, W301 or I304")
    show(entry._asdict(), f"{code.upper()}: {entry.cause}\n  {entry.cure}", as_json=as_json)


@contextmanager
def _torch_extra(command: str) -> Iterator[None]:
    """Turn a missing package of the extra ``torch`` into an error that says how to install it."""
    try:
        yield
    except ModuleNotFoundError as err:
        if err.name not in _NEEDS_TORCH:
            raise
        raise OptionError("E205", f"ens {command} needs {err.name}, which is not installed") from err
