"""Write docs/errors.md from the error codes and docs/cli.md from the commands: ``python -m tests.docs.generate``."""

from __future__ import annotations

import re
from pathlib import Path

import click

from ensemble import errors
from ensemble.cli import ens
from ensemble.error_codes import CODES
from ensemble.files import write_atomic

DOCS = Path(__file__).parents[2] / "docs"
WIDTH = 100
_MARK = "<!-- Written by `python -m tests.docs.generate`; do not edit. -->"
_INTRODUCTION = """\
`E` stops the command, `W` warns, `I` informs. A code never changes its meaning. `ens --debug` shows the traceback, and
`--json` prints an error as JSON with `code`, `message`, `hint`, `path` and `details`. From Python, every error is an
`ensemble.errors.EnsError` with a `code`."""
_CLI_INTRODUCTION = """\
Every command has `--json` for programs. Tables fit the terminal (or `COLUMNS`), and 80 columns where the output is no
terminal. `NO_COLOR` and `FORCE_COLOR` decide about color."""
_KINDS = (
    errors.OptionError,
    errors.DataError,
    errors.ModelError,
    errors.PredictionError,
    errors.DeviceError,
    errors.FileError,
    errors.Interrupted,
)


def pages() -> dict[str, str]:
    """Return the generated pages, by name."""
    return {"errors.md": errors_page(), "cli.md": cli_page()}


def errors_page() -> str:
    """Return a page of exit statuses and of every code with cause and fix, by class of error."""
    parts = [
        "# Error codes and exit statuses",
        _MARK,
        "```bash\nens explain-error E314\n```",
        _INTRODUCTION,
        "## Exit statuses",
        _table(("status", "meaning", "codes"), _statuses()),
    ]
    for kind in _KINDS:
        digit = _digit(kind)
        rows = [(f"`{code}`", entry.cause, entry.cure) for code, entry in sorted(CODES.items()) if code[1] == digit]
        rows.sort(key=lambda row: (row[0][2:], row[0]))
        parts += [f"## {digit}xx: {_summary(kind)}", _table(("code", "cause", "fix"), rows)]
    return "\n\n".join(parts) + "\n"


def cli_page() -> str:
    """Return a page with the help of every command, at a fixed width."""
    parts = [
        "# Command line",
        _MARK,
        "```bash\nens --help\n```",
        _CLI_INTRODUCTION,
    ]
    settings = {**ens.context_settings, "terminal_width": WIDTH, "max_content_width": WIDTH}
    with click.Context(ens, info_name="ens", **settings) as top:
        parts.append(_help(top))
        for name, command in ens.commands.items():
            with click.Context(command, info_name=name, parent=top) as context:
                parts += [f"## ens {name}", _help(context)]
    return "\n\n".join(parts) + "\n"


def _help(context: click.Context) -> str:
    lines = context.command.get_help(context).splitlines()
    return "```text\n" + "\n".join(line.rstrip() for line in lines) + "\n```"


def _statuses() -> list[tuple[str, str, str]]:
    return [
        ("0", "done and complete", ""),
        ("1", "a bug in `ens`; the traceback is in the file that is named", ""),
        *((str(kind.exit_status), _summary(kind), f"E{_digit(kind)}xx") for kind in _KINDS[:-1]),
        (str(errors.LockedError.exit_status), _summary(errors.LockedError), "E703"),
        ("130, 143, 129", "stopped by Ctrl-C, SIGTERM or SIGHUP; run the same command again to resume", "E801"),
    ]


def _digit(kind: type[errors.EnsError]) -> str:
    """Return the digit of a class's codes, as the tree in the docstring of `ensemble.errors` has it."""
    found = re.search(rf"{kind.__name__} +E(\d)", errors.__doc__ or "")
    assert found is not None, f"{kind.__name__} is not in the tree of ensemble.errors"
    return found[1]


def _summary(kind: type[errors.EnsError]) -> str:
    text = (kind.__doc__ or "").partition("\n")[0].strip().removesuffix(".")
    return text[0].lower() + text[1:]


def _table(header: tuple[str, ...], rows: list[tuple[str, str, str]]) -> str:
    lines = [header, ("---",) * len(header), *(tuple(map(_escape, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _escape(text: str) -> str:
    """Return a cell's text such that Markdown shows every character; options are code."""
    text = re.sub(r"(?<![\w`-])--[a-z][a-z-]*", r"`\g<0>`", text)
    parts = text.replace("|", "\\|").split("`")
    parts[::2] = [part.replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_") for part in parts[::2]]
    return "`".join(parts)


def main() -> None:
    """Write the pages."""
    for name, text in pages().items():
        write_atomic(DOCS / name, text.encode())


if __name__ == "__main__":
    main()
