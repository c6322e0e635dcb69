"""Match out-of-fold predictions to members by name, where files of other tools do not say which fold of what they are.

Members' folders have a group and a fold in their card. A file has only its name: ``r18_f0.npz`` and ``r18_f1.npz`` of
different images are the folds of ``r18``; ``oof_r18.npy`` and ``test_r18.npy`` are the two sides of one model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from ensemble.errors import PredictionError, enumerate_some
from ensemble.events import Listener, Notice
from ensemble.predictions.dataset import Predictions

# m_f0, m-fold3, m_r1_f0; but net_r18_f0 is a fold of net_r18
_FOLD = re.compile(
    r"(?P<base>.*?[^._ -])(?:[._ -](?:r(?=[0-9](?![0-9]))|rep|repeat)[._ -]?(?P<repeat>[0-9]+))?"
    r"[._ -]?(?:f|fold|cv|split)[._ -]?(?P<number>[0-9]+)",
    re.IGNORECASE,
)
_SIDES = frozenset(
    {"oof", "outoffold", "cv", "train", "training", "val", "valid", "validation", "holdout", "test", "testing"}
    | {"eval", "sub", "submission", "pred", "preds", "prediction", "predictions", "prob", "probs", "proba"}
    | {"probability", "probabilities", "logit", "logits"}
)
"""Words of file names that say on which images a model predicted, or what; they do not name the model."""


def match_out_of_fold(
    oof: Sequence[Predictions], members: Sequence[Predictions], *, listener: Listener
) -> tuple[list[Predictions], list[Predictions]]:
    """Return the out-of-fold predictions and the members with the groups and folds that their names tell.

    What is matched by more than an equal name is said (I590).

    Raises:
        PredictionError: E590 when several files may be the same member's.
    """
    joined = join_folds(oof, listener=listener)
    wanted = {_key(one.group) for one in joined}
    names = {one.group for one in joined}
    folds = [one for one in members if _is_fold_of(one, names, wanted)]
    grouped = _as_folds(members, folds, listener)
    groups: dict[str, list[str]] = {}
    for one in grouped:
        groups.setdefault(one.group, []).append(one.member)
    return match_to_groups(joined, groups, listener=listener), grouped


def join_folds(members: Sequence[Predictions], *, listener: Listener) -> list[Predictions]:
    """Return members named like folds of one model, with no image in common, as the folds of one group."""
    by_base: dict[tuple[str, int], list[Predictions]] = {}
    for one in members:
        found = _FOLD.fullmatch(one.member)
        if found is not None and _is_single(one):
            by_base.setdefault((found["base"], int(found["repeat"] or 0)), []).append(one)
    several = [same for same in by_base.values() if len(same) > 1 and _have_no_image_in_common(same)]
    return _as_folds(members, [one for same in several for one in same], listener)


def match_to_groups(
    oof: Sequence[Predictions], groups: Mapping[str, Iterable[str]], *, listener: Listener
) -> list[Predictions]:
    """Return out-of-fold predictions in the groups whose name, or a member of which, is called alike.

    ``groups`` has the names of each group's members. What is called like no group stays as it is: learning refuses it.

    Raises:
        PredictionError: E590 when several files may be the same member's.
    """
    owner = {name: (group, number) for group, names in groups.items() for number, name in enumerate(names)}
    keys: dict[str, set[str]] = {}
    for group in groups:
        keys.setdefault(_key(group), set()).add(group)
    found = []
    for one in oof:
        if one.group in groups or not (_is_single(one) or one.fold is not None):
            found.append(one)
        elif one.member in owner:
            group, number = owner[one.member]
            named = _FOLD.fullmatch(one.member)
            found.append(replace(one, group=group, fold=number if named is None else int(named["number"])))
        else:
            alike = keys.get(_key(one.group), set())
            found.append(replace(one, group=next(iter(alike))) if len(alike) == 1 else one)
    renamed = [new for old, new in zip(oof, found, strict=True) if old.group != new.group]
    for one in renamed:
        same = sorted(other.member for other in found if other.group == one.group and other.fold is None)
        if one.fold is None and len(same) > 1:
            raise PredictionError("E590", f"{enumerate_some(same)} may all be the predictions of {one.group}")
    if renamed:
        shown = enumerate_some([f"{one.member} is {one.group}" for one in renamed])
        listener.notice(Notice("I590", f"out-of-fold predictions matched by name: {shown}"))
    return found


def _as_folds(members: Sequence[Predictions], folds: Sequence[Predictions], listener: Listener) -> list[Predictions]:
    """Return the members, those among ``folds`` with the group and the fold number of their names."""
    found: list[Predictions] = []
    for one in members:
        named = _FOLD.fullmatch(one.member) if one in folds else None
        if named is not None:
            one = replace(one, group=named["base"], fold=int(named["number"]), repeat=int(named["repeat"] or 0))  # noqa: PLW2901
        found.append(one)
    if folds:
        some = enumerate_some([f"{one.member} of {one.group}" for one in found if one.group != one.member])
        listener.notice(Notice("I590", f"{len(folds)} files are folds of a model, by their names: {some}"))
    return found


def _is_fold_of(one: Predictions, names: Iterable[str], keys: Iterable[str]) -> bool:
    """Return True for a file named like a fold of a model that has out-of-fold predictions as a whole."""
    found = _FOLD.fullmatch(one.member)
    return found is not None and _is_single(one) and one.member not in names and _key(found["base"]) in keys


def _is_single(one: Predictions) -> bool:
    return one.group == one.member and one.fold is None


def _have_no_image_in_common(members: Sequence[Predictions]) -> bool:
    return len({name for one in members for name in one.ids}) == sum(len(one) for one in members)


def _key(name: str) -> str:
    """Return what names the model: the words of a name without those that say on which images it predicted."""
    text = re.sub(r"out[._ -]of[._ -]fold", "oof", name.lower())
    words = [word for word in re.split(r"[._ -]+", text) if word]
    return " ".join([word for word in words if word not in _SIDES] or words)
