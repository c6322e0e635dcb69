"""timm models with one head for all classes, or one head per axis of the label space."""

from __future__ import annotations

from typing import Any

import timm
import torch

from ensemble.card import Head
from ensemble.errors import OptionError
from ensemble.labels import LabelSpace


class AxesHead(torch.nn.Linear):
    """One linear head per axis; the log-probability of a class is the sum of those of its values.

    Maps ``(B, F)`` to log-probabilities ``(B, C)`` in the order of the label space. The axes are assumed to be
    independent given the image: ``log p(a, b, c) = log p(a) + log p(b) + log p(c)``. The weights are
    ``(sum of sizes, F)``, under the names of the plain head.
    """

    def __init__(self, plain: torch.nn.Linear, shape: tuple[int, ...]) -> None:
        # on the meta device nothing is drawn: the random state is the same as without this head
        super().__init__(plain.in_features, sum(shape), bias=plain.bias is not None, device="meta")
        self.weight, self.bias = plain.weight, plain.bias
        self.shape = shape

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - torch's name
        """Return the sum over the axes, with the last axis changing fastest."""
        # float32: a sum of logarithms in half precision is inaccurate
        first, *others = torch.split(super().forward(input).float(), list(self.shape), dim=1)
        total = first.log_softmax(dim=1)
        for scores in others:
            total = (total.unsqueeze(2) + scores.log_softmax(dim=1).unsqueeze(1)).flatten(1)
        return total


def count_outputs(labels: LabelSpace, head: Head) -> int:
    """Return the number of outputs of the last layer: one per class, or one per value of each axis.

    Raises:
        OptionError: E204 when heads per axis are requested and there is only one axis.
    """
    if head == "flat":
        return len(labels)
    if len(labels.shape) < 2:
        raise OptionError(
            "E204", f"--head axes needs classes that are a product of axes; these have one, {labels.axes[0].name!r}"
        )
    return sum(labels.shape)


def make_network(
    arch: str,
    *,
    outputs: int,
    size: tuple[int, int] | None = None,
    shape: tuple[int, ...] | None = None,
    pretrained: bool = False,
) -> Any:
    """Return a timm model with ``outputs`` outputs; with ``shape``, the sizes of the axes, it has an `AxesHead`.

    ``size`` is the ``(height, width)`` of the images, which transformers need; timm interpolates pretrained position
    embeddings to it.

    Raises:
        OptionError: E204 when the architecture does not support the size, or its classifier is not a single linear
            layer, which an `AxesHead` needs.
    """
    options = size_options(arch, size)
    try:
        model: Any = timm.create_model(arch, pretrained=pretrained, num_classes=outputs, **options)
        if options:  # most are built for any size, and fail at the first image
            _try_one_image(model, options["img_size"])
    except (AssertionError, RuntimeError, TypeError, ValueError) as err:
        if not options:
            raise
        reason = (str(err).strip() or type(err).__name__).splitlines()[0]
        height, width = options["img_size"]
        message = f"{arch} does not take images of {height}x{width} px: {reason}"
        raise OptionError("E204", message, hint="give another --size") from err
    if shape is None:
        return model
    names = classifiers(arch)
    plain = model.get_submodule(names[0]) if len(names) == 1 else None
    if type(plain) is not torch.nn.Linear:
        raise OptionError("E204", f"--head axes needs one linear classifier, which {arch} does not have")
    parent, _, name = names[0].rpartition(".")
    setattr(model.get_submodule(parent), name, AxesHead(plain, shape))
    return model


@torch.no_grad()
def _try_one_image(model: torch.nn.Module, size: tuple[int, int]) -> None:
    model.eval()(torch.zeros(1, 3, *size))
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
