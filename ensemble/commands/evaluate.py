"""The command `ens evaluate`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ensemble.commands.options import PATH, json_option, progress_options
from ensemble.commands.sheet_options import reading_options, table_options
from ensemble.terminal import TERMINAL, show

if TYPE_CHECKING:
    from ensemble.analysis.evaluate import Evaluation
    from ensemble.analysis.evaluate_labels import LabelEvaluation
    from ensemble.blend.blend import Blended
    from ensemble.labels import LabelSpace
    from ensemble.predictions.dataset import Predictions
    from ensemble.predictions.external import ExternalOptions
    from ensemble.submission.sheet import Submission
    from ensemble.submission.sheet_options import SheetOptions

_UNCLEAR = frozenset({"E313", "E322", "E540", "E541", "E542"})
"""Errors of a submission whose columns or kind of answers are not recognized."""


@click.command(short_help="Score predictions or submissions")
@click.argument("answers", metavar="PREDICTIONS...", nargs=-1, required=True, type=PATH)
@click.option(
    "--truth",
    type=PATH,
    required=True,
    help="Ground-truth CSV: ids, classes and, for correct intervals, person.",
)
@table_options("logits", "probabilities")
@click.option("--like", type=PATH, help="Sample submission, which says how answers are written.  [default: the file]")
@click.option(
    "--labels",
    help="Label space of files: mask18, a number of classes, or a file of class names.  "
    "[default: that of PREDICTIONS or of --recipe, else mask18]",
)
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="NAME",
    help="Also score by a contest's metric: log-loss, roc-auc, map@5, quadratic-kappa, ..., or my_metric.py:score "
    "(your function of truth and probabilities, which is run); repeatable.",
)
@click.option(
    "--recipe",
    "recipe_path",
    type=PATH,
    help="Saved recipe: score by the metric it was learned for, and about its positive class.",
)
@reading_options
@progress_options
@json_option
def evaluate(
    answers: tuple[Path, ...],
    truth: Path,
    tables: ExternalOptions,
    like: Path | None,
    labels: str | None,
    metrics: tuple[str, ...],
    recipe_path: Path | None,
    sheet: SheetOptions,
    as_json: bool,
) -> None:
    """Score predictions (each view and their mean) or submissions, with 95 % bootstrap intervals.

    Example: ens evaluate runs/preds/r18 submission.csv --truth eval_truth.csv
    """
    from ensemble.analysis.evaluate import evaluate as run_evaluate
    from ensemble.analysis.evaluate import side_by_side
    from ensemble.analysis.evaluate_labels import evaluate_labels
    from ensemble.analysis.metric_estimates import positive_class
    from ensemble.errors import PredictionError
    from ensemble.label_file import parse_labels
    from ensemble.predictions.dataset import read_predictions
    from ensemble.predictions.truth import names_several, read_truth, truth_columns
    from ensemble.scoring.catalog import find_metric
    from ensemble.submission.sheet import Submission

    if recipe_path is not None:
        metrics, sheet = _of_recipe(recipe_path, metrics, sheet)
    contest = [find_metric(name) for name in metrics]
    columns = truth_columns(_named_in(truth, answers, sheet))
    sheet = replace(sheet, scored=bool(contest))
    space, options = parse_labels(labels or "mask18"), replace(tables, id_column=sheet.id_column)
    found = _expand(answers, 1 if tables.kind is None else len(space), (truth, like, tables.ids))
    members = {path: read_predictions(path) for path in found if path.is_dir()}
    if labels is None:
        space = _known_labels(members.values(), recipe_path) or space
    labeled = names_several(truth, space, options=columns)
    read = _read_answers(found, members, space, options, like, sheet, several=labeled)
    several = {name: one for name, one in read.items() if isinstance(one, Submission) and one.independent}
    if several and len(several) < len(read):
        raise PredictionError(
            "E501",
            f"{next(iter(several))} has several labels per image, {next(iter(read.keys() - several.keys()))} one",
        )
    spaces = {one.labels.names: one.labels for one in read.values()}
    truths = {
        names: read_truth(truth, space, options=columns, independent=bool(several), listener=TERMINAL)
        for names, space in spaces.items()
    }
    result: Evaluation | LabelEvaluation
    if several:
        result = evaluate_labels(several, truths[next(iter(several.values())).labels.names], metrics=contest)
    else:
        positives = {
            names: positive_class(names, sheet.positive, recorded=sheet.recorded, listener=TERMINAL)
            for names in spaces
            if contest
        }
        result = side_by_side(
            {
                name: run_evaluate(
                    one, truths[one.labels.names], metrics=contest, positive=positives.get(one.labels.names, 1)
                )
                for name, one in read.items()
            }
        )
    show(result.as_dict(), result.render(), as_json=as_json)


def _known_labels(members: Iterable[Predictions], recipe_path: Path | None) -> LabelSpace | None:
    """Return the label space of the first member, else of the recipe: what is evaluated beside them has its classes."""
    from ensemble.blend.recipe import read_recipe

    first = next(iter(members), None)
    if first is not None:
        return first.labels
    return None if recipe_path is None else read_recipe(recipe_path).labels


def _of_recipe(path: Path, metrics: tuple[str, ...], sheet: SheetOptions) -> tuple[tuple[str, ...], SheetOptions]:
    """Return the contest metric that a recipe was learned for, unless metrics are named, and its positive class.

    A function of a user is run only where --metric names it.
    """
    from ensemble.analysis.recipe_metric import metrics_of
    from ensemble.blend.recipe import read_recipe

    recipe = read_recipe(path)
    return metrics_of(recipe, metrics, listener=TERMINAL), replace(sheet, recorded=recipe.positive)


def _read_answers(
    paths: Sequence[Path],
    members: Mapping[Path, Predictions],
    labels: LabelSpace,
    tables: ExternalOptions,
    like: Path | None,
    sheet: SheetOptions,
    *,
    several: bool | None,
) -> dict[str, Predictions | Blended | Submission]:
    """Read members' folders, tables and arrays of predictions, and submissions, by name."""
    from ensemble.predictions.dataset import notice_filled, notice_optimistic
    from ensemble.predictions.external import read_external

    found: dict[str, Predictions | Blended | Submission] = {}
    optimistic: list[Predictions] = []
    for path in paths:
        if path.is_dir():
            member = members[path]
            notice_filled([member], TERMINAL)
            optimistic += [member]
            found[str(path) if member.member in found else member.member] = _independent(member)
            continue
        name = str(path) if path.name in found else path.name
        if tables.kind is not None or path.suffix.lower() in {".npz", ".npy", ".parquet"}:
            own = replace(tables, id_column=_if_there(path, tables.id_column))
            found[name] = _independent(read_external(path, labels, options=own, listener=TERMINAL))
        else:
            own_sheet = replace(
                sheet,
                id_column=_if_there(path, sheet.id_column),
                label_column=_if_there(path, sheet.label_column),
            )
            found[name] = _read_submission(path, labels, like, own_sheet, several=several)
    notice_optimistic(optimistic, TERMINAL)
    return found


def _expand(paths: Sequence[Path], classes: int, beside: Sequence[Path | None]) -> list[Path]:
    """Return the files and members' folders at the paths, see `find_members`; a file that is named is always read."""
    from ensemble.predictions.read_members import find_members

    found: list[Path] = []
    for path in paths:
        found += [path] if path.is_file() else find_members([path], classes=classes, beside=beside, listener=TERMINAL)
    return found


def _named_in(truth: Path, answers: Sequence[Path], sheet: SheetOptions) -> SheetOptions:
    """Return the options without the columns that a submission has and the ground truth lacks.

    Raises:
        DataError: E322 when no file has a column that is named.
    """
    from ensemble.text.csv_table import read_table

    def known(column: str | None) -> str | None:
        own = _if_there(truth, column)
        there = (_if_there(path, column) for path in answers if path.is_file() and path.suffix.lower() == ".csv")
        if column is not None and own is None and not any(there):
            read_table(truth).place(column)
        return own

    return replace(sheet, id_column=known(sheet.id_column), label_column=known(sheet.label_column))


def _if_there(path: Path, column: str | None) -> str | None:
    """Return a column that an option names, if this file has it: it may be one of the ground truth only."""
    from ensemble.text.csv_table import read_table

    if column is None or path.suffix.lower() in {".npz", ".npy", ".parquet"}:
        return column
    return column if column in map(str.strip, read_table(path).header) else None


def _independent(member: Predictions) -> Predictions | Submission:
    """Return a member of independent labels as the mean of its views' probabilities; others as they are."""
    from ensemble.blend.blend import blend
    from ensemble.blend.recipe import make_recipe
    from ensemble.submission.sheet import Submission

    if not member.independent:
        return member
    found = blend([member], make_recipe([member]))
    return Submission(found.ids, found.classes, found.labels, found.probabilities, independent=True)


def _read_submission(
    path: Path, labels: LabelSpace, like: Path | None, sheet: SheetOptions, *, several: bool | None
) -> Blended | Submission:
    """Read a submission; one of probabilities of exclusive classes is scored like a blend.

    ``several`` says that images of the ground truth have several labels.
    """
    from ensemble.blend.blend import Blended
    from ensemble.errors import EnsError
    from ensemble.events import Recorder
    from ensemble.submission.lint import read_submission
    from ensemble.submission.recognize import read_sheet

    form = None
    if like is not None:
        heard = Recorder()
        form = read_sheet(like, labels, options=sheet, listener=heard)
        if form.kind == "ranking" and several:
            # cells of equally many names are a ranking only where one label applies
            heard = Recorder()
            form = read_sheet(like, labels, options=sheet, independent=True, listener=heard)
        for notice in heard.notices:
            TERMINAL.notice(notice)
    try:
        found = read_submission(path, labels, like=form, options=sheet, independent=several, listener=TERMINAL)
        one_each = form is not None and form.kind in {"name", "number"} and not found.independent
        if like is not None and several and one_each and sheet.kind is None:
            # cells of one name, in the sample as well, are labels where several may apply
            form = read_sheet(like, labels, options=sheet, independent=True)
            found = read_submission(path, labels, like=form, options=sheet)
    except EnsError as err:
        if form is None and err.code in _UNCLEAR:
            err.hint += "; --id-column and --label-column name its columns, and --like the contest's sample"
        raise
    if found.probabilities is None or found.independent or found.ranked:
        return found
    return Blended(found.ids, found.probabilities, found.classes, labels)
