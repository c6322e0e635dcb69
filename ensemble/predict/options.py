"""The options that `predict` and `submit` share. On the CPU none of them changes a bit of an answer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ensemble.events import SILENT, Listener
from ensemble.predict.bad_images import OnBadImage
from ensemble.runtime.device import Device


@dataclass(frozen=True, slots=True)
class RunOptions:
    """``device`` as `parse_device` takes it, ``auto``, ``cpu:fastest``, or one that `choose_run_device` has chosen.

    ``batch`` images are computed at once: by default 128 on a GPU, and on the CPU what a trial of each model on the
    first images shows to be fastest. ``workers`` threads decode, and on the CPU also compute; by default one per core.
    ``memory`` bytes, by default half of what is available, bound both. ``fresh`` removes what an earlier run left.
    ``on_bad_image`` is how unreadable images are handled; another choice in a later run computes nothing again.
    ``errors`` is the file that lists those images, by default ``errors.csv`` in the folder of the predictions.
    ``listener`` hears notices and progress.
    """

    device: str | Device = "auto"
    batch: int | None = None
    workers: int | None = None
    memory: int | None = None
    fresh: bool = False
    on_bad_image: OnBadImage = "fail"
    errors: Path | None = None
    listener: Listener = SILENT
