"""Types of options that name an output: a file of a format, a folder, a member. They are checked before any import."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ensemble.commands.options import FilePath, Text


class OutputPath(FilePath):
    """The path of what a command writes: a file of ``kind``, as `require_format` names it, or else a folder.

    Raises:
        OptionError: E204 when it is named as a file of another format, or the folder as a file.
        FileError: E702 when the other one of file and folder is there.
    """

    is_written = True

    def __init__(self, kind: str | None) -> None:
        super().__init__(path_type=Path)
        self.kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path."""
        from ensemble.files import require_folder, require_format

        path = super().convert(value, param, ctx)
        option = "-o" if param is None else param.opts[0]
        if self.kind is None:
            require_folder(option, path)
        else:
            require_format({option: (path, self.kind)})
        return path


class MemberName(Text):
    """The name of a member, which names folders and files.

    Raises:
        OptionError: E204 when it cannot.
    """

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the name."""
        from ensemble.card import validate_member

        return validate_member(super().convert(value, param, ctx))


CSV = OutputPath("CSV")
HTML = OutputPath("HTML")
JSON = OutputPath("JSON")
ONNX = OutputPath("ONNX")
PARQUET = OutputPath("Parquet")
TOML = OutputPath("TOML")
FOLDER = OutputPath(None)
MEMBER = MemberName()
