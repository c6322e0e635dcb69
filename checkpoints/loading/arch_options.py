"""Options of an architecture that its weights cannot show: pooling, epsilon of batch normalization, stride."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from checkpoints.loading.metadata import Found
from ensemble.errors import OptionError, cut_text
from ensemble.events import Listener, Notice

if TYPE_CHECKING:
    from checkpoints.loading.network import ArchOptions


def parse_arch_options(texts: Iterable[str]) -> dict[str, Any]:
    """Parse ``key=value`` from the command line: numbers, true, false, none and tuples as in Python, else text.

    Raises:
        OptionError: E204 when a text has another form, or a key is given twice.
    """
    found: dict[str, Any] = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign or not key.isidentifier() or not value:
            raise OptionError("E204", f"--arch-option takes key=value, such as bn_eps=1e-3, got {text!r}")
        if key in found:
            raise OptionError("E204", f"--arch-option {key} is given twice")
        if key in {"num_classes", "in_chans", "pretrained", "checkpoint_path"}:
            raise OptionError("E204", f"--arch-option {key}: that is decided by the checkpoint's weights")
        found[key] = _parse_value(value)
    return found


def settle_options(
    arch: str, given: ArchOptions, stored: Mapping[str, Found[Any]], path: Path, listener: Listener
) -> dict[str, Any]:
    """Return the options that an architecture takes: those given, then those stored in the checkpoint.

    Each stored one that is used is said, and so is one that the architecture does not take, which is left out.

    Raises:
        OptionError: E204 when the architecture does not take a given option.
    """
    settled: dict[str, Any] = {}
    for name, value in given.items():
        if (reason := why_not(arch, {**settled, name: value})) is not None:
            raise OptionError("E204", f"--arch-option {name}={value}: {arch} does not take it: {reason}")
        settled[name] = value
    for name, found in stored.items():
        if name in settled:
            continue
        said = f"{found.place} = {found.value!r}"
        if (reason := why_not(arch, {**settled, name: found.value})) is not None:
            listener.notice(Notice("W452", f"{said} is not used: {arch} does not take it ({reason})", path))
            continue
        settled[name] = found.value
        listener.notice(Notice("I451", f"{said} is used", path))
    return settled


def why_not(arch: str, options: ArchOptions) -> str | None:
    """Return why an architecture cannot be built with these options; None if it can."""
    import torch

    from checkpoints.loading.network import make_network

    try:
        with torch.device("meta"):
            make_network(arch, outputs=2, arch_options=options)
    except (AssertionError, AttributeError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError) as err:
        return cut_text((str(err).strip() or type(err).__name__).splitlines()[0], 200)
    return None


def _parse_value(text: str) -> Any:
    named = {"true": True, "false": False, "none": None}
    if text.lower() in named:
        return named[text.lower()]
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return value if isinstance(value, int | float | str | tuple | list) else text
