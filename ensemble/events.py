"""What the library says while it works: notices and progress.

The library never prints. A function that has something to tell takes a ``listener``; the command line passes one that
writes to the terminal, a program passes its own, and the default says nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ensemble.error_codes import CODES


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that went another way than asked, or is worth knowing; W codes warn, I codes inform."""

    code: str
    message: str
    path: Path | None = None

    def __post_init__(self) -> None:
        assert self.code in CODES, f"{self.code} is not in ensemble.error_codes"

    @property
    def is_warning(self) -> bool:
        """Whether people should act on it."""
        return self.code.startswith("W")

    def as_dict(self) -> dict[str, str]:
        """The notice as JSON-ready values."""
        found = {"code": self.code, "message": self.message}
        return found if self.path is None else found | {"path": str(self.path)}


class Listener:
    """Hears notices and progress, and ignores both; subclass it to hear them."""

    def notice(self, notice: Notice) -> None:
        """A notice was given."""

    def progress(self, stage: str, done: int, total: int) -> None:
        """``done`` of ``total`` units of a stage are finished; ``done == total`` ends it."""

    def detail(self, text: str) -> None:
        """What the stage under way says about itself beside its progress, in a few words."""


SILENT = Listener()


class Recorder(Listener):
    """Keeps every notice, and passes everything on to another listener."""

    def __init__(self, then: Listener = SILENT) -> None:
        self.notices: list[Notice] = []
        self._then = then

    def notice(self, notice: Notice) -> None:
        """Keep it and pass it on."""
        self.notices.append(notice)
        self._then.notice(notice)

    def progress(self, stage: str, done: int, total: int) -> None:
        """Pass it on."""
        self._then.progress(stage, done, total)

    def detail(self, text: str) -> None:
        """Pass it on."""
        self._then.detail(text)
