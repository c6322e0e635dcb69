"""Adopt: a recipe from what was learned, for members that predicted other images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from ensemble.blend.pooling import normalise, parse_pool
from ensemble.blend.recipe import Group, Recipe
from ensemble.errors import PredictionError, enumerate_some
from ensemble.events import SILENT, Listener
from ensemble.learn.learn import AUTO, Learned, learn
from ensemble.predictions.dataset import Predictions
from ensemble.predictions.members import members_by_name
from ensemble.predictions.out_of_fold import gather_folds
from ensemble.predictions.truth import read_truth


def learn_from_folds(
    oof: Sequence[Predictions],
    truth: Path,
    *,
    method: str = AUTO,
    metric: str = "macro-f1",
    seed: int = 0,
    listener: Listener = SILENT,
) -> Learned:
    """Learn from out-of-fold predictions and a CSV of the truth, as `learn` does.

    Class numbers in the CSV are those of the first member by name.

    Raises:
        EnsError: as `gather_folds`, `learn` and `read_truth` do.
    """
    labels = next(iter(members_by_name(oof).values())).labels
    answers = read_truth(truth, labels, listener=listener)
    gathered = gather_folds(oof, answers)
    return learn(gathered, answers, method=method, metric=metric, seed=seed, listener=listener)


def learned_recipe(learned: Learned, members: Sequence[Predictions], *, transductive: bool = False) -> Recipe:
    """The recipe that does with members what the learned candidate did with the groups of the same names.

    A voter of the candidate is a view of a group; the folds of a group count alike. The recipe's views are those of
    all groups together, and only a group that weighs them otherwise has its own. See `Recipe` for ``transductive``.

    Raises:
        PredictionError: E515 when a member comes twice, E517 when the members are not of the learned groups,
            E518 when ``transductive`` is asked for and no macro-F1 rule was learned.
    """
    by_name = members_by_name(members)
    shares: dict[str, dict[str, float]] = {}
    for voter, share in zip(learned.voters, learned.fitted.weights.tolist(), strict=True):
        shares.setdefault(voter.member, {})[voter.view] = share
    _require_same_groups(set(shares), {member.group for member in by_name.values()})

    weights = {group: sum(views.values()) for group, views in shares.items()}
    total: dict[str, float] = {}
    for views in shares.values():
        for view, share in views.items():
            total[view] = total.get(view, 0.0) + share
    fitted = learned.fitted
    temperature: dict[str, float] = {}
    if fitted.temperatures is not None:
        each = zip(learned.voters, fitted.temperatures.tolist(), strict=True)
        temperature = {voter.member: value for voter, value in each}
    return Recipe(
        pool=parse_pool(fitted.space),
        views={view: share for view, share in total.items() if share > 0},
        groups={
            group: Group(
                weights[group],
                {name: member.sha256 for name, member in by_name.items() if member.group == group},
                _own_views(shares[group], total),
                temperature.get(group),
            )
            for group in shares
        },
        labels=learned.labels,
        rule=fitted.rule,
        transductive=transductive,
        sharpness=fitted.sharpness,
        bias=tuple(fitted.bias.tolist()) if fitted.bias.any() else None,
        learned={
            "method": learned.method,
            "metric": learned.metric.name,
            "seed": learned.seed,
            "why": learned.why,
            "expected_gain": learned.expected,
            "table": learned.table_as_dicts(),
            "views": [asdict(view) for view in learned.views],
        },
    )


def _own_views(shares: Mapping[str, float], total: Mapping[str, float]) -> dict[str, float] | None:
    """A group's weights of its views, or None where the proportions are those of all groups together."""
    used = {view: share for view, share in shares.items() if share > 0}
    if not used:
        # without weight it needs no view that it may not have
        return dict.fromkeys(shares, 1.0)
    everywhere = {view: share for view, share in total.items() if share > 0}
    return None if normalise(used) == normalise(everywhere) else used


def _require_same_groups(learned: set[str], found: set[str]) -> None:
    missing, extra = sorted(learned - found), sorted(found - learned)
    if missing or extra:
        parts = [f"there are out-of-fold predictions of {len(learned)} groups"]
        parts += [f"missing among the members: {enumerate_some(missing)}"] * bool(missing)
        parts += [f"never learned about: {enumerate_some(extra)}"] * bool(extra)
        raise PredictionError(
            "E517", "; ".join(parts), hint="name the same models in PREDICTIONS and with --oof; groups meet by name"
        )
