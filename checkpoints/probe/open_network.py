"""Open an ONNX file as a frozen network of features, with its preprocessing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from checkpoints.probe.feature_network import FeatureNetwork, find_features
from ensemble.adopt.foreign import find_input, read_foreign
from ensemble.adopt.make_card import AdoptOptions, make_card
from ensemble.card import FaceCrop, ModelCard
from ensemble.errors import OptionError
from ensemble.events import SILENT, Listener, Notice
from ensemble.runtime.model_file import find_card


@dataclass(frozen=True, slots=True, eq=False)
class OpenNetwork:
    """A network of features, the options it was opened with, and the card with its preprocessing."""

    network: FeatureNetwork
    options: AdoptOptions
    card: ModelCard


def open_network(
    path: Path,
    options: AdoptOptions,
    outputs: Sequence[str] = (),
    *,
    face: FaceCrop | None = None,
    listener: Listener = SILENT,
) -> OpenNetwork:
    """Read an ONNX file and find its features.

    A model of ens brings its preprocessing, which options overrule; of another file the options say it, or defaults
    that a notice names. ``face`` crops the faces first.

    Raises:
        OptionError: E204 when an option is needed, or contradicts the file; E206 when a model of ens crops faces and
            ``face`` is None; E209 when it takes the channels of a file as they are.
        ModelError: E414, E420 to E429 when the file cannot be used.
        FileError: E707 when it cannot be read.
    """
    model = read_foreign(path)
    own = find_card(model.proto, path)
    if own is not None:
        own.require_rgb("a head on its features")
        if own.preprocess.face is not None:
            if face is None:
                raise OptionError("E206", f"{path.name} was trained on face crops: give the boxes with --boxes")
            face = own.preprocess.face
        before = own.preprocess
        options = replace(
            options,
            resize=options.resize or before.resize,
            interpolation=options.interpolation or before.interpolation,
            resizer=options.resizer or before.resizer,
            crop_pct=before.crop_pct if options.crop_pct is None else options.crop_pct,
        )
        cropped = ", cropping of faces" if own.preprocess.face else ""
        message = f"resizing{cropped} and normalization are those of its card, where no option overrules them"
        listener.notice(Notice("I482", f"{path.name} is a model of ens: {message}", path))
        if own.fold is not None or own.holdout_sha256 is not None:
            message = (
                f"{path.name} was trained on all images but those of a fold; if on these images, its features know"
            )
            listener.notice(
                Notice("W394", f"{message} their labels, and the scores of all other folds are too high", path)
            )
    image = find_input(model, options.layout)
    card = make_card(model, image, replace(options, member=options.member or "probe"), listener)
    fill = card.preprocess.fill if own is None else own.preprocess.fill
    card = replace(card, preprocess=replace(card.preprocess, face=face, fill=fill))
    return OpenNetwork(find_features(model, image, card, outputs, listener=listener), options, card)
