"""Adopt a ready-made ONNX classifier: one self-describing .onnx file, checked against the original."""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from ensemble.adopt.answers import settle_outputs
from ensemble.adopt.check import BATCHES, Original, compare, require_separate
from ensemble.adopt.dlib_network import EMBEDDING, is_dlib
from ensemble.adopt.features import find_pooled_maps, require_explainable
from ensemble.adopt.foreign import (
    ForeignModel,
    ImageInput,
    find_input,
    find_last_layer,
    find_output,
    read_foreign,
)
from ensemble.adopt.graph import BatchWay, WrapPlan, build_graph
from ensemble.adopt.make_card import AdoptOptions, make_card, with_labels
from ensemble.arrays import Floats, Pixels
from ensemble.card import (
    METADATA_KEY,
    ModelCard,
    Preprocess,
)
from ensemble.errors import ChanceError, DeviceError, ModelError, OptionError, cut_text
from ensemble.events import SILENT, Listener, Notice
from ensemble.files import require_writable, write_atomic
from ensemble.images.decode import read_image
from ensemble.images.face_boxes import Box
from ensemble.images.face_crop import prepare_image
from ensemble.runtime.model_file import check_model
from ensemble.runtime.parity import LIMITS, draw_pictures, notice_constant

MOST_PICTURES = 16


@dataclass(frozen=True, slots=True)
class AdoptChecks:
    """The comparison with the original file: images, largest relative error, and how the batch became free."""

    pictures: int
    error: float
    batch: BatchWay

    def as_dict(self, limit: float) -> dict[str, Any]:
        """Return what the card keeps: the limits that were met, which are the same on every machine."""
        return {
            "original": {
                "pictures": self.pictures,
                "batches": list(BATCHES),
                "relative_error_at_most": limit,
                "classes_changed_at_most": 0,
                "batch": self.batch,
            }
        }


@dataclass(frozen=True, slots=True)
class Adopted:
    """An adopted model: its file, its card and the figures of the comparison."""

    path: Path
    card: ModelCard
    checks: AdoptChecks

    def as_dict(self) -> dict[str, object]:
        """Return JSON-ready values."""
        return {"path": str(self.path), "card": json.loads(self.card.to_json()), "checks": self.card.checks}

    def __str__(self) -> str:
        checks = self.checks
        return (
            f"{self.path}  as the original on {checks.pictures} images in batches of 1 and 3: "
            f"same classes, relative error {checks.error:.1e} at most"
        )


def adopt(
    path: Path,
    folder: Path,
    *,
    options: AdoptOptions,
    check_images: Sequence[Path] = (),
    check_boxes: Sequence[Box | None] = (),
    taken: Collection[str] = (),
    listener: Listener = SILENT,
) -> Adopted:
    """Write ``<folder>/<member>.onnx``: the network of ``path`` with its preprocessing in front and a card inside.

    It is compared with the original file in plain onnxruntime on up to 16 of ``check_images``, or on eight drawn ones
    when there are none, in batches of 1 and 3. ``check_boxes`` are the faces of these images, where ``options`` crop
    them; drawn images are taken as crops. The file appears whole and checked, or not at all.

    Raises:
        OptionError: E204 when an option is needed to tell what the file does not, or contradicts it.
        ModelError: E411 when labels and answers differ in number, E414 when the answers differ from the original's,
            E420 to E429 when the file cannot be used, E428 when the member's name is taken, E432 when there are no
            features that the options ask for, E471 when it is an embedding of dlib.
        DeviceError: E604 when answers are NaN, E612 when they depend on chance, E613 on the other images of the batch.
        DataError: when an image cannot be read.
        FileError: E701, E702 or E707 when a file cannot be read or written.
    """
    require_writable(folder)
    model = read_foreign(path)
    if any(entry.key == METADATA_KEY for entry in model.proto.metadata_props):
        raise ModelError("E424", f"{path.name} is a model of ens already", hint="use it as it is", path=path)
    if is_dlib(model.proto) and any(value.name == EMBEDDING for value in model.proto.graph.output):
        message = f"{path.name} tells faces apart: its {EMBEDDING} has no classes"
        raise ModelError("E471", message, path=path)
    if zeros := model.zero_paddings:
        message = (
            f"zeros that are padded before {zeros} max poolings stay zeros, which onnxruntime by itself leaves out"
        )
        listener.notice(Notice("I488", message, path))
    image = find_input(model, options.layout)
    model, options = settle_outputs(model, options, listener)
    card = make_card(model, image, options, listener)
    if card.member in taken:
        raise ModelError("E428", f"{path} would be another {card.member!r}", path=path)
    pixels = _pixels(check_images, check_boxes, card.preprocess)
    return adopt_network(model, image, card, folder, options=options, pixels=pixels, listener=listener)


def adopt_network(
    model: ForeignModel,
    image: ImageInput,
    card: ModelCard,
    folder: Path,
    *,
    options: AdoptOptions,
    pixels: Pixels,
    listener: Listener = SILENT,
) -> Adopted:
    """Write ``<folder>/<member>.onnx`` as `adopt` does, of a network in memory and the card of `make_card`.

    It is compared with the network as it is on ``pixels`` ``(N, H, W, 3)`` uint8.

    Raises:
        OptionError, ModelError, DeviceError, FileError: as `adopt`.
    """
    name = find_output(model, options.output_name)
    original = Original(model, image, card, name)
    reference = original.run(pixels)
    _require_answers(model, reference)
    notice_constant(reference, card.member, listener)
    plan = _make_plan(model, image, name, card, options, reference, listener)
    if options.features:
        plan = replace(plan, maps=find_pooled_maps(model, name))
    card = with_labels(model, card, plan.classes, options, listener)
    if plan.answers > 1 and (options.activation or ("sigmoid" if plan.independent else "softmax")) == "sigmoid":
        card = replace(card, activation="sigmoid")
    data, checks = _build(model, plan, card, pixels, reference, listener)
    card = replace(card, checks=dict(card.checks) | checks.as_dict(LIMITS[card.precision]))
    proto = onnx.load_from_string(data)
    onnx.helper.set_model_props(proto, {METADATA_KEY: card.to_json()})
    final = proto.SerializeToString(deterministic=True)
    target = folder / f"{card.member}.onnx"
    checked = check_model(final, target)
    if options.features:
        require_explainable(checked, pixels)
    return Adopted(write_atomic(target, final), card, checks)


def _pixels(images: Sequence[Path], boxes: Sequence[Box | None], preprocess: Preprocess) -> Pixels:
    if not images:
        return draw_pictures(preprocess.size)
    faces = boxes or [None] * len(images)
    chosen = list(zip(images, faces, strict=True))[:: max(1, len(images) // MOST_PICTURES)][:MOST_PICTURES]
    return np.stack([prepare_image(read_image(path).pixels, preprocess, box) for path, box in chosen])


def _make_plan(
    model: ForeignModel,
    image: ImageInput,
    name: str,
    card: ModelCard,
    options: AdoptOptions,
    reference: Floats,
    listener: Listener,
) -> WrapPlan:
    """Decide what the output is, from the option or the last layer, and compare that with what the network gives."""
    last = find_last_layer(model, name)
    layer = last.kind
    output = options.output or last.proves
    if output is None:
        raise OptionError(
            "E204",
            f"{model.path.name} does not tell if {name} are logits or probabilities: its last layer is {layer}",
            hint="say it with --output logits or --output probabilities",
        )
    within = bool((reference >= 0).all() and (reference <= 1 + 1e-3).all())
    sums = bool(np.allclose(reference.sum(axis=1), 1, atol=1e-2))
    answers = reference.shape[1]
    if output == "probabilities" and not within:
        low, high = reference.min(), reference.max()
        raise OptionError("E204", f"{name} has values from {low:.3g} to {high:.3g}, which are no probabilities")
    if output == "logits" and (layer in {"Softmax", "Sigmoid"} or (within and sums and answers > 1)):
        raise OptionError(
            "E204",
            f"{name} has values in 0..1 (its last layer is {layer}): probabilities, not logits",
            hint="give --output probabilities",
        )
    independent = output == "probabilities" and answers > 1 and not sums and options.activation != "softmax"
    if options.output is None:
        listener.notice(Notice("I482", f"{name} are taken as {output}: its last layer is {layer}", model.path))
    if independent:
        message = f"{name} are independent probabilities, whose sum is not 1: the card says activation sigmoid"
        listener.notice(Notice("W483", message, model.path))
    if answers == 1:
        message = f"{name} is a single value: two classes, of which it is the evidence for the second"
        listener.notice(Notice("I482", message, model.path))
    if image.channels == 1:
        listener.notice(Notice("I482", "the network takes one channel: images are made grey in the graph", model.path))
    return WrapPlan(
        image=image,
        output_name=name,
        output=output,
        answers=answers,
        size=card.preprocess.size,
        mean=card.mean,
        std=card.std,
        channels=card.preprocess.channels,
        independent=independent,
        before=last.before if layer in {"Softmax", "Sigmoid"} else None,
    )


def _require_answers(model: ForeignModel, reference: Floats) -> None:
    bad = int(np.count_nonzero(np.isnan(reference.reshape(len(reference), -1)).any(axis=1)))
    if bad:
        raise DeviceError(
            "E604",
            f"{bad} of {len(reference)} answers of {model.path.name}, as it is, are NaN",
            hint="its weights are NaN or infinite, or overflow: use another file",
        )


def _build(
    model: ForeignModel, plan: WrapPlan, card: ModelCard, pixels: Pixels, reference: Floats, listener: Listener
) -> tuple[bytes, AdoptChecks]:
    """Return the first graph that gives the original's answers in batches of 1 and 3, and the figures.

    Raises:
        ModelError: E414 when there is none.
        DeviceError: E612, E613.
    """
    ways: tuple[BatchWay, ...] = ("free", "freed", "in turn") if plan.image.batch is None else ("freed", "in turn")
    plans = [plan] if plan.before is None else [plan.without_last_layer(), plan]
    reasons: list[str] = []
    for way, tried in itertools.product(ways, plans):
        try:
            data = build_graph(model, tried, way).SerializeToString(deterministic=True)
            require_separate(data, model.path, card)
            error = compare(data, model.path, plan, pixels, reference, LIMITS[card.precision])
        except DeviceError as err:
            if way == "free" or isinstance(err, ChanceError):
                raise
            reasons.append(f"batch {way}: {cut_text(err.message, 200)}")
            continue
        except Exception as err:  # noqa: BLE001 - a graph that does not fit a batch size fails in many ways
            reasons.append(f"batch {way}: {cut_text((str(err).strip().splitlines() or [type(err).__name__])[-1], 200)}")
            continue
        if tried is not plan:
            message = f"the logits are taken before the last layer, whose probabilities {plan.output_name} are"
            listener.notice(Notice("I482", message, model.path))
        if way == "freed":
            was = plan.image.batch or "fixed by its constants"
            listener.notice(Notice("I482", f"the batch size was {was}; it is free now", model.path))
        if way == "in turn":
            message = "the network is made for one batch size: images run one by one inside the graph, which is slower"
            listener.notice(Notice("W483", message, model.path))
        return data, AdoptChecks(len(pixels), error, way)
    message = f"{model.path.name} with its preprocessing in front does not answer as before"
    raise ModelError("E414", message, details=tuple(reasons), path=model.path)
