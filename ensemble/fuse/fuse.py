"""Fuse a recipe and its models: one ONNX file that prepares images, runs every member, blends and decides.

The file appears whole and checked, or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx

from ensemble.blend.pooling import normalize
from ensemble.blend.recipe import Recipe
from ensemble.errors import DeployError
from ensemble.events import SILENT, Listener, Notice
from ensemble.files import require_writable, write_atomic
from ensemble.fuse.detect import FUSED_KEY
from ensemble.fuse.fused_card import FusedCard, FusedMaps, FusedMember
from ensemble.fuse.fused_session import start_fused
from ensemble.fuse.graph import FusePlan, build_fused
from ensemble.fuse.map_member import find_maps
from ensemble.fuse.verify import CheckImages, FusedChecks, verify
from ensemble.images.views import views_by_name
from ensemble.runtime.device import CPU
from ensemble.runtime.model_file import ModelFile
from ensemble.runtime.run_device import warn_of_int8, warn_of_onnxruntime
from ensemble.submit.early_exit import used_part
from ensemble.submit.submit import find_members


@dataclass(frozen=True, slots=True)
class FuseOptions:
    """``members`` adds each member's probabilities to the outputs, ``maps`` the strongest one's class-activation maps.

    ``license`` is kept in the card.
    """

    members: bool = False
    maps: bool = False
    license: str | None = None


@dataclass(frozen=True, slots=True)
class Fused:
    """A fused file, its card and the figures of the comparison."""

    path: Path
    card: FusedCard
    checks: FusedChecks
    size: int

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        difference = {"largest_difference": self.checks.difference}
        return {"path": str(self.path), "bytes": self.size, "card": self.card.as_dict(), **difference}

    def __str__(self) -> str:
        checks, members = self.checks, len(self.card.members)
        kind = "drawn pictures" if checks.drawn else "images"
        return (
            f"{self.path}  {members} members, {self.size / 1e6:.1f} MB; as ens submit on {checks.images} {kind}: "
            f"{checks.same}, probabilities within {checks.difference:.1e}"
        )


def fuse(
    recipe: Recipe,
    models: Sequence[Path],
    target: Path,
    *,
    images: CheckImages = CheckImages(),  # noqa: B008 - frozen
    options: FuseOptions = FuseOptions(),
    listener: Listener = SILENT,
) -> Fused:
    """Write ``target``: the recipe's members, their preprocessing, the blend and the decision in one ONNX file.

    It is compared with `predict` and `blend` on ``images`` before it gets its name.

    Raises:
        DeployError: E802 when the recipe's answers depend on other images, E803 to E805 when a view, a resizer or a
            network cannot be part of a graph, E806 when the answers differ, E808 when there are no maps.
        PredictionError: E501 or E530 when the models are not the recipe's members.
        ModelError, FileError, DataError: see `find_members`, `list_images` and `write_atomic`.
    """
    require_writable(target.parent)
    images.require()
    recipe = used_part(recipe)
    require_row_wise(recipe)
    plan = make_plan(recipe, find_members(recipe, models, listener), each_member=options.members)
    cards = [model.card for model in plan.models.values()]
    warn_of_onnxruntime(cards, "a fused file runs in it alone", listener=listener)
    warn_of_int8(cards, CPU, listener)
    members, maps = members_of(plan), None
    if options.maps:
        found = find_maps(plan, members, listener)
        plan, maps = replace(plan, maps=found.classifier), FusedMaps(found.classifier.card.member, found.size)
    built = build_fused(plan)
    card = FusedCard(recipe, members, options.license, maps, tools=_tools())
    draft = _serialize(built, card, target)
    checks = verify(start_fused(draft, target), plan, images)
    if checks.drawn:
        listener.notice(Notice("W802", f"{target.name} was compared with ens submit on {checks.images} drawn pictures"))
    card = replace(card, checks=checks.as_dict())
    data = _serialize(built, card, target)
    return Fused(write_atomic(target, data), card, checks, len(data))


def require_row_wise(recipe: Recipe) -> None:
    """Check that the answer for an image depends on that image alone.

    Raises:
        DeployError: E802 when it does not.
    """
    reasons = {
        "its pool ranks the images": recipe.pool.ranks,
        "its macro-F1 rule is fitted to the images that it decides about (transductive)": recipe.transductive,
        "its probabilities are smoothed over the rows of each file": recipe.smoothing is not None,
    }
    found = [reason for reason, holds in reasons.items() if holds]
    if found:
        raise DeployError("E802", f"the recipe cannot be fused: {'; '.join(found)}")


def make_plan(recipe: Recipe, models: dict[str, ModelFile], *, each_member: bool = False) -> FusePlan:
    """Return what is fused.

    Raises:
        OptionError: E201 when a view is unknown, or does not fit a model.
    """
    views = views_by_name(view for group in recipe.groups.values() for view in recipe.views_of(group))
    for group in recipe.groups.values():
        for member in group.members:
            card = models[member].card
            for name in recipe.views_of(group):
                views[name].require_fits(card.preprocess.size, card.labels, member=member)
    return FusePlan(recipe, models, views, each_member)


def members_of(plan: FusePlan) -> tuple[FusedMember, ...]:
    """Return the members with their shares of the vote, in the order of the recipe's groups."""
    shares = normalize({name: group.weight for name, group in plan.recipe.groups.items()})
    return tuple(
        FusedMember(name, group_name, shares[group_name] / len(group.members), model.sha256, model.card)
        for group_name, group in plan.recipe.groups.items()
        for name, model in ((name, plan.models[name]) for name in group.members)
    )


def _serialize(model: onnx.ModelProto, card: FusedCard, target: Path) -> bytes:
    """Return the checked bytes of a graph with its card.

    Raises:
        DeployError: E805 when onnx finds the graph invalid.
    """
    onnx.helper.set_model_props(model, {FUSED_KEY: card.to_json()})
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as err:
        reason = (str(err).strip().splitlines() or [type(err).__name__])[0]
        raise DeployError("E805", f"{target.name} would not be a valid ONNX file: {reason}", path=target) from err
    return bytes(model.SerializeToString(deterministic=True))


def _tools() -> dict[str, str]:
    return {"ens": version("ens-onnx"), "onnx": onnx.__version__}
