"""Notices and progress: how the library reports while it works.

The library never prints. A function that reports something takes a ``listener``; the command line passes one that
writes to the terminal, a program passes its own, and the default ignores everything.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ensemble.error_codes import CODES


@dataclass(frozen=True, slots=True)
class Notice:
    """A deviation from what was asked for, or a fact worth knowing; W codes warn, I codes inform."""

    code: str
    message: str
    path: Path | None = None

    def __post_init__(self) -> None:
        assert self.code in CODES, f"{self.code} is not in ensemble.error_codes"

    @property
    def is_warning(self) -> bool:
        """True for W codes, which may need action."""
        return self.code.startswith("W")

    def as_dict(self) -> dict[str, str]:
        """Return the notice as JSON-ready values."""
        found = {"code": self.code, "message": self.message}
        return found if self.path is None else found | {"path": str(self.path)}


class Listener:
    """Receives notices and progress, and ignores both; subclass it to handle them."""

    def notice(self, notice: Notice) -> None:
        """Handle a notice."""

    def progress(self, stage: str, done: int, total: int) -> None:
        """Handle progress: ``done`` of ``total`` units of a stage are finished; ``done == total`` ends it."""

    def detail(self, text: str) -> None:
        """Handle a short text about the current stage, which is shown beside its progress."""

    def step_done(self, text: str) -> None:
        """Handle the end of a step that deserves a line of its own, such as an epoch with its scores."""


SILENT = Listener()


class Recorder(Listener):
    """Keeps every notice, and forwards everything to another listener."""

    def __init__(self, then: Listener = SILENT) -> None:
        self.notices: list[Notice] = []
        self._then = then

    def notice(self, notice: Notice) -> None:
        """Keep the notice and forward it."""
        self.notices.append(notice)
        self._then.notice(notice)

    def progress(self, stage: str, done: int, total: int) -> None:
        """Forward it."""
        self._then.progress(stage, done, total)

    def detail(self, text: str) -> None:
        """Forward it."""
        self._then.detail(text)

    def step_done(self, text: str) -> None:
        """Forward it."""
        self._then.step_done(text)
