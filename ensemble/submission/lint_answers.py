"""The faults of an answer, by the kind of answers that the sample asks for."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from ensemble.labels import LabelSpace
from ensemble.submission.class_names import nearest
from ensemble.submission.sheet import AnswerSheet
from ensemble.text.plain_numbers import to_float

_NAN = {"none", "null", "na", "n/a", "<na>"}
_LEAST_TOLERANCE, _MOST_TOLERANCE = 1e-6, 0.011


def answer_faults(
    sheet: AnswerSheet, labels: LabelSpace, cells: Sequence[str], *, suggest: bool = True
) -> Iterator[tuple[str, str]]:
    """Yield the kind of each fault in the cells of one image's answer, and the text that has it.

    With ``suggest`` it is said which class a misspelled name may mean, which compares it with those of all classes.
    """
    stripped = [cell.strip() for cell in cells]
    for cell, text in zip(cells, stripped, strict=True):
        if cell != text:
            yield "spaces", repr(cell)
    if sheet.kind == "number":
        fault = _number_fault(stripped[0], len(labels))
        if fault:
            yield fault, repr(stripped[0])
    elif sheet.kind in {"name", "label-cells", "ranking"}:
        yield from _name_faults(sheet, labels, stripped, suggest=suggest)
    else:
        yield from _probability_faults(sheet, stripped)


def looks_like_answers(sheet: AnswerSheet, labels: LabelSpace, cells: Sequence[str]) -> bool:
    """Return True if cells in the place of the header are an image's answer."""
    if sheet.kind == "number":
        return _number_fault(cells[-1].strip(), None) is None
    if sheet.kind in {"name", "label-cells", "ranking"}:
        stripped = [cell.strip() for cell in cells]
        return all(stripped) and not any(_name_faults(sheet, labels, stripped, suggest=False))
    return len(cells) == len(sheet.answer_places) and all(_numeric_fault(sheet, cell.strip()) is None for cell in cells)


def settle_several(sheet: AnswerSheet, labels: LabelSpace, answers: Sequence[Sequence[str]]) -> AnswerSheet:
    """Return the sheet by which answers are read where a sample's do not tell whether several labels may apply.

    Cells with several names or numbers, all of them known, are label cells. Columns whose probabilities sum to one in
    fewer than half of the rows are labels of their own. Cells are not a ranking if more than a tenth of them have
    another number of names than the sample's.
    """
    if sheet.kind in {"number", "name"}:
        for separator in (" ", ",", ";", "|"):
            several = replace(sheet, kind="label-cells", separator=separator, empty_cells=True)
            if not any(separator in cells[0].strip() for cells in answers):
                continue
            if not any(any(_name_faults(several, labels, [cells[0].strip()], suggest=False)) for cells in answers):
                return several
    if sheet.kind == "ranking" and not sheet.in_columns:
        several = replace(sheet, kind="label-cells")
        counts = [len(sheet.cell_form.split(cells[0])) for cells in answers]
        return several if sum(count != sheet.at_most for count in counts) > len(answers) / 10 else sheet
    if sheet.kind == "probabilities":
        wrong = sum(any(fault == "sum" for fault, _ in _probability_faults(sheet, cells)) for cells in answers)
        if wrong > len(answers) / 2:
            return replace(sheet, kind="label-columns")
    return sheet


def settle_exclusive(sheet: AnswerSheet, answers: Sequence[Sequence[str]]) -> AnswerSheet:
    """Return the sheet by which columns are read where the sample's, such as 0.9 everywhere, do not sum to one.

    Labels that do not exclude each other would not sum to one in every row of a submission.
    """
    if sheet.kind != "label-columns" or sheet.decisions or not answers:
        return sheet
    exclusive = replace(sheet, kind="probabilities")
    return sheet if any(any(_probability_faults(exclusive, cells)) for cells in answers) else exclusive


def _number_fault(answer: str, classes: int | None) -> str | None:
    """Return the fault of a class number, or None; without ``classes`` any integer is valid."""
    if not answer:
        return "empty"
    if answer.lower() in _NAN:
        return "nan"
    # ASCII digits, no leading zero, no plus sign: int() accepts more than other CSV readers do
    if re.fullmatch(r"-?[1-9][0-9]*|0", answer):
        return None if classes is None or (len(answer) < 10 and 0 <= int(answer) < classes) else "range"
    try:
        return "float" if math.isfinite(to_float(answer)) else "nan"
    except ValueError:
        return "text"


def names_in(sheet: AnswerSheet, cells: Sequence[str]) -> list[str]:
    """Return the names in the cells of one image's answer: one each, or several in the only cell."""
    if sheet.kind == "name" or sheet.in_columns:
        return [cell.strip() for cell in cells if cell.strip()]
    return sheet.cell_form.split(cells[0])


def _name_faults(
    sheet: AnswerSheet, labels: LabelSpace, cells: Sequence[str], *, suggest: bool
) -> Iterator[tuple[str, str]]:
    answer, parts = sheet.delimiter.join(cells), names_in(sheet, cells)
    if not parts or (sheet.in_columns and len(parts) < len(cells)):
        if not sheet.empty_cells or sheet.kind == "name":
            yield "empty", repr(answer)
        return
    for part in parts:
        if sheet.label_of(part, len(labels)) is None:
            near = nearest(part, sheet.spelling or tuple(map(str, range(len(labels))))) if suggest else None
            yield "name", repr(part) if near is None else f"{part!r} (did you mean {near!r}?)"
    if sheet.brackets and sheet.cell_form.join(parts) != answer:
        yield "list", f"{answer!r} instead of {sheet.cell_form.join(parts)!r}"
    if len(set(parts)) < len(parts):
        yield "repeated", repr(answer)
    if sheet.kind == "ranking" and sheet.at_most is not None and len(parts) > sheet.at_most:
        yield "count", f"{len(parts)} instead of at most {sheet.at_most}"


def _probability_faults(sheet: AnswerSheet, cells: Sequence[str]) -> Iterator[tuple[str, str]]:
    values = []
    for cell in cells:
        fault = _numeric_fault(sheet, cell)
        if fault is not None:
            yield fault, repr(cell)
            continue
        value = to_float(cell.replace(sheet.decimal, ".")) / sheet.scale
        values.append(value)
        if not 0 <= value <= 1:
            yield "probability", repr(cell)
        elif sheet.decisions and value not in {0, 1}:
            yield "decision", repr(cell)
    if sheet.kind == "probabilities" and len(values) == len(cells):
        # each of the values may be off by half a unit of its last digit, but 0.3, 0.3, 0.3 is not rounding
        unit = max((_last_digit(cell) for cell in cells), default=1.0) / sheet.scale
        if abs(sum(values) - 1) > max(_LEAST_TOLERANCE, min(_MOST_TOLERANCE, len(values) * unit / 2)):
            yield "sum", f"{sum(values):.6g}"


def _numeric_fault(sheet: AnswerSheet, cell: str) -> str | None:
    if not cell:
        return "empty"
    if cell.lower() in _NAN:
        return "nan"
    text = cell.replace(sheet.decimal, ".") if sheet.decimal != "." and "." not in cell else cell
    try:
        return None if math.isfinite(to_float(text)) else "nan"
    except ValueError:
        return "text"


def _last_digit(cell: str) -> float:
    """Return the value of one unit of the last digit of a number, or 0 where it is whole."""
    mantissa, _, power = cell.lower().replace(",", ".").partition("e")
    decimals = len(mantissa.partition(".")[2])
    try:
        return 10.0 ** (int(power or 0) - decimals) if decimals else 0.0
    except (ValueError, OverflowError):
        return 0.0
