"""Map torchvision's weight names to timm's where the networks are the same.

ResNets have the same names, padding and epsilon in both. EfficientNets have different names; torchvision pads
symmetrically, like timm's models without ``tf_``, but b5 to b7 and v2 use an epsilon of 1e-3 in batch normalization
where timm uses 1e-5. Batch normalization divides by ``sqrt(running_var + epsilon)``, so adding the difference to
``running_var`` gives the same network.
Source: torchvision/models/efficientnet.py, timm/models/efficientnet.py.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

OTHER_EPSILON = frozenset(
    {"efficientnet_b5", "efficientnet_b6", "efficientnet_b7"}
    | {"mobilenetv3_large_100", "mobilenetv3_small_100"}
    | {"efficientnetv2_s", "efficientnetv2_m", "efficientnetv2_l"}
)
EPSILON_DIFFERENCE = 1e-3 - 1e-5

_BLOCK_KEY = re.compile(r"features\.(\d+)\.(\d+)\.block\.(\d+)\.(\w+)\.(\w+)")
_END_KEY = re.compile(r"features\.(\d+)\.([01])\.(\w+)")
_SQUEEZE_EXCITE = {"fc1": "se.conv_reduce", "fc2": "se.conv_expand"}
# number of parts in a torchvision block -> timm's name of each convolution ("0") and normalization ("1")
_BLOCK_PARTS: dict[int, tuple[dict[str, str], ...]] = {
    1: ({"0": "conv", "1": "bn1"},),
    2: ({"0": "conv_exp", "1": "bn1"}, {"0": "conv_pwl", "1": "bn2"}),
    3: ({"0": "conv_dw", "1": "bn1"}, _SQUEEZE_EXCITE, {"0": "conv_pw", "1": "bn2"}),
    4: ({"0": "conv_pw", "1": "bn1"}, {"0": "conv_dw", "1": "bn2"}, _SQUEEZE_EXCITE, {"0": "conv_pwl", "1": "bn3"}),
}


def rename_efficientnet(keys: Sequence[str]) -> dict[str, str]:
    """Map the names of torchvision's EfficientNet to timm's; a name that is none of them is left out."""
    parts: dict[tuple[str, str], int] = defaultdict(int)
    for key in keys:
        if match := _BLOCK_KEY.fullmatch(key):
            block = (match[1], match[2])
            parts[block] = max(parts[block], int(match[3]) + 1)
    last = max((int(key.split(".")[1]) for key in keys if _END_KEY.fullmatch(key)), default=0)
    renamed = {key: _rename(key, parts, last) for key in keys}
    return {key: name for key, name in renamed.items() if name is not None}


def _rename(key: str, parts: Mapping[tuple[str, str], int], last: int) -> str | None:
    if match := _BLOCK_KEY.fullmatch(key):
        stage, block, part, layer, leaf = match.groups()
        names = _BLOCK_PARTS.get(parts[stage, block])
        if names is not None and layer in names[int(part)]:
            return f"blocks.{int(stage) - 1}.{block}.{names[int(part)][layer]}.{leaf}"
    elif match := _END_KEY.fullmatch(key):
        ends = {0: ("conv_stem", "bn1"), last: ("conv_head", "bn2")}
        if int(match[1]) in ends:
            return f"{ends[int(match[1])][int(match[2])]}.{match[3]}"
    return None


def absorb_epsilon(arch: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Add torchvision's larger epsilon to the running variances, in the networks that use it."""
    if arch not in OTHER_EPSILON:
        return dict(tensors)
    return {
        key: tensor + EPSILON_DIFFERENCE if key.endswith(".running_var") else tensor for key, tensor in tensors.items()
    }
