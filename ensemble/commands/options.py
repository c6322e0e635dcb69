"""What the commands' options have in common."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from ensemble.errors import OptionError

PATH = click.Path(path_type=Path)
ROOT = "runs"
bad_image_option = click.option(
    "--on-bad-image",
    type=click.Choice(["fail", "fill", "skip"]),
    default="fail",
    show_default=True,
    help="An image that cannot be read: an error once all others are done, the class prior, or no row.",
)
missing_option = click.option(
    "--allow-missing", is_flag=True, help="Let a submission lack images that could not be read, and name them."
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
