"""Tell the kind of answers in a sample's single column from its cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ensemble.errors import PredictionError, show_spaces
from ensemble.labels import LabelSpace
from ensemble.submission.class_names import are_class_numbers, are_numbers, nearest
from ensemble.submission.label_cells import SampleCells, split_cells
from ensemble.submission.number_scale import are_whole, find_scale, is_percent, parse_number
from ensemble.submission.sheet import AnswerKind
from ensemble.submission.sheet_notices import SheetNotices, list_values
from ensemble.submission.sheet_options import SheetOptions
from ensemble.text.csv_table import Table


@dataclass(frozen=True, slots=True)
class CellKinds:
    """A sample with a single column of answers, and what is known besides; see `read_sheet`."""

    table: Table
    labels: LabelSpace
    options: SheetOptions
    independent: bool | None
    notices: SheetNotices

    def kind_of(self, column: str, cells: Sequence[str]) -> AnswerKind:
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
        if are_whole(filled) and (are_class_numbers(names) or not are_numbers(names)):
            outside = [cell for cell in filled if not 0 <= int(cell) < len(names)]
            if outside:
                raise self._unclear(
                    f"it has the answer {outside[0]}, but the classes are 0 to {len(names) - 1}", ["number", "name"]
                )
            kind = self._one_or_several("number", filled)
            if kind == "number" and (constant or two):
                other = "probability" if two else "name"
                self.notices.say(
                    f"its answers are {list_values(filled)}",
                    written=f"class numbers are written (--answers {other} writes a {other})",
                    read=f"they are read as class numbers (--answers {other} reads a {other})",
                )
            return kind
        if all(map(self._is_number, filled)) and not are_whole(filled):
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
        if all(len(parts := cell.split()) > 1 and all(map(self._is_number, parts)) for cell in filled):
            raise PredictionError(
                "E540",
                f"{self.table.path.name}: its cells have several numbers, such as {filled[0]!r}, which are no classes",
                hint="write a column for each class, as ens blend --answers probabilities does",
                path=self.table.path,
            )
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
        self.notices.say(
            f"its answers are {list_values(filled)}, and several labels may apply",
            written=f"the {what} of all of them are written in one cell, separated by a space (--sep sets another "
            "separator)",
            read=f"each cell is read as the {what} of all of them, separated by a space (--sep sets another separator)",
        )
        return "label-cells"

    def _kind_of_several(self, cells: SampleCells) -> AnswerKind:
        """Return the kind of cells of several names: the members say whether several labels can apply."""
        ranks = len(set(cells.counts)) == 1 and cells.counts[0] > 1 and not cells.repeated
        if self.independent or not ranks:
            if self.independent is False:
                self.notices.say(
                    "its cells name several labels", written="the members have one class per image, which is written"
                )
            return "label-cells"
        self.notices.say(
            f"its cells have {cells.counts[0]} names each",
            written=f"the {cells.counts[0]} most probable classes are written",
            read="they are read as the most probable classes, in order",
        )
        return "ranking"

    def _unclear(self, seen: str, possible: Sequence[str]) -> PredictionError:
        return self.notices.unclear(seen, possible, self.labels.names)
