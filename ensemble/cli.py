"""The command line: the commands in the order of the pipeline, one module each in `ensemble.commands`.

No third-party package but click is imported before a command runs, so that
`ens --help` is as quick as click itself. What is printed goes through `ensemble.terminal`, errors through
`ensemble.__main__`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ensemble.commands.adopt import adopt
from ensemble.commands.audit import audit
from ensemble.commands.bench import bench
from ensemble.commands.blend import blend
from ensemble.commands.bundle import bundle
from ensemble.commands.check import check
from ensemble.commands.config_file import find_config, read_config, switch_off, with_config
from ensemble.commands.crop import crop
from ensemble.commands.data import data
from ensemble.commands.demo import demo
from ensemble.commands.distil import distil
from ensemble.commands.doctor import doctor
from ensemble.commands.evaluate import evaluate
from ensemble.commands.explain import explain
from ensemble.commands.explain_error import explain_error
from ensemble.commands.export import export
from ensemble.commands.fuse import fuse
from ensemble.commands.init import init
from ensemble.commands.options import PATH, TEXT
from ensemble.commands.page import page
from ensemble.commands.predict import predict
from ensemble.commands.probe import probe
from ensemble.commands.report import report
from ensemble.commands.submit import submit
from ensemble.commands.train import train
from ensemble.terminal import TERMINAL

_SECTIONS = {
    "Start": (demo, init, doctor, explain_error),
    "Train": (data, crop, audit, train, probe, distil),
    "Predict and submit": (export, adopt, predict, blend, submit, check),
    "Analyze": (evaluate, report, explain, bench),
    "Deploy": (fuse, bundle, page),
}


class _Sections(click.Group):
    """Lists the commands by section, in the order of the pipeline, and adds the options of a configuration file."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        if command is None or name is None or command is init:
            return name, command, rest
        config = find_config(ctx.params.get("config"), ignore=bool(ctx.params.get("no_config")))
        if config is None:
            return name, command, switch_off(command, rest)[0]
        table = read_config(config, self.commands).get(name, {})
        is_off = "json" in switch_off(command, rest)[1]
        # from here on, as what is wrong in the table is an error like others
        TERMINAL.as_json |= table.get("json") is True and not is_off
        words = with_config(config, command, name, table, rest)
        TERMINAL.as_json &= not is_off
        return name, command, words

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; a pipe that breaks in it is an error, which click ends with in silence if it has a number."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as err:
            raise BrokenPipeError(str(err)) from err

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        width = max(map(len, self.commands))
        for title, commands in _SECTIONS.items():
            with formatter.section(title):
                # one width for all sections, so that their columns are aligned
                formatter.write_dl([(f"{command.name:{width}}", command.short_help or "") for command in commands])


@click.group(cls=_Sections, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="ens-onnx", prog_name="ens")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.option("--config", type=PATH, help="A file with the options of commands.  [default: ens.toml, if there is one]")
@click.option("--no-config", is_flag=True, help="Do not read ens.toml.")
def ens(debug: bool, config: Path | None, no_config: bool) -> None:
    """Turn trained image classifiers into a contest submission you can trust.

    \b
    checkpoints -> ens export -> models/*.onnx
    models/*.onnx -> ens predict --tta -> ens blend -> submission.csv
    """


for _commands in _SECTIONS.values():
    for _command in _commands:
        for _parameter in _command.params:
            if type(_parameter.type) is click.types.StringParamType:
                _parameter.type = TEXT
        ens.add_command(_command)
