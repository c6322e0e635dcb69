"""Parse values per channel from the command line: mean, std and scale of a normalization."""

from __future__ import annotations

from ensemble.errors import OptionError
from ensemble.text.plain_numbers import to_float


def parse_scale(text: str) -> tuple[float, float]:
    """Parse ``LOW,HIGH`` from the command line, or ``HIGH`` alone for values from 0.

    Raises:
        OptionError: E204 when the text has a different form.
    """
    try:
        values = [to_float(part) for part in text.split(",")]
        low, high = values if len(values) == 2 else (0.0, *values)
    except ValueError as err:
        raise OptionError("E204", f"--scale takes LOW,HIGH, such as 0,65535, got {text!r}") from err
    return low, high


def parse_channel_values(text: str, option: str) -> tuple[float, ...]:
    """Parse ``R,G,B`` from the command line, or as many numbers as the network's input has channels.

    Raises:
        OptionError: E204 when the text is not one to four numbers.
    """
    try:
        values = tuple(to_float(part) for part in text.split(","))
    except ValueError as err:
        raise OptionError("E204", f"{option} takes one number per channel, as R,G,B, got {text!r}") from err
    if len(values) > 4:
        raise OptionError("E204", f"{option} takes one number per channel, up to four, got {text!r}")
    return values


def scale_channel_values(
    mean: tuple[float, ...] | None, std: tuple[float, ...] | None
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None, bool]:
    """Return mean and std for channels in 0..1, and if they were given for channels in 0..255.

    They are for 0..255 where a value is above 1.5: no mean or std of channels in 0..1 is.

    Raises:
        OptionError: E204 when one seems to be for 0..1 and the other for 0..255.
    """
    for option, values in (("--mean", mean), ("--std", std)):
        if values is not None and max(values) > 1.5 and any(0 < value <= 1 for value in values):
            raise OptionError("E204", f"{option} {_listed(values)} has values for 0..1 and for 0..255")
    large = [values is not None and max(values, default=0) > 1.5 for values in (mean, std)]
    if not any(large):
        return mean, std, False
    small = [values is not None and 0 < max(values, default=0) <= 1.5 for values in (mean, std)]
    if any(small):
        raise OptionError(
            "E204",
            f"--mean {_listed(mean)} and --std {_listed(std)} are not for channels of the same range",
            hint="give both for 0..1, or both for 0..255",
        )
    mean, std = (None if values is None else tuple(value / 255 for value in values) for values in (mean, std))
    return mean, std, True


def _listed(values: tuple[float, ...] | None) -> str:
    return ",".join(f"{value:g}" for value in values or ())
