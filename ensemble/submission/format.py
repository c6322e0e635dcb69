"""Submission: one class for every image, written as the contest's sample is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ensemble.arrays import Classes
from ensemble.csv_table import FORMULA, read_table, render_table
from ensemble.errors import DataError, PredictionError, enumerate_some
from ensemble.events import SILENT, Listener, Notice
from ensemble.files import write_atomic
from ensemble.ids import join_rows, without_ids
from ensemble.labels import LabelSpace


@dataclass(frozen=True, slots=True, eq=False)
class Submission:
    """The content of a submission CSV: image ``ids[i]`` has class ``classes[i]``, ``(N,)``, of ``labels``."""

    ids: tuple[str, ...]
    classes: Classes
    labels: LabelSpace

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class SubmissionFormat:
    """The format of a sample submission: column names, ids in order and spelling, line ending and byte-order mark."""

    ids: tuple[str, ...]
    columns: tuple[str, str] = ("ImageID", "ans")
    newline: str = "\n"
    bom: bool = False


def read_format(path: Path, *, listener: Listener = SILENT) -> SubmissionFormat:
    """Read the format of a sample submission; its answers are ignored.

    Raises:
        FileError: E707 when it cannot be read.
        DataError: E313 when an id is repeated, E322 when it is not a table of two columns with the ids first.
    """
    table = read_table(path, listener=listener)
    if len(table.header) != 2:
        raise DataError(
            "E322",
            f"{path.name}: a sample submission has two columns, id and answer, got {', '.join(table.header)}",
            path=path,
        )
    ids = table.without_duplicates(table.header[0])
    if not ids:
        raise DataError("E322", f"{path.name}: the sample has a header but no rows", path=path)
    data = path.read_bytes()
    newline = "\r\n" if data.partition(b"\n")[0].endswith(b"\r") else "\n"
    return SubmissionFormat(ids, (table.header[0], table.header[1]), newline, data.startswith(b"\xef\xbb\xbf"))


def write_submission(
    path: Path,
    ids: Sequence[str],
    classes: Classes,
    *,
    like: SubmissionFormat | None = None,
    missing: Sequence[str] = (),
    listener: Listener = SILENT,
) -> Path:
    """Write class ``classes[i]`` for image ``ids[i]``, in the sample's row order, spelling and CSV style.

    Without a sample the columns are ``ImageID,ans`` and the rows are sorted by id. Images in ``missing`` get no row;
    W534 names them.

    Raises:
        FileError: E701 or E702 when the file cannot be written.
        PredictionError: E504 when the images are not those of the sample.
    """
    form = like or SubmissionFormat(tuple(sorted(ids)))
    if missing:
        form = replace(form, ids=without_ids(form.ids, missing))
        notice_missing(missing, listener)
    rows = join_rows(
        form.ids,
        ids,
        complain=lambda d: PredictionError("E504", f"predictions and sample are for different images: the former {d}"),
        listener=listener,
    )
    answers = classes[rows].tolist()
    notice_single_class(answers, listener)
    formulas = [name for name in form.ids if name.startswith(FORMULA)]
    if formulas:
        listener.notice(Notice("W324", f"{len(formulas):,} ids look like formulas, such as {formulas[0]}", path))
    table = render_table(form.columns, list(zip(form.ids, answers, strict=True)), newline=form.newline)
    return write_atomic(path, b"\xef\xbb\xbf" * form.bom + table)


def notice_missing(missing: Sequence[str], listener: Listener) -> None:
    """Name the images that have no row in a submission (W534)."""
    some = enumerate_some(sorted(missing), limit=20)
    listener.notice(Notice("W534", f"{len(missing):,} images have no row in the submission: {some}"))


def notice_single_class(answers: Sequence[int], listener: Listener) -> None:
    """Warn if all of several images got the same class (W521)."""
    if len(answers) > 1 and len(set(answers)) == 1:
        listener.notice(Notice("W521", f"all {len(answers):,} images are of class {answers[0]}"))
