"""The choice of the face detector: `ens crop --detector auto`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from checkpoints.data.retinaface import PACKAGE, find_weights, install_hint
from ensemble.errors import OptionError
from ensemble.events import Listener, Notice
from ensemble.images.face_boxes import read_faces

DetectorName = Literal["auto", "retinaface", "mtcnn"]


def choose_detector(
    name: DetectorName,
    *,
    weights: Path | None,
    device: str,
    thresholds: int | None,
    made: Path | None,
    listener: Listener,
) -> bytes | None:
    """Return the weights of RetinaFace, or None for MTCNN.

    ``auto`` follows the options that only one of them has (``weights``, a GPU as ``device``, the number of
    ``thresholds``), then the boxes file ``made`` by an earlier run, and takes RetinaFace if its weights are there.
    What is chosen is said.

    Raises:
        OptionError: E204 when an option does not fit the detector, E205 when RetinaFace is asked for and not installed.
        ModelError: E490 when the weights cannot be read.
        FileError, DataError: as `read_faces`.
    """
    if name == "mtcnn":
        if weights is not None:
            raise OptionError("E204", "--weights is a file of RetinaFace, and --detector is mtcnn")
        return None
    on_gpu = device.startswith("cuda")
    if name == "retinaface" and on_gpu:
        raise OptionError(
            "E204", f"RetinaFace runs on the CPU, got --device {device}", hint="--detector mtcnn has CUDA"
        )
    if name == "auto":
        why = _why_mtcnn(weights, on_gpu=on_gpu, device=device, thresholds=thresholds, made=made)
        if why is not None:
            listener.notice(Notice("I860", f"MTCNN finds the faces: {why}"))
            return None
    found = find_weights(weights)
    if found is None:
        if name == "retinaface" or thresholds == 1 or (made is not None and _detector_of(made) == "retinaface"):
            message = f"--detector retinaface needs the weights in the package {PACKAGE}, which is not installed"
            raise OptionError("E205", message, hint=f"{install_hint()}, or name an ONNX file with --weights")
        text = f"MTCNN finds the faces: RetinaFace, which misses fewer, is not installed ({install_hint()})"
        listener.notice(Notice("I860", text))
        return None
    if name == "auto":
        text = "RetinaFace finds the faces; models trained on boxes of MTCNN need --detector mtcnn"
        listener.notice(Notice("I860", text))
    return found


def _why_mtcnn(
    weights: Path | None, *, on_gpu: bool, device: str, thresholds: int | None, made: Path | None
) -> str | None:
    """Return the reason to take MTCNN, if an option or the file of an earlier run gives one."""
    if weights is not None:
        return None
    if on_gpu:
        return f"RetinaFace has no --device {device}"
    if thresholds == 3:
        return "three thresholds are those of its networks"
    if made is not None and thresholds is None and _detector_of(made) == "mtcnn":
        return f"the boxes in {made} are its own"
    return None


def _detector_of(path: Path) -> str | None:
    """Return which detector made a boxes file, or the unfinished one of a stopped run; None if there is none."""
    for file in (path, path.with_name(path.name + ".partial")):
        if file.exists():
            try:
                settings = json.loads(read_faces(file).origin)
            except ValueError:
                return None
            return next((name for name in ("mtcnn", "retinaface") if name in settings), None)
    return None
