"""The facts that a page shows about its ensemble, read from the card of the fused model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from ensemble.errors import ModelError, OptionError

SCHEMA = 1
_KEY = "ens.fused"


def read_fused(data: bytes, path: Path) -> tuple[onnx.GraphProto, Mapping[str, Any]]:
    """Return the graph and the card of a fused model, of which ``path`` is for messages.

    Raises:
        ModelError: E420 when the bytes are no ONNX file, E423 when it is no fused model.
        OptionError: E230 when a page cannot run it.
    """
    try:
        model = onnx.load_model_from_string(data)
    except Exception as err:  # protobuf's own exceptions have no common class but this
        raise ModelError("E420", f"{path.name} is damaged, or not an ONNX file", path=path) from err
    found = [entry.value for entry in model.metadata_props if entry.key == _KEY]
    if not found:
        raise ModelError(
            "E423",
            f"{path.name} is not a fused ensemble: it has no {_KEY} in its metadata",
            hint="give a recipe, or the file that ens fuse --members wrote",
            path=path,
        )
    graph = model.graph
    inputs, outputs = ({value.name for value in values} for values in (graph.input, graph.output))
    if "boxes" in inputs:
        raise OptionError("E230", f"{path.name} takes face boxes, and a page has no face detector")
    if "members" not in outputs:
        raise OptionError(
            "E230", f"{path.name} does not give its members' probabilities", hint="fuse it again with --members"
        )
    return graph, json.loads(found[0])


def page_facts(graph: onnx.GraphProto, card: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON-ready facts that page.js reads: labels, axes, rule, members with their shares, and the map.

    Members of one name space only: ``name``, ``share`` of the vote, ``arch`` and ``precision``.
    """
    rule = card["recipe"].get("rule", "argmax")
    outputs = {value.name for value in graph.output}
    return {
        "schema": SCHEMA,
        "labels": card["labels"],
        "axes": card["axes"]["axes"],
        "activation": card["activation"],
        "rule": rule["name"] if isinstance(rule, Mapping) else rule,
        "members": [
            {
                "name": member["name"],
                "share": member["share"],
                "arch": member["card"]["arch"],
                "precision": member["card"]["precision"],
            }
            for member in card["members"]
        ],
        "maps": card.get("maps") if "maps" in outputs else None,
        "licence": card.get("licence"),
    }
