"""Every error that users can get, each with a stable code.

EnsError
├── OptionError        E2xx   exit 2    an option, or a package it needs
├── DataError          E3xx   exit 3    images, id lists, labels
│   ├── DamagedImageError         E301   exit 3   an image is damaged
│   ├── NoImagesError             E316   exit 3   there are no images
│   └── UnreadableImagesError     E326   exit 3   images could not be read, all others are done
├── ModelError         E4xx   exit 4    checkpoints and ONNX files
├── PredictionError    E5xx   exit 5    predictions, recipes, submissions
│   ├── TooLittleTruthError       E525   exit 5   too little ground truth to learn from
│   ├── ColumnsError              E541   exit 5   the columns of a table are not the classes
│   └── PositiveClassError        E542   exit 5   which of two classes is the positive one is not known
├── DeviceError        E6xx   exit 6    devices and memory
│   ├── DeviceMemoryError         E602   exit 6   the device is out of memory
│   ├── ModelRunError             E605   exit 6   a model failed while running
│   └── ChanceError               E612   exit 6   a model's answers depend on chance
├── FileError          E7xx   exit 7    the file system
│   ├── DiskFullError             E701   exit 7   no room: a full disk, a quota, a limit
│   └── LockedError               E703   exit 75  another run is writing to the same folder
├── Interrupted        E801   exit 130  stopped by Ctrl-C (143: by SIGTERM, 129: by SIGHUP); run again to resume
└── DeployError        E8xx   exit 8    fused files, and what is made of them

An error says what happened, what was expected, what was found and what to do. `ensemble.error_codes` lists each code
with its cause and cure; the cure is the default hint.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from ensemble.error_codes import CODES


class EnsError(Exception):
    """An error with a code, a message for people and a hint that says what to do.

    ``message`` is one line; longer lists belong in ``details``, one problem per line.
    """

    exit_status: ClassVar[int] = 1

    def __init__(
        self,
        code: str,
        message: str,
        *,
        hint: str | None = None,
        path: Path | None = None,
        details: tuple[str, ...] = (),
    ) -> None:
        assert code in CODES, f"{code} is not in ensemble.error_codes"
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = CODES[code].cure if hint is None else hint
        self.path = path
        self.details = details

    def __str__(self) -> str:
        return f"[{self.code}] {self.message}"

    def __reduce__(self) -> tuple[object, ...]:
        # by default pickle would call the class with its message alone, and a worker process could not report the error
        return _restore, (type(self), self.args, self.__dict__)

    def as_dict(self) -> dict[str, object]:
        """Return the error as JSON-ready values, for ``--json``."""
        found: dict[str, object] = {"code": self.code, "message": self.message, "hint": self.hint}
        if self.path is not None:
            found["path"] = str(self.path)
        if self.details:
            found["details"] = list(self.details)
        return found


class OptionError(EnsError):
    """An option is not valid, or a package is missing."""

    exit_status = 2


class DataError(EnsError):
    """Images, id lists and labels."""

    exit_status = 3


class UnreadableImagesError(DataError):
    """Images could not be read, and all others are done: E326."""


class DamagedImageError(DataError):
    """An image is damaged or ends before its last pixel: E301."""


class NoImagesError(DataError):
    """There are no images: E316."""


class ModelError(EnsError):
    """Checkpoints and ONNX files."""

    exit_status = 4


class PredictionError(EnsError):
    """Predictions, recipes and submissions that do not match."""

    exit_status = 5


class TooLittleTruthError(PredictionError):
    """There is too little ground truth to learn from: E525."""


class PositiveClassError(PredictionError):
    """The positive class of two is not known: E542."""


class ColumnsError(PredictionError):
    """The columns of a table are not the classes (E541), or two of them have answers (E565)."""


class DeviceError(EnsError):
    """Devices and memory."""

    exit_status = 6


class DeviceMemoryError(DeviceError):
    """The device is out of memory: E602."""


class ModelRunError(DeviceError):
    """A model failed while running: E605."""


class ChanceError(DeviceError):
    """The answers of a model depend on chance: E612."""


class FileError(EnsError):
    """The file system."""

    exit_status = 7


class LockedError(FileError):
    """Another run is writing to the same folder."""

    exit_status = 75


class DiskFullError(FileError):
    """There is no room, as on a full disk or by a quota: E701."""


class Interrupted(EnsError):
    """Stopped by a signal; finished parts are kept."""

    exit_status = 130

    def __init__(self, message: str, *, signal_number: int) -> None:
        super().__init__("E801", message)
        self.signal_number = signal_number

    @property
    def status(self) -> int:
        """The exit status by the shell's convention: 128 + the signal's number."""
        return 128 + self.signal_number


class DeployError(EnsError):
    """A fused file, or what is made of it, cannot be written or used."""

    exit_status = 8


def _restore(kind: type[EnsError], args: tuple[object, ...], state: dict[str, object]) -> EnsError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


def enumerate_some(names: list[str], *, limit: int = 5) -> str:
    """Return the first names of a long list, and the number of the others; spaces at their ends are visible."""
    shown = ", ".join(map(show_spaces, names[:limit]))
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit:,} more"


def cut_text(text: str, most: int) -> str:
    """Return a text of at most ``most`` characters for a message: cut behind a word if it can be, with dots."""
    if len(text) <= most:
        return text
    cut = text[: most - 3]
    end = cut.rfind(" ")
    return (cut[:end] if end > most // 2 else cut).rstrip(" ,;:") + "..."


def show_spaces(text: str) -> str:
    """Return a text for a message: in quotes if spaces at its ends, or characters that cannot be seen, are in it.

    Characters that cannot be seen, such as no-break spaces, become escapes such as ``\\xa0``.
    """
    if text and text == text.strip() and all(map(_is_seen, text)):
        return text
    return f"'{escape_unseen(text)}'"


def escape_unseen(text: str) -> str:
    """Return a text whose characters that cannot be seen are escapes such as ``\\xa0``; a line break is one."""
    return "".join(c if _is_seen(c) else c.encode("unicode_escape").decode("ascii") for c in text)


def _is_seen(character: str) -> bool:
    # a lone surrogate stands for a byte of a name that is not Unicode: it is shown elsewhere, by ascii()
    return character == " " or character.isprintable() or "\ud800" <= character <= "\udfff"
