"""The destination of a submission: what it is to contain, and writing it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ensemble.blend.combine import combine_answers
from ensemble.blend.recipe import Recipe
from ensemble.errors import OptionError
from ensemble.events import SILENT, Listener
from ensemble.submission.rows import RowMap
from ensemble.submission.sheet import AnswerSheet, Submission
from ensemble.submission.sheet_options import NO_OPTIONS, SheetOptions, default_sheet
from ensemble.submission.write import require_probabilities, write_submission


@dataclass(frozen=True, slots=True)
class Destination:
    """The destination of a submission: the file ``path``, with the header, order and ids of ``like`` where it is given.

    ``work`` is the folder of what is computed, from which a run that was stopped resumes. With ``allow_missing`` the
    submission may lack images that could not be read. With a ``row_map`` several images are combined into each row.
    Without a sample, ``options`` say how answers are written.
    """

    path: Path
    work: Path
    like: AnswerSheet | None = None
    allow_missing: bool = False
    row_map: RowMap | None = None
    options: SheetOptions = NO_OPTIONS

    @property
    def images(self) -> tuple[str, ...] | None:
        """The ids of the images that are needed, or None for all."""
        if self.row_map is not None:
            return self.row_map.distinct_images
        return None if self.like is None else self.like.ids


def require_answers_known(recipe: Recipe, destination: Destination, *, early_exit: bool) -> None:
    """Check that an early exit, which gives classes only, gives what the destination asks for.

    Raises:
        OptionError: E207 when it does not.
    """
    if not early_exit:
        return
    require_probabilities(_sheet_of(destination, recipe, ()), known=False)
    if destination.row_map is not None:
        raise OptionError("E207", "an early exit only knows the class of an image, and rows combine probabilities")


def write_answers(
    destination: Destination,
    answers: Submission,
    recipe: Recipe,
    *,
    missing: Sequence[str] = (),
    listener: Listener = SILENT,
) -> int:
    """Write the answers for images as a submission, and return the number of its rows.

    Raises:
        EnsError: as `combine_answers` and `write_submission`.
    """
    if destination.row_map is not None:
        found = combine_answers(
            answers, recipe, destination.row_map, missing=missing, sheet=destination.like, listener=listener
        )
        answers, missing = found.submission, found.missing
    sheet = _sheet_of(destination, recipe, answers.ids)
    write_submission(destination.path, answers, sheet=sheet, missing=missing, listener=listener)
    return len(answers)


def _sheet_of(destination: Destination, recipe: Recipe, ids: Sequence[str]) -> AnswerSheet:
    if destination.like is not None:
        return destination.like
    independent = recipe.activation == "sigmoid"
    return default_sheet(ids, recipe.labels, options=destination.options, independent=independent)
