"""Join the members of a recipe in one graph: each image is prepared once, shown to every member, and voted on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx.compose
import onnx.version_converter
from onnx import TensorProto, helper

from ensemble.analysis.cam import Classifier
from ensemble.arrays import Floats
from ensemble.blend.recipe import Group, Recipe
from ensemble.card import Preprocess
from ensemble.errors import DeployError
from ensemble.fuse.node_list import NodeList, Tensor
from ensemble.fuse.prepare_nodes import prepare_nodes, require_resizable
from ensemble.fuse.vote_nodes import (
    logits_nodes,
    pool_group_nodes,
    pool_views_nodes,
    probabilities_nodes,
    vote_nodes,
)
from ensemble.images.label_swaps import swapped_columns
from ensemble.images.resize import plain_preprocess
from ensemble.images.views import View
from ensemble.runtime.fused_views import pixel_sources
from ensemble.runtime.model_file import FEATURES, INPUT, LOGITS, ModelFile

IMAGES, BOXES = "images", "boxes"
PLAIN_VIEW = "identity"
PROBABILITIES, CLASSES, APPLIES, MEMBERS, MAPS = "probabilities", "class", "applies", "members", "maps"
_WITH_ANTIALIAS = 18  # the first opset whose Resize is antialiased, and whose Split takes num_outputs


@dataclass(frozen=True, slots=True)
class FusePlan:
    """The input of a fused file: the recipe, its members' models by name, and its views by name.

    ``each_member`` adds their probabilities to the outputs, ``maps`` the class-activation maps of one.
    """

    recipe: Recipe
    models: Mapping[str, ModelFile]
    views: Mapping[str, View]
    each_member: bool = False
    maps: Classifier | None = None

    @property
    def takes_boxes(self) -> bool:
        """True if a member needs the face in each image."""
        return any(model.card.preprocess.face is not None for model in self.models.values())


def build_fused(plan: FusePlan) -> onnx.ModelProto:
    """Return the graph of a plan, without its card.

    Raises:
        DeployError: E803 for a view, E804 for a resizer and E805 for a network that cannot be part of it.
    """
    networks = {name: onnx.load_model_from_string(model.data) for name, model in plan.models.items()}
    opset = max(_WITH_ANTIALIAS, *(_opset(network) for network in networks.values()))
    writer = _FusedWriter(plan)
    groups, members = [], {}
    for group in plan.recipe.groups.values():
        for name in group.members:
            members[name] = writer.member(name, _of_opset(networks[name], opset, plan.models[name]), group)
        groups.append(pool_group_nodes(writer.nodes, [members[name] for name in group.members], plan.recipe))
    outputs = writer.outputs(groups, members)
    graph = helper.make_graph(
        writer.nodes.nodes,
        "ensemble",
        writer.inputs(),
        outputs,
        initializer=[*writer.weights, *writer.nodes.initializers],
        sparse_initializer=writer.sparse_weights,
    )
    versions = {
        ("" if one.domain == "ai.onnx" else one.domain): one.version
        for n in networks.values()
        for one in n.opset_import
    }
    versions[""] = opset
    imports = [helper.make_opsetid(domain, version) for domain, version in sorted(versions.items())]
    built = helper.make_model(graph, opset_imports=imports, producer_name="ens")
    built.ir_version = max(8, *(network.ir_version for network in networks.values()))
    return built


class _FusedWriter:
    """Writes the nodes of a plan; members with equal preprocessing and views read the same tensor."""

    def __init__(self, plan: FusePlan) -> None:
        self._plan = plan
        self._prepared: dict[Preprocess, Tensor] = {}
        self._seen: dict[tuple[Tensor, str], Tensor] = {}
        self._stacked: dict[tuple[Tensor, ...], Tensor] = {}
        self._maps: onnx.ValueInfoProto | None = None
        self.nodes = NodeList()
        self.weights: list[onnx.TensorProto] = []
        self.sparse_weights: list[onnx.SparseTensorProto] = []

    def inputs(self) -> list[onnx.ValueInfoProto]:
        """Return the declarations of the inputs."""
        found = [helper.make_tensor_value_info(IMAGES, TensorProto.UINT8, ["N", "H", "W", 3])]
        if self._plan.takes_boxes:
            found.append(helper.make_tensor_value_info(BOXES, TensorProto.FLOAT, ["N", 4]))
        return found

    def member(self, name: str, network: onnx.ModelProto, group: Group) -> Tensor:
        """Add a member, and return its pooled log-probabilities."""
        recipe, card = self._plan.recipe, self._plan.models[name].card
        views = list(recipe.views_of(group))
        pixels = self._pixels(card.preprocess, views, member=name)
        columns = recipe.labels.permutation(card.labels, owner=name)
        logits = self._network(f"{name}/", network, pixels)
        parts = self.nodes.add_split(logits, len(views), axis=0)
        maps = self._plan.maps
        if maps is not None and maps.card.member == name:
            self._add_maps(maps.class_weights[columns], f"{name}/{FEATURES}", views)
        pooled = []
        for view, part in zip(views, parts, strict=True):
            # the view's exchange of labels first, then the recipe's order of them
            order = swapped_columns(self._plan.views[view].swaps, card.labels, member=name)[columns]
            pooled.append(
                logits_nodes(
                    self.nodes,
                    part,
                    order.tolist(),
                    temperature=group.temperature,
                    independent=recipe.activation == "sigmoid",
                )
            )
        return pool_views_nodes(self.nodes, pooled, group, recipe)

    def outputs(self, groups: Sequence[Tensor], members: Mapping[str, Tensor]) -> list[onnx.ValueInfoProto]:
        """Add the vote, and return the declarations of the outputs."""
        nodes, recipe = self.nodes, self._plan.recipe
        vote = vote_nodes(nodes, groups, recipe)
        count = len(recipe.labels)
        nodes.add("Cast", vote.probabilities, output=PROBABILITIES, to=TensorProto.FLOAT)
        nodes.add("Identity", vote.classes, output=CLASSES)
        found = [
            helper.make_tensor_value_info(PROBABILITIES, TensorProto.FLOAT, ["N", count]),
            helper.make_tensor_value_info(CLASSES, TensorProto.INT64, ["N"]),
        ]
        if vote.applies is not None:
            nodes.add("Identity", vote.applies, output=APPLIES)
            found.append(helper.make_tensor_value_info(APPLIES, TensorProto.BOOL, ["N", count]))
        if self._plan.each_member:
            independent = recipe.activation == "sigmoid"
            each = [probabilities_nodes(nodes, tensor, independent=independent) for tensor in members.values()]
            rows = [nodes.add("Unsqueeze", tensor, nodes.constant([1])) for tensor in each]
            nodes.add("Concat", *rows, output=MEMBERS, axis=1)
            found.append(helper.make_tensor_value_info(MEMBERS, TensorProto.FLOAT, ["N", len(each), count]))
        if self._maps is not None:
            found.append(self._maps)
        return found

    def _add_maps(self, weights: Floats, features: Tensor, views: Sequence[str]) -> None:
        """Add the maps ``(N, C, h, w)`` of the images as they are; ``weights`` are ``(C, F)``."""
        nodes = self.nodes
        seen = nodes.add_split(features, len(views), axis=0)[views.index(PLAIN_VIEW)]
        shape = nodes.add("Shape", seen)
        rows, cells = nodes.add("Slice", shape, nodes.constant([0]), nodes.constant([1])), nodes.constant([0, 0, -1])
        flat = nodes.add("Reshape", nodes.add("Cast", seen, to=TensorProto.FLOAT), cells)
        weighed = nodes.add("MatMul", nodes.constant(weights.astype(np.float32)), flat)
        size = nodes.add("Slice", shape, nodes.constant([2]), nodes.constant([4]))
        target = nodes.add("Concat", rows, nodes.constant([len(weights)]), size, axis=0)
        nodes.add("Reshape", weighed, target, output=MAPS)
        self._maps = helper.make_tensor_value_info(MAPS, TensorProto.FLOAT, ["N", len(weights), "rows", "columns"])

    def _pixels(self, preprocess: Preprocess, views: Sequence[str], *, member: str) -> Tensor:
        """Add the prepared images in every view, ``(views * N, H, W, 3)`` uint8, one view after the other."""
        require_resizable(preprocess, member=member)
        plain = plain_preprocess(preprocess)
        if plain not in self._prepared:
            self._prepared[plain] = prepare_nodes(self.nodes, IMAGES, BOXES, plain)
        seen = tuple(self._view(self._prepared[plain], view, plain.size, member=member) for view in views)
        if len(seen) == 1:
            return seen[0]
        if seen not in self._stacked:
            self._stacked[seen] = self.nodes.add("Concat", *seen, axis=0)
        return self._stacked[seen]

    def _view(self, pixels: Tensor, name: str, size: tuple[int, int], *, member: str) -> Tensor:
        key = (pixels, name)
        if key not in self._seen:
            table = pixel_sources(self._plan.views[name], size)
            if table is None:
                raise DeployError("E803", f"the view {name} of {member} computes new pixels")
            if np.array_equal(table.reshape(-1), np.arange(table.size)):
                return pixels
            height, width = size
            flat = self.nodes.add("Reshape", pixels, self.nodes.constant([-1, height * width, 3]))
            places = self.nodes.constant(table.reshape(-1).astype(np.int32))
            moved = self.nodes.add("Gather", flat, places, axis=1)
            self._seen[key] = self.nodes.add("Reshape", moved, self.nodes.constant([-1, height, width, 3]))
        return self._seen[key]

    def _network(self, prefix: str, network: onnx.ModelProto, pixels: Tensor) -> Tensor:
        """Add a member's network behind its pixels, and return its logits."""
        del network.graph.value_info[:]  # shapes of one batch dimension, which views multiply
        graph = onnx.compose.add_prefix(network, prefix).graph
        self.nodes.add("Identity", pixels, output=prefix + INPUT)
        self.nodes.nodes.extend(graph.node)
        self.weights.extend(graph.initializer)
        self.sparse_weights.extend(graph.sparse_initializer)
        return prefix + LOGITS


def _opset(network: onnx.ModelProto) -> int:
    return max((one.version for one in network.opset_import if one.domain in {"", "ai.onnx"}), default=1)


def _of_opset(network: onnx.ModelProto, opset: int, model: ModelFile) -> onnx.ModelProto:
    if _opset(network) == opset:
        return network
    try:
        return onnx.version_converter.convert_version(network, opset)
    except Exception as err:
        reason = (str(err).strip().splitlines() or [type(err).__name__])[0]
        message = f"{model.path.name} has opset {_opset(network)}, and cannot be converted to {opset}: {reason}"
        raise DeployError("E805", message, path=model.path) from err
