"""Read an answer sheet: the contest's sample submission says how answers are written."""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ensemble.errors import (
    ColumnsError,
    DataError,
    FileError,
    PredictionError,
    enumerate_some,
    show_spaces,
)
from ensemble.events import SILENT, Listener, Notice
from ensemble.ids import find_id_column, has_image_suffix
from ensemble.labels import LabelSpace
from ensemble.submission.cell_spelling import composed_as, counts_from_one, spellings
from ensemble.submission.class_names import (
    USUAL_ANSWERS,
    Mismatch,
    are_class_numbers,
    are_numbers,
    fold_name,
    match_columns,
    nearest,
)
from ensemble.submission.columns_beside import find_ranks, is_answer_column, without_context
from ensemble.submission.label_cells import SampleCells, find_form, plain_cells, require_separable, split_cells
from ensemble.submission.long_format import find_long_rows
from ensemble.submission.number_scale import PERCENT, find_scale, is_percent, parse_number, sums_to_one
from ensemble.submission.positive import find_positive
from ensemble.submission.sheet import DECISIONS, AnswerKind, AnswerSheet, LongRow
from ensemble.submission.sheet_options import NO_OPTIONS, SheetOptions, apply_options
from ensemble.text.csv_table import Table, parse_table


def read_sheet(
    path: Path,
    labels: LabelSpace,
    *,
    options: SheetOptions = NO_OPTIONS,
    independent: bool | None = None,
    listener: Listener = SILENT,
) -> AnswerSheet:
    """Read how a sample submission wants its answers for classes ``labels``.

    ``independent`` says whether several labels may apply to an image (sigmoid members), if it is known. Whatever is
    chosen among several possibilities is said (I543).

    Raises:
        FileError: E707 when the sample cannot be read.
        DataError: E313 when an id is repeated, E322 when the sample is not a table with ids and answers.
        OptionError: E202 or E204 when an option is unknown or does not fit the sample.
        PredictionError: E540 when the kind of answers cannot be told, E541 when columns are not the classes, E542 when
            it is unknown which class a probability is of.
    """
    kind = options.kind
    try:
        data = path.read_bytes()
    except OSError as err:
        raise FileError("E707", f"{path} cannot be read: {err.strerror}", path=path) from err
    table = parse_table(data, path, listener=listener)
    if len(table.header) < 2:
        raise DataError(
            "E322", f"{path.name}: a sample submission has ids and answers, got {', '.join(table.header)}", path=path
        )
    if not table.rows:
        raise DataError("E322", f"{path.name}: the sample has a header but no rows", path=path)
    reader = _Reader(table, composed_as(table, labels), options, independent, listener)
    sheet = reader.read(kind)
    if not _is_utf8(data):
        listener.notice(Notice("I543", f"{path.name}: it is not UTF-8; the submission is written in UTF-8", path))
    newline = "\r\n" if data.partition(b"\n")[0].rstrip(b"\0").endswith(b"\r") else "\n"
    sheet = replace(sheet, newline=newline, bom=data.startswith(codecs.BOM_UTF8), delimiter=table.delimiter)
    return apply_options(sheet, options, path.name)


@dataclass(frozen=True, slots=True)
class _Reader:
    """A sample, and what is known besides."""

    table: Table
    labels: LabelSpace
    options: SheetOptions
    independent: bool | None
    listener: Listener
    signed: int | None = None

    def read(self, kind: AnswerKind | None) -> AnswerSheet:
        """Return the sheet; ``kind`` is the one asked for, or None to find it."""
        id_column = find_id_column(self.table, named=self.options.id_column, listener=self.listener)
        if has_image_suffix(id_column) or parse_number(id_column) is not None:
            raise DataError(
                "E322",
                f"{self.table.path.name}: the first line must name the columns, got {','.join(self.table.header)}",
                path=self.table.path,
                hint="write a header line such as image,label above the first row, whose image would be lost",
            )
        place = self.table.header.index(id_column)
        rest = [i for i in range(len(self.table.header)) if i != place]
        if self.options.label_column is not None:
            wanted = self.table.place(self.options.label_column)
            rest = [wanted] if wanted in rest else rest
        sheet = AnswerSheet((), self.table.header, id_place=place, independent=self.independent)
        if kind == "long" or kind is None:
            long = find_long_rows(self.table, place, rest, self.labels.names, asked=kind == "long")
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
        answers = enumerate_some([show_spaces(header[i]) for i in answer_places])
        score = next((header[i] for i in places if is_answer_column(self.table, i)), None)
        if score is not None and self.options.label_column is None and self.options.kind is None:
            seen = f"it has answers in column {answers}, and others in column {score}"
            raise ColumnsError(
                "E565",
                f"{self.table.path.name}: {seen}",
                path=self.table.path,
                hint=f"one column is written, and the others are copied: --label-column {header[answer_places[0]]}, or "
                f"--label-column {score} --answers probability",
            )
        columns = f"column{'s' * (len(answer_places) > 1)} {answers}"
        others = enumerate_some([header[i] or "(without a name)" for i in places])
        self._say(f"answers are written in {columns}, and the sample's {others} copied")
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
                self._say(f"its {len(columns)} columns have a class each: the most probable ones are written, in order")
                return replace(sheet, kind="ranking", in_columns=True, at_most=len(columns), spelling=ranked)
        if isinstance(match, Mismatch):
            count = f"{len(columns)} columns of answers for {len(self.labels)} classes"
            raise ColumnsError("E541", f"{self.table.path.name}: {count}: {match}", path=self.table.path)
        if match.how is not None:
            example = f"column {show_spaces(columns[0])} is {self.labels.names[match.classes[0]]}"
            self.listener.notice(Notice("I544", f"{self.table.path.name}: columns matched {match.how}: {example}"))
        text = next((c for row in cells for c in map(str.strip, row) if c and parse_number(c) is None), None)
        if text is not None and kind is None:
            raise self._unclear(f"its columns of classes have cells such as {text!r}", ["probabilities", DECISIONS])
        scale = find_scale(self.table.path, columns, cells, asked=kind is not None)
        if scale == PERCENT:
            self._say("its answers are percentages")
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
            self._say("its cells are 0 and 1: probabilities are written", f"--answers {DECISIONS} writes 0 and 1")
        return self._with_decimal_mark(sheet, [cell for row in cells for cell in row])

    def _kind_of_columns(self, *, ones: bool) -> AnswerKind:
        if self.independent:
            return "label-columns"
        if self.independent is None:
            return "probabilities" if ones else "label-columns"
        if not ones:
            self._say("its rows do not sum to one: the probabilities of exclusive classes are written, which do")
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
        found = kind or self._kind_of_cells(column, cells)
        names = self.labels.names
        sheet = replace(sheet, kind=found, constant=len(set(cells)) == 1 and kind is None)
        if found == "number":
            return sheet
        if found == "name":
            return replace(sheet, spelling=names, positive=self.signed)
        if found == "probability":
            positive = self._positive(column)
            self._say(f"its single number per image is the probability of {names[positive]}")
            scale = find_scale(self.table.path, [column], [[cell] for cell in cells], asked=kind is not None)
            if scale == PERCENT:
                self._say("its answers are percentages")
            return self._with_decimal_mark(replace(sheet, positive=positive, scale=scale), cells)
        several = split_cells(cells, self.labels.names, self.options.separator)
        if several is None:
            by_number = _whole(cells) and not are_numbers(names)
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
        parts = {part for cell in cells for part in form.split(cell)} | {cell for cell in cells if cell}
        counted = kind in {None, "number", "label-cells", "ranking"} and len(names) > 1 and not is_percent(column)
        if counted and not are_numbers(names) and counts_from_one(cells, len(names)):
            self._say(f"its class numbers count from 1 to {len(names)}, not from 0")
            return replace(self, labels=LabelSpace.flat([str(i + 1) for i in range(len(names))]))
        if not parts or parts & {*names, *map(str, range(len(names)))}:
            return None
        for parts in ({cell for cell in cells if cell}, {part for cell in cells for part in form.split(cell)}):
            for found in spellings(names, sorted(parts)) if parts else ():
                spelled, positive = found.names, None
                if found.signed:
                    positive = self._positive(column)
                    spelled = spelled if positive else spelled[::-1]
                self._say(f"its classes are spelled {found.how}, such as {spelled[-1]} for {names[-1]}")
                options = replace(self.options, positive=self._named_positive(spelled))
                return replace(self, labels=LabelSpace.flat(spelled), options=options, signed=positive)
        return None

    def _positive(self, column: str) -> int:
        options = self.options
        return find_positive(self.labels.names, column, options.positive, recorded=options.recorded)

    def _named_positive(self, spelled: Sequence[str]) -> str | None:
        named, names = self.options.positive, self.labels.names
        return spelled[names.index(named)] if named in names else named

    def _kind_of_cells(self, column: str, cells: list[str]) -> AnswerKind:
        """Return the kind of answers in a single column.

        Raises:
            PredictionError: E540 when it cannot be told.
        """
        names, filled = self.labels.names, [cell for cell in cells if cell]
        two = len(names) == 2
        if not filled:
            possible = ["number", "name", *(["probability"] if two else []), "label-cells", "ranking"]
            raise self._unclear(f"its column {show_spaces(column)} is empty", possible)
        percent = two and is_percent(column) and not self.independent
        if (len(names) == 1 or percent) and all(map(self._is_number, filled)):
            return "probability"
        known, constant = set(names), len(set(filled)) == 1
        if set(filled) <= known and not are_class_numbers(names):
            return self._one_or_several("name", filled)
        if _whole(filled) and (are_class_numbers(names) or not are_numbers(names)):
            outside = [cell for cell in filled if not 0 <= int(cell) < len(names)]
            if outside:
                raise self._unclear(
                    f"it has the answer {outside[0]}, but the classes are 0 to {len(names) - 1}", ["number", "name"]
                )
            kind = self._one_or_several("number", filled)
            if kind == "number" and (constant or two):
                other = "--answers probability writes a probability" if two else "--answers name writes names"
                self._say(f"its answers are {_values(filled)}: class numbers are written", other)
            return kind
        if all(map(self._is_number, filled)) and not _whole(filled):
            find_scale(self.table.path, [column], [[cell] for cell in filled], asked=False)
            if two and not self.independent:
                return "probability"
            raise self._unclear(
                f"its answers are numbers such as {filled[0]}, and there are {len(names)} classes", ["number", "name"]
            )
        several = split_cells(cells, self.labels.names, self.options.separator)
        if several is not None and several.flags:
            raise self._unclear(f"its cells have a 0 or 1 per class, such as {filled[0]!r}", ["label-cells", "ranking"])
        if several is not None:
            return self._kind_of_several(several)
        if all(len(pair := cell.split()) == 2 and pair[0] in known and self._is_number(pair[1]) for cell in filled):
            seen = f"its answers are pairs of a class and a score, such as {filled[0]!r}"
            raise PredictionError("E565", f"{self.table.path.name}: {seen}", path=self.table.path)
        unknown = [cell for cell in dict.fromkeys(filled) if cell not in known]
        near = nearest(unknown[0], names)
        meant = f" (did you mean {near!r}?)" if near else ""
        raise self._unclear(
            f"its answer {unknown[0]!r} is neither a class{meant} nor a number nor a list of classes",
            ["number", "name", "label-cells", "ranking"],
        )

    def _is_number(self, cell: str) -> bool:
        """Return True for a finite number; a comma is a decimal mark only where it does not separate the cells."""
        return parse_number(cell) is not None and (self.table.delimiter != "," or "," not in cell)

    def _one_or_several(self, kind: AnswerKind, filled: list[str]) -> AnswerKind:
        """Return ``kind``, or `label-cells` for members of independent labels."""
        if not self.independent:
            return kind
        what = "numbers" if kind == "number" else "names"
        self._say(
            f"its answers are {_values(filled)}, and several labels may apply: the {what} of all of them are written "
            "in one cell, separated by a space",
            "--sep sets what separates them",
        )
        return "label-cells"

    def _kind_of_several(self, cells: SampleCells) -> AnswerKind:
        """Return the kind of cells of several names: the members say whether several labels can apply."""
        ranks = len(set(cells.counts)) == 1 and cells.counts[0] > 1 and not cells.repeated
        if self.independent or not ranks:
            if self.independent is False:
                self._say("its cells name several labels: the members give one each, which is written")
            return "label-cells"
        self._say(
            f"its cells have {cells.counts[0]} names each: the {cells.counts[0]} most probable classes are written"
        )
        return "ranking"

    def _with_decimal_mark(self, sheet: AnswerSheet, cells: Sequence[str]) -> AnswerSheet:
        """Write numbers with a decimal comma if the sample does."""
        comma = (
            sheet and self.table.delimiter != "," and any(re.fullmatch(r"\s*[0-9]+,[0-9]+\s*", cell) for cell in cells)
        )
        return replace(sheet, decimal=",") if comma else sheet

    def _say(self, what: str, option: str | None = None) -> None:
        text = f"{self.table.path.name}: {what}" + (f" ({option})" if option else "")
        self.listener.notice(Notice("I543", text, self.table.path))

    def _unclear(self, seen: str, possible: Sequence[str]) -> PredictionError:
        options = ", ".join(f"--answers {kind}" for kind in possible)
        return PredictionError(
            "E540",
            f"{self.table.path.name}: it cannot be told how answers are written: {seen}",
            hint=f"state it: {options}; the classes are {enumerate_some(list(self.labels.names))} (--labels)",
            path=self.table.path,
        )


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _values(filled: Sequence[str]) -> str:
    values = list(dict.fromkeys(filled))
    return f"all {values[0]}" if len(values) == 1 else enumerate_some(sorted(values), limit=3)


def _whole(cells: Sequence[str]) -> bool:
    filled = [cell for cell in cells if cell]
    return bool(filled) and all(re.fullmatch(r"-?(0|[1-9][0-9]{0,8})", cell) for cell in filled)
