"""Options and checks that several commands share."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from click.core import ParameterSource

from ensemble.errors import OptionError

PATH = click.Path(path_type=Path)
ROOT = "runs"
bad_image_option = click.option(
    "--on-bad-image",
    type=click.Choice(["fail", "fill", "skip"]),
    default="fail",
    show_default=True,
    help="How to handle unreadable images: `fail` at the end, `fill` with the class prior, or `skip`.",
)
missing_option = click.option(
    "--allow-missing",
    is_flag=True,
    help="Allow a submission to lack images that could not be read, and list them.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
_NEEDS_TORCH = {
    "accelerate",
    "torch",
    "timm",
    "torchvision",
    "onnxscript",
    "safetensors",
    "albumentations",
    "facenet_pytorch",
}


def conflict(message: str, *, hint: str | None = None) -> OptionError:
    """Return E204 for options that contradict or need each other, with the usage line of the command that runs."""
    context = click.get_current_context(silent=True)
    usage = () if context is None else (context.get_usage(),)
    return OptionError("E204", message, hint=hint, details=usage)


def given_options(names: Collection[str]) -> str:
    """Return which of the running command's parameters were given on the command line: ``--pool, --weights``."""
    context = click.get_current_context()
    given = [
        max(parameter.opts, key=len)
        for parameter in context.command.params
        if parameter.name in names and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
    ]
    return ", ".join(given)


@contextmanager
def torch_extra(command: str) -> Iterator[None]:
    """Turn a missing package of the extra ``torch`` into an error that says how to install it."""
    try:
        yield
    except ModuleNotFoundError as err:
        if err.name not in _NEEDS_TORCH:
            raise
        raise _missing(command, str(err.name), extra="torch") from err


@contextmanager
def report_extra(command: str) -> Iterator[None]:
    """Turn a missing matplotlib into an error that names the extra ``report``."""
    try:
        yield
    except ModuleNotFoundError as err:
        if (err.name or "").partition(".")[0] != "matplotlib":
            raise
        raise _missing(command, "matplotlib", extra="report") from err


def _missing(command: str, package: str, *, extra: str) -> OptionError:
    from ensemble.install import install_command

    message = f"ens {command} needs {package}, which is not installed"
    return OptionError("E205", message, hint=install_command(extra=extra))
