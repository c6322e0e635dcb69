"""Choose the member whose class-activation maps a fused file gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ensemble.analysis.cam import Classifier, find_classifier
from ensemble.errors import DeployError, ModelError
from ensemble.events import Listener, Notice
from ensemble.fuse.fused_card import FusedMember
from ensemble.fuse.graph import PLAIN_VIEW, FusePlan
from ensemble.runtime.model_file import FEATURES, LOGITS
from ensemble.runtime.parity import draw_pictures
from ensemble.runtime.session import start_session


@dataclass(frozen=True, slots=True, eq=False)
class MapMember:
    """The linear layer of the chosen member, and the ``size`` (rows, columns) of its maps."""

    classifier: Classifier
    size: tuple[int, int]


def find_maps(plan: FusePlan, members: Sequence[FusedMember], listener: Listener) -> MapMember:
    """Return the member with the largest share of the vote that has maps; one that is passed over is named.

    Its logits are computed on drawn pictures, and must be those of the linear layer on its averaged features.

    Raises:
        DeployError: E808 when no member has maps of the images as they are.
    """
    reasons: list[str] = []
    for member in sorted(members, key=lambda one: -one.share):
        if PLAIN_VIEW not in plan.recipe.views_of(plan.recipe.groups[member.group]):
            reasons.append(f"{member.name}: the recipe does not show it the images as they are")
            continue
        model = plan.models[member.name]
        try:
            classifier = find_classifier(model)
            session = start_session(model)
            pictures = draw_pictures(model.card.preprocess.size)
            features, logits = (session.run(pictures, output=output) for output in (FEATURES, LOGITS))
            classifier.require_explains(features, logits)
        except ModelError as err:
            reasons.append(f"{member.name}: {err.message}")
            continue
        if reasons:
            listener.notice(Notice("I802", f"the maps are those of {member.name}; {'; '.join(reasons)}"))
        return MapMember(classifier, (features.shape[2], features.shape[3]))
    raise DeployError("E808", "no member has class-activation maps", details=tuple(reasons))
