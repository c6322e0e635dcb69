"""Label fixes: corrections of a data set's labels, each with its source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

from checkpoints.data.mask_contest import GENDERS, Row, class_of
from ensemble.errors import DataError, OptionError, enumerate_some
from ensemble.events import SILENT, Listener, Notice
from ensemble.labels import LabelSpace
from ensemble.text.csv_table import Table, parse_table, read_table
from ensemble.text.plain_numbers import is_count

FIELDS = ("gender", "age", "swap", "label", "drop")
CONTEST = "contest"
_COLUMNS = ("id", "field", "value", "source")
_AUDITED = ("score", "why")  # of the file of ens audit, for people to read
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

    A fix of several sources is applied once. Fixes whose sources are all in ``without`` are left out. Rows of empty
    cells are none; W386 says so, and that a mark in another column strikes no fix.

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
        read += _fixes_of(table, listener)
    sources = {fix.source for fix in read}
    unknown = sorted(set(without) - sources)
    if unknown:
        raise OptionError(
            "E204", f"--without {unknown[0]}: the sources of the fixes are {', '.join(sorted(sources)) or 'none'}"
        )
    return _deduplicate([fix for fix in read if fix.source not in without])


def _fixes_of(table: Table, listener: Listener) -> Iterator[Fix]:
    """Yield the fixes of a table, and tell what of it is not read."""
    if "kind" in table.header and "suggested" in table.header:
        message = f"{table.path.name} is the table of all findings of ens audit, not its label fixes"
        raise DataError("E342", message, hint="give the fixes.csv beside it", path=table.path)
    blank = 0
    columns = (table.column(name) for name in _COLUMNS)
    for line, row, cells in zip(table.lines, table.rows, zip(*columns, strict=True), strict=True):
        fix = Fix(*(cell.strip() for cell in cells))
        if not any(cell.strip() for cell in row):
            blank += 1
        elif fix.field not in FIELDS or not fix.id:
            message = f"{table.path.name}: line {line}: {fix.field!r} for {fix.id!r}; fields are {', '.join(FIELDS)}"
            raise DataError("E342", message, path=table.path)
        else:
            yield fix
    if blank:
        text = f"{table.path.name}: {blank} {'row' if blank == 1 else 'rows'} of empty cells passed over"
        listener.notice(Notice("W386", text, table.path))
    for place, name in enumerate(table.header):
        marked = sum(bool(row[place].strip()) for row in table.rows)
        if name.strip() not in (*_COLUMNS, *_AUDITED) and marked:
            rows = "the row with something in it applies" if marked == 1 else f"the {marked} rows with something apply"
            text = f"{table.path.name}: column {name.strip() or place + 1!r} is not read, and {rows} like the others"
            listener.notice(Notice("W386", text, table.path))


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


def count_sources(applied: Sequence[AppliedFix]) -> str:
    """Return how many fixes each source has, in parentheses; nothing for one source."""
    counts = Counter(one.fix.source for one in applied)
    if len(counts) < 2:
        return ""
    return f" ({enumerate_some([f'{count} of {source or repr(source)}' for source, count in counts.most_common()])})"


def _deduplicate(fixes: Sequence[Fix]) -> tuple[Fix, ...]:
    first: dict[tuple[str, str], Fix] = {}
    for fix in fixes:
        other = first.setdefault((fix.id, fix.field), fix)
        if other.value != fix.value:
            hint = f"delete one of the two lines, both of {fix.source}" if other.source == fix.source else None
            raise DataError(
                "E343",
                f"{fix.id}: {fix.field} is {other.value!r} for {other.source}, {fix.value!r} for {fix.source}",
                hint=hint,
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
        hint = f"the classes are {enumerate_some(list(labels.names))}; delete the line of a fix that is not to apply"
        raise DataError("E342", f"{fix.id}: {fix.value!r} is none of the {len(labels)} classes", hint=hint)
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
