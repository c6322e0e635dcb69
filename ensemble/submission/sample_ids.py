"""The ids of a sample, found despite another spelling."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from ensemble.ids import COMPARISONS
from ensemble.text.unicode_text import compose

_LOOSE = tuple(one.key for one in COMPARISONS)


@dataclass(frozen=True, slots=True)
class IdMatch:
    """The id of the sample that a cell refers to (or the cell itself), and the fault of its spelling, if any."""

    id: str
    fault: str | None


class SampleIds:
    """The sample's ids, found despite surrounding spaces, another Unicode normalization, suffix or folder."""

    def __init__(self, ids: tuple[str, ...]) -> None:
        self._ids = ids
        self.exact = frozenset(ids)

    @cached_property
    def _normal(self) -> dict[str, str]:
        return {compose(name): name for name in self._ids}

    @cached_property
    def _loose(self) -> list[dict[str, str]]:
        # a key that two ids share tells neither
        found = [{key(name): name for name in self._ids} for key in _LOOSE]
        return [names if len(names) == len(self.exact) else {} for names in found]

    def match(self, cell: str) -> IdMatch:
        """Find the id that a cell refers to."""
        if cell in self.exact:
            return IdMatch(cell, None)
        if cell.strip() in self.exact:
            return IdMatch(cell.strip(), "spaces")
        normal = compose(cell.strip())
        if normal in self._normal:
            return IdMatch(self._normal[normal], "spelling")
        for key, loose in zip(_LOOSE, self._loose, strict=True):
            if key(cell) in loose:
                return IdMatch(loose[key(cell)], "spelling")
        return IdMatch(cell, "extra")
