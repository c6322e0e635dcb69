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
    from ensemble.arrays import Floats
    from ensemble.submission.sheet import Submission
    from ensemble.submission.sheet_options import SheetOptions
    from ensemble.submission.spread import Spread

_OTHER_CLASSES = {"text", "range", "name"}
"""Faults of answers that other classes than those assumed explain."""


@click.command(short_help="List all problems of a submission")
@click.argument("submission", type=PATH)
@click.option("--like", type=PATH, help="Sample submission to compare with.")
@click.option(
    "--train",
    type=PATH,
    help="Training labels (CSV, or the mask contest's folder), to compare the spread over the classes.",
)
@click.option(
    "--diff", "others", type=PATH, multiple=True, help="Another submission, to show the changes per axis; repeatable."
)
@click.option(
    "--labels",
    help="Label space: mask18, a number of classes, or a file of class names.  "
    "[default: the sample's columns, or mask18]",
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
    from ensemble.label_file import parse_labels
    from ensemble.labels import MASK18
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
        if labels is None and space == MASK18 and any(fault.what in _OTHER_CLASSES for fault in checked.faults):
            error.hint = f"name the classes with --labels unless they are those of mask18; {error.hint}"
        if not as_json:
            show(None, render_faults(checked.faults), as_json=False)
            error.details = ()
        raise error
    facts: dict[str, object] = {"path": str(submission), "rows": len(answers), "faults": []}
    text = f"{submission}: {len(answers):,} rows, no faults"
    if train is not None:
        spread = _compare_with_training(answers, train)
        facts["spread"] = {name: value for name, value in asdict(spread).items() if name != "independent"}
        text += "" if spread.is_far else f"\n{spread}"  # the warning says it already
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

    people = _table_of_people(train)
    if people is not None:
        shares = _shares_of_people(people, answers)
    else:
        shares = read_truth(train, answers.labels, independent=answers.independent, listener=TERMINAL).shares
    spread = compare_spread(answers, shares)
    notice_spread(spread, TERMINAL)
    return spread


def _table_of_people(train: Path) -> Path | None:
    """Return the train.csv of the mask contest, which lists people and no images, if the path is it or its folder."""
    from checkpoints.data.mask_contest import is_contest_table

    file = train / "train.csv" if train.is_dir() else train
    try:
        return file if is_contest_table(file) else None
    except OSError:
        return None  # reading it as a ground truth says why


def _shares_of_people(file: Path, answers: Submission) -> Floats:
    """Return the share of each class among the images in the folders of the people.

    Raises:
        DataError: E322 when the folders are not beside the table, as `read_contest` otherwise.
        PredictionError: E501 when the answers are not the classes of the contest.
    """
    import numpy as np

    from checkpoints.data.mask_contest import read_contest
    from ensemble.errors import DataError
    from ensemble.labels import MASK18

    images = file.parent / "images"
    if not images.is_dir():
        message = f"{file.name} lists people, and the folders of their images are not in {images}"
        hint = (
            "give the train.csv that has images/ beside it, or a table of images and classes, such as the truth.csv "
            "that ens train writes"
        )
        raise DataError("E322", message, path=file, hint=hint)
    columns = answers.labels.permutation(MASK18, owner="the training data")
    counts = np.bincount([row.label for row in read_contest(file.parent)], minlength=len(MASK18))
    return np.asarray(counts[columns] / counts.sum())
