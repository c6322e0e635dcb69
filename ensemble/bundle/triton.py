"""The files of a model repository for NVIDIA's Triton Inference Server, around a fused file."""

from __future__ import annotations

from pathlib import Path

from ensemble.fuse.fused_card import FusedCard
from ensemble.fuse.graph import APPLIES, BOXES, CLASSES, IMAGES, PROBABILITIES

MODEL = "ensemble"
_CLIENT = Path(__file__).parent / "templates" / "triton_client.txt"
_WARM_UP = (480, 640)  # the height and width of the picture that a server computes before it takes requests


def triton_files(card: FusedCard, labels: str, *, gpu: bool) -> dict[str, str]:
    """Return ``config.pbtxt``, the labels and the client by their paths in the repository.

    The fused file belongs to ``ensemble/1/model.onnx``.
    """
    client = _CLIENT.read_text(encoding="utf-8").replace("TAKES_BOXES", str(card.takes_boxes))
    return {
        f"{MODEL}/config.pbtxt": _config(card, gpu=gpu),
        f"{MODEL}/labels.txt": labels,
        "client.py": client,
    }


def _config(card: FusedCard, *, gpu: bool) -> str:
    """Return the configuration in protobuf's text format, see Triton's ``model_config.proto``."""
    count = len(card.recipe.labels)
    inputs = [_tensor(IMAGES, "TYPE_UINT8", "-1, -1, 3")]
    height, width = _WARM_UP
    warm = [_warm(IMAGES, "TYPE_UINT8", f"{height}, {width}, 3")]
    if card.takes_boxes:
        inputs.append(_tensor(BOXES, "TYPE_FP32", "4"))
        warm.append(_warm(BOXES, "TYPE_FP32", "4"))
    outputs = [
        _tensor(PROBABILITIES, "TYPE_FP32", str(count), 'label_filename: "labels.txt"'),
        # a tensor of one number per image has no other dimension
        _tensor(CLASSES, "TYPE_INT64", "1", "reshape { shape: [ ] }"),
    ]
    if card.has_thresholds:
        outputs.append(_tensor(APPLIES, "TYPE_BOOL", str(count)))
    kind = "KIND_GPU" if gpu else "KIND_CPU"
    lines = [
        f'name: "{MODEL}"',
        'backend: "onnxruntime"',
        "# images of one size that wait together are computed together",
        "max_batch_size: 16",
        "dynamic_batching {\n  preferred_batch_size: [ 4, 8, 16 ]\n  max_queue_delay_microseconds: 5000\n}",
        f"instance_group [ {{ kind: {kind} count: 1 }} ]",
        *(f"input [ {one} ]" for one in inputs),
        *(f"output [ {one} ]" for one in outputs),
        f'model_warmup [ {{\n  name: "photograph"\n  batch_size: 1\n  {" ".join(warm)}\n}} ]',
    ]
    return "\n".join(lines) + "\n"


def _tensor(name: str, kind: str, dims: str, more: str = "") -> str:
    parts = [f'name: "{name}"', f"data_type: {kind}", f"dims: [ {dims} ]", *([more] if more else [])]
    return f"{{ {' '.join(parts)} }}"


def _warm(name: str, kind: str, dims: str) -> str:
    return f'inputs {{ key: "{name}" value {{ data_type: {kind} dims: [ {dims} ] zero_data: true }} }}'
