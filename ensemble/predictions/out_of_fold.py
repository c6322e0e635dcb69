"""Out-of-fold predictions: the folds of one model, each on the images that it was not trained on, become one member."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ensemble.errors import DataError, PredictionError, enumerate_some
from ensemble.ids import join_rows
from ensemble.predictions.dataset import Predictions, hash_ids, require_read
from ensemble.predictions.members import common_views, members_by_name
from ensemble.predictions.truth import Truth


def gather_folds(members: Sequence[Predictions], truth: Truth) -> list[Predictions]:
    """One member for each group, named by it: its folds' rows joined, in the order of the truth's ids and classes.

    No image may be predicted by two folds of a group: a fold predicts its own holdout alone, so that no prediction is
    of an image that its model was trained on. A group of one member needs no fold, as with a single holdout. A model
    whose card knows its holdout must have predicted just that.

    Raises:
        DataError: E330 when a group does not predict just the truth's images.
        PredictionError: E501 when classes differ, E511 when predictions are plainly not out-of-fold, E512 when a person
            is in two holdouts, E515 when a member comes twice, E516 when views differ inside a group, E534 when images
            could not be read and are missing.
    """
    groups: dict[str, list[Predictions]] = {}
    for member in members_by_name(members).values():
        groups.setdefault(member.group, []).append(member)
    return [_gather(group, folds, truth) for group, folds in sorted(groups.items())]


def _gather(group: str, folds: Sequence[Predictions], truth: Truth) -> Predictions:
    require_read(folds, truth.ids)
    _require_holdouts(group, folds)
    ids = [name for fold in folds for name in fold.ids]
    rows = join_rows(truth.ids, ids, complain=partial(_not_the_truth, group))
    if truth.persons is not None:
        _require_whole_persons(group, folds, rows, truth.persons)
    columns = [truth.labels.permutation(fold.labels, owner=fold.member) for fold in folds]
    logits = {
        view: np.concatenate([fold.logits[view][:, order] for fold, order in zip(folds, columns, strict=True)])[rows]
        for view in common_views(folds)
    }
    for values in logits.values():
        values.flags.writeable = False
    digest = hashlib.sha256("".join(fold.sha256 for fold in folds).encode()).hexdigest()
    filled = tuple(name for fold in folds for name in fold.filled)
    return Predictions(group, group, None, truth.labels, truth.ids, logits, digest, filled=filled)


def _require_holdouts(group: str, folds: Sequence[Predictions]) -> None:
    for fold in folds:
        if fold.holdout_sha256 is not None and fold.holdout_sha256 != hash_ids((*fold.ids, *fold.missing)):
            raise PredictionError(
                "E511",
                f"{fold.member}: its {len(fold):,} images are not just those that its training held out "
                "(the hash of their ids is not the one in its card)",
                hint="ens train leaves the predictions of each fold's holdout in oof/; a model's others are no such",
            )
    if len(folds) == 1:
        return
    numbers = [fold.fold for fold in folds]
    if None in numbers or len(set(numbers)) != len(numbers):
        listed = ", ".join(f"{fold.member} {'none' if fold.fold is None else fold.fold}" for fold in folds)
        raise PredictionError("E511", f"{group}: its members need a fold each, all different; got {listed}")
    times = Counter(name for fold in folds for name in fold.ids)
    twice = [name for name, count in times.items() if count > 1]
    if twice:
        raise PredictionError(
            "E511",
            f"{group}: {len(twice):,} of {len(times):,} images are predicted by more than one of its "
            f"{len(folds)} folds: {enumerate_some(sorted(twice))}",
        )


def _require_whole_persons(
    group: str, folds: Sequence[Predictions], rows: NDArray[np.intp], persons: Sequence[str]
) -> None:
    fold_of_row = np.repeat(np.arange(len(folds)), [len(fold) for fold in folds])
    seen: dict[str, set[int]] = {person: set() for person in persons}
    for person, fold in zip(persons, fold_of_row[rows].tolist(), strict=True):
        seen[person].add(fold)
    split = sorted(person for person, found in seen.items() if len(found) > 1)
    if split:
        raise PredictionError(
            "E512", f"{group}: {len(split):,} of {len(seen):,} persons are in several holdouts: {enumerate_some(split)}"
        )


def _not_the_truth(group: str, difference: str) -> DataError:
    return DataError("E330", f"{group} does not predict the truth's images: what is predicted {difference}")
