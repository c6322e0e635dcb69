"""The options that say how to read a table of training labels; the command line imports this module for its help."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ensemble.errors import OptionError

if TYPE_CHECKING:
    from ensemble.card import Activation

NONE = "none"
SEPARATORS = {"space": " ", "comma": ",", "semicolon": ";", "bar": "|", "tab": "\t"}


@dataclass(frozen=True, slots=True)
class TableOptions:
    """The options that say how to read a table, where it does not say so itself; ``none`` for no group or fold column.

    ``images`` is the folder of the images, by default that of the table. ``activation`` says if an image has one class
    (softmax) or any number of labels (sigmoid). ``separator`` divides the labels within a cell.

    Raises:
        OptionError: E204 when the separator is unknown.
    """

    images: Path | None = None
    id_column: str | None = None
    label_columns: tuple[str, ...] = ()
    group_column: str | None = None
    fold_column: str | None = None
    separator: str | None = None
    activation: Activation | None = None

    def __post_init__(self) -> None:
        if self.separator is not None and self.separator not in SEPARATORS and self.separator != NONE:
            names = ", ".join([*SEPARATORS, NONE])
            raise OptionError("E204", f"--label-separator takes {names}, got {self.separator!r}")

    def given(self) -> tuple[str, ...]:
        """Return the options that are set, as they are typed."""
        pairs = {
            "--images": self.images,
            "--id-column": self.id_column,
            "--label-column": self.label_columns,
            "--group-column": self.group_column,
            "--fold-column": self.fold_column,
            "--label-separator": self.separator,
        }
        return tuple(name for name, value in pairs.items() if value)
