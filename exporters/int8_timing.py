"""Time the layers of a network in onnxruntime on one core, to decide which of them integers make faster.

Counting multiplications misleads: the first convolution of a network, with three input channels, can take twice as long
on integers as in float32, and a depthwise one gains little.
"""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnxruntime

from ensemble.arrays import Pixels
from ensemble.runtime.model_file import INPUT, LOGITS
from exporters.int8_layers import Layer

_RUNS = (5, 40)  # at least and at most, of one image each
_SECONDS = 0.4
# what onnxruntime and the quantization add to the name of a layer's node
_SUFFIX = re.compile(
    r"(/weight|/bias|/low)?/(de)?quanti[sz]e.*$|/(product|biased|rows|planes|low/.*)(_token_\d+)?$|_token_\d+$|_nchwc.*$"
)
_EVENT = "_kernel_time"  # ends the name of an event of onnxruntime's profile


@dataclass(frozen=True, slots=True)
class Times:
    """Microseconds per image: of each node of the optimized graph by its name, and of all of them together."""

    by_node: Mapping[str, float]

    @property
    def total(self) -> float:
        """The sum over all nodes."""
        return sum(self.by_node.values())


def time_nodes(proto: onnx.ModelProto, pixels: Pixels) -> Times:
    """Run a network on one core, image by image, and return the shortest time of each node.

    Other work on the machine only ever adds to a time, so the shortest of several is the one that counts.
    """
    with tempfile.TemporaryDirectory(prefix="ens-profile-") as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "times")
        session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        began, runs = time.process_time(), 0
        while runs < _RUNS[0] or (runs < _RUNS[1] and time.process_time() - began < _SECONDS):
            place = runs % len(pixels)
            session.run([LOGITS], {INPUT: pixels[place : place + 1]})
            runs += 1
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    found: dict[str, list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_EVENT):
            found[event["name"].removesuffix(_EVENT)].append(float(event["dur"]))
    return Times({name: min(spent) for name, spent in found.items()})


def time_layers(proto: onnx.ModelProto, layers: Sequence[Layer], times: Times) -> dict[str, float]:
    """Return the microseconds of each layer, by its name; ``proto`` is the graph that `find_layers` was given.

    onnxruntime names a fused node after one of its nodes or after its output, with a suffix, and conversions to and
    from integers are named after the tensor. Nodes before the first layer count as its own, as they prepare its input.
    What has another name, such as a transposition that onnxruntime adds, belongs to no layer.
    """
    owner: dict[str, str] = {}
    starts = {layer.nodes[0]: layer.name for layer in layers}
    current = layers[0].name
    for i, node in enumerate(proto.graph.node):
        current = starts.get(i, current)
        owner |= dict.fromkeys((node.name, *node.output), current)
    found = dict.fromkeys((layer.name for layer in layers), 0.0)
    for name, spent in times.by_node.items():
        plain = _SUFFIX.sub("", name)
        if plain in owner:
            found[owner[plain]] += spent
    return found
