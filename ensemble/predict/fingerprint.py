"""Fingerprint: what the results of a run depend on. Results of runs with different fingerprints are never mixed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime
import PIL

from ensemble.errors import PredictionError
from ensemble.text.json_types import require_field_types

# by the keys of the files, in the order of messages
_NAMES = {
    "model": "model file",
    "models": "model files",
    "recipe": "recipe",
    "cells": "order of the forward passes",
    "stops": "early-exit thresholds",
    "views": "views",
    "ids": "image list",
    "boxes": "face boxes",
    "provider": "device",
    "versions": "versions of onnxruntime or Pillow",
}


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """The settings that the results of a run depend on: JSON-ready ``values`` by the keys that its files record."""

    values: Mapping[str, Any]

    def differences(self, other: Fingerprint) -> tuple[str, ...]:
        """Name the settings in which two runs differ, for messages; a setting without a value is None."""
        return tuple(name for key, name in _NAMES.items() if self.values.get(key) != other.values.get(key))


@dataclass(frozen=True, slots=True)
class Origin:
    """The record in one file of a run about itself.

    ``sizes`` is the hash of the sizes of its images' files (see `Slice`). ``missing`` is how many of its rows are not
    in it because the images could not be read; None leaves the key out, which is the same as 0.
    """

    run: Fingerprint
    sizes: str
    missing: int | None = None

    def to_json(self) -> str:
        """Return the text that goes into the file."""
        missing = {} if self.missing is None else {"missing": self.missing}
        return json.dumps({**self.run.values, "sizes": self.sizes, **missing})

    @classmethod
    def parse(cls, text: str, path: Path) -> Origin:
        """Read the text of a file; ``path`` is for the message.

        Raises:
            PredictionError: E514 when the text is not an origin.
        """
        try:
            values = dict(json.loads(text))
            require_field_types(values, {"sizes": str, "missing": int})
            return cls(sizes=values.pop("sizes"), missing=values.pop("missing", 0), run=Fingerprint(values))
        except (KeyError, TypeError, ValueError) as err:
            message = f"{path.name} does not record what it was computed from"
            raise PredictionError("E514", message, path=path) from err


def library_versions() -> str:
    """Return the versions of the libraries that decode images and run models."""
    return f"onnxruntime {onnxruntime.__version__}, Pillow {PIL.__version__}"
