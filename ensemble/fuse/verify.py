"""Compare a fused file with what `ens submit` computes from the same recipe and models, on images."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ensemble.blend.blend import Blended, blend
from ensemble.blend.decision_rules import Rule, decide, decide_labels
from ensemble.card import Precision
from ensemble.errors import DeployError, OptionError
from ensemble.events import SILENT
from ensemble.files import write_atomic
from ensemble.fuse.fused_session import FusedAnswers, FusedSession
from ensemble.fuse.graph import FusePlan
from ensemble.images.decode import read_image
from ensemble.images.face_boxes import Box, Boxes
from ensemble.images.listing import list_images
from ensemble.predict.options import RunOptions
from ensemble.predict.predict import predict
from ensemble.predictions.dataset import Predictions, read_predictions
from ensemble.runtime.parity import draw_pictures

MOST_IMAGES = 16
LIMITS: dict[Precision, float] = {"fp32": 1e-3, "fp16": 2e-3, "int8": 1e-2}
"""Of a probability, by the coarsest precision of the members: one level of a pixel can move a quantization step.

A ResNet-18 at 112 px, alone, reached 3e-4 in float16 and 9e-3 in int8, on 700 photographs.
"""
_NEAR_TIE = 0.05
"""Of the probability of a class: in contests of many classes, where all are small, `LIMITS` alone would say nothing."""
_DRAWN = ((120, 160), (211, 97))  # a landscape and an upright picture, (height, width)


@dataclass(frozen=True, slots=True)
class CheckImages:
    """The images of a comparison: all or some of a folder, with the faces in them; drawn ones without a folder."""

    folder: Path | None = None
    ids: tuple[str, ...] | None = None
    boxes: Boxes | None = None
    most: int = MOST_IMAGES

    def require(self) -> None:
        """Check that the images are there, and in the boxes, before models are opened and joined.

        Raises:
            DataError: as `list_images`; E351 when an image has no entry in the boxes.
        """
        if self.folder is not None:
            listing = list_images(self.folder, self.ids)
            if self.boxes is not None:
                self.boxes.select(listing.ids)


@dataclass(frozen=True, slots=True)
class FusedChecks:
    """The result of a comparison: images, the largest difference of a probability, and its limit.

    ``near_ties`` are the images that have another class, of two whose probabilities are that close.
    """

    images: int
    difference: float
    limit: float
    drawn: bool
    near_ties: int = 0

    @property
    def same(self) -> str:
        """The comparison of the classes in words."""
        if not self.near_ties:
            return "same classes"
        return f"same classes but for {self.near_ties} near {'tie' if self.near_ties == 1 else 'ties'}"

    def as_dict(self) -> dict[str, Any]:
        """Return what the card keeps: the limits that were met, which are the same on every machine."""
        return {
            "images": self.images,
            "drawn": self.drawn,
            "classes_changed": self.near_ties,
            "probability_difference_at_most": self.limit,
        }


def verify(session: FusedSession, plan: FusePlan, images: CheckImages) -> FusedChecks:
    """Compare the fused file with the program on up to ``images.most`` images.

    Raises:
        OptionError: E206 when a model needs boxes and there are none for a folder.
        DataError: when the images cannot be read.
        DeployError: E806 when a probability differs by more than `LIMITS`, or a class that is no near tie.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder, boxes = images.folder, images.boxes
        if folder is None:
            folder, boxes = Path(temporary, "drawn"), None
            drawn = _draw(folder)
            if plan.takes_boxes:
                boxes = drawn
        elif plan.takes_boxes and boxes is None:
            raise OptionError("E206", "members of this recipe were trained on face crops and need face boxes")
        listing = list_images(folder, images.ids)
        ids = listing.ids[:: max(1, -(-len(listing) // images.most))]
        paths = dict(zip(listing.ids, listing.paths, strict=True))
        expected = _expected(plan, folder, ids, boxes, Path(temporary, "preds"))
        faces = boxes.select(ids) if plan.takes_boxes and boxes is not None else (None,) * len(ids)
        return _compare(session, plan, expected, [paths[name] for name in ids], faces, drawn=images.folder is None)


def _compare(
    session: FusedSession,
    plan: FusePlan,
    expected: Blended,
    paths: Sequence[Path],
    faces: Sequence[Box | None],
    *,
    drawn: bool,
) -> FusedChecks:
    limit = max(LIMITS[model.card.precision] for model in plan.models.values())
    worst, changed, near_ties = 0.0, [], 0
    for row, (path, face) in enumerate(zip(paths, faces, strict=True)):
        found = session.run(read_image(path).pixels[np.newaxis], [face])
        worst = max(worst, float(np.abs(found.probabilities[0] - expected.probabilities[row]).max()))
        same = found.classes[0] == expected.classes[row]
        if found.applies is not None and expected.decisions is not None:
            same = same and np.array_equal(found.applies[0], expected.decisions[row])
        if not same and _is_near_tie(found, expected, row, plan.recipe.rule):
            near_ties += 1
        elif not same:
            names = plan.recipe.labels.names
            changed.append(f"{path.name}: {names[found.classes[0]]} instead of {names[expected.classes[row]]}")
    if changed or not worst <= limit:
        message = f"{len(changed)} of {len(paths)} answers differ, and probabilities by up to {worst:.1e}"
        message += f"; {limit:g} is allowed"
        raise DeployError("E806", message, details=tuple(changed[:10]))
    return FusedChecks(len(paths), worst, limit, drawn, near_ties)


def _is_near_tie(found: FusedAnswers, expected: Blended, row: int, rule: Rule) -> bool:
    """Return True if the file decides otherwise because its probabilities differ by little, not by another rule.

    One level of a pixel changes a probability by up to `LIMITS`, and so the class of an image for which two are as
    near. What the file decides must then be what the rule decides by the file's own probabilities, and these must be
    nearly those of the program for all classes concerned.
    """
    concerned = {int(found.classes[0]), int(expected.classes[row])}
    if decide(found.probabilities, rule)[0] != found.classes[0]:
        return False
    if found.applies is not None and expected.decisions is not None:
        own = decide_labels(found.probabilities.astype(np.float64), rule)
        if own is None or not np.array_equal(own, found.applies):
            return False
        concerned |= set(np.flatnonzero(found.applies[0] != expected.decisions[row]).tolist())
    wanted, given = (p[sorted(concerned)] for p in (expected.probabilities[row], found.probabilities[0]))
    return bool((np.abs(given - wanted) <= _NEAR_TIE * wanted).all())


def _expected(plan: FusePlan, folder: Path, ids: Sequence[str], boxes: Boxes | None, work: Path) -> Blended:
    """Predict and blend as `ens submit` does; members with the same views share a run."""
    together: dict[tuple[str, ...], list[str]] = {}
    for group in plan.recipe.groups.values():
        together.setdefault(tuple(plan.recipe.views_of(group)), []).extend(group.members)
    members: list[Predictions] = []
    for names, of in together.items():
        cropped = any(plan.models[name].card.preprocess.face is not None for name in of)
        predict(
            [plan.models[name].path for name in of],
            folder,
            work,
            views=[plan.views[name] for name in names],
            ids=ids,
            boxes=boxes if cropped else None,
            options=RunOptions(device="cpu"),
        )
        members += [read_predictions(work / name) for name in of]
    inputs = {member.member: member.sha256 for member in members}
    groups = {
        name: replace(group, members={member: inputs[member] for member in group.members})
        for name, group in plan.recipe.groups.items()
    }
    return blend(members, replace(plan.recipe, groups=groups), ids=ids, listener=SILENT)


def _draw(folder: Path) -> Boxes:
    """Write drawn pictures as PNG files, and return a box for each but the first."""
    boxes: dict[str, Box | None] = {}
    for height, width in _DRAWN:
        for number, pixels in enumerate(draw_pictures((height, width))):
            stream = io.BytesIO()
            Image.fromarray(pixels).save(stream, "PNG")
            name = f"{height}x{width}_{number}.png"
            write_atomic(folder / name, stream.getvalue(), sync=False)
            boxes[name] = None if number == 0 else Box(5.0 * number, 10.0, 5.0 * number + 40, 62.5)
    return Boxes(boxes)
