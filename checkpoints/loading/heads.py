"""Find the head of a network: the layers behind its body, whatever their names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from checkpoints.loading.bodies import Body
from checkpoints.loading.head_axes import heads_of_axes
from checkpoints.loading.head_build import FoundHead, HeadBuilder
from checkpoints.loading.head_modules import HeadLayer, group_layers, has_classifier, is_scale, link
from checkpoints.loading.head_options import HeadRequest
from checkpoints.loading.key_names import is_normalization, is_training_state, shared_start
from checkpoints.loading.left_over import Surroundings, is_auxiliary, is_scalar
from checkpoints.loading.metadata import Found
from checkpoints.loading.network import HeadLayers
from checkpoints.loading.pickle_objects import PickledLayer
from checkpoints.loading.state_dicts import is_averaged_name
from ensemble.errors import ModelError, enumerate_some

_USUAL = re.compile(
    r"(.*\.)?(_?fc|classifier|cls|cls_head|classification_head|head|heads|last_linear|logits?|linear|output|out|final"
    r"|fc_?out|dense|main_head|main)(\.fc|\.linear|\.classifier|\.head)?",
    re.IGNORECASE,
)


# the two heads of transformers' DeiT, modeling_deit.py
_DISTILLED = {"cls_classifier": "head", "distillation_classifier": "head_dist"}


@dataclass(slots=True)
class _Rest:
    """The rest of a checkpoint beside the body: layers, and keys that belong to no network."""

    layers: list[HeadLayer]
    left_out: list[str]


class HeadFinder:
    """Finds the head of one body among the tensors that no body has.

    Raises:
        ModelError: E410 when there is a layer that may belong to the network, E415 when no layer takes the features,
            E449 when the weights cannot tell the head.
    """

    def __init__(
        self,
        body: Body,
        rest: Mapping[str, torch.Tensor],
        request: HeadRequest,
        path: Path,
        *,
        margin: Found[str] | None = None,
        layers: Mapping[str, PickledLayer] | None = None,
    ) -> None:
        self._body, self._request, self._path = body, request, path
        architecture = body.match.architecture
        self._classifier = architecture.classifier[0] if len(architecture.classifier) == 1 else ""
        self._features = architecture.features or 0
        self._widths = (self._features, 2 * self._features) if self._can_pool() else (self._features,)
        self._channels = body.match.in_channels
        self._names = {key: name for name, key in body.sources.items()}
        self._scalars: list[str] = []
        self._rest = self._sort_out(rest)
        known = self._leave_out_copies(layers or {})
        self._builder = HeadBuilder(
            architecture, self._classifier, request, path, margin=margin, layers=known, owned=body.used
        )

    def find(self) -> FoundHead:
        """Return the head."""
        architecture = self._body.match.architecture
        if not any(f"{name}.weight" in architecture.state for name in architecture.classifier):
            raise ModelError(
                "E415",
                f"{self._path.name} is {architecture.arch}, which timm builds without a classifier: it gives features",
                hint="save the whole network, with its head, as ONNX; then: ens adopt model.onnx",
                path=self._path,
            )
        if len(architecture.classifier) != 1:
            return self._own_head()
        pools = [layer for layer in self._rest.layers if layer.kind == "gem"]
        layers = [layer for layer in self._rest.layers if layer.kind != "gem"]
        chain, others = self._choose(layers)
        found = self._axes(others) if not chain else self._builder.build(chain, self._timm_name(chain[0]))
        if len(pools) > 1 or (pools and not self._can_pool()):
            names = ", ".join(layer.name for layer in pools)
            raise self._builder.unknown(
                f"the weights do not tell how {names} pool the features",
                pools,
                hint="leave out those that are no part of the network with --leave-out and the start of their names",
            )
        if pools:
            power = pools[0].tensors["p"].detach().float().reshape(-1)
            found = replace(
                found,
                layers=replace(found.layers, pool=f"gem{len(power)}"),
                tensors={"global_pool.p": power, **found.tensors},
                notes=(*found.notes, f"{pools[0].name} is a generalized-mean pooling, which is exported"),
            )
        if chain:
            self._leave_out(others, chain)
            self._require_no_cosine(chain)
        return replace(found, left_out=tuple(self._rest.left_out), warnings=(*found.warnings, *self._warnings()))

    def _require_no_cosine(self, chain: Sequence[HeadLayer]) -> None:
        """Refuse a head without bias beside a factor: together they are usually a layer of cosines."""
        last = [layer for layer in chain if layer.kind == "linear"][-1]
        scales = [key for key in self._scalars if is_scale(key)]
        if scales and "bias" not in last.tensors and self._request.layers is None:
            raise self._builder.unknown(
                f"{last.name} has no bias, and {scales[0]} may be the factor of its cosines",
                [last],
                hint=f"give --head-layers cosine:30 with the factor of {scales[0]}, or --head-layers linear",
            )

    def _warnings(self) -> tuple[str, ...]:
        """Say which numbers were left out that logits could be scaled by."""
        if not self._scalars:
            return ()
        names = enumerate_some(self._scalars)
        return (f"{names} left out: if the network multiplies or divides by it, the probabilities are others",)

    def _can_pool(self) -> bool:
        """Return True if the features may be pooled in two ways at once."""
        return "conv" in (self._body.match.architecture.first_conv or "")

    def _sort_out(self, rest: Mapping[str, torch.Tensor]) -> _Rest:
        """Separate the layers from what belongs to the training."""
        kept, left_out = {}, []
        for key, tensor in rest.items():
            named = self._request.name is not None and self._is_named(key, self._request.name)
            ignored = any(self._is_named(key, name) for name in self._request.leave_out)
            if ignored or (not named and (is_training_state(key, tensor) or is_normalization(key, tensor))):
                left_out.append(key)
            else:
                kept[key] = tensor
        return _Rest(list(group_layers(kept, self._widths)), left_out)

    def _leave_out_copies(self, layers: Mapping[str, PickledLayer]) -> dict[str, PickledLayer]:
        """Leave out layers that are saved twice, and return the pickled layers under the names of those that stay.

        Many scripts save the head of a network once more beside it, as a whole module.
        """
        known = dict(layers)
        for layer in list(self._rest.layers):
            if (first := next((one for one in self._rest.layers if one.is_copy_of(layer)), layer)) is layer:
                continue
            kept, copy = (layer, first) if layer.name.startswith(self._body.prefix or "\0") else (first, layer)
            self._rest.layers.remove(copy)
            self._rest.left_out += copy.keys
            start, place = (one.name.rpartition(".")[0] for one in (copy, kept))
            for name in list(layers):
                if name in {copy.name, start} or (start and name.startswith(f"{start}.")):
                    moved = kept.name if name == copy.name else f"{place}{name.removeprefix(start)}"
                    known.setdefault(moved, layers[name])
        return known

    @staticmethod
    def _is_named(key: str, name: str) -> bool:
        return f".{name}." in f".{key}."

    def _timm_name(self, layer: HeadLayer) -> str:
        """Return the name of a layer as timm has it, if it is inside the body's prefix."""
        if not layer.name.startswith(self._body.prefix.rstrip(".")):
            return ""
        for key in layer.keys:
            if key in self._names:
                return self._names[key].rpartition(".")[0]
        return layer.name.removeprefix(self._body.prefix)

    def _own_head(self) -> FoundHead:
        """Return the classifiers of an architecture that has several, under timm's names."""
        architecture = self._body.match.architecture
        own = tuple(f"{name}." for name in architecture.classifier)
        tensors: dict[str, torch.Tensor] = {}
        for layer in list(self._rest.layers):
            name = _DISTILLED.get(layer.name.rpartition(".")[2]) or self._timm_name(layer)
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

    def _choose(self, layers: Sequence[HeadLayer]) -> tuple[tuple[HeadLayer, ...], list[HeadLayer]]:
        """Return the layers of the head in order, and all others; no layers if there is one head per axis."""
        if self._request.name is not None:
            own = [layer for layer in layers if self._is_named(layer.name, self._request.name)]
            chain = link(own, self._widths)
            if not own or chain is None or not has_classifier(chain):
                raise self._builder.unknown(
                    f"--head-name {self._request.name} names no head of {self._features} features", own
                )
            return chain, [layer for layer in layers if layer not in own]
        place = [layer for layer in layers if f"{self._timm_name(layer)}.".startswith(f"{self._classifier}.")]
        chains = {self._classifier: found} if place and (found := link(place, self._widths)) else {}
        if place and all(layer.kind == "other" for layer in place):
            names = [key for layer in place for key in layer.keys]
            raise ModelError(
                "E410",
                f"{self._path.name} is {self._body.match.arch}, but its classifier has other shapes",
                path=self._path,
                details=(f"{len(names)} of another shape: {enumerate_some(names)}",),
            )
        if place and not chains:
            raise self._builder.unknown(f"{self._classifier} does not take the {self._features} features", place)
        rest = [layer for layer in layers if layer not in place]
        if chains and has_classifier(chains[self._classifier]):
            self._require_no_rival(chains[self._classifier], rest)
        if not chains:
            chains = self._chains(rest)
        heads = {root: chain for root, chain in chains.items() if has_classifier(chain)}
        if not heads:  # a name such as proj is not enough to leave out the only layer that takes the features
            chains = self._chains(rest, with_auxiliary=True)
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

    def _chains(self, layers: Sequence[HeadLayer], *, with_auxiliary: bool = False) -> dict[str, tuple[HeadLayer, ...]]:
        """Return every group of layers that takes the features, by its name; one group if all of them link up."""
        useful = [
            layer for layer in layers if layer.kind != "other" and (with_auxiliary or not is_auxiliary(layer.name))
        ]
        roots: dict[str, list[HeadLayer]] = {}
        for layer in useful:
            roots.setdefault(layer.root, []).append(layer)
        if len(roots) > 1:
            first = [layer for layer in useful if layer.kind == "linear" and layer.takes in self._widths]
            if len(first) == 1 and (whole := link(useful, self._widths)) is not None:
                return {first[0].root: whole}
        chains: dict[str, tuple[HeadLayer, ...]] = {}
        for root, group in roots.items():
            if (chain := link(group, self._widths)) is not None:
                chains[root] = chain
            elif all(layer.kind == "linear" and layer.takes in self._widths for layer in group):
                chains |= {layer.name: (layer,) for layer in group}  # a list of heads
        return chains

    def _main(self, heads: Mapping[str, tuple[HeadLayer, ...]]) -> dict[str, tuple[HeadLayer, ...]]:
        """Return the one of several heads that has the usual name, if the labels do not ask for several."""
        if heads_of_axes(list(heads.values()), self._request.labels) is not None:
            return dict(heads)
        usual = {root: chain for root, chain in heads.items() if _USUAL.fullmatch(root)}
        return usual if len(usual) == 1 else dict(heads)

    def _extended(
        self, chain: tuple[HeadLayer, ...], others: list[HeadLayer]
    ) -> tuple[tuple[HeadLayer, ...], list[HeadLayer]]:
        """Add layers that take what the head returns: a classifier behind the body's own."""
        while True:
            last = [layer for layer in chain if layer.kind == "linear"][-1]
            following = [
                layer
                for layer in others
                if layer.kind == "linear" and layer.takes == last.returns and not is_auxiliary(layer.name)
            ]
            if not following or last.returns == self._features:
                return chain, others
            chain = (*chain, following[0])
            others = [layer for layer in others if layer is not following[0]]

    def _axes(self, heads: list[HeadLayer]) -> FoundHead:
        """Return the heads of a product of axes as the one linear layer of an `AxesHead`."""
        chains = [(layer,) for layer in heads]
        ordered = heads_of_axes(chains, self._request.labels)
        if ordered is None:
            shown = ", ".join(f"{layer.name} ({layer.describe()})" for layer in heads)
            raise self._builder.unknown(
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

    def _require_no_rival(self, own: tuple[HeadLayer, ...], others: Sequence[HeadLayer]) -> None:
        """Refuse a second layer that takes the features where nothing tells which of the two is the head.

        A network with the classifier of its pretraining and another one behind ``forward_features`` has both.
        """
        outputs = [layer for layer in own if layer.kind == "linear"][-1].returns
        around = Surroundings(self._widths, outputs, self._channels)
        rivals = [
            layer for layer in others if around.is_head(layer) and not layer.name.startswith(self._body.prefix or "\0")
        ]
        labels = self._request.labels
        if labels is not None and outputs == len(labels) and all(layer.returns != outputs for layer in rivals):
            return
        if rivals:
            shown = ", ".join(f"{layer.name} ({layer.describe()})" for layer in (*own, *rivals))
            raise self._builder.unknown(
                f"it has several heads: {shown}",
                rivals,
                hint=f"name the one to use with --head-name, such as --head-name {rivals[0].name}",
            )

    def _leave_out(self, others: Sequence[HeadLayer], chain: Sequence[HeadLayer]) -> None:
        """Leave out layers beside a whole network; refuse those that may be a part of it.

        Raises:
            ModelError: E410 when a layer may be a part of the network.
        """
        own_head = bool(chain) and self._timm_name(chain[0]).startswith(self._classifier)
        outputs = next((layer.returns for layer in reversed(chain) if layer.kind == "linear"), 0)
        around = Surroundings(self._widths, outputs, self._channels)
        doubtful: list[str] = []
        for layer in others:
            other_head = self._request.name is not None and around.is_head(layer)
            if is_scalar(layer):
                self._scalars += layer.keys
            elif other_head or is_auxiliary(layer.name) or self._is_averaged(layer):
                pass
            elif own_head and not layer.name.startswith(self._body.prefix):
                doubtful += layer.keys if around.may_take_part(layer) and not around.is_other_task(layer) else ()
            elif not around.is_other_task(layer):
                doubtful += layer.keys
            self._rest.left_out += layer.keys
        if doubtful:
            raise ModelError(
                "E410",
                f"{self._path.name} is {self._body.match.arch}, but {len(doubtful)} tensors are left over that may be "
                f"a part of the network: {enumerate_some(doubtful)}",
                hint="if they are not, leave them out with --leave-out and the start of their names",
                path=self._path,
                details=(f"{len(doubtful):,} unexpected: {enumerate_some(doubtful)}",),
            )

    def _is_averaged(self, layer: HeadLayer) -> bool:
        """Return True for values of an average that lie beside the network under names of their own."""
        return all(
            is_averaged_name(".".join(key.split(".")[shared_start(key, self._body.prefix) :])) for key in layer.keys
        )

    def _no_head(self, layers: Sequence[HeadLayer]) -> ModelError:
        architecture = self._body.match.architecture
        odd = [
            layer
            for layer in layers
            if any(t.ndim == 2 and self._features in t.shape and layer.kind != "linear" for t in layer.tensors.values())
        ]
        if odd:
            shown = ", ".join(key for layer in odd for key in layer.keys)
            raise self._builder.unknown(
                f"the weights do not tell what is computed with {shown}",
                odd,
                hint="save the head as torch.nn.Linear: its weight is (classes, features)",
            )
        linear = [layer.name for layer in layers if layer.kind == "linear"]
        others = f"; linear layers of another width: {enumerate_some(linear)}" if linear else ""
        return ModelError(
            "E415",
            f"{self._path.name} is {architecture.arch} without a classifier: no linear layer takes its "
            f"{self._features} features{others}",
            hint="save the state dict of the whole network, with its head",
            path=self._path,
        )
