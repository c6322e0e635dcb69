"""Exports that spare a test the seconds of torch's exporter for a network that it has exported already."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from unittest import mock

import onnx

from ensemble.card import ModelCard
from exporters import export


@contextlib.contextmanager
def each_network_once() -> Iterator[None]:
    """Let torch export a network with its weights and card once in the block; that its bytes do not change from one
    export to the next is what `tests.exporters.test_export` says.
    """
    original, made = export._to_onnx, dict[str, bytes]()

    def to_onnx(exportable: export.Exportable, card: ModelCard) -> onnx.ModelProto:
        digest = hashlib.sha256(f"{exportable}\n{exportable.features}\n{card.to_json()}".encode())
        for name, tensor in exportable.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.numpy().tobytes())
        key = digest.hexdigest()
        if key not in made:
            made[key] = original(exportable, card).SerializeToString()
        found: onnx.ModelProto = onnx.ModelProto.FromString(made[key])
        return found

    with mock.patch.object(export, "_to_onnx", to_onnx):
        yield
