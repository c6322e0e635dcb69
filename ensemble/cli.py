"""The command line: the commands in the order of the pipeline, each from a module of its own in `ensemble.commands`.

Nothing but the standard library, click and the errors is imported before a command runs, so that `ens --help` is
as quick as click itself. What is printed goes through `ensemble.terminal`; errors are met in `ensemble.__main__`.
"""

from __future__ import annotations

import click

from ensemble.commands.bench import bench
from ensemble.commands.blend import blend
from ensemble.commands.check import check
from ensemble.commands.crop import crop
from ensemble.commands.data import data
from ensemble.commands.demo import demo
from ensemble.commands.doctor import doctor
from ensemble.commands.evaluate import evaluate
from ensemble.commands.explain import explain
from ensemble.commands.explain_error import explain_error
from ensemble.commands.export import export
from ensemble.commands.predict import predict
from ensemble.commands.report import report
from ensemble.commands.submit import submit
from ensemble.commands.train import train


class _Ordered(click.Group):
    """Lists the commands in the order of the pipeline, not of the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(self.commands)


@click.group(cls=_Ordered, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="ens-onnx", prog_name="ens")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def ens(debug: bool) -> None:
    """Trained image classifiers to a contest submission you can trust.

    \b
    checkpoints -> ens export -> models/*.onnx -> ens predict --tta -> ens blend -> submission.csv

    Try it all on a toy contest: ens demo
    """


for _command in (
    demo,
    data,
    crop,
    train,
    export,
    predict,
    blend,
    submit,
    check,
    evaluate,
    report,
    explain,
    bench,
    doctor,
    explain_error,
):
    ens.add_command(_command)
