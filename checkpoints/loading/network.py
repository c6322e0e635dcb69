"""timm models with one head for all classes, or one head per axis of the label space."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import timm
import torch

from checkpoints.loading.axes_head import AxesHead
from ensemble.errors import OptionError

# Options of an architecture that its weights cannot show, such as global_pool or bn_eps, by timm's names.
ArchOptions = Mapping[str, Any]

_ACTIVATIONS = {
    "relu": torch.nn.ReLU,
    "relu6": torch.nn.ReLU6,
    "leakyrelu": torch.nn.LeakyReLU,
    "elu": torch.nn.ELU,
    "selu": torch.nn.SELU,
    "gelu": torch.nn.GELU,
    "silu": torch.nn.SiLU,
    "mish": torch.nn.Mish,
    "hardswish": torch.nn.Hardswish,
    "tanh": torch.nn.Tanh,
    "sigmoid": torch.nn.Sigmoid,
    "softplus": torch.nn.Softplus,
    "identity": torch.nn.Identity,
}


@dataclass(frozen=True, slots=True)
class HeadLayers:
    """The head in place of an architecture's classifier; by default that is one linear layer.

    ``layers`` are those that `head_options` lists, ``widths`` what each returns. ``pool`` is ``catmaxavg`` (fastai's
    order) or ``gem`` where timm does not have that pooling. ``axes`` are the sizes of the heads
    of an `AxesHead`, and ``ordered`` the positions of those that are ordinal. With ``one_logit`` the head's only output
    is the logit of the second of two classes. ``scale`` is that of a cosine layer.
    """

    layers: tuple[str, ...] = ()
    widths: tuple[int, ...] = ()
    biases: tuple[bool, ...] = ()
    pool: str = ""
    axes: tuple[int, ...] = ()
    ordered: tuple[int, ...] = ()
    one_logit: bool = False
    scale: float = 1.0


class CosineLinear(torch.nn.Linear):
    """The cosine between features and the weights of each class, times a scale: the logits of ArcFace and CosFace."""

    def __init__(self, in_features: int, out_features: int, scale: float) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.scale = scale

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - torch's name
        """Return ``(B, C)`` for features ``(B, F)``."""
        normalize = torch.nn.functional.normalize
        return self.scale * torch.nn.functional.linear(normalize(input), normalize(self.weight))


class TwoLogits(torch.nn.Module):
    """Put a zero before one logit: the softmax of both is the sigmoid of the one.

    Maps features to ``(B, 2)`` where the layer inside returns ``(B, 1)``.
    """

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - torch's name
        """Return ``[0, logit]``."""
        logit = self.inner(input)
        return torch.cat([torch.zeros_like(logit), logit], dim=1)


class GeM(torch.nn.Module):
    """Generalized-mean pooling, ``(B, F, h, w)`` to ``(B, F)`` (Radenovic et al. 2018, equation 3)."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.p = torch.nn.Parameter(torch.full((count,), 3.0))

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - torch's name
        """Return the means."""
        power = self.p.reshape(1, -1, 1, 1)
        return input.clamp(min=1e-6).pow(power).mean(dim=(2, 3), keepdim=True).pow(1 / power).flatten(1)


class MaxAvgPool(torch.nn.Module):
    """The maximum and then the average, ``(B, F, h, w)`` to ``(B, 2 F)``: AdaptiveConcatPool2d of fastai."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - torch's name
        """Return both, one after the other."""
        return torch.cat([input.amax(dim=(2, 3)), input.mean(dim=(2, 3))], dim=1)


class FixedPadConv(torch.nn.Conv2d):
    """A convolution that pads by fixed numbers at each side, whatever the size of its input."""

    pads: tuple[int, int, int, int]

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - torch's name
        """Pad, then convolve."""
        padded = torch.nn.functional.pad(input, self.pads)
        return torch.nn.functional.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def make_network(
    arch: str,
    *,
    outputs: int,
    size: tuple[int, int] | None = None,
    shape: tuple[int, ...] | None = None,
    ordered: tuple[int, ...] = (),
    pretrained: bool = False,
    in_channels: int = 3,
    arch_options: ArchOptions | None = None,
) -> Any:
    """Return a timm model with ``outputs`` outputs; with ``shape``, the sizes of the axes, it has an `AxesHead`.

    The axes at the positions ``ordered`` are ordinal.
    ``size`` is the ``(height, width)`` of the images, which transformers need; timm interpolates pretrained position
    embeddings to it.

    Raises:
        OptionError: E204 when the architecture does not support the size, or its classifier is not a single linear
            layer, which an `AxesHead` needs.
    """
    sized = size_options(arch, size)
    options = sized | dict(arch_options or {})
    if in_channels != 3:
        options["in_chans"] = in_channels
    try:
        epsilon = options.pop("bn_eps", None)
        model: Any = timm.create_model(arch, pretrained=pretrained, num_classes=outputs, **options)
        if epsilon is not None:
            set_epsilon(model, epsilon)
        if sized:  # most are built for any size, and fail at the first image
            _try_one_image(model, sized["img_size"], in_channels)
    except (AssertionError, RuntimeError, TypeError, ValueError) as err:
        if not sized:
            raise
        reason = (str(err).strip() or type(err).__name__).splitlines()[0]
        height, width = sized["img_size"]
        message = f"{arch} does not take images of {height}x{width} px: {reason}"
        raise OptionError("E204", message, hint="give another --size") from err
    if shape is None:
        return model
    names = classifiers(arch)
    plain = model.get_submodule(names[0]) if len(names) == 1 else None
    if type(plain) is not torch.nn.Linear:
        raise OptionError(
            "E204",
            f"{'--ordinal' if ordered else '--head axes'} needs one linear classifier, which {arch} does not have",
        )
    replace_module(model, names[0], AxesHead(plain, shape, ordered))
    return model


def set_epsilon(model: torch.nn.Module, epsilon: float) -> None:
    """Set the epsilon of every batch normalization, which timm's option ``bn_eps`` does for some architectures only.

    Raises:
        ValueError: when there is no batch normalization.
    """
    norms = [module for module in model.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    if not norms:
        raise ValueError("it has no batch normalization")
    for module in norms:
        module.eps = float(epsilon)


def replace_module(model: torch.nn.Module, name: str, new: torch.nn.Module) -> None:
    """Put ``new`` in the place of the module of that dotted name."""
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, new)


def add_zero_logit(model: torch.nn.Module, arch: str) -> None:
    """Put `TwoLogits` around the classifier."""
    name = classifiers(arch)[0]
    replace_module(model, name, TwoLogits(model.get_submodule(name)))


def set_head(model: torch.nn.Module, arch: str, head: HeadLayers) -> None:
    """Replace pooling and classifier by those of ``head``.

    Raises:
        OptionError: E204 when the architecture has no pooling layer or no single linear classifier to replace.
    """
    if head.pool:
        pooling: Any = model
        if not isinstance(getattr(pooling, "global_pool", None), torch.nn.Module):
            raise OptionError("E204", f"{arch} has no pooling layer that could be replaced")
        pooling.global_pool = MaxAvgPool() if head.pool == "catmaxavg" else GeM(int(head.pool.removeprefix("gem")))
    if head.layers:
        name = classifiers(arch)[0]
        plain: Any = model.get_submodule(name)
        features = plain.weight.shape[1] * (2 if head.pool == "catmaxavg" else 1)
        replace_module(model, name, _build_layers(head, features))


def _build_layers(head: HeadLayers, features: int) -> torch.nn.Sequential:
    width, built = features, []
    for layer, out, bias in zip(head.layers, head.widths, head.biases, strict=True):
        new: torch.nn.Module
        match layer:
            case "linear":
                new = torch.nn.Linear(width, out, bias=bias)
            case "cosine":
                new = CosineLinear(width, out, head.scale)
            case "batchnorm":
                new = torch.nn.BatchNorm1d(width)
            case "layernorm":
                new = torch.nn.LayerNorm(width)
            case "prelu":
                new = torch.nn.PReLU(out)
            case _:
                new = _ACTIVATIONS[layer]()
        if layer in {"linear", "cosine"}:
            width = out
        built.append(new)
    return torch.nn.Sequential(*built)


def fix_padding(model: torch.nn.Module, side: int) -> None:
    """Pad every strided convolution as TensorFlow does for square images of ``side`` pixels, whatever their size.

    efficientnet_pytorch computes its padding once, from the size it was made for (Conv2dStaticSamePadding in
    efficientnet_pytorch/utils.py); transformers pads as for even sides (correct_pad in modeling_efficientnet.py).
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Conv2d) and module.stride[0] > 1:
            kernel, stride = module.kernel_size[0], module.stride[0]
            smaller = -(-side // stride)
            total = max((smaller - 1) * stride + kernel - side, 0)
            side = smaller
            new = FixedPadConv(
                module.in_channels,
                module.out_channels,
                (kernel, kernel),
                (stride, stride),
                groups=module.groups,
                bias=module.bias is not None,
            )
            new.weight, new.bias = module.weight, module.bias
            new.pads = (total // 2, total - total // 2, total // 2, total - total // 2)
            replace_module(model, name, new)


@torch.no_grad()
def _try_one_image(model: torch.nn.Module, size: tuple[int, int], channels: int) -> None:
    model.eval()(torch.zeros(1, channels, *size))
    model.train()


def size_options(arch: str, size: tuple[int, int] | None) -> dict[str, Any]:
    """Return timm's option for the image size; none if the model takes any size, or ``size`` is its default."""
    config = timm.get_pretrained_cfg(arch, allow_unregistered=True)
    if size is None or config is None or not config.fixed_input_size or tuple(config.input_size[1:]) == size:
        return {}
    return {"img_size": size}


def classifiers(arch: str) -> tuple[str, ...]:
    """Return the names of the layers that compute the logits, such as ``fc``."""
    config = timm.get_pretrained_cfg(arch, allow_unregistered=True)
    named = (config.classifier if config else None) or ()
    return (named,) if isinstance(named, str) else tuple(named)
