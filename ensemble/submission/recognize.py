"""Read an answer sheet: the contest's sample submission says how answers are written."""

from __future__ import annotations

import codecs
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ensemble.errors import (
    ColumnsError,
    DataError,
    OptionError,
    PredictionError,
    enumerate_some,
    show_spaces,
)
from ensemble.events import SILENT, Listener, Notice, Recorder
from ensemble.ids import find_id_column, has_image_suffix
from ensemble.labels import LabelSpace
from ensemble.submission.cell_kinds import CellKinds
from ensemble.submission.cell_spelling import (
    composed_as,
    counts_from_one,
    may_count_from_one,
    numbers_from_one,
    spellings,
)
from ensemble.submission.class_names import (
    USUAL_ANSWERS,
    Mismatch,
    are_numbers,
    fold_name,
    match_columns,
)
from ensemble.submission.columns_beside import find_ranks, is_answer_column, without_context
from ensemble.submission.label_cells import find_form, plain_cells, require_separable, split_cells
from ensemble.submission.long_format import find_long_rows
from ensemble.submission.number_scale import (
    PERCENT,
    are_whole,
    find_scale,
    is_percent,
    parse_number,
    sums_to_one,
)
from ensemble.submission.positive import find_positive
from ensemble.submission.sheet import DECISIONS, AnswerKind, AnswerSheet, LongRow
from ensemble.submission.sheet_notices import SheetNotices, list_values
from ensemble.submission.sheet_options import NO_OPTIONS, SheetOptions, apply_options
from ensemble.text.csv_table import Table, parse_table
from ensemble.text.input_file import read_input


def read_sheet(
    path: Path,
    labels: LabelSpace,
    *,
    options: SheetOptions = NO_OPTIONS,
    independent: bool | None = None,
    is_sample: bool = True,
    listener: Listener = SILENT,
) -> AnswerSheet:
    """Read how a sample submission wants its answers for classes ``labels``.

    ``independent`` says whether several labels may apply to an image (sigmoid members), if it is known. Whatever is
    chosen among several possibilities is said (I543): what will be written, or without ``is_sample``, where the table
    is a submission itself, how it is read.

    Raises:
        FileError: E707 when the sample cannot be read.
        DataError: E313 when an id is repeated, E322 when the sample is not a table with ids and answers.
        OptionError: E202 or E204 when an option is unknown or does not fit the sample.
        PredictionError: E540 when the kind of answers cannot be told, E541 when columns are not the classes, E542 when
            it is unknown which class a probability is of.
    """
    kind = options.kind
    data = read_input(path)
    table = parse_table(data, path, listener=listener)
    if len(table.header) < 2:
        got = ", ".join(map(show_spaces, table.header))
        message = f"{path.name}: a sample submission has ids and answers, got {got}"
        raise DataError("E322", message, hint=table.hint_about_spaces, path=path)
    if not table.rows:
        raise DataError("E322", f"{path.name}: the sample has a header but no rows", path=path)
    notices = SheetNotices(path, listener, is_sample, options.names_classes)
    reader = _Reader(table, composed_as(table, labels), options, independent, notices)
    sheet = reader.read(kind)
    if not _is_utf8(data):
        notices.say("it is not UTF-8", written="the submission is written in UTF-8")
    newline = "\r\n" if data.partition(b"\n")[0].rstrip(b"\0").endswith(b"\r") else "\n"
    sheet = replace(sheet, newline=newline, bom=data.startswith(codecs.BOM_UTF8))
    sheet = replace(sheet, delimiter=table.delimiter, for_excel=table.for_excel)
    return apply_options(sheet, options, path.name)


@dataclass(frozen=True, slots=True)
class _Reader:
    """A sample, and what is known besides."""

    table: Table
    labels: LabelSpace
    options: SheetOptions
    independent: bool | None
    notices: SheetNotices
    signed: int | None = None

    def read(self, kind: AnswerKind | None) -> AnswerSheet:
        """Return the sheet; ``kind`` is the one asked for, or None to find it."""
        heard = Recorder()
        id_column = find_id_column(self.table, named=self.options.id_column, listener=heard)
        if has_image_suffix(id_column) or parse_number(id_column) is not None:
            got = ",".join(map(show_spaces, self.table.header))
            raise DataError(
                "E322",
                f"{self.table.path.name}: the first line must name the columns, got {got}",
                path=self.table.path,
                hint="write a header line such as image,label above the first row, whose image would be lost",
            )
        place = self.table.header.index(id_column)
        rest = [i for i in range(len(self.table.header)) if i != place]
        if self.options.label_column is not None:
            wanted = self.table.place(self.options.label_column)
            rest = [wanted] if wanted in rest else rest
        sheet = AnswerSheet((), self.table.header, id_place=place, independent=self.independent)
        long = None
        if kind == "long" or kind is None:
            long = find_long_rows(self.table, place, rest, self.labels.names, asked=kind == "long")
        for notice in heard.notices if long is None or len(rest) < 3 else ():  # with more columns it may be another
            self.notices.listener.notice(notice)
        if long is not None:
            sheet = replace(sheet, ids=long.ids, kind="long", rows=long.rows, answer_place=long.answer_place)
            return self._with_decimal_mark(sheet, [row[long.answer_place] for row in self.table.rows])
        if kind == "long":
            raise self._unclear("its rows are not one per image and class", ["probabilities", "label-columns"])
        if kind not in {"probabilities", "label-columns"} and self.options.label_column is None:
            rest = self._answer_places(rest)
        sheet = replace(sheet, ids=self.table.without_duplicates(id_column))
        if len(rest) > 1:
            rest = without_context(self.table, rest, self.labels.names)
        if len(rest) + 1 < len(self.table.header):
            sheet = self._copying(sheet, rest)
        columns = [self.table.header[i] for i in rest]
        if kind in {"probabilities", "label-columns"} or (kind is None and len(rest) > 1):
            return self._read_columns(sheet, kind, columns, rest)
        if len(rest) > 1 and kind == "ranking":
            return self._read_columns(sheet, kind, columns, rest)
        if len(rest) > 1:
            raise self._unclear(f"it has {len(rest)} columns of answers", ["probabilities", "label-columns"])
        cells = [row[rest[0]].strip() for row in self.table.rows]
        return self._read_one_column(sheet, kind, columns[0], cells)

    def _answer_places(self, rest: list[int]) -> list[int]:
        """Return the places of the columns of answers: of several, the one with a usual name, if none is a class."""
        usual = [i for i in rest if fold_name(self.table.header[i]) in USUAL_ANSWERS]
        match = match_columns([self.table.header[i] for i in rest], self.labels.names)
        none = isinstance(match, Mismatch) and len(match.missing) == len(self.labels)
        return usual if len(usual) == 1 and none else rest

    def _copying(self, sheet: AnswerSheet, answer_places: Sequence[int]) -> AnswerSheet:
        """Return the sheet of a sample with columns beside ids and answers: they are copied.

        Raises:
            PredictionError: E565 when one of them has scores, and no option says that it is to be copied.
        """
        header = self.table.header
        places = [i for i in range(len(header)) if i not in {sheet.id_place, *answer_places}]
        answers, first = enumerate_some([header[i] for i in answer_places]), show_spaces(header[answer_places[0]])
        score = next((header[i] for i in places if is_answer_column(self.table, i)), None)
        if score is not None and self.options.label_column is None and self.options.kind is None:
            seen = f"it has answers in column {answers}, and others in column {show_spaces(score)}"
            raise ColumnsError(
                "E565",
                f"{self.table.path.name}: {seen}",
                path=self.table.path,
                hint=f"one column is written, and the others are copied: --label-column {first}, or "
                f"--label-column {show_spaces(score)} --answers probability",
            )
        columns = f"column{'s' * (len(answer_places) > 1)} {answers}"
        others = enumerate_some([header[i] or "(without a name)" for i in places])
        self.notices.say(
            f"it has columns beside ids and answers, {others}",
            written=f"answers are written in {columns}, and the others copied",
            read=f"answers are read from {columns}",
        )
        rows = tuple(LongRow(cells, i, 0) for i, cells in enumerate(self.table.rows))
        return replace(sheet, rows=rows, answer_place=answer_places[0], answer_columns=tuple(answer_places))

    def _read_columns(
        self, sheet: AnswerSheet, kind: AnswerKind | None, columns: list[str], places: list[int]
    ) -> AnswerSheet:
        """Return the sheet of a sample with one column per class."""
        match = match_columns(columns, self.labels.names)
        cells = [[row[place] for place in places] for row in self.table.rows]
        if isinstance(match, Mismatch) and kind in {None, "ranking"} and not self.independent:
            ranked = find_ranks(columns, cells, self.labels.names)
            if ranked is not None:
                self.notices.say(
                    f"its {len(columns)} columns have a class each",
                    written="the most probable classes are written, in order",
                    read="they are read as the most probable classes, in order",
                )
                return replace(sheet, kind="ranking", in_columns=True, at_most=len(columns), spelling=ranked)
        if isinstance(match, Mismatch):
            count = f"{len(columns)} columns of answers for {len(self.labels)} classes"
            raise ColumnsError("E541", f"{self.table.path.name}: {count}: {match}", path=self.table.path)
        if match.how is not None:
            example = f"column {show_spaces(columns[0])} is {self.labels.names[match.classes[0]]}"
            message = f"{self.table.path.name}: columns matched {match.how}: {example}"
            self.notices.listener.notice(Notice("I544", message))
        text = next((c for row in cells for c in map(str.strip, row) if c and parse_number(c) is None), None)
        if text is not None and kind is None:
            raise self._unclear(f"its columns of classes have cells such as {text!r}", ["probabilities", DECISIONS])
        scale = find_scale(self.table.path, columns, cells, asked=kind is not None)
        if scale == PERCENT:
            self.notices.say("its answers are percentages")
        ones = all(sums_to_one(row, scale=scale) for row in cells)
        found = kind or self._kind_of_columns(ones=ones)
        constant = len({tuple(map(str.strip, row)) for row in cells}) == 1 and kind is None
        sheet = replace(
            sheet,
            kind=found,
            classes=match.classes,
            decisions=self.options.answers == DECISIONS,
            constant=constant,
            scale=1.0 if self.options.answers == DECISIONS else scale,
        )
        whole = not sheet.decisions and all(c.strip() in {"0", "1", "0.0", "1.0"} for r in cells for c in r)
        if whole and scale == 1 and kind is None and self.independent is not None:
            self.notices.say(
                "its cells are 0 and 1",
                written=f"probabilities are written (--answers {DECISIONS} writes 0 and 1)",
                read=f"they are read as probabilities (--answers {DECISIONS} reads them as decisions)",
            )
        return self._with_decimal_mark(sheet, [cell for row in cells for cell in row])

    def _kind_of_columns(self, *, ones: bool) -> AnswerKind:
        if self.independent:
            return "label-columns"
        if self.independent is None:
            return "probabilities" if ones else "label-columns"
        if not ones:
            self.notices.say(
                "its rows do not sum to one",
                written="the probabilities of exclusive classes are written, which do",
                read="they are read as probabilities of exclusive classes all the same",
            )
        return "probabilities"

    def _read_one_column(
        self, sheet: AnswerSheet, kind: AnswerKind | None, column: str, cells: list[str]
    ) -> AnswerSheet:
        """Return the sheet of a sample with a single column of answers."""
        respelled = self._respelled(kind, column, cells)
        if respelled is not None:
            # numbers that are not 0, 1, ... are written as the sample spells them
            as_spelled = kind == "number" and all(name.isdecimal() for name in respelled.labels.names)
            return respelled._read_one_column(sheet, "name" if as_spelled else kind, column, cells)
        found = kind or CellKinds(self.table, self.labels, self.options, self.independent, self.notices).kind_of(
            column, cells
        )
        names = self.labels.names
        sheet = replace(sheet, kind=found, constant=len(set(cells)) == 1 and kind is None)
        if found == "number":
            return sheet
        if found == "name":
            return replace(sheet, spelling=names, positive=self.signed)
        if found == "probability":
            positive = self._positive(column)
            self.notices.say(f"its single number per image is the probability of {names[positive]}")
            scale = find_scale(self.table.path, [column], [[cell] for cell in cells], asked=kind is not None)
            if scale == PERCENT:
                self.notices.say("its answers are percentages")
            return self._with_decimal_mark(replace(sheet, positive=positive, scale=scale), cells)
        several = split_cells(cells, self.labels.names, self.options.separator)
        if several is None:
            by_number = are_whole(cells) and not are_numbers(names)
            several = plain_cells(self.options.separator, () if by_number else names)
        form = several.form
        sheet = replace(
            sheet,
            separator=form.separator,
            brackets=form.brackets,
            quote=form.quote,
            spelling=several.spelling,
            empty_cells="" in cells or 0 in several.counts,
        )
        require_separable(several)
        if found == "ranking":
            at_most = self.options.ranks or max(several.counts)
            return replace(sheet, at_most=min(at_most, len(names)), empty_cells=False)
        return sheet

    def _respelled(self, kind: AnswerKind | None, column: str, cells: Sequence[str]) -> _Reader | None:
        """Return the reader with the classes as the cells spell them, where that is not their exact names."""
        names, form = self.labels.names, find_form(cells, self.options.separator)
        split = [form.split(cell) for cell in cells]
        parts = {part for row in split for part in row}
        if self._counts_from_one(kind, column, parts, in_lists=any(len(row) > 1 for row in split)):
            self.notices.say(f"its class numbers count from 1 to {len(names)}, not from 0")
            return replace(self, labels=LabelSpace.flat(numbers_from_one(len(names))))
        parts |= {cell for cell in cells if cell}
        if not parts or parts & {*names, *map(str, range(len(names)))}:
            return None
        for parts in ({cell for cell in cells if cell}, {part for cell in cells for part in form.split(cell)}):
            for found in spellings(names, sorted(parts)) if parts else ():
                spelled, positive = found.names, None
                if found.signed:
                    positive = self._positive(column)
                    spelled = spelled if positive else spelled[::-1]
                self.notices.say(f"its classes are spelled {found.how}, such as {spelled[-1]} for {names[-1]}")
                options = replace(self.options, positive=self._named_positive(spelled))
                return replace(self, labels=LabelSpace.flat(spelled), options=options, signed=positive)
        return None

    def _counts_from_one(self, kind: AnswerKind | None, column: str, parts: Collection[str], *, in_lists: bool) -> bool:
        """Return True if class numbers count from 1; where no number tells, say that they are counted from 0.

        Raises:
            OptionError: E204 when an option says that they do, and a number says that they do not.
        """
        names, first = self.labels.names, self.options.first
        counted = kind in {None, "number", "label-cells", "ranking"} and len(names) > 1 and not is_percent(column)
        if not counted or are_numbers(names) or first == 0:
            return False
        may = may_count_from_one(parts, len(names))
        if first == 1 and parts and not may and are_whole(list(parts)):
            wrong = next(part for part in sorted(parts) if not 0 < int(part) <= len(names))
            raise OptionError(
                "E204",
                f"--answers number:1 does not fit: {self.table.path.name} has the answer {wrong}, and the classes "
                f"would be 1 to {len(names)}",
                path=self.table.path,
            )
        if first == 1 or counts_from_one(parts, len(names)):
            return True
        if may and (len(names) > 2 or kind == "number"):
            way = f"{len(names)} in one of its cells" if in_lists else "--answers number:1"
            self.notices.say(
                f"its class numbers are {list_values(sorted(parts, key=int))}, and none is 0 or {len(names)}",
                written=f"they are counted from 0 ({way} counts from 1)",
                read=f"they are read as counted from 0 ({way} counts from 1)",
            )
        return False

    def _positive(self, column: str) -> int:
        options = self.options
        return find_positive(self.labels.names, column, options.positive, recorded=options.recorded)

    def _named_positive(self, spelled: Sequence[str]) -> str | None:
        named, names = self.options.positive, self.labels.names
        return spelled[names.index(named)] if named in names else named

    def _with_decimal_mark(self, sheet: AnswerSheet, cells: Sequence[str]) -> AnswerSheet:
        """Write numbers with a decimal comma if the sample does."""
        comma = (
            sheet and self.table.delimiter != "," and any(re.fullmatch(r"\s*[0-9]+,[0-9]+\s*", cell) for cell in cells)
        )
        return replace(sheet, decimal=",") if comma else sheet

    def _unclear(self, seen: str, possible: Sequence[str]) -> PredictionError:
        return self.notices.unclear(seen, possible, self.labels.names)


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
