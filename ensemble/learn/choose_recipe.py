"""Choose the recipe of a blend: read a saved one, learn one from out-of-fold predictions, or use given weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ensemble.blend.pooling import LINEAR, Pool
from ensemble.blend.recipe import Recipe, make_recipe, read_recipe
from ensemble.blend.smoothing import Smoothing
from ensemble.events import SILENT, Listener
from ensemble.learn.learn import AUTO
from ensemble.learn.learned_recipe import learn_from_folds, learned_recipe
from ensemble.learn.result import Learned
from ensemble.predictions.dataset import Predictions
from ensemble.predictions.match_members import match_out_of_fold
from ensemble.predictions.truth import NO_COLUMNS, TruthOptions


@dataclass(frozen=True, slots=True)
class GivenWeights:
    """The options of `make_recipe`; by default all groups and views have equal weights."""

    pool: Pool = LINEAR
    weights: Mapping[str, float] | None = None
    view_weights: Mapping[str, float] | None = None
    per_axis: bool = False
    class_weights: Mapping[str, Mapping[str, float]] | None = None
    thresholds: float | Mapping[str, float] | None = None
    smoothing: Smoothing | None = None


@dataclass(frozen=True, slots=True)
class LearnFrom:
    """Out-of-fold predictions, the CSV of their ground truth, and the options of `learn_from_folds`."""

    oof: Sequence[Predictions]
    truth: Path
    method: str = AUTO
    metric: str = "macro-f1"
    seed: int = 0
    transductive: bool = False
    columns: TruthOptions = NO_COLUMNS


@dataclass(frozen=True, slots=True)
class ChosenRecipe:
    """A recipe, and the result of learning if it was learned."""

    recipe: Recipe
    learned: Learned | None = None


def choose_recipe(
    members: Sequence[Predictions], source: GivenWeights | LearnFrom | Path, *, listener: Listener = SILENT
) -> ChosenRecipe:
    """Return the recipe for the members from its source; a path is that of a saved recipe.

    Out-of-fold predictions are matched to the members by name, see `match_out_of_fold`.

    Raises:
        EnsError: as `read_recipe`, `match_out_of_fold`, `learn_from_folds`, `learned_recipe` or `make_recipe`.
    """
    match source:
        case Path():
            return ChosenRecipe(read_recipe(source))
        case LearnFrom():
            oof, members = match_out_of_fold(source.oof, members, listener=listener)
            learned = learn_from_folds(
                oof,
                source.truth,
                method=source.method,
                metric=source.metric,
                seed=source.seed,
                columns=source.columns,
                applied_to=members,
                listener=listener,
            )
            return ChosenRecipe(learned_recipe(learned, members, transductive=source.transductive), learned)
        case GivenWeights():
            recipe = make_recipe(
                members,
                pool=source.pool,
                weights=source.weights,
                view_weights=source.view_weights,
                per_axis=source.per_axis,
                class_weights=source.class_weights,
                thresholds=source.thresholds,
                smoothing=source.smoothing,
            )
            return ChosenRecipe(recipe)
