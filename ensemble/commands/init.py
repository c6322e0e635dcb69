"""The command `ens init`."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path

import click

from ensemble.commands.config_file import CONFIG, kind_of, name_of
from ensemble.commands.option_groups import GroupedCommand
from ensemble.commands.options import json_option
from ensemble.commands.output_paths import TOML
from ensemble.errors import FileError
from ensemble.terminal import show

_WIDTH = 100
_HEAD = """\
# Options of ens, a table per command: uncomment what is to differ from the default.
# The command line overrides this file; ens --no-config COMMAND does not read it.
"""


@click.command(short_help="Write a file of options")
@click.argument("names", metavar="COMMANDS", nargs=-1)
@click.option("-o", "path", type=TOML, default=Path(CONFIG), show_default=True, help="The file to write.")
@json_option
def init(names: tuple[str, ...], path: Path, as_json: bool) -> None:
    """Write ens.toml, with every option of the commands (by default of all) as a comment, and its default if
    it has one.

    Commands that run in its folder read it, so that a night's run is a file that can be kept.

    Example: ens init predict blend
    """
    from ensemble.files import write_atomic

    group = click.get_current_context().find_root().command
    assert isinstance(group, click.Group), "ens is a group of commands"
    for name in names:
        if name not in group.commands:
            raise click.BadParameter(f"{name!r} is not a command of ens", param_hint="COMMANDS")
    if path.exists():
        raise FileError("E762", f"{path} exists", path=path)
    chosen = tuple(dict.fromkeys(names)) or tuple(name for name in group.commands if name != "init")
    tables = [render_table(name, group.commands[name]) for name in chosen]
    write_atomic(path, "\n".join([_HEAD, *tables]).encode())
    count = f"{len(chosen)} command{'s' if len(chosen) > 1 else ''}"
    show({"path": str(path), "commands": list(chosen)}, f"{path}: {count}", as_json=as_json)


def render_table(name: str, command: click.Command) -> str:
    """Return the table of a command: its options as comments, with their help and default, grouped as in the help.

    An option without a default has no value: one that is written there would be taken.
    """
    lines = [f"[{name}]", f"# {command.short_help}"]
    for heading, parameters in _groups(command):
        lines += ["", f"# --- {heading} ---"] if heading else []
        for parameter in parameters:
            lines += ["", *(f"# {line}" for line in textwrap.wrap(_help_of(parameter), _WIDTH))]
            lines.append(f"#{name_of(parameter)} ={_value(parameter)}")
    return "\n".join(lines) + "\n"


def _groups(command: click.Command) -> Iterator[tuple[str, list[click.Parameter]]]:
    groups = command.groups if isinstance(command, GroupedCommand) else ()
    grouped = {id(option) for group in groups for option in group.options}
    others = [one for one in command.params if id(one) not in grouped]
    yield "", [one for one in others if isinstance(one, click.Argument)]
    for group in groups:
        yield group.heading, list(group.options)
    yield "Other options" if groups else "", [one for one in others if not isinstance(one, click.Argument)]


def _help_of(parameter: click.Parameter) -> str:
    parts = [getattr(parameter, "help", None) or f"The argument {parameter.human_readable_name}."]
    parts += ["One or more."] if parameter.nargs == -1 or parameter.multiple else []
    if isinstance(parameter.type, click.Choice):
        parts.append(f"One of {', '.join(map(str, parameter.type.choices))}.")
    parts += ["Required."] if parameter.required else []
    text = " ".join(parts)
    return text if parameter.required or _has_default(parameter) or "[default" in text else f"{text} No default."


def _has_default(parameter: click.Parameter) -> bool:
    if isinstance(parameter, click.Option) and parameter.is_flag:
        return True
    return isinstance(parameter.default, (bool, int, float, str, Path)) and parameter.default != ""


def _value(parameter: click.Parameter) -> str:
    """Return the default as TOML behind the equals sign; where there is none, no value but a comment of its kind."""
    default = parameter.default
    if isinstance(parameter, click.Option) and parameter.is_flag:
        return " true" if default is True else " false"
    if _has_default(parameter):
        return f" {default}" if isinstance(default, (int, float)) else f" {_quoted(str(default))}"
    if parameter.nargs == -1 or parameter.multiple:
        return '  # a list: ["...", "..."]'
    kind = kind_of(parameter)
    return f"  # {kind}" if kind != "text" else "  # text in quotes"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
