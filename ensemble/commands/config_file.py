"""Options from a file: ``ens.toml`` has a table per command, with the names of its options.

    [predict]
    models = ["models/*.onnx"]
    images = "eval/images"
    tta = true

A value stands for the option on the command line, which overrides it (a flag ``--tta`` by ``--no-tta``); arguments have
the name that the usage line shows, in small letters. Relative paths start at the working directory, as on the command
line.
"""

from __future__ import annotations

import difflib
import glob
import os
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from ensemble.errors import EnsError, FileError
from ensemble.events import Notice
from ensemble.terminal import TERMINAL

CONFIG = "ens.toml"
_MOST_BYTES = 1_000_000
_QUIET = ("-q", "--quiet")


def name_of(parameter: click.Parameter) -> str:
    """Return the name of an option or argument in the file, such as ``on-bad-image``."""
    if isinstance(parameter, click.Argument):
        return str(parameter.metavar or parameter.name).rstrip(".").lower().replace("_", "-")
    return max(parameter.opts, key=len).lstrip("-")


def settable(command: click.Command) -> dict[str, click.Parameter]:
    """Return what the table of a command may set, by name."""
    return {name_of(parameter): parameter for parameter in command.params}


def find_config(given: Path | None, *, ignore: bool) -> Path | None:
    """Return the file to read: the one that was given, else that of the working directory if there is one.

    Raises:
        FileError: E707 when the one that was given is not there, or either is not a file: a folder, a broken link.
    """
    if ignore:
        return None
    path = given or Path(CONFIG)
    if path.is_file():
        return path
    if os.path.lexists(path):
        what = "leads nowhere" if path.is_symlink() and not path.exists() else "is not a file"
        hint = "remove or rename it; ens --no-config COMMAND does not read it"
        raise FileError("E707", f"{path} {what}", hint=None if given else hint, path=path)
    if given is not None:
        raise FileError("E707", f"--config {given} does not exist", path=given)
    return None


def read_config(path: Path, commands: Mapping[str, click.Command]) -> dict[str, dict[str, Any]]:
    """Read a file with a table per command.

    Raises:
        FileError: E761 when it is not TOML, or has something else than tables of these commands; E707 when it cannot be
            read.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise _invalid(path, f"it has more than {_MOST_BYTES:,} bytes")
        tables = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as err:
        raise FileError("E707", f"{path} cannot be read: {err.strerror}", path=path) from err
    except UnicodeDecodeError as err:
        raise _invalid(path, "it is not TOML: not UTF-8, as which it must be saved") from err
    except RecursionError as err:
        raise _invalid(path, "it is not TOML: nested too deeply") from err
    except ValueError as err:
        raise _invalid(path, f"it is not TOML: {err}") from err
    for name, table in tables.items():
        if name not in commands:
            raise _invalid(path, f"[{name}] is not a command{_nearest(name, commands)}")
        if not isinstance(table, dict):
            raise _invalid(path, f"{name} is a value: the options of a command are a table, [{name}]")
    return tables


def switch_off(command: click.Command, given: Sequence[str]) -> tuple[list[str], frozenset[str]]:
    """Take ``--no-NAME`` of flags out of a command line; returns the words that are left and the names of these flags.

    Of ``--NAME`` and ``--no-NAME`` the last one counts. Words behind ``--`` are arguments.
    """
    flags = {name_of(one): one for one in command.params if isinstance(one, click.Option) and one.is_flag}
    own = {text for one in command.params for text in one.opts}
    negated = {f"--no-{name}": name for name in flags if f"--no-{name}" not in own}
    words = list(given)
    end = words.index("--") if "--" in words else len(words)
    off: set[str] = set()
    for word in words[:end]:
        if word in negated:
            off.add(negated[word])
        off -= {name for name, one in flags.items() if word in one.opts}
    dropped = {text for name in off for text in flags[name].opts} | negated.keys()
    return [word for word in words[:end] if word not in dropped] + words[end:], frozenset(off)


def with_config(path: Path, command: click.Command, name: str, table: Mapping[str, Any], given: list[str]) -> list[str]:
    """Return the arguments of a command with those of its table that the command line does not give; says which.

    Raises:
        FileError: E761 when the table has an unknown name or a wrong value.
    """
    taken = settable(command)
    given, off = switch_off(command, given)
    for key in table:
        if key not in taken:
            raise _invalid(path, f"[{name}] has {key!r}, which is no option of ens {name}{_nearest(key, taken)}")
    words = {key: _words(path, f"[{name}] {key}", taken[key], value) for key, value in table.items()}
    on_line = _given(command, given)
    used = [key for key in table if taken[key].name not in on_line and words[key] and key not in off]
    if not used or on_line is _HELP:
        return given
    quiet = table.get("quiet") is True and "quiet" not in off
    if not quiet and not any(word in _QUIET for word in given):
        shown = ", ".join(max(taken[key].opts, key=len) if _is_option(taken[key]) else key for key in used)
        TERMINAL.notice(Notice("I760", f"{path} sets {shown}", path))
    options = [word for key in used if _is_option(taken[key]) for word in words[key]]
    return [*options, *(word for key in used if not _is_option(taken[key]) for word in words[key]), *given]


_HELP = frozenset({"help"})


def _given(command: click.Command, words: Sequence[str]) -> frozenset[str]:
    """Return the parameters that the words give; `_HELP` if they ask for help or are not valid."""
    try:
        values, _, order = command.make_parser(click.Context(command)).parse_args(list(words))
    except click.UsageError:
        return _HELP
    if any(one not in command.params for one in order):  # click's own option for help
        return _HELP
    names = {str(one.name) for one in order if isinstance(one, click.Option)}
    arguments = [one for one in command.params if isinstance(one, click.Argument)]
    texts = (str, tuple)
    return frozenset(names | {str(one.name) for one in arguments if isinstance(values.get(str(one.name)), texts)})


def _words(path: Path, where: str, parameter: click.Parameter, value: object) -> list[str]:
    """Return what would be typed for a value."""
    flag = isinstance(parameter, click.Option) and parameter.is_flag
    if flag or isinstance(value, bool):
        if not (flag and isinstance(value, bool)):
            raise _invalid(path, f"{where} takes {'true or false' if flag else kind_of(parameter)}, got {value!r}")
        return [max(parameter.opts, key=len)] * value
    several = parameter.nargs == -1 or parameter.multiple
    if isinstance(value, list) and not several:
        raise _invalid(path, f"{where} takes one value, got a list")
    found = [_text(path, where, parameter, one) for one in (value if isinstance(value, list) else [value])]
    if several and isinstance(parameter.type, click.Path):
        found = [name for text in found for name in _matches(text)]
    if not _is_option(parameter):
        # an argument that begins with a dash would be taken for an option
        return [f"./{text}" if text.startswith("-") else text for text in found]
    option = max(parameter.opts, key=len)
    return [f"{option}={text}" if option.startswith("--") else f"{option}{text}" for text in found]


def _text(path: Path, where: str, parameter: click.Parameter, value: object) -> str:
    """Return one value as text, if the option takes it."""
    numeric = isinstance(parameter.type, (click.types.IntParamType, click.types.FloatParamType))
    if isinstance(value, bool) or not isinstance(value, (int, float) if numeric else (str, int, float)):
        raise _invalid(path, f"{where} takes {kind_of(parameter)}, got {value!r}")
    if "\0" in str(value):  # which no command line can have, and no path
        raise _invalid(path, f"{where} has a NUL character")
    try:
        parameter.type.convert(str(value), parameter, None)
    except click.BadParameter as err:
        raise _invalid(path, f"{where}: {err.message}") from err
    except EnsError as err:
        raise _invalid(path, f"{where}: {err.message}; {err.hint}") from err
    return str(value)


def kind_of(parameter: click.Parameter) -> str:
    """Return what values of an option are, in words: a whole number, a number, or text."""
    if isinstance(parameter.type, click.types.IntParamType):
        return "a whole number"
    return "a number" if isinstance(parameter.type, click.types.FloatParamType) else "text"


def _matches(pattern: str) -> list[str]:
    """Return the paths that a pattern with ``*`` stands for, as a shell does; the pattern if there is none."""
    found = [] if os.path.exists(pattern) or not glob.has_magic(pattern) else sorted(glob.glob(pattern))
    return found or [pattern]


def _is_option(parameter: click.Parameter) -> bool:
    return isinstance(parameter, click.Option)


def _nearest(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name.replace("_", "-"), list(names), n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def _invalid(path: Path, message: str) -> FileError:
    return FileError("E761", f"{path}: {message}", path=path)
