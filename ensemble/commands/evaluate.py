"""The command `ens evaluate`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ensemble.commands.options import PATH, json_option
from ensemble.commands.sheet_options import reading_options, table_options
from ensemble.terminal import TERMINAL, show

if TYPE_CHECKING:
    from ensemble.analysis.evaluate import Evaluation
    from ensemble.labels import LabelSpace
    from ensemble.predictions.external import ExternalOptions
    from ensemble.predictions.truth import TruthOptions
    from ensemble.submission.sheet_options import SheetOptions


@click.command(short_help="Score predictions or submissions")
@click.argument("answers", nargs=-1, required=True, type=PATH)
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
    default="mask18",
    show_default=True,
    help="Label space of files: mask18, a number of classes, or a JSON file.",
)
@reading_options
@json_option
def evaluate(
    answers: tuple[Path, ...],
    truth: Path,
    tables: ExternalOptions,
    like: Path | None,
    labels: str,
    sheet: SheetOptions,
    as_json: bool,
) -> None:
    """Score predictions (each view and their mean) or submissions, with 95 % bootstrap intervals.

    Example: ens evaluate runs/preds/r18 submission.csv --truth eval_truth.csv
    """
    from ensemble.analysis.evaluate import evaluate as run_evaluate
    from ensemble.analysis.evaluate import side_by_side
    from ensemble.labels import parse_labels
    from ensemble.predictions.dataset import find_predictions, notice_filled, read_predictions
    from ensemble.predictions.truth import TruthOptions, read_truth

    columns = TruthOptions(sheet.id_column, sheet.label_column)
    external = replace(tables, id_column=sheet.id_column)
    found: dict[str, Evaluation] = {}
    for path in answers:
        if path.is_file():
            name = str(path) if path.name in found else path.name
            found[name] = _evaluate_file(path, parse_labels(labels), truth, external, columns, like, sheet)
        else:
            for folder in find_predictions(path):
                member = read_predictions(folder)
                notice_filled([member], TERMINAL)
                known = read_truth(truth, member.labels, options=columns, listener=TERMINAL)
                found[str(folder) if member.member in found else member.member] = run_evaluate(member, known)
    result = side_by_side(found)
    show(result.as_dict(), result.render(), as_json=as_json)


def _evaluate_file(
    path: Path,
    labels: LabelSpace,
    truth: Path,
    external: ExternalOptions,
    columns: TruthOptions,
    like: Path | None,
    sheet: SheetOptions,
) -> Evaluation:
    """Score a table or array of predictions, or else a submission."""
    from ensemble.analysis.evaluate import evaluate as run_evaluate
    from ensemble.blend.blend import Blended
    from ensemble.predictions.external import read_external
    from ensemble.predictions.truth import read_truth
    from ensemble.submission.lint import read_submission
    from ensemble.submission.recognise import read_sheet

    known = read_truth(truth, labels, options=columns, listener=TERMINAL)
    if external.kind is not None or path.suffix.lower() in {".npz", ".npy", ".parquet"}:
        return run_evaluate(read_external(path, labels, options=external, listener=TERMINAL), known)
    form = None if like is None else read_sheet(like, labels, options=sheet, listener=TERMINAL)
    submission = read_submission(path, labels, like=form, options=sheet)
    if submission.probabilities is None:
        return run_evaluate(submission, known)
    blended = Blended(submission.ids, submission.probabilities, submission.classes, labels)
    return run_evaluate(blended, known)
