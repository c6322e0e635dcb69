"""Tell what a file is that is no checkpoint, with the line that helps."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from ensemble.card import METADATA_KEY
from ensemble.text.text_bytes import is_plain_text


@dataclass(frozen=True, slots=True)
class OtherFile:
    """The description of a file that cannot be read as weights, and what to do about it; None for the code's hint."""

    description: str
    hint: str | None = None


_UNPACK = "unpack it; the checkpoint may be inside"
_ONNX_FIRST = "adopt the ONNX file that it was made from: ens adopt model.onnx; or export the network that was trained"
_TO_ONNX = "convert it to ONNX ({tool}), then: ens adopt model.onnx"
_KERAS = OtherFile("a Keras model", _TO_ONNX.format(tool="model.export('model.onnx', format='onnx')"))
_TENSORFLOW = OtherFile("a TensorFlow model", _TO_ONNX.format(tool="python -m tf2onnx.convert"))
_TFLITE = OtherFile("a TensorFlow Lite model", _TO_ONNX.format(tool="python -m tf2onnx.convert"))
_PADDLE = OtherFile("a PaddlePaddle model", _TO_ONNX.format(tool="paddle2onnx"))
_COREML = OtherFile("a Core ML model", _ONNX_FIRST)
_OPENVINO = OtherFile("an OpenVINO model", _ONNX_FIRST)
_TENSORRT = OtherFile("a TensorRT engine, which holds no weights that can be read", _ONNX_FIRST)
_FLAX = OtherFile("Flax (JAX) weights in msgpack", "load them in JAX, and save them under PyTorch's names and shapes")
_ONNX = OtherFile("an ONNX model", "it needs no export: ens adopt model.onnx puts the preprocessing in front")
_OWN_ONNX = OtherFile("a model that ens wrote", "it needs no export: ens predict model.onnx --images DIR")
_GGUF = OtherFile("a GGUF file of a language model")
_PICTURE = "name the checkpoint's file"

# (offset, bytes): what stands there
_STARTS: tuple[tuple[int, bytes, OtherFile], ...] = (
    (0, b"version https://git-lfs", OtherFile("a Git-LFS pointer, not the file it points to", "run git lfs pull")),
    (0, b"\xff\xd8\xff", OtherFile("a JPEG image", _PICTURE)),
    (0, b"\x89PNG", OtherFile("a PNG image", _PICTURE)),
    (0, b"GIF8", OtherFile("a GIF image", _PICTURE)),
    (0, b"%PDF", OtherFile("a PDF document", _PICTURE)),
    (0, b"\x1f\x8b", OtherFile("a gzip archive; unpack it first", "gunzip or tar -xzf, then name the file inside")),
    (0, b"BZh", OtherFile("a bzip2 archive; unpack it first", "bunzip2, then name the file inside")),
    (0, b"\xfd7zXZ\0", OtherFile("an xz archive; unpack it first", "unxz, then name the file inside")),
    (0, b"\x28\xb5\x2f\xfd", OtherFile("a Zstandard archive; unpack it first", "unzstd, then name the file inside")),
    (0, b"\x04\x22\x4d\x18", OtherFile("an LZ4 archive; unpack it first", "unlz4, then name the file inside")),
    (0, b"7z\xbc\xaf", OtherFile("a 7z archive; unpack it first", _UNPACK)),
    (0, b"Rar!", OtherFile("a RAR archive; unpack it first", _UNPACK)),
    (257, b"ustar", OtherFile("a tar archive; unpack it first", "tar -xf, then name the file inside")),
    (0, b"\x89HDF", OtherFile("an HDF5 file: weights or a model of Keras", _KERAS.hint)),
    (
        0,
        b"\x93NUMPY",
        OtherFile("a single numpy array (.npy)", "save all weights by their names, for instance with np.savez"),
    ),
    (0, b"GGUF", _GGUF),
    (0, b"lmgg", _GGUF),
    (0, b"tjgg", _GGUF),
    (4, b"TFL3", _TFLITE),
    (4, b"ORTM", OtherFile("a model in onnxruntime's own format (.ort)", _ONNX_FIRST)),
    (4, b"ET1", OtherFile("an ExecuTorch program", "export the network that it was made from")),
    (0, b"ptrt", _TENSORRT),
    (0, b"ftrt", _TENSORRT),
    (0, b"7767517", OtherFile("an ncnn network", _ONNX_FIRST)),
    (0, b"\x12\x01\0\0\0\0\0\0", OtherFile("MXNet weights", "convert the model to ONNX, then: ens adopt model.onnx")),
    (0, b"ZF0x", OtherFile("a joblib dump", "torch.save(joblib.load('file'), 'weights.pth')")),
)
_TEXTS = {b"version https://git-lfs", b"%PDF", b"7767517"}
"""The starts that texts have; the others are followed by bytes that no text has."""
_OLDEST = {b"", b"sys_info", b"pickle", b"storages", b"tensors"}
_SUFFIXES: dict[str, OtherFile] = {
    ".h5": OtherFile("an HDF5 file: weights or a model of Keras", _KERAS.hint),
    ".keras": _KERAS,
    ".pb": _TENSORFLOW,
    ".index": OtherFile("the index of a TensorFlow checkpoint", _TENSORFLOW.hint),
    ".tflite": _TFLITE,
    ".pdmodel": _PADDLE,
    ".pdiparams": _PADDLE,
    ".mlmodel": _COREML,
    ".mlpackage": _COREML,
    ".engine": _TENSORRT,
    ".trt": _TENSORRT,
    ".plan": _TENSORRT,
    ".msgpack": _FLAX,
    ".caffemodel": OtherFile("a Caffe model", "convert it to ONNX, then: ens adopt model.onnx"),
    ".params": OtherFile("MXNet weights", "convert the model to ONNX, then: ens adopt model.onnx"),
    ".weights": OtherFile("Darknet weights", "convert the model to ONNX, then: ens adopt model.onnx"),
    ".onnx": OtherFile("a damaged ONNX file", "download or copy it again"),
}


def describe_file(path: Path, head: bytes) -> OtherFile:
    """Return what a file is by its first 512 bytes, and where they do not tell, by its name."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if re.match(rb"(<\?xml[^>]*>\s*)?<net[\s>]", text):
        return OtherFile("the description of an OpenVINO model", _ONNX_FIRST)
    if text.startswith(b"<"):
        return OtherFile(
            "a web page (a download that asked for a login or ran into a quota?)", "download the file in a browser"
        )
    if head[257:262] == b"ustar" and head[:100].rstrip(b"\0").lstrip(b"./") in _OLDEST:
        return OtherFile(
            "a checkpoint of torch 0.1 from 2016, a tar archive of pickles",
            "where you trust it, load it with an old torch, and save its state dict again",
        )
    is_text = is_plain_text(head)
    for offset, start, found in _STARTS:
        if head[offset:].startswith(start) and (not is_text or start in _TEXTS):
            return found
    if is_text:
        return _describe_text(path, head, text)
    if head[:1] == b"\x08" and (found_model := _onnx_file(path)) is not None:
        return found_model
    if re.match(rb"\x08[\x01-\x14]\x12", head) and path.suffix.lower() != ".onnx":
        return _COREML
    if re.match(rb"([\x81-\x8f]|\xde..|\xdf....)([\xa1-\xbf]|\xd9)\w", head, re.DOTALL):
        return _FLAX
    if head[:1] == b"\x0a" and b"Placeholder" in head:
        return _TENSORFLOW
    if head[:1] == b"\x78" and head[1:2] in {b"\x01", b"\x5e", b"\x9c", b"\xda"}:
        return OtherFile("zlib data, as joblib compresses", "torch.save(joblib.load('file'), 'weights.pth')")
    if path.suffix.lower() == ".bin" and path.with_suffix(".xml").is_file():
        return _OPENVINO
    if re.search(r"\.data-\d+-of-\d+$", path.name):
        return OtherFile("a part of a TensorFlow checkpoint", _TENSORFLOW.hint)
    if path.suffix.lower() in _SUFFIXES:
        return _SUFFIXES[path.suffix.lower()]
    return OtherFile(f"a file that starts with {head[:16]!r}")


def _describe_text(path: Path, head: bytes, text: bytes) -> OtherFile:
    """Return what a text is: its first letters may be those of a binary format, such as ``PK`` and ``GGUF``."""
    if path.suffix.lower() in _SUFFIXES:
        return _SUFFIXES[path.suffix.lower()]
    if text.startswith(b"model_checkpoint_path"):
        return OtherFile("the index of a TensorFlow checkpoint", _TENSORFLOW.hint)
    if text[:1] in {b"{", b"["} and _is_json(path):
        return OtherFile("a JSON file, such as a configuration", "name the file of the weights beside it")
    return OtherFile(f"a text that starts with {head[:16]!r}", "name the file of the weights")


def describe_archive(names: list[str]) -> OtherFile | None:
    """Return what a zip archive is by the names of its entries; None for one that torch.save may have written."""
    inner = {name.partition("/")[2] for name in names} | set(names)
    last = {name.rpartition("/")[2] for name in names}
    if {"models/", "data/weights/"} & {f"{'/'.join(name.split('/')[:-1])}/" for name in inner} and (
        "archive_format" in last or "archive_version" in last
    ):
        return _EXPORTED
    if any(name.startswith("serialized_exported_program") for name in last):
        return _EXPORTED
    if any(name.startswith(".data/extern_modules") for name in inner):
        return OtherFile(
            "a torch.package archive, which is a program",
            "torch.save(torch.package.PackageImporter('file').load_pickle(...).state_dict(), 'weights.pth')",
        )
    if "data.pkl" in last:
        return None
    if {"config.json", "model.weights.h5"} <= last:
        return _KERAS
    if ("schema.json" in last and any(name.endswith(".npy") for name in last)) or last == {"schema.json"}:
        return OtherFile("a skops file of scikit-learn", "export the network whose weights it holds with torch.save")
    if "MAR-INF/MANIFEST.json" in names:
        return OtherFile("a TorchServe archive; unpack it first", _UNPACK)
    if any(name.endswith((".mlmodel", "Manifest.json")) for name in names):
        return _COREML
    checkpoints = [
        name for name in names if name.lower().endswith((".pth", ".pt", ".ckpt", ".bin", ".safetensors", ".tar"))
    ]
    if checkpoints:
        return OtherFile(f"a zip archive around {checkpoints[0]}; unpack it first", "unzip, then name the file inside")
    return OtherFile(f"a zip archive that torch.save did not write (it holds {', '.join(sorted(names)[:3])})")


_EXPORTED = OtherFile(
    "a program of torch.export",
    "torch.save(torch.export.load('model.pt2').state_dict, 'weights.pth')",
)


_DEEPSPEED = OtherFile(
    "weights in parts that DeepSpeed wrote",
    "python zero_to_fp32.py . weights.bin in this folder (DeepSpeed writes the script there), then name weights.bin",
)
_DISTRIBUTED = OtherFile(
    "weights in parts that torch.distributed.checkpoint (FSDP) wrote",
    "python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER weights.pth",
)


def describe_parts(names: set[str]) -> OtherFile | None:
    """Return which program wrote the weights in a folder in parts, one per process; None if none did."""
    if "zero_to_fp32.py" in names or any(re.fullmatch(r"(.*_)?mp_rank_\d+_model_states\.pt", n) for n in names):
        return _DEEPSPEED
    if "latest" in names and any(name == "checkpoint" or name.startswith("global_step") for name in names):
        return _DEEPSPEED
    if any(name.endswith(".distcp") for name in names):
        return _DISTRIBUTED
    return None


def describe_folder(names: set[str]) -> OtherFile | None:
    """Return what a folder without weights of PyTorch is, by the names in it; None if they do not tell."""
    if (parts := describe_parts(names)) is not None:
        return parts
    if "saved_model.pb" in names or "keras_metadata.pb" in names:
        return _TENSORFLOW
    if "Manifest.json" in names:
        return _COREML
    if any(name.endswith((".pdmodel", ".pdiparams")) for name in names):
        return _PADDLE
    if "flax_model.msgpack" in names:
        return _FLAX
    if "tf_model.h5" in names:
        return _KERAS
    if {"data.pkl", "version"} <= names:
        return OtherFile(
            "the unpacked archive of a checkpoint",
            "pack it again, without compression: zip -0 -r weights.pth FOLDER; or copy the original file",
        )
    if any(name.endswith(".onnx") for name in names):
        return _ONNX
    return None


def _onnx_file(path: Path) -> OtherFile | None:
    """Return which kind of ONNX model a file is; None if it does not parse as one with a graph."""
    import onnx
    from google.protobuf.message import DecodeError

    model = onnx.ModelProto()
    try:
        if path.stat().st_size > 1 << 31:
            return _ONNX if path.suffix.lower() == ".onnx" else None
        model.ParseFromString(path.read_bytes())
    except (DecodeError, OSError):
        return None
    if not model.graph.node:
        return None
    return _OWN_ONNX if any(entry.key == METADATA_KEY for entry in model.metadata_props) else _ONNX


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_bytes()[:10_000_000])
    except (ValueError, OSError, RecursionError):
        return False
    return True
