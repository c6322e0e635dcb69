"""An int8 or fp16 export that is killed after any of its steps and run again: the same bytes, and no step twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from ensemble.arrays import Pixels
from ensemble.errors import ModelError
from ensemble.events import Listener, Recorder
from ensemble.kept_arrays import write_state
from exporters import accuracy_gate, export_steps, int8, int8_engines, int8_rounding, verify
from exporters import export as module
from exporters.export import Exported, ExportOptions, ImageSet, export
from exporters.export_steps import KeptSteps
from exporters.int8_timing import Times
from tests.support import toys
from tests.support.networks import make_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

CHECKPOINT = make_checkpoint("test_efficientnet", classes=4, name="net.pth")
INT8 = ExportOptions(size=(32, 32), resize="squash", precision="int8", quantization="asymmetric")
NAMES = tuple(f"{i:02d}.jpg" for i in range(64))
FOLDED = {"histograms", "moments of inputs"}


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    """Pictures of as many people."""
    root = tmp_path_factory.mktemp("images")
    toys.write_pictures(root, NAMES)
    return ImageSet(NAMES, tuple(root / name for name in NAMES))


@pytest.fixture(scope="module")
def graphs() -> dict[str, onnx.ModelProto]:
    """What torch's exporter made for a precision, once for all tests."""
    return {}


def copy(proto: onnx.ModelProto) -> onnx.ModelProto:
    made = onnx.ModelProto()
    made.CopyFrom(proto)
    return made


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch, graphs: dict[str, onnx.ModelProto]) -> Counter[str]:
    """How often the costly functions were called; times and the gate are those of no machine."""
    calls: Counter[str] = Counter()

    def count(place: Any, name: str) -> None:
        original = getattr(place, name)

        def counting(*arguments: Any, **options: Any) -> Any:
            calls[name] += 1
            return original(*arguments, **options)

        monkeypatch.setattr(place, name, counting)

    original = module._to_onnx

    def to_onnx(exportable: Any, card: Any) -> onnx.ModelProto:
        made = graphs.get(card.precision) or original(exportable, card)
        graphs[card.precision] = copy(made)
        return copy(made)

    def take(proto: onnx.ModelProto, _: Pixels) -> Times:
        return Times({node.name: float(len(node.op_type)) for node in proto.graph.node})

    monkeypatch.setattr(module, "_to_onnx", to_onnx)
    monkeypatch.setattr(int8_engines, "time_nodes", take)
    monkeypatch.setattr(int8, "MOST_LEADING", 1.0)
    for place, name in (
        (module, "_to_onnx"),
        (module, "_check_pixels"),
        (int8_engines, "time_nodes"),
        (int8_rounding, "_round_layer"),
        (verify.ExportedModel, "run"),
        (module, "run_torch"),
    ):
        count(place, name)
    for name in ("LEAST_AGREEMENT", "LEAST_AGREEMENT_WITH_TRUTH"):
        monkeypatch.setattr(accuracy_gate, name, {"fp16": 0.5, "int8": 0.5})
    for name, value in {"_SECONDS": 0.0, "_LEAST_SHARE": 0.0, "_STOPPED": 1e9, "_PER_SECOND": float("inf")}.items():
        monkeypatch.setattr(export_steps, name, value)
    return calls


def run(
    folder: Path, images: ImageSet, *, listener: Listener | None = None, key: str = "key", **given: Any
) -> Exported:
    heard = listener or Recorder()
    given = {"options": INT8, "gate_images": images, **given}
    with KeptSteps(folder, key, listener=heard) as steps:
        return export(CHECKPOINT, folder, steps=steps, listener=heard, **given)


@pytest.fixture
def kill_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[str]]:
    """Let the export end after a number of writes; returns the list of all steps that are written."""
    original = write_state

    def arm(number: int) -> list[str]:
        written: list[str] = []
        left = [number]

        def write(path: Path, key: str, arrays: Any) -> None:
            original(path, key, arrays)
            written.extend(dict.fromkeys(name.split("\n")[0] for name in arrays))
            left[0] -= 1
            if left[0] == 0:
                raise Killed

        monkeypatch.setattr(export_steps, "write_state", write)
        return written

    return arm


@pytest.mark.usefixtures("counted")
def test_int8_needs_no_images_beside_those_that_choose_and_judge(
    photographs: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a checkpoint of ens train only held-out images are left to judge; of a few hundred all choose or judge."""
    monkeypatch.setattr(accuracy_gate, "MOST_OTHERS", 0)
    assert run(tmp_path, photographs).card.precision == "int8"


def kinds(names: list[str]) -> set[str]:
    return {name.split("/")[0] for name in names}


def unfolded(names: list[str]) -> set[str]:
    return {name for name in names if name.split("/")[0] not in FOLDED}


def every(count: int, step: int) -> Iterator[int]:
    return iter(sorted({*range(1, count + 1, step), count}))


def test_int8_killed_after_any_step_ends_with_the_same_bytes(
    tmp_path: Path, photographs: ImageSet, counted: Counter[str], kill_at: Callable[[int], list[str]]
) -> None:
    """Whatever was on disk is not computed again, and together both runs compute what an undisturbed one does, except
    for the sessions that are started again.
    """
    written = kill_at(-1)
    quiet = run(tmp_path / "quiet", photographs)
    assert kinds(written) == {
        "graph",
        "verified images",
        "verification",
        "images",
        "ranges of channels",
        "extremes",
        "histograms",
        "moments of inputs",
        "rounded layers",
        "timings",
        "logits",
    }
    assert [path.name for path in (tmp_path / "quiet").iterdir()] == ["net.onnx"]
    expected, writes = dict(counted), len(written)
    for number in every(writes, max(1, writes // 8)):
        folder = tmp_path / f"{number}"
        counted.clear()
        before = kill_at(number)
        with pytest.raises(Killed):
            run(folder, photographs)
        after, heard = kill_at(-1), Recorder()
        assert run(folder, photographs, listener=heard).path.read_bytes() == quiet.path.read_bytes()
        assert [path.name for path in folder.iterdir()] == ["net.onnx"]
        assert unfolded(before).isdisjoint(after)
        assert [notice.code for notice in heard.notices].count("I497") == 1
        for name in ("_to_onnx", "time_nodes", "_round_layer"):
            assert counted[name] == expected[name], (number, name)
        assert counted["run"] <= expected["run"] + 3  # those of `verify` that compare batches


def test_int8_for_openvino_killed_ends_with_the_same_bytes(
    tmp_path: Path,
    photographs: ImageSet,
    counted: Counter[str],
    kill_at: Callable[[int], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its steps are those of the other schemes, and the answers and times of OpenVINO."""
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    monkeypatch.setattr(int8, "time_network", lambda *_: Times({"network": 100.0}))
    options = replace(INT8, quantization="openvino")
    written = kill_at(-1)
    quiet = run(tmp_path / "quiet", photographs, options=options)
    assert quiet.card.checks["scheme"] == "openvino"
    assert {"extremes", "rounded layers", "timings", "logits"} < kinds(written)
    expected, writes = dict(counted), len(written)
    for number in every(writes, max(1, writes // 4)):
        folder = tmp_path / f"{number}"
        counted.clear()
        before = kill_at(number)
        with pytest.raises(Killed):
            run(folder, photographs, options=options)
        after, heard = kill_at(-1), Recorder()
        assert run(folder, photographs, options=options, listener=heard).path.read_bytes() == quiet.path.read_bytes()
        assert [path.name for path in folder.iterdir()] == ["net.onnx"]
        assert unfolded(before).isdisjoint(after)
        assert [notice.code for notice in heard.notices].count("I497") == 1
        assert counted["_round_layer"] == expected["_round_layer"]


def test_a_resumed_export_decides_by_the_times_of_the_first_run(
    tmp_path: Path,
    photographs: ImageSet,
    counted: Counter[str],
    kill_at: Callable[[int], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a machine that has become slow meanwhile the model is the same; without the steps it would be another."""
    written = kill_at(-1)
    quiet = run(tmp_path / "quiet", photographs)
    last = max(i for i, name in enumerate(written) if name.startswith("timings/"))
    kill_at(last + 1)
    with pytest.raises(Killed):
        run(tmp_path / "killed", photographs)
    kill_at(-1)
    # the first layers are now said to be the fastest on integers
    slow = iter(range(1, 1000))
    monkeypatch.setattr(int8_engines, "time_nodes", lambda *_: Times({"all": float(next(slow))}))
    assert run(tmp_path / "killed", photographs).path.read_bytes() == quiet.path.read_bytes()
    assert next(slow) == 1
    assert run(tmp_path / "other", photographs).path.read_bytes() != quiet.path.read_bytes()


def test_a_failed_gate_leaves_no_steps(
    tmp_path: Path, photographs: ImageSet, counted: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An export that says why there is no model has ended."""
    monkeypatch.setattr(accuracy_gate, "LEAST_AGREEMENT", {"int8": 1.1})
    with pytest.raises(ModelError, match="E436"):
        run(tmp_path, photographs)
    assert list(tmp_path.iterdir()) == []
    assert counted["_to_onnx"] == 1


@pytest.mark.parametrize("changed", ["key", "options", "near ties", "checkpoint"])
def test_another_export_of_the_member_uses_nothing(
    tmp_path: Path,
    photographs: ImageSet,
    counted: Counter[str],
    kill_at: Callable[[int], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    changed: str,
) -> None:
    """With other options, inputs or weights all is computed, as without a killed run, and its steps are gone."""
    before = kill_at(20)
    with pytest.raises(Killed):
        run(tmp_path, photographs)
    after, heard = kill_at(-1), Recorder()
    given: dict[str, Any] = {}
    if changed == "key":
        given = {"key": "another"}
    elif changed == "options":
        given = {"options": replace(INT8, quantization="symmetric")}
    elif changed == "near ties":
        given = {"options": replace(INT8, near_ties="int8")}
    else:
        monkeypatch.setitem(globals(), "CHECKPOINT", replace(CHECKPOINT, sha256="0" * 64))
    run(tmp_path, photographs, listener=heard, **given)
    assert [notice.code for notice in heard.notices if notice.code in {"I497", "I498"}] == ["I498"]
    assert kinds(before) <= kinds(after)
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


def test_fp16_with_a_ground_truth_resumes(
    tmp_path: Path, photographs: ImageSet, counted: Counter[str], kill_at: Callable[[int], list[str]]
) -> None:
    """The logits of torch and of the model are kept, so that neither runs again."""
    truth = tmp_path / "truth.csv"
    truth.write_text("ImageID,ans\n" + "".join(f"{name},{i % 4}\n" for i, name in enumerate(NAMES)))
    given: dict[str, Any] = {"options": replace(INT8, precision="fp16"), "truth": truth}
    written = kill_at(-1)
    quiet = run(tmp_path / "quiet", photographs, **given)
    assert [name.split("/")[0] for name in written].count("logits") == 2 * len(NAMES) // 4
    for number in every(len(written), max(1, len(written) // 5)):
        counted.clear()
        before = kill_at(number)
        with pytest.raises(Killed):
            run(tmp_path / "killed", photographs, **given)
        asked = counted["run_torch"]
        after = kill_at(-1)
        assert run(tmp_path / "killed", photographs, **given).path.read_bytes() == quiet.path.read_bytes()
        assert unfolded(before).isdisjoint(after)
        assert counted["_to_onnx"] == 1
        assert counted["run_torch"] == max(asked, len(NAMES) // 4)


def test_a_short_export_writes_no_steps(
    tmp_path: Path, photographs: ImageSet, counted: Counter[str], kill_at: Callable[[int], list[str]], monkeypatch: Any
) -> None:
    """What takes less than ten seconds leaves nothing to resume; float32 of a small network takes two."""
    monkeypatch.setattr(export_steps, "_SECONDS", 1e9)
    written = kill_at(-1)
    run(tmp_path, photographs, options=replace(INT8, precision="fp32"), gate_images=None)
    assert not written
    assert counted["_to_onnx"] == 1
    assert np.isfinite(counted.total())
