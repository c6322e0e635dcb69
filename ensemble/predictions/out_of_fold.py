"""Join out-of-fold predictions: each fold of a model predicts its own holdout, and together they form one member."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import cast

import numpy as np
from numpy.typing import NDArray

from ensemble.arrays import Floats, Logits
from ensemble.errors import DataError, PredictionError, enumerate_some
from ensemble.events import SILENT, Listener, Notice
from ensemble.ids import join_rows
from ensemble.predictions.dataset import Predictions, hash_ids, require_none_missing
from ensemble.predictions.members import common_views, members_by_name, select_images
from ensemble.predictions.truth import Truth

ALL_FOLDS = "give the predictions of every fold, and a ground truth that has their images and no others"
"""A hint where out-of-fold predictions are not of the images of the ground truth."""

_SAME_VIEWS = "predict every fold's images with the same views"


def gather_folds(
    members: Sequence[Predictions],
    truth: Truth,
    *,
    pass_over: bool = False,
    hint: str = ALL_FOLDS,
    listener: Listener = SILENT,
) -> list[Predictions]:
    """Return one member per group, named like it: its folds' rows, in the order of the ground truth's ids and classes.

    Where the ground truth knows the folds, a model may have predicted more than it held out: see `held_out_part`.

    No image may be predicted by two folds of a group: each fold predicts only its own holdout, so no prediction is of
    an image its model was trained on. A group of one member needs no fold number (a single holdout). If a card has the
    hash of its holdout, the predicted images must match it. With ``pass_over`` predictions of images that
    are not in the ground truth are passed over, with a notice, as long as all of its images are predicted. ``hint``
    is for the error E330.

    A group that was trained on several fold splits (``repeat``) has a prediction of each for every image: the member is
    the mean of their probabilities, with the predictions of each split as its ``looks``.

    Raises:
        DataError: E330 when a group's images are not those of the ground truth.
        PredictionError: E501 when classes differ, E511 when predictions are not out-of-fold, E512 when a person is in
            two holdouts, E515 when a member name is repeated, E516 when views differ within a group, E534 when images
            are missing because they were unreadable.
    """
    groups: dict[str, dict[int, list[Predictions]]] = {}
    for member in members_by_name(held_out_part(members, truth, listener=listener)).values():
        groups.setdefault(member.group, {}).setdefault(member.repeat, []).append(member)
    told = listener if pass_over else None
    return [
        _join_splits([_gather(group, splits[repeat], truth, hint, told) for repeat in sorted(splits)])
        for group, splits in sorted(groups.items())
    ]


def held_out_part(members: Sequence[Predictions], truth: Truth, *, listener: Listener = SILENT) -> list[Predictions]:
    """Return the members, those of a group with common images with the images that each one's fold held out (I593).

    Which these are the ground truth says. So predictions of all training images by all models are as good as those of
    the holdouts. Where the ground truth has no folds, or a model does not say its own, nothing is left out.
    """
    if truth.folds is None:
        return list(members)
    fold_of = dict(zip(truth.ids, truth.folds, strict=True))
    times = Counter((one.group, one.repeat, name) for one in members for name in one.ids)
    several = {(group, repeat) for (group, repeat, _), count in times.items() if count > 1}
    found = [
        one if one.fold is None or (one.group, one.repeat) not in several else _of_fold(one, fold_of, one.fold)
        for one in members
    ]
    cut = [
        f"{new.member} {len(new):,} of {len(old):,}" for old, new in zip(members, found, strict=True) if new is not old
    ]
    if cut:
        message = "out of fold are the images of each model's own fold, as the ground truth has it"
        listener.notice(Notice("I593", f"{message}: {enumerate_some(cut)}"))
    return found


def _of_fold(member: Predictions, fold_of: Mapping[str, int], fold: int) -> Predictions:
    """Return the predictions of the images of a fold."""
    ids = [name for name in member.ids if fold_of.get(name) == fold]
    digest = hashlib.sha256(f"{member.sha256} {hash_ids(ids)}".encode()).hexdigest()
    missing = tuple(name for name in member.missing if fold_of.get(name) == fold)
    return replace(select_images(member, ids), sha256=digest, missing=missing)


def _join_splits(splits: Sequence[Predictions]) -> Predictions:
    """Return the mean of a group's predictions in several fold splits, which are in the order of the ground truth."""
    first, *others = splits
    if not others:
        return first
    looks = {
        view: np.stack([one.logits[view] for one in splits]).astype(np.float64)
        for view in common_views(splits, hint=_SAME_VIEWS)
    }
    logits = {}
    for view, values in looks.items():
        mean = mean_logits(values, independent=first.independent)
        mean.flags.writeable = values.flags.writeable = False
        logits[view] = cast("Logits", mean)
    digest = hashlib.sha256("".join(one.sha256 for one in splits).encode()).hexdigest()
    filled = tuple(dict.fromkeys(name for one in splits for name in one.filled))
    return replace(first, logits=logits, looks=looks, sha256=digest, filled=filled)


def mean_logits(values: Floats, *, independent: bool) -> Floats:
    """Return the logits ``(N, C)`` of the mean of probabilities, from the logits ``(R, N, C)`` of each split."""
    from scipy.special import log_expit, log_softmax, logsumexp

    if independent:
        return np.asarray(logsumexp(log_expit(values), axis=0) - logsumexp(log_expit(-values), axis=0))
    return np.asarray(logsumexp(log_softmax(values, axis=-1), axis=0) - np.log(len(values)))


def _gather(
    group: str, folds: Sequence[Predictions], truth: Truth, hint: str, passed_over: Listener | None
) -> Predictions:
    """Return the rows of a group's folds; ``passed_over`` hears of predictions of other images, without it an error."""
    require_none_missing(folds, truth.ids)
    _require_holdouts(group, folds)
    if passed_over is not None:
        folds = _without_others(group, folds, truth, passed_over)
    ids = [name for fold in folds for name in fold.ids]
    rows = join_rows(truth.ids, ids, complain=partial(_not_the_truth, group, hint))
    if truth.persons is not None:
        _require_persons_in_one_holdout(group, folds, rows, truth.persons)
    columns = [truth.labels.permutation(fold.labels, owner=fold.member) for fold in folds]
    logits = {
        view: np.concatenate([fold.logits[view][:, order] for fold, order in zip(folds, columns, strict=True)])[rows]
        for view in common_views(folds, hint=_SAME_VIEWS)
    }
    for values in logits.values():
        values.flags.writeable = False
    digest = hashlib.sha256("".join(fold.sha256 for fold in folds).encode()).hexdigest()
    filled = tuple(name for fold in folds for name in fold.filled)
    activation = folds[0].activation
    return Predictions(
        group, group, None, truth.labels, truth.ids, logits, digest, filled=filled, activation=activation
    )


def _without_others(
    group: str, folds: Sequence[Predictions], truth: Truth, listener: Listener
) -> Sequence[Predictions]:
    """Return the folds without the images that the ground truth lacks, or as they are where they lack some of its."""
    known = set(truth.ids)
    every = [name for fold in folds for name in fold.ids]
    if len(every) == len(known) or not known.issubset(every):
        return folds
    text = f"{group}: {len(every) - len(known):,} predictions are of images that the labels do not have; passed over"
    listener.notice(Notice("I330", text))
    return [select_images(fold, [name for name in fold.ids if name in known]) for fold in folds]


def _require_holdouts(group: str, folds: Sequence[Predictions]) -> None:
    for fold in folds:
        if fold.holdout_sha256 is not None and fold.holdout_sha256 != hash_ids((*fold.ids, *fold.missing)):
            raise PredictionError(
                "E511",
                f"{fold.member}: its {len(fold):,} images are not exactly those held out from training "
                "(the hash of their ids differs from the one in its card)",
                hint="pass the predictions that ens train writes to oof/: only those are out-of-fold",
            )
    if len(folds) == 1:
        return
    numbers = [fold.fold for fold in folds]
    if None in numbers or len(set(numbers)) != len(numbers):
        listed = ", ".join(f"{fold.member} {'none' if fold.fold is None else fold.fold}" for fold in folds)
        raise PredictionError("E511", f"{group}: its members need distinct fold numbers, got {listed}")
    times = Counter(name for fold in folds for name in fold.ids)
    twice = [name for name, count in times.items() if count > 1]
    if twice:
        raise PredictionError(
            "E511",
            f"{group}: {len(twice):,} of {len(times):,} images are predicted by more than one of its "
            f"{len(folds)} folds: {enumerate_some(sorted(twice))}",
        )


def _require_persons_in_one_holdout(
    group: str, folds: Sequence[Predictions], rows: NDArray[np.intp], persons: Sequence[str]
) -> None:
    fold_of_row = np.repeat(np.arange(len(folds)), [len(fold) for fold in folds])
    seen: dict[str, set[int]] = {person: set() for person in persons}
    for person, fold in zip(persons, fold_of_row[rows].tolist(), strict=True):
        seen[person].add(fold)
    split = sorted(person for person, found in seen.items() if len(found) > 1)
    if split:
        raise PredictionError(
            "E512",
            f"{group}: {len(split):,} of {len(seen):,} persons are in more than one holdout: {enumerate_some(split)}",
        )


def _not_the_truth(group: str, hint: str, difference: str) -> DataError:
    return DataError("E330", f"{group}: its images are not those of the ground truth: it {difference}", hint=hint)
