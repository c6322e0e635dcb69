"""The command `ens evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ensemble.commands.options import PATH, json_option
from ensemble.terminal import TERMINAL, show


@click.command(short_help="Score predictions or submissions")
@click.argument("answers", nargs=-1, required=True, type=PATH)
@click.option(
    "--truth",
    type=PATH,
    required=True,
    help="Ground-truth CSV (columns ImageID, ans and, for correct intervals, person).",
)
@click.option(
    "--labels",
    default="mask18",
    show_default=True,
    help="Label space of CSV files: mask18, a number of classes, or a JSON file.",
)
@json_option
def evaluate(answers: tuple[Path, ...], truth: Path, labels: str, as_json: bool) -> None:
    """Score predictions (each view and their mean) or submissions, with 95 % bootstrap intervals.

    Example: ens evaluate runs/preds/r18 submission.csv --truth eval_truth.csv
    """
    from ensemble.analysis.evaluate import evaluate as run_evaluate
    from ensemble.analysis.evaluate import side_by_side
    from ensemble.labels import parse_labels
    from ensemble.predictions.dataset import find_predictions, notice_filled, read_predictions
    from ensemble.predictions.truth import read_truth
    from ensemble.submission.lint import read_submission

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
                notice_filled([member], TERMINAL)
                found[str(folder) if member.member in found else member.member] = run_evaluate(
                    member, read_truth(truth, member.labels, listener=TERMINAL)
                )
    result = side_by_side(found)
    show(result.as_dict(), result.render(), as_json=as_json)
