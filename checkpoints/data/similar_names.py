"""Find names that differ in what is hardly seen.

One class that is spelled in two ways is trained as two, and one person may be in two folds.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

from ensemble.errors import cut_text, enumerate_some, show_spaces
from ensemble.events import Listener, Notice
from ensemble.labels import LabelSpace
from ensemble.text.unicode_text import compose

_NUMBER = re.compile(r"0*([0-9]+)(?:\.0*)?")
_VARIATION = range(0xFE00, 0xFE10)  # selectors of the form of a letter


def similar_names(names: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    """Return the groups of names that are equal but for letter case, spaces, Unicode form and unseen characters.

    A space between two digits counts: ``1 1`` is not ``11``. Zeros ahead and ``.0`` do not: ``01``, ``1`` and ``1.0``
    are one number, which a spreadsheet or pandas has written in another way.
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_key(name), []).append(name)
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)


def tell_similar_names(labels: LabelSpace, groups: Iterable[str], unit: str, listener: Listener) -> None:
    """Say which values of an axis, and which groups, are hardly told apart (W366), or stand for no value (W367).

    ``unit`` is the noun of groups.
    """
    groups = tuple(dict.fromkeys(groups))
    for axis in labels.axes:
        what = "classes" if len(labels.axes) == 1 else f"values of {show_spaces(axis.name)}"
        _tell(what, similar_names(axis.values), listener)
        _tell_missing(what, axis.values, listener)
    _tell(unit, similar_names(groups), listener)
    _tell_missing(unit, groups, listener)


def _tell(what: str, found: Sequence[Sequence[str]], listener: Listener) -> None:
    if found:
        shown = enumerate_some([" and ".join(map(_shown, group)) for group in found])
        listener.notice(
            Notice("W366", f"{what} that differ only in letter case, spaces, zeros or unseen characters: {shown}")
        )


_MISSING = frozenset({"nan", "<na>", "na", "n/a", "#n/a", "null", "nat"})  # "none" is an answer: none of the others


def _tell_missing(what: str, names: Sequence[str], listener: Listener) -> None:
    """Say which names programs write for a cell without a value: pandas ``nan``, R ``NA``, databases ``NULL``."""
    found = [name for name in names if name.strip().lower() in _MISSING]
    if found:
        message = f"{what} that are named like a missing value: {enumerate_some(list(map(_shown, found)))}"
        listener.notice(Notice("W367", message))


def _key(name: str) -> str:
    seen = "".join(c for c in compose(name, "NFKC") if not _is_unseen(c))
    bare = re.sub(r"(?<![0-9])\s+|\s+(?![0-9])", "", seen.strip()).casefold()
    number = _NUMBER.fullmatch(bare)
    return number[1] if number else bare


def _is_unseen(character: str) -> bool:
    kind = unicodedata.category(character)
    return (kind in {"Cf", "Cc"} and not character.isspace()) or ord(character) in _VARIATION


def _shown(name: str) -> str:
    return show_spaces(cut_text(name, 60))
