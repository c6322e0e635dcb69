"""``--features FILE[,KEY=VALUE]...``: a network, and what it needs that differs from the options of all."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ensemble.errors import OptionError, enumerate_some
from ensemble.text.plain_numbers import to_float

KEYS = ("output", "layout", "size", "mean", "std", "input-range", "channels", "margin", "align")
"""What each network may have for itself; how an image is resized is common to all."""
_COMMON = ("resize", "interpolation", "resizer", "crop-pct")
_CHOICES: Mapping[str, tuple[str, ...]] = {
    "layout": ("nchw", "nhwc"),
    "input-range": ("0..1", "-1..1", "0..255"),
    "channels": ("rgb", "bgr", "grey"),
    "align": ("arcface", "dlib"),
}


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """The file of a network, and its own ``settings`` by the names of the options, ``outputs`` and ``margin``."""

    path: Path
    settings: Mapping[str, str]
    outputs: tuple[str, ...] = ()
    margin: float | None = None


def parse_network(text: str) -> NetworkSpec:
    """Parse ``FILE[,KEY=VALUE]...``; a comma that no key follows belongs to what is before it.

    Raises:
        OptionError: E204 when a key is unknown, common to all networks or given twice, or a value is none of its.
    """
    file, *parts = re.split(r",(?=[a-z][a-z-]*=)", text)
    settings: dict[str, str] = {}
    outputs: list[str] = []
    margin: float | None = None
    for part in parts:
        key, value = part.split("=", 1)
        if key in _COMMON:
            hint = f"give --{key} once"
            raise OptionError("E204", f"--features {text}: {key} is common to all networks", hint=hint)
        if key not in KEYS:
            hint = "write FILE.onnx,key=value,..., such as face.onnx,output=fc1,size=112"
            raise OptionError("E204", f"--features {text}: {key} is not one of {', '.join(KEYS)}", hint=hint)
        if not value or (key in _CHOICES and value not in _CHOICES[key]):
            wanted = enumerate_some(list(_CHOICES[key])) if key in _CHOICES else "a value"
            hint = f"write {key}=VALUE after the file, or leave {key} out"
            raise OptionError("E204", f"--features {text}: {key} must be {wanted}, got {value!r}", hint=hint)
        if key == "output":
            outputs.append(value)
        elif key == "margin" and margin is None:
            margin = _margin(text, value)
        elif key in settings or key == "margin":
            hint = f"leave one {key}= out; only output= may be repeated"
            raise OptionError("E204", f"--features {text}: {key} is given twice", hint=hint)
        else:
            settings[key] = value
    return NetworkSpec(Path(file), settings, tuple(outputs), margin)


def _margin(text: str, value: str) -> float:
    try:
        return to_float(value)
    except ValueError as err:
        message = f"--features {text}: margin must be a number, got {value!r}"
        hint = "write the share of the face's longer side, such as margin=0.2"
        raise OptionError("E204", message, hint=hint) from err
