"""Write a submission as the contest's sample is written."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ensemble.arrays import Floats
from ensemble.errors import OptionError, PredictionError, enumerate_some
from ensemble.events import SILENT, Listener, Notice
from ensemble.files import write_atomic
from ensemble.ids import join_rows, without_ids
from ensemble.submission.sheet import KINDS, AnswerSheet, Decisions, Submission
from ensemble.text.csv_table import FORMULA, render_table

THRESHOLD = 0.5
"""The probability from which a label applies, where no thresholds were learned."""


def write_submission(
    path: Path,
    submission: Submission,
    *,
    sheet: AnswerSheet | None = None,
    missing: Sequence[str] = (),
    listener: Listener = SILENT,
) -> Path:
    """Write a submission with the rows, ids, columns and kind of answers of the sheet.

    Without a sheet the columns are ``ImageID,ans``, the answers class numbers, and the rows are sorted by id. Images in
    ``missing`` get no row; W534 names them.

    Raises:
        FileError: E701 or E702 when the file cannot be written.
        OptionError: E207 when the sheet asks for probabilities and there are none.
        PredictionError: E504 when the images are not those of the sheet.
    """
    form = sheet or AnswerSheet(tuple(sorted(submission.ids)))
    if missing:
        form = leave_out(form, missing)
        notice_missing(missing, listener)
    require_probabilities(form, known=submission.probabilities is not None)
    rows = join_rows(
        form.ids,
        submission.ids,
        complain=lambda d: PredictionError("E504", f"predictions and sample are for different images: the former {d}"),
        listener=listener,
    )
    ordered = Submission(
        form.ids,
        submission.classes[rows],
        submission.labels,
        None if submission.probabilities is None else submission.probabilities[rows],
        None if submission.decisions is None else submission.decisions[rows],
        submission.independent,
    )
    if form.kind in {"number", "name"}:
        notice_single_class([form.spell(label) for label in ordered.classes.tolist()], listener)
    formulas = [name for name in form.ids if name.startswith(FORMULA)]
    if formulas:
        listener.notice(Notice("W324", f"{len(formulas):,} ids look like formulas, such as {formulas[0]}", path))
    table = render_table(
        form.columns, list(render_answers(form, ordered)), newline=form.newline, delimiter=form.delimiter
    )
    return write_atomic(path, b"\xef\xbb\xbf" * form.bom + table)


def require_probabilities(sheet: AnswerSheet, *, known: bool) -> None:
    """Check that probabilities are known if the sheet asks for them.

    Raises:
        OptionError: E207 when they are not.
    """
    if sheet.needs_probabilities and not known:
        raise OptionError(
            "E207",
            f"the sample asks for {KINDS[sheet.kind]}, and an early exit only knows the class of an image",
            hint="leave out --early-exit",
        )


def leave_out(sheet: AnswerSheet, missing: Sequence[str]) -> AnswerSheet:
    """Return the sheet without the rows of some images."""
    ids = without_ids(sheet.ids, missing)
    if not sheet.rows:
        return replace(sheet, ids=ids)
    place = {name: i for i, name in enumerate(ids)}
    kept = [replace(row, image=place[sheet.ids[row.image]]) for row in sheet.rows if sheet.ids[row.image] in place]
    return replace(sheet, ids=ids, rows=tuple(kept))


def decide_labels(submission: Submission, *, empty_cells: bool) -> Decisions:
    """Return which labels ``(N, C)`` apply to each image; the most probable one always does, unless cells may be empty.

    Decisions that were made stay; otherwise independent labels apply from a probability of 0.5. A submission without
    probabilities has one class per image.
    """
    rows = np.arange(len(submission))
    if submission.probabilities is None:
        one: Decisions = np.zeros((len(submission), len(submission.labels)), dtype=bool)
        one[rows, submission.classes] = True
        return one
    found = submission.probabilities >= THRESHOLD if submission.decisions is None else submission.decisions.copy()
    if not empty_cells:
        none = np.flatnonzero(~found.any(axis=1))
        found[none, submission.probabilities[none].argmax(axis=1)] = True
    return found


def round_to_one(probabilities: Floats, digits: int) -> Floats:
    """Round rows ``(N, C)`` that sum to one to some decimals, so that they still do: by largest remainder."""
    scaled = probabilities * 10**digits
    whole = np.floor(scaled)
    short = np.rint(scaled.sum(axis=1) - whole.sum(axis=1)).astype(int)
    order = np.argsort(-(scaled - whole), axis=1, kind="stable")
    rank = np.argsort(order, axis=1, kind="stable")
    return np.asarray((whole + (rank < short[:, np.newaxis])) / 10**digits)


def render_answers(sheet: AnswerSheet, submission: Submission) -> Iterator[tuple[object, ...]]:
    """Return the rows of cells of a submission whose images are the sheet's, in its order."""
    if sheet.kind == "long":
        assert submission.probabilities is not None
        values = _values(sheet, submission.probabilities)
        for row in sheet.rows:
            cells = list(row.cells)
            cells[sheet.answer_place] = _number(sheet, values[row.image, row.label])
            yield tuple(cells)
        return
    if sheet.rows:
        answers_of = list(_answers(sheet, submission))
        for row in sheet.rows:
            written = dict(zip(sheet.answer_places, answers_of[row.image], strict=True))
            yield tuple(written.get(place, cell) for place, cell in enumerate(row.cells))
        return
    for name, answers in zip(sheet.ids, _answers(sheet, submission), strict=True):
        yield (*answers[: sheet.id_place], name, *answers[sheet.id_place :])


def _answers(sheet: AnswerSheet, submission: Submission) -> Iterator[tuple[object, ...]]:
    """Yield the cells of each image's answer, in the order of the columns."""
    if sheet.kind in {"number", "name"}:
        yield from ((sheet.spell(label),) for label in submission.classes.tolist())
        return
    if sheet.kind == "label-cells" or sheet.decisions:
        if sheet.decisions and not submission.independent:
            # of exclusive classes one applies, however small its probability
            submission = replace(submission, probabilities=None, decisions=None)
        decided = decide_labels(submission, empty_cells=sheet.empty_cells or sheet.decisions)
        if sheet.decisions:
            yield from (tuple(map(int, row)) for row in decided[:, list(sheet.classes)].tolist())
            return
        for row in decided:
            yield (sheet.cell_form.join([sheet.spell(label) for label in np.flatnonzero(row).tolist()]),)
        return
    assert submission.probabilities is not None
    if sheet.kind == "ranking":
        best = np.argsort(-submission.probabilities, axis=1, kind="stable")[:, : sheet.at_most]
        for names in ([sheet.spell(label) for label in row] for row in best.tolist()):
            yield tuple(names) if sheet.in_columns else (sheet.cell_form.join(names),)
        return
    places = [sheet.positive or 0] if sheet.kind == "probability" else list(sheet.classes)
    for values in _values(sheet, submission.probabilities)[:, places].tolist():
        yield tuple(_number(sheet, value) for value in values)


def _values(sheet: AnswerSheet, probabilities: Floats) -> Floats:
    """Return the probabilities as they are written; rounded rows of exclusive classes still sum to one."""
    if sheet.digits is None:
        return probabilities * sheet.scale
    if sheet.kind == "probabilities" or (sheet.kind == "long" and not sheet.independent):
        more = round(math.log10(sheet.scale))
        return round_to_one(probabilities, sheet.digits + more) * sheet.scale
    return probabilities * sheet.scale


def _number(sheet: AnswerSheet, value: float) -> str:
    text = f"{value:.9g}" if sheet.digits is None else f"{value:.{sheet.digits}f}"
    return text if sheet.decimal == "." else text.replace(".", sheet.decimal)


def notice_missing(missing: Sequence[str], listener: Listener) -> None:
    """Name the images that have no row in a submission (W534)."""
    some = enumerate_some(sorted(missing), limit=20)
    listener.notice(Notice("W534", f"{len(missing):,} images have no row in the submission: {some}"))


def notice_single_class(answers: Sequence[str], listener: Listener) -> None:
    """Warn if all of several images got the same class (W521)."""
    if len(answers) > 1 and len(set(answers)) == 1:
        listener.notice(Notice("W521", f"all {len(answers):,} images are of class {answers[0]}"))
