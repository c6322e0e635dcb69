"""Blend out-of-fold predictions with a recipe that was made for predictions of other images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ensemble.blend.blend import Blended, blend
from ensemble.blend.recipe import Recipe
from ensemble.errors import PredictionError
from ensemble.events import SILENT, Listener
from ensemble.predictions.dataset import Predictions
from ensemble.predictions.match_members import join_folds, match_to_groups
from ensemble.predictions.out_of_fold import gather_folds
from ensemble.predictions.truth import Truth


@dataclass(frozen=True, slots=True, eq=False)
class BlendedMembers:
    """Members, the recipe that blends them, and their blend."""

    members: Sequence[Predictions]
    recipe: Recipe
    blended: Blended


def blend_held_out(
    recipe: Recipe, oof: Sequence[Predictions], truth: Truth, *, listener: Listener = SILENT
) -> BlendedMembers:
    """Blend out-of-fold predictions, one member per group of the recipe, with its weights; rows are sorted by id.

    Raises:
        PredictionError: E517 when the groups are not those of the recipe.
        EnsError: as `match_to_groups`, `gather_folds` and `blend`.
    """
    names = {name: list(group.members) for name, group in recipe.groups.items()}
    gathered = gather_folds(
        match_to_groups(join_folds(oof, listener=listener), names, listener=listener), truth, listener=listener
    )
    adapted = _for_groups(recipe, gathered)
    return BlendedMembers(gathered, adapted, blend(gathered, adapted, listener=listener))


def _for_groups(recipe: Recipe, gathered: Sequence[Predictions]) -> Recipe:
    """Return the recipe with each group's members replaced by one member of the group's name."""
    sha256 = {member.member: member.sha256 for member in gathered}
    missing, extra = sorted(recipe.groups.keys() - sha256), sorted(sha256.keys() - recipe.groups)
    if missing or extra:
        raise PredictionError(
            "E517",
            f"the out-of-fold predictions have the groups {', '.join(sha256)}, the recipe has "
            f"{', '.join(recipe.groups)}",
            hint="give the same models in PRED and with --oof; groups are matched by name",
        )
    groups = {name: replace(group, members={name: sha256[name]}) for name, group in recipe.groups.items()}
    return replace(recipe, groups=groups)
