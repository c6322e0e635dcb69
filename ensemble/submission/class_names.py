"""Match the columns of a table, and the names in its cells, with classes: by name or number, never by position."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from ensemble.errors import show_spaces
from ensemble.text.unicode_text import compose

_PREFIX = re.compile(
    r"^(?:probability|proba|prob|predicted|prediction|pred|class|label|logits?|score|target|output|cls|is|has|p|c|y)"
    r"(?:[\s_.:\-(\[]+|(?=\d))",
    re.IGNORECASE,
)
_SUFFIX = re.compile(
    r"[\s_.:\-]+(?:probability|proba|prob|prediction|pred|logits?|score|p)$|(?<=[^\s(])[)\]]$", re.IGNORECASE
)

_MOST_SUGGESTIONS = 20

USUAL_ANSWERS = (
    *("ans", "answer", "label", "labels", "target", "targets", "class", "class name", "class id", "category"),
    *("truth", "ground truth", "gt", "true label", "y true", "y", "diagnosis", "tags", "species", "breed", "predicted"),
)
"""Usual names of a column of classes, as `fold_name` gives them, in the order in which they are looked for."""


@dataclass(frozen=True, slots=True)
class ColumnMatch:
    """The class of each column, and ``how`` they matched where it was not by their exact names; None if they did."""

    classes: tuple[int, ...]
    how: str | None


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Columns that are not classes (with the class that each resembles, if any), and the classes without a column."""

    unknown: tuple[str, ...]
    resembles: tuple[str | None, ...]
    missing: tuple[str, ...]
    repeated: frozenset[str] = frozenset()
    """Those of ``unknown`` that are classes, of which another column is the same one."""

    def __str__(self) -> str:
        parts = []
        for name, near in list(zip(self.unknown, self.resembles, strict=True))[:5]:
            what = "is there twice" if name in self.repeated else "is not a class"
            parts.append(f"column {_quoted(name)} {what}" + (f" (did you mean {_quoted(near)}?)" if near else ""))
        if len(self.unknown) > 5:
            parts.append(f"nor are {len(self.unknown) - 5:,} more columns")
        # a class whose column is misspelled is not missing as well
        resembled = set(self.resembles)
        missing = [name for name in self.missing if name not in resembled]
        if missing:
            more = f" and {len(missing) - 5:,} more" if len(missing) > 5 else ""
            some = ", ".join(map(_quoted, missing[:5]))
            parts.append(f"no column for the class{'es' * (len(missing) > 1)} {some}{more}")
        return "; ".join(parts)


def _quoted(name: str) -> str:
    shown = show_spaces(name)
    return shown if shown != name else f"'{name}'"


def fold_name(name: str) -> str:
    """Return a name without regard to letter case, Unicode form, blanks, underscores, hyphens and slashes."""
    return re.sub(r"[\s_\-/]+", " ", compose(name, "NFKC")).strip().casefold()


def are_numbers(names: Sequence[str]) -> bool:
    """Return True if all names are whole numbers."""
    return all(re.fullmatch(r"-?[0-9]+", name) for name in names)


def are_class_numbers(names: Sequence[str]) -> bool:
    """Return True if each class is named by its own number."""
    return list(names) == [str(i) for i in range(len(names))]


def match_columns(columns: Sequence[str], names: Sequence[str]) -> ColumnMatch | Mismatch:
    """Find the class of each column; every class needs one column, and every column must be a class.

    A column is the class of its exact name; or that of its name but for letter case and blanks; or but for a prefix or
    suffix such as ``class_``, ``p_`` or ``_prob``; or the class of its number (from 0, or all of 1 to C), unless
    the classes themselves are named by numbers. All columns are matched in the same one of these ways.
    """
    best: dict[int, int] = {}
    for reading in _readings(names, columns):
        found = {place: label for place, column in enumerate(columns) if (label := reading.find(column)) is not None}
        if len(found) == len(columns) == len(names) == len(set(found.values())):
            return ColumnMatch(tuple(found[place] for place in range(len(columns))), reading.how)
        if len(set(found.values())) > len(best) and not reading.from_one:
            best = found
    return _mismatch(columns, names, best)


@dataclass(frozen=True, slots=True)
class _ColumnReading:
    how: str | None
    find: Callable[[str], int | None]

    @property
    def from_one(self) -> bool:
        """True if numbers are counted from 1, which only counts where it explains all columns."""
        return self.how is not None and self.how.endswith("from 1")


def _readings(names: Sequence[str], columns: Sequence[str]) -> Iterator[_ColumnReading]:
    exact = {name: label for label, name in enumerate(names)}
    folded = _unique({fold_name(name): label for label, name in enumerate(names)}, names)
    numbers = {str(label): label for label in range(len(names))}
    yield _ColumnReading(None, exact.get)
    yield _ColumnReading("but for letter case and spaces", lambda column: folded.get(fold_name(column)))
    bare = "but for a prefix or suffix"
    yield _ColumnReading(bare, lambda column: folded.get(fold_name(_strip(column))))
    if not are_numbers(names):
        yield _ColumnReading("by the number of the class", lambda column: numbers.get(column.strip()))
        yield _ColumnReading("by the number of the class", lambda column: numbers.get(_strip(column).strip()))
        # all of 1 to C: counted from 1, as there is no class C when counted from 0
        ones = {str(label + 1): label for label in range(len(names))}
        yield _ColumnReading("by the number of the class, counted from 1", lambda column: ones.get(_strip(column)))
    for start, end in _shared_ends(columns):
        ends = " and ".join(f"'{text}'" for text in (start, end) if text)
        yield _ColumnReading(f"but for {ends}, which all have", partial(_between, folded, start, end))


def _between(folded: Mapping[str, int], start: str, end: str, column: str) -> int | None:
    return folded.get(fold_name(compose(column, "NFKC").removeprefix(start).removesuffix(end)))


def _shared_ends(columns: Sequence[str]) -> list[tuple[str, str]]:
    """Return what several columns all begin and end with, up to marks between words: ``votes_`` or `` (%)``."""
    texts = [compose(column, "NFKC") for column in columns]
    if len(set(texts)) < 2:
        return []
    start = _common_start(texts)
    end = _common_start([text[len(start) :][::-1] for text in texts])[::-1]
    starts = ["", *(start[: mark.end()] for mark in re.finditer(r"[\W_]+", start))]
    ends = ["", *(end[mark.start() :] for mark in re.finditer(r"[\W_]+", end))]
    return [pair for pair in itertools.product(starts, ends) if any(pair)]


def _common_start(texts: Sequence[str]) -> str:
    first, last = min(texts), max(texts)
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[:same]


def _unique(folded: dict[str, int], names: Sequence[str]) -> dict[str, int]:
    return folded if len(folded) == len(names) else {}


def _strip(column: str) -> str:
    text = compose(column, "NFKC").strip()
    return _SUFFIX.sub("", _PREFIX.sub("", text, count=1))


def _mismatch(columns: Sequence[str], names: Sequence[str], best: dict[int, int]) -> Mismatch:
    first: dict[int, int] = {}
    for place, label in best.items():
        first.setdefault(label, place)
    known = set(first.values())
    unknown = tuple(column for place, column in enumerate(columns) if place not in known)
    missing = tuple(name for label, name in enumerate(names) if label not in first)
    # each search compares a column with all classes, and the message shows five
    near = [nearest(column, missing) for column in unknown[:_MOST_SUGGESTIONS]]
    repeated = frozenset(column for column in set(unknown) & set(names) if column not in missing)
    return Mismatch(unknown, (*near, *[None] * (len(unknown) - len(near))), missing, repeated)


def nearest(text: str, names: Sequence[str]) -> str | None:
    """Return the name that a misspelled text most resembles, if any does."""
    by_fold = {fold_name(name): name for name in reversed(names)}
    found = difflib.get_close_matches(fold_name(text), list(by_fold), n=1, cutoff=0.6)
    return by_fold[found[0]] if found else None
