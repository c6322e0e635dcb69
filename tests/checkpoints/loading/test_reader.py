"""The reader of checkpoints: metadata of every kind is data, whole modules are weights, and nothing is called."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import datetime
import decimal
import enum
import functools
import gzip
import io
import json
import logging
import pathlib
import pickle
import re
import sys
import tarfile
import types
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch

from checkpoints.loading.pickle_objects import InertObject, Record, Storage, StoredTensor
from checkpoints.loading.pickle_reader import PickleReader
from checkpoints.loading.read import read_content
from checkpoints.loading.tensors import legacy_storages
from ensemble.errors import EnsError, ModelError
from ensemble.events import Recorder
from tests.support.pickled import LEGACY_HEAD, Canary, archive, text
from tests.support.toys import model_proto

pytestmark = pytest.mark.slow

STATE = {"conv.weight": torch.arange(6.0).reshape(2, 3), "conv.bias": torch.ones(2, dtype=torch.float16)}


def foreign(module: str, name: str, *bases: type, **members: Any) -> Any:
    """A class of a package that is not installed where the file is read."""
    parts = module.split(".")
    for count in range(1, len(parts) + 1):
        sys.modules.setdefault(".".join(parts[:count]), types.ModuleType(".".join(parts[:count])))
    made = type(name, bases or (object,), {"__module__": module, "__qualname__": name} | members)
    setattr(sys.modules[module], name, made)
    return made


class Phase(enum.Enum):
    TRAIN = "train"


class Level(enum.Flag):
    LOW = 1
    HIGH = 2


@dataclasses.dataclass
class Settings:
    lr: float = 0.1
    layers: list[int] = dataclasses.field(default_factory=lambda: [1, 2])


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    lr: float = 0.1


class Slots:
    __slots__ = ("a", "b")

    def __init__(self) -> None:
        self.a, self.b = 1, [2]


class OddState:
    def __getstate__(self) -> tuple[int, list[int]]:
        return 1, [2]

    def __setstate__(self, state: object) -> None:
        raise AssertionError("the reader called a method")

    def method(self) -> None: ...


class Text(str):
    pass


class Subclass(torch.Tensor):
    pass


Pair = collections.namedtuple("Pair", "a b")
Node = foreign("omegaconf.nodes", "AnyNode")
DictConfig = foreign("omegaconf.dictconfig", "DictConfig")
ListConfig = foreign("omegaconf.listconfig", "ListConfig")
AttributeDict = foreign("lightning.fabric.utilities.data", "AttributeDict", dict)
HistoryBuffer = foreign("mmengine.logging.history_buffer", "HistoryBuffer")
ForeignList = foreign("fastcore.foundation", "L", list)


def with_attributes(made: Any, **attributes: object) -> Any:
    made.__dict__.update(attributes)
    return made


def metadata() -> dict[Any, Any]:
    node = with_attributes(Node(), _val="resnet18", _metadata=None)
    names = with_attributes(ListConfig(), _content=[with_attributes(Node(), _val="mask")], _parent=None)
    config = with_attributes(DictConfig(), _content={"arch": node, "names": names}, _parent=None)
    cyclic: list[object] = []
    cyclic.append(cyclic)
    weights = [torch.nn.Parameter(torch.ones(2))]
    optimizer = torch.optim.AdamW(weights)
    return {
        "config": config,
        "attributes": with_attributes(AttributeDict(arch="resnet18"), get="not the method"),
        "history": with_attributes(HistoryBuffer(), _log_history=np.ones(3), _count_history=np.ones(3)),
        "list": ForeignList([1, 2]),
        "enum": Phase.TRAIN,
        "flag": Level.LOW | Level.HIGH,
        "dataclass": Settings(),
        "frozen": Frozen(),
        "slots": Slots(),
        "state": OddState(),
        "method": OddState().method,
        "pair": Pair(1, 2),
        "text": Text("x"),
        "function": functools.partial(foreign),
        "class": Settings,
        "namespace": argparse.Namespace(model="resnet18", out=pathlib.PurePosixPath("/runs/1")),
        "simple": types.SimpleNamespace(lr=1),
        "when": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
        "long": datetime.timedelta(days=1),
        "decimal": decimal.Decimal("1.5"),
        "uuid": uuid.UUID(int=1),
        "pattern": re.compile("a"),
        "error": ValueError("a"),
        "logger": logging.getLogger("x"),
        "default": collections.defaultdict(float, f1=0.5),
        "deque": collections.deque([1.0], maxlen=3),
        "counter": collections.Counter("aab"),
        "chain": collections.ChainMap({"a": 1}),
        "set": {1},
        "frozenset": frozenset({1}),
        "range": range(3),
        "slice": slice(1),
        "complex": 1j,
        "bytes": bytearray(b"abc"),
        "big": 1 << 5000,
        "score": np.float64(0.5),
        "epoch": np.int64(3),
        "name": np.str_("resnet18"),
        "matrix": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "objects": np.array([1, "a"], dtype=object),
        "record": np.zeros(2, dtype=[("a", "f4")]),
        "generator": np.random.default_rng(0),
        "size": torch.Size([1, 2]),
        "device": torch.device("cuda:0"),
        "dtype": torch.float16,
        "loss": torch.nn.CrossEntropyLoss(weight=torch.ones(18)),
        "optimizer": optimizer,
        "scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 3),
        "sparse": torch.eye(3).to_sparse(),
        "storage": torch.ones(3).untyped_storage(),
        "subclass": torch.ones(3).as_subclass(Subclass),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "cyclic": cyclic,
        Phase.TRAIN: 1,
    }


def write(path: Path, content: object, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def read(path: Path) -> Any:
    return read_content(path).payload


@pytest.mark.parametrize(
    "options", [{}, {"pickle_protocol": 4}, {"pickle_protocol": 5}, {"_use_new_zipfile_serialization": False}]
)
def test_metadata_of_any_kind_is_read_beside_the_weights(tmp_path: Path, options: dict[str, Any]) -> None:
    """Objects of fifty classes, some of packages that are not installed, leave the weights as they are."""
    payload = read(write(tmp_path / "a.pth", {"state_dict": STATE, "extra": metadata()}, **options))
    for name, tensor in STATE.items():
        assert torch.equal(payload["state_dict"][name], tensor)
    found = payload["extra"]
    assert found["config"] == {"arch": "resnet18", "names": ["mask"]}
    assert found["attributes"]["arch"] == "resnet18"
    assert list(found["attributes"].items()) == [("get", "not the method"), ("arch", "resnet18")]
    assert vars(found["namespace"]) == {"model": "resnet18", "out": "/runs/1"}
    assert vars(found["dataclass"]) == {"lr": 0.1, "layers": [1, 2]}
    assert vars(found["slots"]) == {"a": 1, "b": [2]}
    assert found["enum"].arguments == ("train",)
    assert (found["score"], found["epoch"], found["name"]) == (0.5, 3, "resnet18")
    assert found["matrix"].tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    assert (found["list"], found["deque"], found["default"]) == ([1, 2], [1.0], {"f1": 0.5})
    assert (found["size"], found["device"]) == ((1, 2), "cuda:0")
    assert torch.equal(found["subclass"], torch.ones(3))
    assert torch.equal(found["loss"]["weight"], torch.ones(18))


def test_a_stand_in_does_nothing_when_it_is_used(tmp_path: Path) -> None:
    """A stand-in of a class with hostile methods is hashed, compared, printed and iterated without calling them."""
    names = ["__hash__", "__eq__", "__repr__", "__str__", "__iter__", "__getattr__", "__len__", "__reduce_ex__", "get"]
    state = b"}(" + b"".join(text(name) + b"cmine\nattack\n" for name in names) + b"u"
    path = tmp_path / "a.pth"
    path.write_bytes(archive(b"\x80\x02}" + text("a") + b"cmine\nThing\n)\x81" + state + b"bs."))
    found = read(path)["a"]
    assert isinstance(found, InertObject)
    assert {found: 1}[found] == 1
    assert found == found
    assert found != {}
    assert (repr(found), f"{found}", len(found), found.get("x", 1)) == ("<mine.Thing>", "<mine.Thing>", len(names), 1)
    assert set(found) == set(names)
    assert "mine" not in sys.modules


def hostile_call(canary: Canary) -> bytes:
    return b"cposix\nsystem\n" + text(canary.command) + b"\x85R"


def in_metadata(canary: Canary) -> bytes:
    return b"}" + text("extra") + hostile_call(canary) + b"s"


def in_setstate(canary: Canary) -> bytes:
    return b"cargparse\nNamespace\n)\x81}" + text("__setstate__") + b"cposix\nsystem\nsb" + text(canary.command) + b"b"


def in_a_key(canary: Canary) -> bytes:
    return b"}" + hostile_call(canary) + b"K\x01s"


def in_a_persistent_id(canary: Canary) -> bytes:
    return hostile_call(canary) + b"Q"


def in_a_storage(canary: Canary) -> bytes:
    return b"(" + text("storage") + b"cposix\nsystem\n" + text(canary.command) + text("cpu") + b"K\x01tQ"


def in_a_tensor_subclass(canary: Canary) -> bytes:
    arguments = b"(cposix\nsystem\ncposix\nsystem\n(" + text(canary.command) + b"t}t"
    return b"ctorch._tensor\n_rebuild_from_type_v2\n" + arguments + b"R"


def in_a_parameter(canary: Canary) -> bytes:
    return b"ctorch._utils\n_rebuild_parameter_with_state\n(" + hostile_call(canary) + b"\x89}}tR"


def in_a_default_factory(canary: Canary) -> bytes:
    return b"ccollections\ndefaultdict\n(cposix\nsystem\ntR"


def in_numpys_array(canary: Canary) -> bytes:
    return b"cnumpy.core.multiarray\n_reconstruct\n(cposix\nsystem\nK\x00\x85c_codecs\nencode\ntR"


def in_a_bound_method(canary: Canary) -> bytes:
    return b"cbuiltins\ngetattr\n(cos\nsystem\n" + text("__call__") + b"tR(" + text(canary.command) + b"tR"


def in_functools(canary: Canary) -> bytes:
    return b"cfunctools\npartial\n(cposix\nsystem\n" + text(canary.command) + b"tR)R"


def in_a_reconstructor(canary: Canary) -> bytes:
    return b"ccopyreg\n_reconstructor\n(csubprocess\nPopen\ncbuiltins\nobject\nNtR"


def in_a_nested_pickle(canary: Canary) -> bytes:
    inner = LEGACY_HEAD + b"\x80\x02" + hostile_call(canary) + b"." + pickle.dumps([], protocol=2)
    return b"ctorch.storage\n_load_from_bytes\nB" + len(inner).to_bytes(4, "little") + inner + b"\x85R"


PAYLOADS: list[Callable[[Canary], bytes]] = [
    in_metadata,
    in_setstate,
    in_a_key,
    in_a_persistent_id,
    in_a_storage,
    in_a_tensor_subclass,
    in_a_parameter,
    in_a_default_factory,
    in_numpys_array,
    in_a_bound_method,
    in_functools,
    in_a_reconstructor,
    in_a_nested_pickle,
]


@pytest.mark.parametrize("make", PAYLOADS, ids=lambda make: str(make.__name__))
def test_fault_35_a_command_anywhere_in_the_metadata_never_runs(
    tmp_path: Path, make: Callable[[Canary], bytes]
) -> None:
    """A command hidden in any part of the metadata is refused with E401, and leaves no canary."""
    canary, path = Canary(tmp_path / "canary"), tmp_path / "a.pth"
    path.write_bytes(archive(b"\x80\x02}" + text("state_dict") + make(canary) + b"s."))
    with pytest.raises(ModelError) as caught:
        read_content(path)
    assert caught.value.code == "E401"
    assert not canary.path.exists()


@pytest.mark.parametrize("make", PAYLOADS, ids=lambda make: str(make.__name__))
def test_the_reader_itself_calls_nothing(tmp_path: Path, make: Callable[[Canary], bytes]) -> None:
    """The interpreter, without the check of names before it, gives stand-ins or an error and leaves no canary."""
    from checkpoints.loading.pickle_reader import PickleReader
    from checkpoints.loading.pickle_values import to_content

    canary = Canary(tmp_path / "canary")
    value = PickleReader(io.BytesIO(b"\x80\x02" + make(canary) + b".")).load()
    content, _ = to_content({"a": value})
    assert repr(content)
    assert not canary.path.exists()


@pytest.mark.parametrize("opcode", [pickle.BINBYTES8, pickle.BINUNICODE8, pickle.BYTEARRAY8])
@pytest.mark.parametrize("length", [2**40, 2**62])
def test_a_length_beyond_the_file_makes_no_room(tmp_path: Path, opcode: bytes, length: int) -> None:
    """A string that the file is too short for is damage; a file's ``read`` would make room for all of it."""
    path = tmp_path / "a.pth"
    path.write_bytes(b"\x80\x05" + opcode + length.to_bytes(8, "little") + b"ab")
    with open(path, "rb") as file, pytest.raises(EOFError):
        PickleReader(file).load()
    with pytest.raises(ModelError):
        read_content(path)


def test_storages_beyond_the_file_make_no_room(tmp_path: Path) -> None:
    """A file of torch before 1.6 may declare a storage of a terabyte and end behind it."""
    path = tmp_path / "a.pth"
    path.write_bytes((2**38).to_bytes(8, "little"))
    storage = Storage("0", "float32", 2**38)
    with open(path, "rb") as file, pytest.raises(EOFError):
        legacy_storages(file, ["0"], {"0": storage}, is_little=True)


class Inner(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(2, 3)
        self.norm = torch.nn.BatchNorm1d(3)
        self.register_buffer("mean", torch.ones(1))
        self.register_buffer("cache", torch.ones(1), persistent=False)
        self.again = self.linear  # a module that is registered twice is twice in the state dict
        self.none = None


@pytest.mark.parametrize("wrap", [lambda m: m, torch.nn.DataParallel, torch.nn.Sequential, lambda m: {"ema": m}])
def test_a_whole_module_is_its_state_dict(tmp_path: Path, wrap: Callable[[Any], Any]) -> None:
    """The weights of a pickled module have the names, order and values of its state dict."""
    saved = wrap(Inner())
    module = saved["ema"] if isinstance(saved, dict) else saved
    found = read(write(tmp_path / "a.pt", saved))
    found = found["ema"] if isinstance(saved, dict) else found
    expected = module.state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert found.type_name.endswith(type(module).__name__)


def test_modules_in_one_another_do_not_multiply_without_end(tmp_path: Path) -> None:
    """A module that holds another one twice, 60 levels deep, is refused before its 2 to the 60 names are listed."""
    module: torch.nn.Module = torch.nn.Linear(2, 2)
    for _ in range(60):
        outer = torch.nn.Module()
        outer.first = outer.second = module
        module = outer
    with pytest.raises(ModelError, match="more than 50,000 modules"):
        read_content(write(tmp_path / "a.pt", module), with_values=False)


def test_an_object_around_a_module_is_opened(tmp_path: Path) -> None:
    """A learner that is pickled whole, with a reference back to itself, is a dictionary that holds its weights."""
    learner = types.SimpleNamespace(model=Inner(), vocab=["mask", "no mask"])
    learner.callbacks = [types.SimpleNamespace(learn=learner)]
    found = read(write(tmp_path / "a.pkl", learner))
    assert torch.equal(found["model"]["linear.weight"], learner.model.linear.weight)
    assert found["vocab"] == ["mask", "no mask"]


@pytest.mark.parametrize(("rows", "whole"), [(2, True), (4, False)])
def test_a_distributed_tensor_is_read_where_one_process_has_all_of_it(tmp_path: Path, rows: int, whole: bool) -> None:
    """A DTensor whose local part has its shape is that tensor; one of several parts is left out with W481."""
    stored = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x02tQ"
    local = b"ctorch._utils\n_rebuild_tensor_v2\n(" + stored + b"K\x00K\x02\x85K\x01\x85\x89}tR"
    kind = b"ctorch.distributed.tensor\nDTensor\n"
    wrapped = b"(" + kind + b"ctorch\nfloat32\nK" + bytes([rows]) + b"\x85K\x01\x85K\x00NN\x89t"
    state = b"(N}" + text("_local_tensor") + local + b"st"
    made = b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._utils\n_rebuild_wrapper_subclass\n" + kind + wrapped
    path, heard = tmp_path / "a.pth", Recorder()
    path.write_bytes(
        archive(b"\x80\x02}" + text("w") + made + state + b"tRs.", data__0=np.ones(2, np.float32).tobytes())
    )
    found: Any = read_content(path, listener=heard).payload
    assert isinstance(found["w"], torch.Tensor) is whole
    assert [notice.code for notice in heard.notices if notice.code == "W481"] == ([] if whole else ["W481"])


def test_weights_that_only_code_can_make_are_left_out_and_named(tmp_path: Path) -> None:
    """A tensor made by an unknown function is left out, and W481 names both."""
    path = tmp_path / "a.pth"
    stored = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x02tQ"
    body = b"}" + text("a.weight") + b"cmylib\nunpack\n(" + stored + b"tRs"
    path.write_bytes(archive(b"\x80\x02" + body + b"."))
    heard = Recorder()
    assert "a.weight" in read_content(path, listener=heard).payload  # type: ignore[operator]
    assert [notice.message for notice in heard.notices if notice.code == "W481"] == [
        "a.weight was left out: it is made by mylib.unpack, which is code that does not run"
    ]


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
def test_a_plain_pickle_of_tensors_or_arrays_is_read(tmp_path: Path, protocol: int) -> None:
    """A state dict written with the pickle module, as tensors or as numpy arrays, has the same values."""
    path = tmp_path / "a.pkl"
    for content in (STATE, {name: tensor.numpy() for name, tensor in STATE.items()}):
        path.write_bytes(pickle.dumps({"model": content}, protocol=protocol))
        found = read(path)["model"]
        assert all(torch.equal(found[name], tensor) for name, tensor in STATE.items())


def test_numpys_archive_is_read(tmp_path: Path) -> None:
    """A .npz file of weights, compressed or not, has the same values."""
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **{name: tensor.numpy() for name, tensor in STATE.items()})  # type: ignore[arg-type]
        assert all(torch.equal(read(tmp_path / "a.npz")[name], tensor) for name, tensor in STATE.items())


def test_an_outline_has_shapes_and_no_values(tmp_path: Path) -> None:
    """Without values, the tensors of every container have the same shapes and types, and no elements."""
    safetensors.torch.save_file(STATE, tmp_path / "a.safetensors")
    np.savez(tmp_path / "a.npz", **{name: tensor.numpy() for name, tensor in STATE.items()})  # type: ignore[arg-type]
    for path in (write(tmp_path / "a.pth", STATE), tmp_path / "a.safetensors", tmp_path / "a.npz"):
        payload: Any = read_content(path, with_values=False).payload
        for name, tensor in STATE.items():
            assert isinstance(payload[name], StoredTensor)
            assert (payload[name].shape, f"torch.{payload[name].dtype}") == (tuple(tensor.shape), str(tensor.dtype))


# shards


def write_shards(folder: Path, stem: str, suffix: str, *, index: bool) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{stem}-{number:05}-of-00002{suffix}" for number in (1, 2)]
    for path, name in zip(paths, STATE, strict=True):
        data = {name: STATE[name]}
        safetensors.torch.save_file(data, path) if suffix == ".safetensors" else torch.save(data, path)
    if index:
        where = {name: path.name for name, path in zip(STATE, paths, strict=True)}
        (folder / f"{stem}{suffix}.index.json").write_text(json.dumps({"weight_map": where}))
    return paths


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize(("stem", "suffix"), [("model", ".safetensors"), ("pytorch_model", ".bin")])
def test_shards_are_one_checkpoint(tmp_path: Path, stem: str, suffix: str, index: bool) -> None:
    """The folder, the index and any shard give all tensors; without one of the shards it is E403, which names it."""
    first, second = write_shards(tmp_path / "m", stem, suffix, index=index)
    named = [tmp_path / "m", first, second] + ([tmp_path / "m" / f"{stem}{suffix}.index.json"] if index else [])
    for path in named:
        content = read_content(path)
        assert isinstance(content.payload, dict)
        assert all(torch.equal(content.payload[name], tensor) for name, tensor in STATE.items())
        assert content.files == (first, second)
    second.unlink()
    with pytest.raises(ModelError, match=f"E403.*1 of 2 shards are missing: {second.name}"):
        read_content(first)


def test_an_index_that_lists_more_than_its_files_have_is_refused(tmp_path: Path) -> None:
    """A tensor of the index that no shard has is E403; a file outside the folder is E404."""
    first, _ = write_shards(tmp_path / "m", "model", ".safetensors", index=True)
    index = first.with_name("model.safetensors.index.json")
    known = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": known | {"fc.weight": first.name}}))
    with pytest.raises(ModelError, match=r"E403.*lack fc\.weight"):
        read_content(index)
    index.write_text(json.dumps({"weight_map": known | {"fc.weight": "../other.safetensors"}}))
    with pytest.raises(ModelError, match="E404"):
        read_content(index)


# files that are something else


def zipped(**parts: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, data in parts.items():
            opened.writestr(name.replace("__", "/").replace("_dot_", "."), data)
    return file.getvalue()


def tarred(name: str, data: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as opened:
        entry = tarfile.TarInfo(name)
        entry.size = len(data)
        opened.addfile(entry, io.BytesIO(data))
    return file.getvalue()


def checkpoint() -> bytes:
    file = io.BytesIO()
    torch.save(STATE, file)
    return file.getvalue()


OTHERS: dict[str, tuple[Callable[[], bytes], str, str]] = {
    "a.h5": (lambda: b"\x89HDF\r\n\x1a\n", "HDF5", "ens adopt"),
    "a.keras": (lambda: zipped(config_dot_json=b"{}", model_dot_weights_dot_h5=b""), "Keras", "ens adopt"),
    "a.pb": (lambda: b"\n\x1a\n\x05input\x12\x0bPlaceholder", "TensorFlow", "tf2onnx"),
    "a.tflite": (lambda: b"\x1c\0\0\0TFL3", "TensorFlow Lite", "tf2onnx"),
    "a.pdiparams": (lambda: b"\0\0\0\0\0", "PaddlePaddle", "paddle2onnx"),
    "a.pdparams": (
        lambda: pickle.dumps({"conv.w_0": np.ones((2, 2)), "StructuredToParameterName@@": {}}, protocol=2),
        "PaddlePaddle",
        "paddle2onnx",
    ),
    "a.params": (lambda: b"\x12\x01\0\0\0\0\0\0" + bytes(20), "MXNet", "ens adopt"),
    "a.mlmodel": (lambda: b"\x08\x04\x12\x10abcdefgh", "Core ML", "ens adopt"),
    "a.gguf": (lambda: b"GGUF\3\0\0\0", "GGUF", ""),
    "a.xml": (lambda: b'<?xml version="1.0"?>\n<net name="x" version="11">', "OpenVINO", "ens adopt"),
    "a.engine": (lambda: b"ptrt\0\0\0\0", "TensorRT", "ens adopt"),
    "a.msgpack": (lambda: b"\x82\xa6params\x83\xa3abc", "Flax", "JAX"),
    "a.npy": (lambda: b"\x93NUMPY\1\0", "numpy array", "savez"),
    "a.joblib": (lambda: b"\x80\x04cjoblib.numpy_pickle\nNumpyArrayWrapper\n\xff", "joblib", "joblib.load"),
    "b.joblib": (lambda: b"\x78\x9c" + bytes(20), "joblib", "joblib.load"),
    "a.skops": (lambda: zipped(schema_dot_json=b"{}"), "skops", "torch.save"),
    "a.zip": (lambda: zipped(runs__best_dot_pth=checkpoint()), "runs/best.pth", "unzip"),
    "a.pth.gz": (lambda: gzip.compress(checkpoint()), "gzip", "gunzip"),
    "a.pth.tar": (lambda: tarred("best.pth", checkpoint()), "tar archive", "tar -xf"),
    "a.t7": (lambda: tarred("storages", b""), "torch 0.1", "save its state dict"),
    "a.json": (lambda: b'{"arch": "resnet18"}', "JSON", "beside it"),
    "a.pt2": (lambda: zipped(m__archive_format=b"pt2", m__data__weights__weight_0=b""), "torch.export", "state_dict"),
    "a.pt": (lambda: zipped(m__data_dot_pkl=b"", m__code__net_dot_py=bytes(9000)), "TorchScript", "jit.load"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_file_is_called_what_it_is(tmp_path: Path, name: str) -> None:
    """A file of another program is refused with its name, and with a hint that helps."""
    make, words, hint = OTHERS[name]
    path = tmp_path / name
    path.write_bytes(make())
    with pytest.raises(EnsError) as caught:
        read_content(path)
    assert caught.value.code in {"E402", "E404", "E417"}
    assert words in caught.value.message
    assert hint in caught.value.hint


def test_an_onnx_file_needs_no_export(tmp_path: Path) -> None:
    """A foreign ONNX file is sent to ens adopt, one that ens wrote to ens predict."""
    for name, proto in (("raw", onnx.ModelProto()), ("own", model_proto())):
        if name == "raw":
            proto.CopyFrom(model_proto())
            del proto.metadata_props[:]
        (tmp_path / name).write_bytes(proto.SerializeToString())
        with pytest.raises(ModelError, match="E404") as caught:
            read_content(tmp_path / name)
        assert ("ens adopt" if name == "raw" else "ens predict") in caught.value.hint


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), "quantized weights"),
        (lambda t: torch.quantize_per_channel(t, torch.ones(2), torch.zeros(2), 0, torch.quint8), "quantized weights"),
        (lambda t: t.to("meta"), "meta device, without values"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:.*:UserWarning")
def test_tensors_that_cannot_be_weights_are_named(tmp_path: Path, make: Callable[[Any], Any], words: str) -> None:
    """Quantized tensors and those without values are E417, which names the first of them."""
    path = write(tmp_path / "a.pth", {"state_dict": {"conv.weight": make(STATE["conv.weight"])}})
    with pytest.raises(ModelError, match=f"E417.*{words}.*conv.weight"):
        read_content(path)


def test_a_storage_that_is_too_short_is_damage(tmp_path: Path) -> None:
    """A tensor that needs more elements than its storage has is E405, and never memory of something else."""
    stored = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x09tQ"
    made = b"ctorch._utils\n_rebuild_tensor_v2\n(" + stored + b"K\x00K\x09\x85K\x01\x85\x89}tR"
    body = b"\x80\x02}" + text("w") + made + b"s."
    path = tmp_path / "a.pth"
    path.write_bytes(archive(body, data__0=bytes(8)))
    with pytest.raises(ModelError, match=r"E405.*storage 0 has 2 elements, and a tensor needs 9"):
        read_content(path)


@pytest.mark.parametrize("ending", [b"K\x01s.", b"\x85R.", b"\x91."], ids=["dictionary", "call", "frozenset"])
def test_a_key_whose_hash_would_take_forever_is_a_stand_in(ending: bytes) -> None:
    """A tuple that is contained twice at each of 60 levels, as a key or in a set, is read without hashing it."""
    start = {b"K\x01s.": b"}", b"\x85R.": b"cbuiltins\nset\n](", b"\x91.": b"("}[ending]
    nested = b"K\x01K\x02\x86q\x00" + b"".join(b"h%c\x86q%c" % (level, level + 1) for level in range(60))
    if ending == b"\x85R.":
        ending = b"e" + ending
    found: Any = PickleReader(io.BytesIO(b"\x80\x04" + start + nested + ending)).load()
    (key,) = found
    assert isinstance(key, Record)
    small: Any = PickleReader(io.BytesIO(pickle.dumps({(0, ("a", 1)): 2, "b": {(3, 4)}}))).load()
    assert small == {(0, ("a", 1)): 2, "b": {(3, 4)}}
