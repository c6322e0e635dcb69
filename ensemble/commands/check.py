"""The command `ens check`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ensemble.commands.options import PATH, json_option, missing_option, progress_options
from ensemble.commands.sheet_options import reading_options
from ensemble.terminal import TERMINAL, show

if TYPE_CHECKING:
    from ensemble.submission.sheet import Submission
    from ensemble.submission.sheet_options import SheetOptions
    from ensemble.submission.spread import Spread


@click.command(short_help="List all problems of a submission")
@click.argument("submission", type=PATH)
@click.option("--like", type=PATH, help="Sample submission to compare with.")
@click.option("--train", type=PATH, help="Training labels (CSV), to compare the spread over the classes.")
@click.option(
    "--diff", "others", type=PATH, multiple=True, help="Another submission, to show the changes per axis; repeatable."
)
@click.option(
    "--labels",
    help="Label space: mask18, a number of classes, or a JSON file.  [default: the sample's columns, or mask18]",
)
@reading_options
@missing_option
@progress_options
@json_option
def check(
    submission: Path,
    like: Path | None,
    train: Path | None,
    others: tuple[Path, ...],
    labels: str | None,
    sheet: SheetOptions,
    allow_missing: bool,
    as_json: bool,
) -> None:
    """List all problems of a submission in one pass.

    Example: ens check submission.csv --like eval/info.csv
    """
    from ensemble.labels import parse_labels
    from ensemble.submission.assumed_labels import assume_labels
    from ensemble.submission.diff import diff_submissions, render_agreement, render_diff
    from ensemble.submission.lint import (
        check_and_read,
        invalid_submission,
        read_submission,
        render_faults,
        without_missing,
    )
    from ensemble.submission.recognize import read_sheet

    space = assume_labels(like or submission, sheet, TERMINAL) if labels is None else parse_labels(labels)
    sample = None if like is None else read_sheet(like, space, options=sheet, listener=TERMINAL)
    if allow_missing and sample is not None:
        sample = without_missing(submission, sample, space, listener=TERMINAL)
    checked = check_and_read(submission, sample, space, options=sheet, listener=TERMINAL)
    if (answers := checked.answers) is None:
        error = invalid_submission(submission, checked.faults)
        if not as_json:
            show(None, render_faults(checked.faults), as_json=False)
            error.details = ()
        raise error
    facts: dict[str, object] = {"path": str(submission), "rows": len(answers), "faults": []}
    text = f"{submission}: {len(answers):,} rows, no faults"
    if train is not None:
        spread = _compare_with_training(answers, train)
        facts["spread"] = asdict(spread)
        text += f"\n{spread}"
    if not others:
        show(facts, text, as_json=as_json)
        return
    diffs = {
        str(path): diff_submissions(answers, read_submission(path, space, like=sample, options=sheet))
        for path in others
    }
    only = next(iter(diffs.values())) if len(diffs) == 1 else None
    if only is not None:
        show(asdict(only), render_diff(only), as_json=as_json)
        return
    show({path: asdict(diff) for path, diff in diffs.items()}, render_agreement(diffs), as_json=as_json)


def _compare_with_training(answers: Submission, train: Path) -> Spread:
    """Compare the spread of the answers with the classes of training images, and warn if they differ."""
    from ensemble.predictions.truth import read_truth
    from ensemble.submission.spread import compare_spread, notice_spread

    truth = read_truth(train, answers.labels, independent=answers.independent, listener=TERMINAL)
    spread = compare_spread(answers, truth.shares)
    notice_spread(spread, TERMINAL)
    return spread
