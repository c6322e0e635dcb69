"""Compare an int8 file of `ens export` with the quantizers of onnxruntime, NNCF and OpenVINO's kernels, in one run.

    uv pip install nncf
    python -m tests.harness.quantizers fp32/lite0.onnx int8/lite0.onnx --calibrate train/images --images eval/images

onnxruntime's quantizer and NNCF are given the float32 file and the first images of ``--calibrate`` by the hash of
their names. The answers of all files are compared with those of float32 on all images of ``--images``, which nothing
was chosen by. The time of one image is that of the processor in one thread: the shortest of several rounds in which
the files take turns, as other work on a machine only ever adds to it. The images that are timed are evenly spaced by
the distance of their two highest logits, so that near ties are among them as they are among all. pytest does not
collect this file.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib.util
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import onnxruntime

from ensemble.arrays import Logits, Pixels
from ensemble.card import ModelCard
from ensemble.images.listing import list_images
from ensemble.runtime.model_file import INPUT, LOGITS, ModelFile, read_model
from ensemble.runtime.openvino import shared_core
from ensemble.runtime.openvino_graph import for_openvino
from exporters.accuracy_gate import ImageSet, Verdict, judge, load_images
from exporters.int8_near_ties import distances

Run = Callable[[Pixels], Logits]
_BATCH = 4
_AGAIN = 1e-4  # of a logit: the difference of images that are answered in float32
_TIMED = 96  # images
_ONE_THREAD = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False}
_FLOAT32 = {"INFERENCE_PRECISION_HINT": "f32", "EXECUTION_MODE_HINT": "ACCURACY"}


@dataclass(frozen=True, slots=True, eq=False)
class Contender:
    """A quantized network: its answers, its speed by engine, and the processor's seconds of its quantization.

    ``in_float`` is the share of the multiplications in float; None where the graph does not tell.
    """

    name: str
    engines: Mapping[str, Run]
    in_float: float | None
    seconds: float | None = None


def main() -> None:
    """Print the table."""
    args = _parse()
    plain, ours = read_model(args.fp32), read_model(args.int8)
    if (plain.card.precision, ours.card.precision) != ("fp32", "int8"):
        raise SystemExit(f"{args.fp32.name} must be a float32 file of ens export, and {args.int8.name} an int8 one")
    calibration = _load(args.calibrate, plain.card, args.calibration)
    pixels = _load(args.images, plain.card, args.most)
    click.echo(f"{plain.card.arch}, {pixels.shape[1]} px; {len(calibration)} images calibrate, {len(pixels)} judge")
    contenders = [
        Contender("float32", _both(plain.data), 1.0),
        Contender("ens export", _both(ours.data), float(ours.card.checks["multiplications_in_float"])),
        quantize_by_onnxruntime(plain, calibration),
    ]
    if importlib.util.find_spec("nncf") is None:
        click.echo("NNCF is not installed and left out: uv pip install nncf")
    else:
        contenders.append(quantize_by_nncf(plain, calibration))
    expected = _predict(contenders[0].engines["onnxruntime"], pixels)
    spaced = np.sort(np.argsort(distances(expected), kind="stable")[:: max(1, len(pixels) // _TIMED)])
    runs = {(one.name, name): run for one in contenders for name, run in one.engines.items()}
    times = _time(runs, [pixels[i : i + 1] for i in spaced], args.rounds)
    base = times["float32", "onnxruntime"]
    click.echo(f"float32 in onnxruntime: {base * 1000:.2f} ms of the processor per image\n")
    click.echo("| | answers as in float32 | products in float | onnxruntime | OpenVINO | CPU s of quantization |")
    click.echo("|---|---|---|---|---|---|")
    for one in contenders:
        engine = "onnxruntime" if "onnxruntime" in one.engines else "openvino"
        found = _predict(one.engines[engine], pixels)
        verdict = judge("int8", expected, found, None)
        again = float(np.mean(np.abs(found - expected).max(axis=1) < _AGAIN))
        speeds = [
            f"{base / times[one.name, name]:.2f}" if name in one.engines else "-"
            for name in ("onnxruntime", "openvino")
        ]
        share = "-" if one.in_float is None else f"{one.in_float:.1%}"
        share += f", {again:.1%} of the images again" if again and one.name == "ens export" else ""
        spent = "-" if one.seconds is None else f"{one.seconds:.0f}"
        click.echo(f"| {one.name} | {_share(verdict)} | {share} | {' | '.join(speeds)} | {spent} |")


def quantize_by_onnxruntime(plain: ModelFile, calibration: Pixels) -> Contender:
    """Quantize by ``onnxruntime.quantization``: QDQ, per channel, uint8 activations, ranges of all values."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
        def __init__(self) -> None:
            self.left = iter(calibration)

        def get_next(self) -> dict[str, Any] | None:
            image = next(self.left, None)
            return None if image is None else {INPUT: image[np.newaxis]}

    began = time.process_time()
    with tempfile.TemporaryDirectory(prefix="ens-quantizers-") as folder:
        source, prepared, result = (Path(folder) / f"{name}.onnx" for name in ("plain", "prepared", "int8"))
        source.write_bytes(plain.data)
        quant_pre_process(str(source), str(prepared))
        kinds = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
        quantize_static(str(prepared), str(result), Images(), per_channel=True, **kinds)
        data = result.read_bytes()
    spent = time.process_time() - began
    return Contender("onnxruntime's quantizer", _both(data), _share_in_float(data), spent)


def quantize_by_nncf(plain: ModelFile, calibration: Pixels) -> Contender:
    """Quantize by NNCF for OpenVINO: the mixed preset with fast bias correction, its defaults for CPUs."""
    import nncf

    began = time.process_time()
    images = nncf.Dataset([image[np.newaxis] for image in calibration])
    network = shared_core().read_model(plain.data)
    quantized = nncf.quantize(network, images, preset=nncf.QuantizationPreset.MIXED, subset_size=len(calibration))
    spent = time.process_time() - began
    return Contender("NNCF", {"openvino": _openvino(quantized)}, None, spent)


def _both(data: bytes) -> dict[str, Run]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    def run(batch: Pixels) -> Logits:
        (found,) = session.run([LOGITS], {INPUT: batch})
        logits: Logits = found
        return logits

    return {"onnxruntime": run, "openvino": _openvino(shared_core().read_model(for_openvino(data)))}


def _openvino(network: Any) -> Run:
    request = shared_core().compile_model(network, "CPU", _ONE_THREAD | _FLOAT32).create_infer_request()

    def run(batch: Pixels) -> Logits:
        return np.array(request.infer({INPUT: batch})[LOGITS])

    return run


def _share_in_float(data: bytes) -> float:
    """Return the share of the multiplications of layers that do not read a DequantizeLinear."""
    proto = onnx.load_model_from_string(data)
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    made = {output: node for node in proto.graph.node for output in node.output}
    floats, all_products = 0, 0
    for node in proto.graph.node:
        if node.op_type in {"Conv", "Gemm", "MatMul"} and len(node.input) > 1:
            reader = made.get(node.input[1])
            source = reader.input[0] if reader is not None else node.input[1]
            products = int(np.prod(weights[source].dims)) * _places(proto, node)
            all_products += products
            floats += 0 if reader is not None and reader.op_type == "DequantizeLinear" else products
    return floats / all_products


def _places(proto: onnx.ModelProto, node: onnx.NodeProto) -> int:
    shapes = _shapes(proto.SerializeToString())
    return int(np.prod(shapes.get(node.output[0], ())[2:])) if node.op_type == "Conv" else 1


@functools.lru_cache(maxsize=1)
def _shapes(data: bytes) -> dict[str, tuple[int, ...]]:
    graph = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(data)).graph
    return {one.name: tuple(side.dim_value for side in one.type.tensor_type.shape.dim) for one in graph.value_info}


def _load(folder: Path, card: ModelCard, most: int) -> Pixels:
    listing = list_images(folder)
    order = sorted(range(len(listing.ids)), key=lambda i: hashlib.sha256(listing.ids[i].encode()).hexdigest())[:most]
    return load_images(ImageSet(tuple(listing.ids), tuple(listing.paths)), sorted(order), card.preprocess)


def _predict(run: Run, pixels: Pixels) -> Logits:
    return np.concatenate([run(pixels[start : start + _BATCH]) for start in range(0, len(pixels), _BATCH)])


def _time(runs: Mapping[tuple[str, str], Run], images: Sequence[Pixels], rounds: int) -> dict[tuple[str, str], float]:
    """Return the seconds of the processor that each takes for one image: the shortest of several rounds in turn."""
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(1 + rounds):
        for key, run in runs.items():
            began = time.process_time()
            for image in images:
                run(image)
            best[key] = min(best[key], (time.process_time() - began) / len(images))
    return best


def _share(verdict: Verdict) -> str:
    low, high = verdict.interval
    return f"{verdict.agreement:.1%} ({low:.1%} to {high:.1%})"


def _parse(args: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fp32", type=Path, help="file of ens export")
    parser.add_argument("int8", type=Path, help="file of ens export --precision int8, of the same checkpoint")
    parser.add_argument("--calibrate", type=Path, required=True, help="folder of images for the other quantizers")
    parser.add_argument("--images", type=Path, required=True, help="folder of images that no file has seen")
    parser.add_argument("--calibration", type=int, default=128, help="images that calibrate (default 128)")
    parser.add_argument("--most", type=int, default=100_000, help="images that judge (default: all)")
    parser.add_argument("--rounds", type=int, default=14, help="rounds of timing (default 14)")
    return parser.parse_args(args)


if __name__ == "__main__":
    main()
