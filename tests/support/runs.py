"""`predict` and `submit` with the fields of `RunOptions`, and of `Destination`, as keywords of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ensemble.blend.recipe import Recipe
from ensemble.events import Listener
from ensemble.predict.options import RunOptions
from ensemble.predict.predict import predict
from ensemble.predict.result import Predicted
from ensemble.submit.destination import Destination
from ensemble.submit.result import Submitted
from ensemble.submit.submit import submit


class StopAfter(Listener):
    """Stops a run as a signal would, once it has taken so many answers."""

    def __init__(self, answers: int, *, signal_number: int | None = None) -> None:
        self.left = answers
        self.arguments = () if signal_number is None else (signal_number,)

    def progress(self, stage: str, done: int, total: int) -> None:
        """Count the call at the start, and that after each answer."""
        if self.left == 0:
            raise KeyboardInterrupt(*self.arguments)
        self.left -= 1


def run_predict(models: Sequence[Path], images: Path | str, folder: Path, **options: Any) -> Predicted:
    """Call `predict`."""
    return predict(models, images, folder, options=_take(RunOptions, options), **options)


def run_submit(recipe: Recipe, images: Path, models: Sequence[Path], path: Path, **options: Any) -> Submitted:
    """Call `submit`."""
    run = _take(RunOptions, options)
    return submit(recipe, images, models, _take(Destination, options | {"path": path}, options), options=run, **options)


def _take(kind: Any, options: dict[str, Any], rest: dict[str, Any] | None = None) -> Any:
    """Make a value of those options that are its fields, and take them out of the rest."""
    taken = {field.name: options[field.name] for field in fields(kind) if field.name in options}
    for name in taken:
        (options if rest is None else rest).pop(name, None)
    return kind(**taken)
