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
        raise OptionError("E205", f"ens {command} needs {err.name}, which is not installed") from err


@contextmanager
def report_extra(command: str) -> Iterator[None]:
    """Turn a missing matplotlib into an error that names the extra ``report``."""
    try:
        yield
    except ModuleNotFoundError as err:
        if (err.name or "").partition(".")[0] != "matplotlib":
            raise
        raise OptionError(
            "E205", f"ens {command} needs matplotlib, which is not installed", hint="pip install 'ens-onnx[report]'"
        ) from err
