"""Label fixes: corrections of a data set's labels, each with its source."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

from checkpoints.data.mask_contest import GENDERS, Row, class_of
from ensemble.errors import DataError, OptionError
from ensemble.events import SILENT, Listener
from ensemble.labels import LabelSpace
from ensemble.text.csv_table import parse_table, read_table
from ensemble.text.plain_numbers import is_count

FIELDS = ("gender", "age", "swap", "label", "drop")
CONTEST = "contest"
_OTHER_MASK = {1: 2, 2: 1}  # incorrect <-> none


@dataclass(frozen=True, slots=True)
class Fix:
    """One correction; ``id`` is a person or an image.

    ``gender`` (male, female) and ``age`` (years) set the value; ``swap`` exchanges a person's image without a mask and
    the one with an incorrectly worn mask; ``label`` sets the class of one image, by index or name, or
    its labels by their names with ``|`` between them; ``drop`` removes
    the images.
    """

    id: str
    field: str
    value: str
    source: str


@dataclass(frozen=True, slots=True)
class AppliedFix:
    """A fix and the number of images that it changed or dropped; 0 if its id is unknown."""

    fix: Fix
    images: int


def read_fixes(
    places: Sequence[Path | str], *, without: Collection[str] = (), listener: Listener = SILENT
) -> tuple[Fix, ...]:
    """Read CSV files with the columns id, field, value, source; ``contest`` is the file that comes with ens.

    A fix of several sources is applied once. Fixes whose sources are all in ``without`` are left out.

    Raises:
        FileError, DataError: E707 or E322 as `read_table`; E342 when a field is unknown, E343 when two
            contradict each other.
        OptionError: E204 when ``without`` names a source that no fix has.
    """
    read: list[Fix] = []
    for place in places:
        if str(place) == CONTEST:
            resource = files("checkpoints") / "contest_fixes.csv"
            table = parse_table(resource.read_bytes(), Path(resource.name), listener=listener)
        else:
            table = read_table(Path(place), listener=listener)
        columns = (table.column(name) for name in ("id", "field", "value", "source"))
        for line, cells in zip(table.lines, zip(*columns, strict=True), strict=True):
            fix = Fix(*(cell.strip() for cell in cells))
            if fix.field not in FIELDS or not fix.id:
                message = (
                    f"{table.path.name}: line {line}: {fix.field!r} for {fix.id!r}; fields are {', '.join(FIELDS)}"
                )
                raise DataError("E342", message, path=table.path)
            read.append(fix)
    sources = {fix.source for fix in read}
    unknown = sorted(set(without) - sources)
    if unknown:
        raise OptionError(
            "E204", f"--without {unknown[0]}: the sources of the fixes are {', '.join(sorted(sources)) or 'none'}"
        )
    return _deduplicate([fix for fix in read if fix.source not in without])


def apply_fixes(
    rows: Sequence[Row], fixes: Sequence[Fix], labels: LabelSpace
) -> tuple[tuple[Row, ...], tuple[AppliedFix, ...]]:
    """Return the corrected rows, in their order, and the effect of each fix; ``label`` overrides other fixes.

    Raises:
        DataError: E342 when a value does not fit its field, or a field does not fit the data set or its id.
    """
    of_person: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        of_person.setdefault(row.person, []).append(i)
    of_image = {row.id: i for i, row in enumerate(rows)}
    fixed: dict[int, Row | None] = dict(enumerate(rows))
    applied: list[AppliedFix] = []
    # in the order of FIELDS: first the fixes of a person, then the class of an image, and last what is dropped
    for fix in sorted(fixes, key=lambda fix: FIELDS.index(fix.field)):
        image = of_image.get(fix.id)
        meant = [image] if image is not None else of_person.get(fix.id, [])
        if meant and image is None and fix.field == "label":
            raise DataError("E342", f"label sets the class of one image; {fix.id} is a person with {len(meant)} images")
        changed = 0
        for i in meant:
            before = fixed[i]
            if before is not None:
                fixed[i] = _fixed(before, fix, labels)
                changed += fixed[i] != before
        applied.append(AppliedFix(fix, changed if meant else 0))
    return tuple(row for row in fixed.values() if row is not None), tuple(applied)


def unmatched_ids(applied: Sequence[AppliedFix], rows: Sequence[Row]) -> tuple[str, ...]:
    """Return the ids of fixes that are neither a person nor an image of ``rows`` (before the fixes)."""
    known = {row.person for row in rows} | {row.id for row in rows}
    return tuple(sorted({fix.fix.id for fix in applied} - known))


def _deduplicate(fixes: Sequence[Fix]) -> tuple[Fix, ...]:
    first: dict[tuple[str, str], Fix] = {}
    for fix in fixes:
        other = first.setdefault((fix.id, fix.field), fix)
        if other.value != fix.value:
            raise DataError(
                "E343",
                f"{fix.id}: {fix.field} is {other.value!r} for {other.source}, {fix.value!r} for {fix.source}",
            )
    return tuple(first.values())


def _fixed(row: Row, fix: Fix, labels: LabelSpace) -> Row | None:
    if fix.field == "drop":
        return None
    if fix.field == "label":
        return _with_label(row, fix, labels)
    if row.mask is None or row.gender is None or row.age is None:
        raise DataError("E342", f"{fix.id}: only data sets in the mask contest's layout have {fix.field}")
    if fix.field == "swap":
        mask = _OTHER_MASK.get(row.mask, row.mask)
        return replace(row, mask=mask, label=class_of(mask, row.gender, row.age))
    if fix.field == "gender":
        if fix.value not in GENDERS:
            raise DataError("E342", f"{fix.id}: gender is {fix.value!r}, expected male or female")
        gender = GENDERS[fix.value]
        return replace(row, gender=gender, label=class_of(row.mask, gender, row.age))
    if not is_count(fix.value):
        raise DataError("E342", f"{fix.id}: age is {fix.value!r}, expected whole years")
    age = int(fix.value)
    return replace(row, age=age, label=class_of(row.mask, row.gender, age))


def _with_label(row: Row, fix: Fix, labels: LabelSpace) -> Row:
    if row.present is not None:
        return _with_labels(row, fix, labels)
    if fix.value in labels.names:
        label = labels.names.index(fix.value)
    elif is_count(fix.value) and int(fix.value) < len(labels):
        label = int(fix.value)
    else:
        raise DataError("E342", f"{fix.id}: {fix.value!r} is none of the {len(labels)} classes")
    if row.mask is None:
        return replace(row, label=label)
    # the annotated age belongs to another class, so the age is unknown now
    years = row.age if label % 3 == row.label % 3 else None
    return replace(row, label=label, mask=label // 6, gender=label // 3 % 2, age=years)


def _with_labels(row: Row, fix: Fix, labels: LabelSpace) -> Row:
    """Set the labels of an image to those of the fix, which are divided by ``|``; an empty value removes all."""
    names = [name.strip() for name in fix.value.split("|") if name.strip()]
    unknown = [name for name in names if name not in labels.names]
    if unknown:
        raise DataError("E342", f"{fix.id}: {unknown[0]!r} is none of the {len(labels)} labels (divided by |)")
    return replace(row, present=tuple(sorted({labels.names.index(name) for name in names})))
