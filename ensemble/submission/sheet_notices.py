"""Say what was chosen among several possible ways to read a sample, or a submission that has no sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ensemble.errors import PredictionError, enumerate_some
from ensemble.events import Listener, Notice


@dataclass(frozen=True, slots=True)
class SheetNotices:
    """The notices about one table: a sample by which answers will be written, or a submission that is read."""

    path: Path
    listener: Listener
    is_sample: bool
    names_classes: bool = False

    def say(self, seen: str, *, written: str = "", read: str = "") -> None:
        """Say what was seen (I543), and what is therefore ``written``, or how the submission is ``read``."""
        done = written if self.is_sample else read
        self.listener.notice(Notice("I543", f"{self.path.name}: {seen}" + (f": {done}" if done else ""), self.path))

    def unclear(self, seen: str, possible: Sequence[str], classes: Sequence[str]) -> PredictionError:
        """Return the error E540: the answers can be any of the ``possible`` kinds.

        Where ``--labels`` names the classes, it is the first thing to look at: they may have been guessed.
        """
        options = ", ".join(f"--answers {kind}" for kind in possible)
        are = "are written" if self.is_sample else "are to be read"
        some = enumerate_some(list(classes))
        hint = f"state it: {options}; the classes are {some}"
        if self.names_classes:
            hint = f"name the classes with --labels unless they are {some}; else state it: {options}"
        return PredictionError(
            "E540",
            f"{self.path.name}: it cannot be told how answers {are}: {seen}",
            hint=hint,
            path=self.path,
        )


def list_values(cells: Sequence[str]) -> str:
    """Return the values of cells in words: ``all 0``, or some of them."""
    values = list(dict.fromkeys(cells))
    return f"all {values[0]}" if len(values) == 1 else enumerate_some(sorted(values), limit=3)
