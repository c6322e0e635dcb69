"""Turn the layers of a head into the tensors and layers that `build_model` needs."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from checkpoints.loading.architectures import Architecture
from checkpoints.loading.head_modules import HeadLayer, fastai_layers, fold
from checkpoints.loading.head_options import WITH_WEIGHTS, HeadRequest
from checkpoints.loading.metadata import Found
from checkpoints.loading.network import HeadLayers
from checkpoints.loading.pickle_objects import PickledLayer
from checkpoints.loading.pickled_layers import layers_of_head
from ensemble.errors import ModelError
from ensemble.labels import LabelSpace

_MARGIN = re.compile(r".*(arc|cos(ine|face)?|margin|sphere|adacos|metric_fc|curricular).*", re.IGNORECASE)
_ONE_LOGIT = "its one output is the logit of the second of two classes; the first has 0"


@dataclass(frozen=True, slots=True, eq=False)
class FoundHead:
    """A head: its tensors under the names that `build_model` gives them, and the keys that were left out.

    ``arch_options`` are options of the architecture that its width shows. ``labels`` are the classes that the names
    of several heads show.
    """

    layers: HeadLayers
    outputs: int
    tensors: Mapping[str, torch.Tensor]
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    arch_options: Mapping[str, object] = field(default_factory=dict)

    def of_scores(self) -> FoundHead:
        """Return the head where an only output is the score of an ordinal axis, and no logit of two classes."""
        notes = tuple(note for note in self.notes if note != _ONE_LOGIT)
        return replace(self, layers=replace(self.layers, one_logit=False), notes=notes)


class HeadBuilder:
    """Builds the head of one architecture, whose only classifier has the name ``classifier``."""

    def __init__(
        self,
        architecture: Architecture,
        classifier: str,
        request: HeadRequest,
        path: Path,
        *,
        margin: Found[str] | None = None,
        layers: Mapping[str, PickledLayer] | None = None,
        owned: Collection[str] = (),
    ) -> None:
        self._architecture, self._request, self._path = architecture, request, path
        self._layers, self._owned = layers or {}, frozenset(key.rpartition(".")[0] for key in owned)
        self._margin = margin
        self._classifier = classifier
        self._features = architecture.features or 0

    def build(self, chain: tuple[HeadLayer, ...], place: str) -> FoundHead:
        """Return a head of one chain: folded into one linear layer if the weights tell all, else as it is named."""
        notes: list[str] = []
        pool, options = self._pooling(chain, place, notes)
        kinds = [layer.kind for layer in chain]
        names = ", ".join(layer.name for layer in chain)
        outputs = [layer for layer in chain if layer.kind == "linear"][-1].returns
        if self._request.layers is not None:
            return self._named_layers(chain, pool, options, notes)
        if (wanted := fastai_layers(chain)) is not None:
            notes.append(f"{names} are the head of fastai, with a ReLU between its linear layers")
            return self._with_layers(chain, wanted, pool, options, notes)
        wanted = self._pickled(chain, notes)
        if wanted is not None and not set(wanted) <= {"linear", "batchnorm"}:
            return self._with_layers(chain, wanted, pool, options, notes)
        if wanted is None and not self._is_foldable(chain):
            raise self.unknown(
                "the weights do not tell the activations between its layers: "
                + ", ".join(f"{layer.name} ({layer.describe()})" for layer in chain),
                chain,
            )
        warnings = self._suspect_cosine([layer for layer in chain if layer.kind == "linear"][-1])
        if kinds == ["linear"]:
            tensors = dict(chain[0].tensors)
            if "bias" not in tensors:
                tensors["bias"] = torch.zeros(outputs)
                notes.append(f"{names} has no bias: zeros are added")
        else:
            tensors = fold(chain)
            gap = " without an activation between them" if wanted is None and self._has_gap(chain) else ""
            notes.append(f"{names} were merged into one linear layer{gap}")
        if place != self._classifier:
            notes.append(f"{names} is the head ({self._classifier} in timm)")
        return replace(self._plain(tensors, outputs, notes, pool=pool, options=options), warnings=warnings)

    def _pickled(self, chain: Sequence[HeadLayer], notes: list[str]) -> tuple[str, ...] | None:
        """Return the layers of a pickled Sequential; None where there is none."""
        places = {layer.root for layer in chain}
        if len(places) != 1:  # of a Sequential whose layers have names
            places = {layer.name.rpartition(".")[0] for layer in chain}
        if len(places) != 1:
            return None
        (root,) = places
        wanted = layers_of_head(self._layers, root, chain[0].name, self._owned)
        if wanted is None:
            return None
        if wanted[-1:] in {("?LogSoftmax",), ("?Softmax",)}:
            notes.append(f"the {wanted[-1].removeprefix('?')} at the end of {root} is left out: it takes the logits")
            wanted = wanted[:-1]
        unknown = [name for name in wanted if name.startswith("?")]
        kinds = [name for name in wanted if name in WITH_WEIGHTS]
        if unknown or kinds != [layer.kind for layer in chain]:
            shown = ", ".join(name.removeprefix("?") for name in wanted)
            raise self.unknown(f"{root} was pickled as {shown}, of which not all can be exported", chain)
        return wanted

    def _suspect_cosine(self, last: HeadLayer) -> tuple[str, ...]:
        """Warn of a head without bias, which may be that of a margin loss; refuse one where something says so.

        ArcFace, CosFace and their kin compare directions: their logits are a scale times the cosine between features
        and weights, and their weights look like those of a linear layer without bias.
        """
        if "bias" in last.tensors:
            return ()
        why = ""
        lengths = last.tensors["weight"].detach().flatten(1).float().norm(dim=1)
        if _MARGIN.fullmatch(last.name) or last.margin:
            why = "by its name"
        elif self._margin is not None:
            why = f"{self._margin.place} = {self._margin.value!r}"
        elif len(lengths) > 1 and float((lengths - 1).abs().max()) < 1e-3:
            why = "each of its rows has the length 1"
        if why:
            shown = last.margin or last.name
            hint = "give --head-layers cosine:30 with the scale it was trained with, or --head-layers linear"
            raise self.unknown(f"{shown} looks like the cosine layer of a margin loss ({why})", [last], hint=hint)
        return (
            (
                f"{last.name} has no bias: it is exported as a linear layer. If it was trained with ArcFace or another "
                "margin loss, its logits are cosines: give --head-layers cosine:30 with its scale"
            ),
        )

    def _plain(
        self,
        tensors: Mapping[str, torch.Tensor],
        outputs: int,
        notes: list[str],
        *,
        pool: str = "",
        options: Mapping[str, object],
    ) -> FoundHead:
        """Return the plain classifier of timm, with one output, or with one head per axis where the sum says so."""
        wanted = self._architecture.state.get(f"{self._classifier}.weight")
        weight = tensors["weight"]
        if wanted is not None and wanted.ndim != weight.ndim:  # a convolution of one pixel is a linear layer
            shape = (*weight.shape[:2], *([1] * (wanted.ndim - 2)))
            tensors = {**tensors, "weight": weight.reshape(shape)}
        labels = self._request.labels
        axes: tuple[int, ...] = ()
        if labels is not None and len(labels.axes) > 1 and outputs == sum(labels.shape) != len(labels):
            axes = labels.shape
            notes.append(f"its {outputs} outputs are those of one head per axis: {_axes_text(labels)}")
        if outputs == 1:
            notes.append(_ONE_LOGIT)
        named = {f"{self._classifier}.{leaf}": tensor for leaf, tensor in tensors.items()}
        layers = HeadLayers(pool=pool, axes=axes, one_logit=outputs == 1)
        if pool:  # timm's own classifier would be built for other features
            layers = replace(layers, layers=("linear",), widths=(outputs,), biases=(True,))
            named = {f"{self._classifier}.0.{leaf}": tensor for leaf, tensor in tensors.items()}
        return FoundHead(layers, outputs, named, notes=tuple(notes), arch_options=options)

    def _pooling(self, chain: Sequence[HeadLayer], place: str, notes: list[str]) -> tuple[str, Mapping[str, object]]:
        """Return our pooling, or timm's option, for a head that takes twice as many values as the body has."""
        takes = next(layer.takes for layer in chain if layer.takes)
        if takes == self._features:
            return "", {}
        if fastai_layers(chain) is not None:
            return "catmaxavg", {}
        if place.startswith(self._classifier):
            notes.append(f"{chain[0].name} takes {takes} values: the average and the maximum (global_pool=catavgmax)")
            return "", {"global_pool": "catavgmax"}
        raise self.unknown(
            f"its head {chain[0].name} takes {takes} values, twice the {self._features} features: the weights do not "
            "tell in which order they were pooled",
            chain,
            hint="give --arch-option global_pool=catavgmax if the average comes first, then the maximum",
        )

    def _named_layers(
        self, chain: tuple[HeadLayer, ...], pool: str, options: Mapping[str, object], notes: list[str]
    ) -> FoundHead:
        wanted = self._request.layers or ()
        with_weights = [name for name in wanted if name in WITH_WEIGHTS]
        found = [layer.kind for layer in chain]
        same = len(with_weights) == len(found) and all(
            name == kind or (name, kind) == ("cosine", "linear") for name, kind in zip(with_weights, found, strict=True)
        )
        if not same:
            raise self.unknown(
                f"--head-layers has {', '.join(with_weights)}, the checkpoint "
                + ", ".join(f"{layer.name} ({layer.describe()})" for layer in chain),
                chain,
            )
        return self._with_layers(chain, wanted, pool, options, notes)

    def _with_layers(
        self,
        chain: tuple[HeadLayer, ...],
        wanted: tuple[str, ...],
        pool: str,
        options: Mapping[str, object],
        notes: list[str],
    ) -> FoundHead:
        tensors: dict[str, torch.Tensor] = {}
        widths, biases, waiting = [], [], list(chain)
        for number, name in enumerate(wanted):
            layer = waiting.pop(0) if name in WITH_WEIGHTS else None
            weights = dict(layer.tensors) if layer is not None else {}
            if layer is not None and layer.kind == "linear":
                weights["weight"] = weights["weight"].flatten(1)
            if layer is not None and layer.kind == "batchnorm":
                weights.setdefault("weight", torch.ones(layer.takes))
                weights.setdefault("bias", torch.zeros(layer.takes))
                weights.setdefault("num_batches_tracked", torch.zeros((), dtype=torch.int64))
            if name == "cosine":
                weights.pop("bias", None)
            widths.append(weights["weight"].shape[0] if "weight" in weights else 0)
            biases.append("bias" in weights)
            tensors |= {f"{self._classifier}.{number}.{leaf}": tensor for leaf, tensor in weights.items()}
        outputs = [layer for layer in chain if layer.kind == "linear"][-1].returns
        if outputs == 1:
            notes.append(_ONE_LOGIT)
        layers = HeadLayers(
            layers=wanted,
            widths=tuple(widths),
            biases=tuple(biases),
            pool=pool,
            one_logit=outputs == 1,
            scale=self._request.scale,
        )
        notes.append(f"the head is {', '.join(wanted)}")
        return FoundHead(layers, outputs, tensors, notes=tuple(notes), arch_options=options)

    def _is_foldable(self, chain: Sequence[HeadLayer]) -> bool:
        """Return True if no activation can stand between linear layers, or there is one linear layer alone."""
        if any(layer.kind not in {"linear", "batchnorm"} for layer in chain):
            return False
        if sum(layer.kind == "linear" for layer in chain) == 1:
            return True
        return not self._has_gap(chain)

    @staticmethod
    def _has_gap(chain: Sequence[HeadLayer]) -> bool:
        """Return True unless the layers follow each other without a gap in one Sequential."""
        if len({layer.root for layer in chain}) > 1 or any(layer.number is None for layer in chain):
            return True
        numbers = [layer.number or 0 for layer in chain]
        return numbers != list(range(numbers[0], numbers[0] + len(numbers)))

    def unknown(self, why: str, layers: Sequence[HeadLayer], *, hint: str | None = None) -> ModelError:
        """Return E449 for a head whose layers the weights do not tell, with an example of --head-layers."""
        example = ",relu,".join(
            ",".join(group) for group in _between_linear([layer.kind for layer in layers if layer.kind != "other"])
        )
        if hint is None and len(layers) == 1:
            hint = "give --head-layers cosine:30 with the scale it was trained with, or --head-layers linear"
        return ModelError(
            "E449",
            f"{self._path.name}: {why}",
            hint=hint or f"give the layers with --head-layers, such as --head-layers {example or 'linear,relu,linear'}",
            path=self._path,
        )


def _between_linear(kinds: Sequence[str]) -> list[list[str]]:
    groups: list[list[str]] = [[]]
    for kind in kinds:
        groups[-1].append(kind)
        if kind == "linear":
            groups.append([])
    return [group for group in groups if group]


def _axes_text(labels: LabelSpace) -> str:
    return ", ".join(f"{axis.name} {len(axis.values)}" for axis in labels.axes)
