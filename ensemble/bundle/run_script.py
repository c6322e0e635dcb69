"""The script that runs a fused file with onnxruntime and Pillow alone."""

from __future__ import annotations

from ensemble.fuse.fused_card import FusedCard

_IMPORTS = """\
import json, sys
import numpy, onnxruntime
from PIL import Image, ImageOps
"""
_START = """\
session = onnxruntime.InferenceSession("ensemble.onnx", providers=["CPUExecutionProvider"])
labels = json.loads(session.get_modelmeta().custom_metadata_map["ens.fused"])["labels"]
for path in sys.argv[1:]:
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    feed = {"images": numpy.asarray(image)[numpy.newaxis]}
"""
# without a box the members look at the part of the image that their cards name
_BOXES = """\
    feed["boxes"] = numpy.full((1, 4), numpy.nan, numpy.float32)  # the face: left, top, right, bottom in px
"""
_ONE = """\
    probabilities, answer = session.run(["probabilities", "class"], feed)
    print(path, labels[answer[0]], f"{probabilities[0][answer[0]]:.4f}", sep="\\t")
"""
_SEVERAL = """\
    probabilities, applies = (values[0] for values in session.run(["probabilities", "applies"], feed))
    print(path, *(f"{label} {p:.4f}" for label, p, yes in zip(labels, probabilities, applies) if yes), sep="\\t")
"""
_ALL = """\
    probabilities = session.run(["probabilities"], feed)[0][0]
    print(path, *(f"{label} {p:.4f}" for label, p in zip(labels, probabilities)), sep="\\t")
"""


def run_script(card: FusedCard) -> str:
    """Return the Python source: a line per image with its path, its label or labels and their probability."""
    several = _SEVERAL if card.has_thresholds else _ALL
    answer = _ONE if card.recipe.activation == "softmax" else several
    return f"{_IMPORTS}\n{_START}{_BOXES if card.takes_boxes else ''}{answer}"
