"""Find the head of a network: the layers behind its body, whatever their names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from checkpoints.loading.bodies import Body
from checkpoints.loading.head_modules import Layer, fold, group_layers, has_classifier, link
from checkpoints.loading.head_options import HeadRequest
from checkpoints.loading.key_names import is_normalisation, is_training_state
from checkpoints.loading.network import WITH_WEIGHTS, HeadLayers
from ensemble.errors import ModelError, enumerate_some
from ensemble.labels import MASK18, LabelSpace

# names of heads that are trained beside the classifier and not asked for an answer
_AUXILIARY = re.compile(
    r".*(aux|proj|rotation|jigsaw|domain|contrast|simclr|byol|moco|ssl|distill|predictor|decoder|segment|seg_head"
    r"|recon|embed|landmark|bbox).*",
    re.IGNORECASE,
)
_USUAL = re.compile(
    r"(.*\.)?(_?fc|classifier|cls|cls_head|classification_head|head|heads|last_linear|logits?|linear|output|out|final"
    r"|fc_?out|dense|main_head|main)(\.fc|\.linear|\.classifier|\.head)?",
    re.IGNORECASE,
)
_MARGIN = re.compile(r".*(arc|cos(ine|face)?|margin|sphere|adacos|metric_fc|curricular).*", re.IGNORECASE)
# the order of the layers with weights in the head that fastai puts on a body, and their numbers: create_head in
# fastai/vision/learner.py
_FASTAI = (("batchnorm", 2), ("linear", 4), ("batchnorm", 6), ("linear", 8))


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
    arch_options: Mapping[str, object] = field(default_factory=dict)


@dataclass(slots=True)
class _Rest:
    """What is left of a checkpoint beside the body: layers, and keys that belong to no network."""

    layers: list[Layer]
    left_out: list[str]


class HeadFinder:
    """Finds the head of one body among the tensors that no body has.

    Raises:
        ModelError: E410 when there is a layer that may belong to the network, E415 when no layer takes the features,
            E449 when the weights cannot tell the head.
    """

    def __init__(self, body: Body, rest: Mapping[str, torch.Tensor], request: HeadRequest, path: Path) -> None:
        self._body, self._request, self._path = body, request, path
        architecture = body.match.architecture
        self._classifier = architecture.classifier[0] if len(architecture.classifier) == 1 else ""
        self._features = architecture.features or 0
        self._widths = (self._features, 2 * self._features) if self._can_pool() else (self._features,)
        self._names = {key: name for name, key in body.sources.items()}
        self._rest = self._sort_out(rest)

    def find(self) -> FoundHead:
        """Return the head."""
        architecture = self._body.match.architecture
        if len(architecture.classifier) != 1:
            return self._own_head()
        pools = [layer for layer in self._rest.layers if layer.kind == "gem"]
        layers = [layer for layer in self._rest.layers if layer.kind != "gem"]
        chain, others = self._choose(layers)
        found = self._axes(others) if not chain else self._one(chain)
        if pools and len(pools) == 1:
            power = pools[0].tensors["p"].detach().float().reshape(-1)
            found = replace(
                found,
                layers=replace(found.layers, pool=f"gem{len(power)}"),
                tensors={"global_pool.p": power, **found.tensors},
                notes=(*found.notes, f"{pools[0].name} is a generalised-mean pooling, which is exported"),
            )
        if chain:
            self._leave_out(others, chain)
        return replace(found, left_out=tuple(self._rest.left_out))

    def _can_pool(self) -> bool:
        """Return True if the features may be pooled in two ways at once."""
        return "conv" in (self._body.match.architecture.first_conv or "")

    def _sort_out(self, rest: Mapping[str, torch.Tensor]) -> _Rest:
        """Separate the layers from what belongs to the training."""
        kept, left_out = {}, []
        for key, tensor in rest.items():
            named = self._request.name is not None and self._is_named(key, self._request.name)
            ignored = any(self._is_named(key, name) for name in self._request.leave_out)
            if ignored or (not named and (is_training_state(key, tensor) or is_normalisation(key, tensor))):
                left_out.append(key)
            else:
                kept[key] = tensor
        return _Rest(list(group_layers(kept)), left_out)

    @staticmethod
    def _is_named(key: str, name: str) -> bool:
        return f".{name}." in f".{key}."

    def _timm_name(self, layer: Layer) -> str:
        """Return the name of a layer as timm has it, if it is inside the body's prefix."""
        if not layer.name.startswith(self._body.prefix.rstrip(".")):
            return ""
        for key in layer.keys:
            if key in self._names:
                return self._names[key].rpartition(".")[0]
        return layer.name.removeprefix(self._body.prefix)

    def _own_head(self) -> FoundHead:
        """Return the classifiers of an architecture that has several, or none, under timm's names."""
        architecture = self._body.match.architecture
        own = tuple(f"{name}." for name in architecture.classifier)
        tensors = {}
        for layer in list(self._rest.layers):
            name = self._timm_name(layer)
            if own and f"{name}.".startswith(own):
                tensors |= {f"{name}.{leaf}": tensor for leaf, tensor in layer.tensors.items()}
                self._rest.layers.remove(layer)
        wanted = {key for key in architecture.state if own and key.startswith(own)}
        if missing := sorted(wanted - tensors.keys()):
            raise ModelError(
                "E410", f"{self._path.name} is {architecture.arch} without {enumerate_some(missing)}", path=self._path
            )
        outputs = next((t.shape[0] for key, t in tensors.items() if key.endswith("weight")), 0)
        self._leave_out(self._rest.layers, ())
        return FoundHead(HeadLayers(), outputs, tensors, tuple(self._rest.left_out))

    def _choose(self, layers: Sequence[Layer]) -> tuple[tuple[Layer, ...], list[Layer]]:
        """Return the layers of the head in order, and all others; no layers if there is one head per axis."""
        if self._request.name is not None:
            own = [layer for layer in layers if self._is_named(layer.name, self._request.name)]
            chain = link(own, self._widths)
            if not own or chain is None or not has_classifier(chain):
                raise self._unknown(f"--head-name {self._request.name} names no head of {self._features} features", own)
            return chain, [layer for layer in layers if layer not in own]
        place = [layer for layer in layers if f"{self._timm_name(layer)}.".startswith(f"{self._classifier}.")]
        chains = {self._classifier: found} if place and (found := link(place, self._widths)) else {}
        if place and not chains:
            raise self._unknown(f"{self._classifier} does not take the {self._features} features", place)
        rest = [layer for layer in layers if layer not in place]
        if not chains:
            chains = self._chains(rest)
        heads = {root: chain for root, chain in chains.items() if has_classifier(chain)}
        if not heads:
            raise self._no_head(layers)
        if len(heads) > 1:
            heads = self._main(heads)
        if len(heads) > 1:
            return (), [layer for chain in heads.values() for layer in chain]
        (chain,) = heads.values()
        others = [layer for layer in layers if layer not in chain]
        return self._extended(chain, others)

    def _chains(self, layers: Sequence[Layer]) -> dict[str, tuple[Layer, ...]]:
        """Return every group of layers that takes the features, by its name; one group if all of them link up."""
        useful = [layer for layer in layers if layer.kind != "other" and not _AUXILIARY.fullmatch(layer.name)]
        roots: dict[str, list[Layer]] = {}
        for layer in useful:
            roots.setdefault(layer.root, []).append(layer)
        if len(roots) > 1:
            first = [layer for layer in useful if layer.kind == "linear" and layer.takes in self._widths]
            if len(first) == 1 and (whole := link(useful, self._widths)) is not None:
                return {first[0].root: whole}
        return {root: chain for root, group in roots.items() if (chain := link(group, self._widths)) is not None}

    def _main(self, heads: Mapping[str, tuple[Layer, ...]]) -> dict[str, tuple[Layer, ...]]:
        """Return the one of several heads that has the usual name, if the labels do not ask for several."""
        if self._labels_of(list(heads.values())) is not None:
            return dict(heads)
        usual = {root: chain for root, chain in heads.items() if _USUAL.fullmatch(root)}
        return usual if len(usual) == 1 else dict(heads)

    def _extended(
        self, chain: tuple[Layer, ...], others: list[Layer]
    ) -> tuple[tuple[Layer, ...], list[Layer]]:
        """Add layers that take what the head returns: a classifier behind the body's own."""
        while True:
            last = [layer for layer in chain if layer.kind == "linear"][-1]
            following = [
                layer
                for layer in others
                if layer.kind == "linear" and layer.takes == last.returns and not _AUXILIARY.fullmatch(layer.name)
            ]
            if not following or last.returns == self._features:
                return chain, others
            chain = (*chain, following[0])
            others = [layer for layer in others if layer is not following[0]]

    def _one(self, chain: tuple[Layer, ...]) -> FoundHead:
        """Return a head of one chain: folded into one linear layer if the weights tell all, else as it is named."""
        notes = []
        pool, options = self._pooling(chain)
        kinds = [layer.kind for layer in chain]
        names = ", ".join(layer.name for layer in chain)
        outputs = [layer for layer in chain if layer.kind == "linear"][-1].returns
        if self._request.layers is not None:
            return self._named_layers(chain, pool, options)
        if self._is_fastai(chain):
            notes.append(f"{names} are the head of fastai, with a ReLU between its linear layers")
            wanted = ("batchnorm", "linear", "relu", "batchnorm", "linear")
            return self._with_layers(chain, wanted, pool, options, notes)
        if not self._is_foldable(chain):
            raise self._unknown(
                "the weights do not tell the activations between its layers: "
                + ", ".join(f"{layer.name} ({layer.describe()})" for layer in chain),
                chain,
            )
        if kinds == ["linear"] and "bias" not in chain[0].tensors and _MARGIN.fullmatch(chain[0].name):
            raise self._unknown(f"{names} looks like the cosine layer of a margin loss", chain)
        own = self._timm_name(chain[0]) == self._classifier
        if kinds == ["linear"]:
            tensors = {leaf: tensor for leaf, tensor in chain[0].tensors.items()}
            if "bias" not in tensors:
                tensors["bias"] = torch.zeros(outputs)
                notes.append(f"{names} has no bias: zeros are added")
        else:
            tensors = fold(chain)
            gap = " without an activation between them" if self._has_gap(chain) else ""
            notes.append(f"{names} were merged into one linear layer{gap}")
        if not own:
            notes.append(f"{names} is taken as the classifier {self._classifier}")
        return self._plain(tensors, outputs, notes, pool=pool, options=options)

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
        wanted = self._body.match.architecture.state.get(f"{self._classifier}.weight")
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
            notes.append("its one output is the logit of the second of two classes; the first has 0")
        named = {f"{self._classifier}.{leaf}": tensor for leaf, tensor in tensors.items()}
        layers = HeadLayers(pool=pool, axes=axes, one_logit=outputs == 1)
        if pool:  # timm's own classifier would be built for other features
            layers = replace(layers, layers=("linear",), widths=(outputs,), biases=(True,))
            named = {f"{self._classifier}.0.{leaf}": tensor for leaf, tensor in tensors.items()}
        return FoundHead(layers, outputs, named, notes=tuple(notes), arch_options=options)

    def _pooling(self, chain: Sequence[Layer]) -> tuple[str, Mapping[str, object]]:
        """Return our pooling, or timm's option, for a head that takes twice as many values as the body has."""
        takes = next(layer.takes for layer in chain if layer.takes)
        if takes == self._features:
            return "", {}
        if self._is_fastai(chain):
            return "catmaxavg", {}
        if self._timm_name(chain[0]).startswith(self._classifier):
            return "", {"global_pool": "catavgmax"}
        raise self._unknown(
            f"its head {chain[0].name} takes {takes} values, twice the {self._features} features: the weights do not "
            "tell in which order they were pooled",
            chain,
            hint="give --arch-option global_pool=catavgmax if the average comes first, then the maximum",
        )

    def _named_layers(self, chain: tuple[Layer, ...], pool: str, options: Mapping[str, object]) -> FoundHead:
        wanted = self._request.layers or ()
        with_weights = [name for name in wanted if name in WITH_WEIGHTS]
        found = [layer.kind for layer in chain]
        same = len(with_weights) == len(found) and all(
            name == kind or (name, kind) == ("cosine", "linear")
            for name, kind in zip(with_weights, found, strict=True)
        )
        if not same:
            raise self._unknown(
                f"--head-layers has {', '.join(with_weights)}, the checkpoint "
                + ", ".join(f"{layer.name} ({layer.describe()})" for layer in chain),
                chain,
            )
        return self._with_layers(chain, wanted, pool, options, [])

    def _with_layers(
        self,
        chain: tuple[Layer, ...],
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
            notes.append("its one output is the logit of the second of two classes; the first has 0")
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

    def _axes(self, heads: list[Layer]) -> FoundHead:
        """Return the heads of a product of axes as the one linear layer of an `AxesHead`."""
        chains = [(layer,) for layer in heads]
        ordered = self._labels_of(chains)
        if ordered is None:
            shown = ", ".join(f"{layer.name} ({layer.describe()})" for layer in heads)
            raise self._unknown(
                f"it has several heads: {shown}",
                heads,
                hint="name the one to use with --head-name, or with --labels the axes that each is a head of",
            )
        labels, layers = ordered
        weight = torch.cat([layer.tensors["weight"].flatten(1) for layer in layers])
        bias = torch.cat([layer.tensors.get("bias", torch.zeros(layer.returns)) for layer in layers])
        self._leave_out([layer for layer in self._rest.layers if layer not in heads and layer.kind != "gem"], heads)
        tensors = {f"{self._classifier}.weight": weight, f"{self._classifier}.bias": bias}
        notes = (
            "one head per axis: "
            + ", ".join(f"{axis.name} {layer.name}" for axis, layer in zip(labels.axes, layers, strict=True)),
        )
        return FoundHead(HeadLayers(axes=labels.shape), sum(labels.shape), tensors, notes=notes)

    def _labels_of(self, chains: Sequence[tuple[Layer, ...]]) -> tuple[LabelSpace, tuple[Layer, ...]] | None:
        """Return the label space whose axes the heads belong to, and the heads in its order."""
        if any(len(chain) != 1 for chain in chains):
            return None
        heads = [chain[0] for chain in chains]
        labels = self._request.labels or MASK18
        if len(heads) != len(labels.axes) or len(heads) < 2:
            return None
        by_name = []
        for axis in labels.axes:
            named = [layer for layer in heads if axis.name.lower() in layer.name.lower().removeprefix(self._shared(heads))]
            by_name += named if len(named) == 1 and named[0].returns == len(axis.values) else []
        if len({layer.name for layer in by_name}) == len(heads):
            return labels, tuple(by_name)
        if self._request.labels is None:
            return None
        sizes = [layer.returns for layer in heads]
        if len(set(sizes)) == len(sizes) and sorted(sizes) == sorted(labels.shape):
            return labels, tuple(heads[sizes.index(size)] for size in labels.shape)
        numbered = all(layer.number is not None for layer in heads)
        return (labels, tuple(heads)) if numbered and tuple(sizes) == labels.shape else None

    @staticmethod
    def _shared(heads: Sequence[Layer]) -> str:
        names = [layer.name.lower() for layer in heads]
        length = next(
            (i for i, letters in enumerate(zip(*names, strict=False)) if len(set(letters)) > 1), min(map(len, names))
        )
        return names[0][:length].rpartition(".")[0]

    def _is_fastai(self, chain: Sequence[Layer]) -> bool:
        return tuple((layer.kind, layer.number) for layer in chain) == _FASTAI and chain[0].takes == 2 * self._features

    def _is_foldable(self, chain: Sequence[Layer]) -> bool:
        """Return True if no activation can stand between linear layers, or there is one linear layer alone."""
        if any(layer.kind not in {"linear", "batchnorm"} for layer in chain):
            return False
        if sum(layer.kind == "linear" for layer in chain) == 1:
            return True
        return not self._has_gap(chain)

    @staticmethod
    def _has_gap(chain: Sequence[Layer]) -> bool:
        """Return True unless the layers follow each other without a gap in one Sequential."""
        if len({layer.root for layer in chain}) > 1 or any(layer.number is None for layer in chain):
            return True
        numbers = [layer.number or 0 for layer in chain]
        return numbers != list(range(numbers[0], numbers[0] + len(numbers)))

    def _leave_out(self, others: Sequence[Layer], chain: Sequence[Layer]) -> None:
        """Leave out layers beside a whole network; refuse those that may be a part of it.

        Raises:
            ModelError: E410 when a layer may be a part of the network.
        """
        own_head = bool(chain) and self._timm_name(chain[0]).startswith(self._classifier)
        doubtful = []
        for layer in others:
            inside = layer.name.startswith(self._body.prefix)
            takes_features = layer.kind == "linear" and layer.takes in self._widths
            harmless = bool(_AUXILIARY.fullmatch(layer.name)) or (takes_features and layer.returns != layer.takes)
            if harmless or (own_head and not inside):
                self._rest.left_out += layer.keys
            else:
                doubtful += layer.keys
        if doubtful:
            raise ModelError(
                "E410",
                f"{self._path.name} is {self._body.match.arch}, but {len(doubtful)} tensors are left over that may be "
                f"a part of the network: {enumerate_some(doubtful)}",
                hint="if they are not, leave them out with --leave-out and the start of their names",
                path=self._path,
                details=(f"{len(doubtful):,} unexpected: {enumerate_some(doubtful)}",),
            )

    def _no_head(self, layers: Sequence[Layer]) -> ModelError:
        architecture = self._body.match.architecture
        linear = [layer.name for layer in layers if layer.kind == "linear"]
        others = f"; linear layers of another width: {enumerate_some(linear)}" if linear else ""
        return ModelError(
            "E415",
            f"{self._path.name} is {architecture.arch} without a classifier: no linear layer takes its "
            f"{self._features} features{others}",
            hint="save the state dict of the whole network, with its head",
            path=self._path,
        )

    def _unknown(self, why: str, layers: Sequence[Layer], *, hint: str | None = None) -> ModelError:
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
