"""Commands with many options: headings in their help, and one dataclass per group of values in their signature.

    GROUPS = (
        OptionGroup("Optimization", (field_option(Settings, "epochs", "Number of epochs."), ...)),
        OptionGroup("Output", (click.Option(["-o", "folder"], help="..."), ...)),
    )

    @grouped_command(*GROUPS, collect={"settings": Settings}, short_help="Train a member over folds")
    @json_option
    def train(settings: Settings, folder: Path, as_json: bool) -> None: ...

The values of all options named like a field of ``Settings`` arrive as one ``Settings``, and all others by themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

import click


@dataclass(frozen=True, slots=True, eq=False)
class OptionGroup:
    """Options that the help lists under one heading."""

    heading: str
    options: tuple[click.Option, ...]


class GroupedCommand(click.Command):
    """A command whose help has a heading per group, and whose function gets some of its values as dataclasses."""

    groups: tuple[OptionGroup, ...] = ()
    collect: Mapping[str, type] = {}

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the groups in their order, and all other options, such as ``--help``, at the end."""
        grouped = {id(option) for group in self.groups for option in group.options}
        others = [
            parameter
            for parameter in self.get_params(ctx)
            if isinstance(parameter, click.Option) and id(parameter) not in grouped
        ]
        for group in self.groups:
            _write_section(group.heading, group.options, ctx, formatter)
        _write_section("Other options", others, ctx, formatter)

    def invoke(self, ctx: click.Context) -> Any:
        """Collect the values of each dataclass, and call the function.

        Raises:
            EnsError: as the dataclasses do when a value is out of range.
        """
        for parameter, kind in self.collect.items():
            names = [field.name for field in fields(kind) if field.name in ctx.params]
            ctx.params[parameter] = kind(**{name: ctx.params.pop(name) for name in names})
        return super().invoke(ctx)


def grouped_command(
    *groups: OptionGroup, collect: Mapping[str, type], short_help: str
) -> Callable[[Callable[..., None]], GroupedCommand]:
    """Return a decorator like `click.command`, which adds the options of the groups to those of other decorators.

    ``collect`` maps a parameter of the function to the dataclass that it gets; an option goes to the dataclass that has
    a field of its name.
    """

    def decorate(function: Callable[..., None]) -> GroupedCommand:
        command = click.command(cls=GroupedCommand, short_help=short_help)(function)
        command.groups = groups
        command.collect = collect
        command.params += [option for group in groups for option in group.options]
        return command

    return decorate


def field_option(
    kind: type,
    name: str,
    help: str,  # noqa: A002 - click's own name
    *,
    flag: str | None = None,
    type: Any = None,  # noqa: A002 - click's own name
    metavar: str | None = None,
) -> click.Option:
    """Return the option for a field of a dataclass, with the field's default: the dataclass is its only source.

    The flag is made of the field's name unless ``flag`` is given. A tuple of numbers is given as ``1,2,3``, and a field
    that is False by default is a flag without a value.
    """
    field = {field.name: field for field in fields(kind)}[name]
    default = field.default
    if default is MISSING:
        required = field.default_factory is MISSING
        return click.Option([flag or _flag(name), name], type=type, required=required, metavar=metavar, help=help)
    if default is False:
        return click.Option([flag or _flag(name), name], is_flag=True, help=help)
    return click.Option(
        [flag or _flag(name), name],
        type=type,
        default=",".join(map(str, default)) if isinstance(default, tuple) and default else default,
        multiple=default == (),
        show_default=default not in (None, ()),
        metavar=metavar,
        help=help,
    )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _write_section(
    heading: str, options: Iterable[click.Parameter], ctx: click.Context, formatter: click.HelpFormatter
) -> None:
    records = [record for option in options if (record := option.get_help_record(ctx)) is not None]
    if records:
        with formatter.section(heading):
            formatter.write_dl(records)
