"""Options and checks that several commands share."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from ensemble.errors import OptionError
from ensemble.terminal import TERMINAL


class FilePath(click.Path):
    """A path; an empty one, as an unset variable of the shell leaves, would be the working folder."""

    is_written = False

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path."""
        if isinstance(value, str) and (not value or "\0" in value):
            self.fail("a path is empty" if not value else "a path has a null character", param, ctx)
        if value == "-":  # elsewhere the standard streams; a file of this name is ./-
            instead = "what is to be written; nothing of it goes to the standard output"
            advice = instead if self.is_written else "one; /dev/stdin is what another program prints"
            self.fail(f"- is no file: name {advice}", param, ctx)
        return super().convert(value, param, ctx)


class Text(click.types.StringParamType):
    """A text of one line: line breaks and control characters would end up in pages, cards, tables and messages.

    The name of a column is the file's: an Excel header may have line breaks.
    """

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the text."""
        text = super().convert(value, param, ctx)
        found = _UNPRINTED.search(text)
        options = set() if param is None else set(param.opts)
        is_separator = text == "\t" and "--sep" in options
        # a file may be called so, and some options take a path
        is_path = "\0" not in text and os.path.lexists(text)
        if found is not None and not is_separator and not is_path and _COLUMNS.isdisjoint(options):
            self.fail(f"it has a line break or control character: {found[0]!r}", param, ctx)
        return text


_COLUMNS = {"--id-column", "--label-column", "--group-column", "--fold-column", "--smooth-group", "--smooth-order"}
PATH = FilePath(path_type=Path)
TEXT = Text()
_UNPRINTED = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
ROOT = "runs"
# the values of `ensemble.card`, which the help needs without importing it
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "area")
RESIZERS = ("pillow", "opencv", "torch", "torch-antialias", "torch-uint8", "torch-uint8-antialias")
CHANNELS = ("rgb", "bgr", "grey", "1", "2", "3", "4")
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
    help="Accept a submission without the images that could not be read, and list them.",
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


def progress_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add ``-q`` and ``-v``, and show the progress of the command from its start."""

    @functools.wraps(command)
    def with_progress(*, is_quiet: bool, is_verbose: bool, **parameters: Any) -> None:
        if is_quiet and is_verbose:
            raise conflict("--quiet and --verbose contradict each other")
        name = str(click.get_current_context().info_name)
        TERMINAL.begin(name, level=int(is_verbose) - int(is_quiet))
        click.get_current_context().call_on_close(TERMINAL.close)
        command(**parameters)

    wrapped: Callable[..., None] = with_progress
    wrapped = click.option("-v", "--verbose", "is_verbose", is_flag=True, help="Say more about the progress.")(wrapped)
    text = "Show warnings and errors only, no notes and no progress."
    return click.option("-q", "--quiet", "is_quiet", is_flag=True, help=text)(wrapped)


class InterpolationChoice(click.Choice[str]):
    """An interpolation under timm's name, or under OpenCV's: ``linear``, ``cubic`` and ``lanczos4``."""

    _ALIASES: Mapping[str, str] = {"linear": "bilinear", "cubic": "bicubic", "lanczos4": "lanczos"}

    def __init__(self) -> None:
        super().__init__(INTERPOLATIONS)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return timm's name."""
        return super().convert(self._ALIASES.get(value, value), param, ctx)


_RUN_OPTIONS = (
    click.option(
        "--device",
        default="auto",
        show_default=True,
        help="auto, cpu, cpu:fastest, cuda, cuda:N, cuda:N,M, tensorrt, openvino, openvino:bf16, a plugin provider "
        "of ens doctor; only auto falls back to the CPU, which is OpenVINO for int8 models of --quantization openvino.",
    ),
    click.option(
        "-b",
        "--batch",
        type=click.IntRange(1, 4096),
        help="Images per batch.  [default: found by a trial on the CPU, 128 on a GPU]",
    ),
    click.option("-j", "--workers", type=click.IntRange(1, 512), help="Worker threads.  [default: one per core]"),
    click.option("--memory", help="Memory limit, such as 4G or 512M.  [default: half of what is available]"),
    click.option("--fresh", is_flag=True, help="Discard the results of an earlier run and start over."),
    bad_image_option,
)


def run_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that `RunOptions` holds to a command, which gets them as its parameter ``options``."""

    @functools.wraps(command)
    def with_options(
        *,
        device: str,
        batch: int | None,
        workers: int | None,
        memory: str | None,
        fresh: bool,
        on_bad_image: Any,
        **parameters: Any,
    ) -> None:
        from ensemble.predict.memory_budget import parse_memory
        from ensemble.predict.options import RunOptions

        options = RunOptions(
            device=device,
            batch=batch,
            workers=workers,
            memory=None if memory is None else parse_memory(memory),
            fresh=fresh,
            on_bad_image=on_bad_image,
            listener=TERMINAL,
        )
        command(options=options, **parameters)

    wrapped: Callable[..., None] = with_options
    for option in reversed(_RUN_OPTIONS):
        wrapped = option(wrapped)
    return wrapped


def conflict(message: str, *, hint: str | None = None) -> OptionError:
    """Return E204 for options that contradict or need each other, with the usage line of the command that runs."""
    context = click.get_current_context(silent=True)
    usage = () if context is None else (context.get_usage(),)
    return OptionError("E204", message, hint=hint, details=usage)


def named(name: str, paths: Sequence[Path]) -> dict[str, Path | None]:
    """Return the paths of an argument or option that may be repeated, by names for messages."""
    return {f"{name} {path}": path for path in paths}


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


def require_torch_extra(command: str) -> None:
    """Check that the packages of the extra ``torch`` are installed, without loading them.

    Raises:
        OptionError: E205 when one is missing.
    """
    from importlib.util import find_spec

    with torch_extra(command):
        for name in ("torch", "timm", "onnxscript"):
            if find_spec(name) is None:
                raise ModuleNotFoundError(name=name)


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
