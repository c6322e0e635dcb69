"""Name networks that timm does not have, by the names of their weights.

Sources: torchvision/models/{alexnet,vgg,googlenet,squeezenet,shufflenetv2,mnasnet,swin_transformer,maxvit}.py;
ultralytics/nn/modules/head.py; transformers models/*/modeling_*.py; openai/CLIP clip/model.py;
lukemelas/PyTorch-Pretrained-ViT pytorch_pretrained_vit/transformer.py.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from checkpoints.loading.metadata import Metadata
from ensemble.errors import ModelError

_EXPORT = "save it as ONNX in the program that has its code, then: ens adopt model.onnx"
# models of transformers whose state dicts begin with their name, and that have no equal in timm or other weights
_TRANSFORMERS = (
    *("bit", "cvt", "data2vec_vision", "dinat", "dinov2", "dinov2_with_registers", "dinov3_convnext", "dinov3_vit"),
    *("efficientformer", "focalnet", "hiera", "ijepa", "imagegpt", "levit", "mobilenet_v1", "mobilenet_v2"),
    *("mobilevit", "mobilevitv2", "nat", "perceiver", "poolformer", "pvt", "pvt_v2", "regnet", "segformer"),
    *("swiftformer", "swinv2", "van", "vit_hybrid", "vit_msn"),
)


@dataclass(frozen=True, slots=True)
class OtherNetwork:
    """A network that timm does not have: its name with that of its library, and what helps."""

    name: str
    hint: str = _EXPORT


@dataclass(frozen=True, slots=True)
class _Mark:
    """Names that only one kind of network has, behind any prefix: ``pattern`` matches one, and ``also`` another."""

    name: str
    pattern: str
    also: str = ""
    hint: str = _EXPORT


_YOLO = (
    "yolo export model=best.pt format=onnx, then: ens adopt best.onnx --input-range 0..1 --resize center --crop-pct 1"
)
_OPTIMUM = (
    "export it to ONNX with optimum-cli, for the task image-classification, then: ens adopt model.onnx --layout nchw "
    "--size 224, with its mean and std"
)
_MARKS = (
    _Mark("GoogLeNet of torchvision", r"inception3a\.branch1\.conv\.weight"),
    _Mark("SqueezeNet of torchvision", r"features\.\d+\.squeeze\.weight"),
    _Mark("ShuffleNet v2 of torchvision", r"stage2\.0\.branch2\.0\.weight"),
    _Mark("MNASNet of torchvision", r"layers\.8\.0\.layers\.0\.weight"),
    _Mark("Swin v2 of torchvision", r"features\.\d+\.\d+\.attn\.cpb_mlp\.0\.weight"),
    _Mark("MaxViT of torchvision", r"blocks\.0\.layers\.0\.layers\.MBconv\.layers\.pre_norm\.weight"),
    _Mark("a classifier of ultralytics", r"model\.\d+\.linear\.weight", r"model\.0\.conv\.weight", _YOLO),
    _Mark("CLIP of openai or open_clip", r"visual\.transformer\.resblocks\.0\.attn\.in_proj_weight"),
    _Mark("CLIP or SigLIP of transformers", r"vision_model\.encoder\.layers\.0\.self_attn\.q_proj\.weight"),
    _Mark("ViT of pytorch_pretrained_vit", r"transformer\.blocks\.0\.attn\.proj_q\.weight"),
    _Mark("AlexNet or VGG of torchvision", r"features\.0\.weight", r"classifier\.(\d|fc\d)\.weight"),
    *(
        _Mark(
            f"{name} of transformers",
            rf"{name}\.(embeddings|embedder|encoder|model|conv_stem|patch_embed).*",
            "",
            _OPTIMUM,
        )
        for name in _TRANSFORMERS
    ),
)


def require_no_caffe_style(metadata: Metadata, names: Collection[str], path: Path) -> None:
    """Refuse a ResNet of bottlenecks whose configuration in the file says style caffe; ``names`` are timm's.

    It halves the size in the first convolution of a block, timm's in the second (mmpretrain's resnet.py).

    Raises:
        ModelError: E453.
    """
    if metadata.caffe_style is not None and "layer2.0.conv3.weight" in names:
        message = f"{path.name} is a ResNet of style caffe ({metadata.caffe_style.place})"
        raise ModelError("E453", message, hint=_EXPORT, path=path)


def find_other_network(keys: Iterable[str]) -> OtherNetwork | None:
    """Return the network that has such names, behind any prefix; None if none is known."""
    listed = list(keys)
    for mark in _MARKS:
        if _has(mark.pattern, listed) and (not mark.also or _has(mark.also, listed)):
            return OtherNetwork(mark.name, mark.hint)
    return None


def _has(pattern: str, keys: Iterable[str]) -> bool:
    compiled = re.compile(rf"(.*\.)?{pattern}")
    return any(compiled.fullmatch(key) for key in keys)
