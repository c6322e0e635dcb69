"""Read the texts of training settings (losses, class weights, augmentation) without torch, to refuse early."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from checkpoints.training.label_distribution import parse_spread
from checkpoints.training.settings import TrainSettings
from ensemble.errors import FileError, OptionError
from ensemble.text.input_file import read_input

_TERM = re.compile(r"(?:(\d*\.?\d+)\*)?(ce|bce|focal|asl|f1)")
_AUGMENTATIONS = frozenset({"none", "flip", "light", "default", "strong"})


def require_readable(settings: TrainSettings) -> None:
    """Check the settings that need neither torch nor data.

    Raises:
        OptionError: E204 when a text is not understood.
        FileError: E707 when there is no file of initial weights.
    """
    if settings.init is not None and not settings.init.exists():
        raise FileError("E707", f"--init {settings.init} does not exist", path=settings.init)
    parse_terms(settings.loss, settings.gamma, settings.label_smoothing)
    require_class_weights(settings.class_weights)
    for text in settings.label_distribution:
        parse_spread(text)
    if settings.augment not in _AUGMENTATIONS:
        read_transforms(settings.augment)


def parse_terms(text: str, gamma: float, smoothing: float) -> tuple[list[float], list[str]]:
    """Return the factors and the names of a loss, which is a sum of them.

    Raises:
        OptionError: E204 when the text is something else, or gamma or smoothing is out of range.
    """
    terms = [_TERM.fullmatch(part.strip()) for part in text.split("+")]
    factors = [float(term[1] or 1) for term in terms if term]
    if len(factors) != len(terms) or not sum(factors) > 0:
        raise OptionError(
            "E204", f"--loss takes ce, focal, f1, bce, asl or a sum such as 0.6*focal+0.4*f1, got {text!r}"
        )
    if not 0 <= gamma <= 100 or not 0 <= smoothing < 1:
        raise OptionError("E204", f"gamma must be 0 to 100 and smoothing 0 to below 1, got {gamma} and {smoothing}")
    return factors, [term[2] for term in terms if term]


def require_class_weights(kind: str) -> None:
    """Check the text of class weights.

    Raises:
        OptionError: E204 when it is not none, ins, isns or ens:<beta>, with beta in [0, 1).
    """
    name, _, number = kind.partition(":")
    if kind not in {"none", "ins", "isns"} and not (name == "ens" and re.fullmatch(r"0?\.\d+|0", number)):
        raise OptionError("E204", f"class weights are none, ins, isns or ens:<beta> with beta below 1, got {kind!r}")


def read_transforms(text: str) -> Sequence[Mapping[str, Any]]:
    """Return the transforms in a TOML file.

    Raises:
        OptionError: E204 when the file cannot be read, or lists none.
    """
    try:
        transforms: list[Mapping[str, Any]]
        transforms = tomllib.loads(read_input(Path(text), limit=1_000_000).decode())["transform"]
        names = [transform["name"] for transform in transforms]
    except (FileError, ValueError, KeyError, TypeError, RecursionError) as err:
        raise OptionError(
            "E204",
            "--augment takes none, flip, light, default, strong or a TOML file of [[transform]] tables, "
            f"got {text!r}: {err}",
        ) from err
    if not names:
        raise OptionError("E204", f"{text} lists no transforms", hint="use --augment none for no augmentation")
    return transforms
