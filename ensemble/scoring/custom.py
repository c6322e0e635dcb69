"""A metric of the user: ``my_metric.py:score``, a function of the truth and the probabilities.

The file is code and runs with the rights of the command: give files that you wrote or have read.
"""

from __future__ import annotations

import runpy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ensemble.arrays import Floats
from ensemble.errors import OptionError
from ensemble.scoring.answers import ScoredAnswers


@dataclass(frozen=True, slots=True)
class CustomMetric:
    """A function of the user as a metric; ``greater_is_better`` is the function's attribute of that name."""

    title: str
    function: Callable[..., object]
    greater_is_better: bool

    def score(self, answers: ScoredAnswers, weights: Floats) -> Floats:
        """Return the score of each resample: every row is repeated as often as it was drawn."""
        found = np.empty(len(weights))
        for i, row in enumerate(weights):
            part = answers.take(np.repeat(np.arange(answers.rows), row.astype(np.intp)))
            found[i] = self._call(part)
        return found

    def _call(self, answers: ScoredAnswers) -> float:
        truth = answers.truth if answers.exclusive else answers.truth.astype(np.int64)
        try:
            value = float(self.function(truth, answers.known()))  # type: ignore[arg-type]
        except (Exception, SystemExit) as err:  # whatever a user's function raises; sys.exit() would end the command
            raise OptionError(
                "E204",
                f"{self.title} fails on truth {truth.shape} and probabilities {answers.known().shape}: "
                f"{type(err).__name__}: {err}",
                hint="the function takes the true classes (N,), or labels of 0 and 1 (N, C), and probabilities (N, C)",
            ) from err
        return value


def read_custom(text: str) -> CustomMetric:
    """Run a Python file and return its function; without a name that is ``score``.

    Raises:
        OptionError: E204 when the file cannot be run or does not have the function.
    """
    name, _, function = text.partition(".py:")
    path = Path(f"{name.removesuffix('.py')}.py")
    function = function or "score"
    if not path.is_file():
        raise OptionError(
            "E204", f"{path}: this file does not exist", path=path, hint="a metric of yours is file.py:function"
        )
    try:
        found = runpy.run_path(str(path), run_name=path.stem).get(function)
    except BaseException as err:
        if isinstance(err, KeyboardInterrupt):
            raise
        raise OptionError("E204", f"{path} cannot be run: {type(err).__name__}: {err}", path=path) from err
    if not callable(found):
        raise OptionError("E204", f"{path} has no function {function!r}", path=path, hint="name it: file.py:function")
    return CustomMetric(f"{path.stem}:{function}", found, bool(getattr(found, "greater_is_better", True)))
