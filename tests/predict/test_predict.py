"""Prediction: every image once, the same bytes whatever happens on the way."""

from __future__ import annotations

import importlib
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ensemble.card import Preprocess
from ensemble.errors import (
    DataError,
    DeviceError,
    DiskFullError,
    EnsError,
    FileError,
    Interrupted,
    LockedError,
    ModelError,
    OptionError,
)
from ensemble.events import Recorder
from ensemble.files import locked
from ensemble.images.listing import list_images
from ensemble.images.planes import decode_for
from ensemble.images.views import parse_views
from ensemble.predict import parts
from ensemble.predict import pipeline as pipeline_module
from ensemble.predict.inputs import Inputs
from ensemble.predict.memory_budget import need_of
from ensemble.predict.options import RunOptions
from ensemble.predict.pipeline import Pipeline, Work
from ensemble.predict.predict import predict
from ensemble.predictions.dataset import COMPLETE, Part, part_path, read_predictions, write_part
from ensemble.runtime.device import CPU, Device
from ensemble.runtime.gpu_sessions import start_gpu_sessions
from ensemble.runtime.model_file import read_model
from ensemble.runtime.session import Session, start_session
from tests.support import toys
from tests.support.runs import StopAfter, run_predict

predict_module = importlib.import_module("ensemble.predict.predict")

NAMES = [f"{i:02d}.jpg" for i in range(23)]
TTA = parse_views("hflip")


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of eight rows, so that a few pictures make several."""
    monkeypatch.setattr(parts, "PART_ROWS", 8)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Twenty-three pictures: two full parts and one of seven rows."""
    toys.write_pictures(tmp_path / "images", NAMES)
    return tmp_path / "images"


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    """Three models, two of one input size."""
    cards = [toys.card("a"), toys.card("b"), toys.card("c", size=(20, 24))]
    return [toys.write_model(tmp_path / "models", card, seed=seed) for seed, card in enumerate(cards)]


def contents(folder: Path) -> dict[str, bytes]:
    """Every part and marker below a folder; what a finished run leaves apart from its timings."""
    kept = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in {"_run.json", ".lock"}]
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept}


def test_logits_are_those_of_each_model_for_each_view(tmp_path: Path, images: Path, models: list[Path]) -> None:
    """Logits equal an independent decode, resize, flip and matrix product for every member, view and image."""
    predict(models, images, tmp_path / "out", views=TTA, options=RunOptions(device="cpu"))
    for seed, (member, size) in enumerate((("a", (16, 12)), ("b", (16, 12)), ("c", (20, 24)))):
        found = read_predictions(tmp_path / "out" / member)
        assert found.ids == tuple(NAMES)
        weights = toys.linear_weights(toys.card(member, size=size), seed).astype(np.float64)
        for row, name in enumerate(NAMES):
            with Image.open(images / name) as image:
                pixels = np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR))
            for view, seen in (("identity", pixels), ("hflip", pixels[:, ::-1])):
                expected = seen.reshape(-1) / 255 @ weights
                np.testing.assert_allclose(found.logits[view][row], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("batch", "workers"), [(1, 1), (3, 2), (8, 4), (100, 3)])
def test_batch_size_and_workers_do_not_change_a_byte(
    tmp_path: Path, images: Path, models: list[Path], batch: int, workers: int
) -> None:
    """Any batch size and number of workers give the files that the defaults give."""
    predict(models, images, tmp_path / "one", views=TTA, options=RunOptions(device="cpu"))
    predict(
        models, images, tmp_path / "other", views=TTA, options=RunOptions(device="cpu", batch=batch, workers=workers)
    )
    assert contents(tmp_path / "one") == contents(tmp_path / "other")


def test_convolutions_give_the_same_bytes_however_they_are_run(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A linear model, a ResNet's layers and an EfficientNet's: batches of 1, 3 and 16, one, two and three workers, all
    members together or each alone leave the same files.
    """
    monkeypatch.setattr(parts, "PART_ROWS", 20)
    cards = {kind: toys.card(kind, size=(20, 24)) for kind in ("resnet", "efficientnet")}
    models = [
        toys.write_model(tmp_path / "models", card, proto=toys.convolutional_proto(card, kind=kind))
        for kind, card in cards.items()
    ]
    models.append(toys.write_model(tmp_path / "models", toys.card("linear")))
    predict(models, images, tmp_path / "usual", views=TTA, options=RunOptions(device="cpu"))
    usual = contents(tmp_path / "usual")
    for batch, workers in itertools.product((1, 3, 16), (1, 2, 3)):
        options: dict[str, Any] = {"views": TTA, "device": "cpu", "batch": batch, "workers": workers, "fresh": True}
        run_predict(models, images, tmp_path / "all", **options)
        assert contents(tmp_path / "all") == usual
        if (batch, workers) in {(1, 3), (3, 2), (16, 1)}:
            for model in models:
                run_predict([model], images, tmp_path / "alone", **options)
            assert contents(tmp_path / "alone") == usual


def test_how_many_go_at_once_is_found_by_a_trial_that_changes_no_byte(
    tmp_path: Path, images: Path, models: list[Path]
) -> None:
    """Each member is tried with several sizes, the record says what was found, and the files are the usual ones; who
    says how many, has them without a trial.
    """
    asked = predict(models, images, tmp_path / "usual", views=TTA, options=RunOptions(device="cpu", batch=5))
    assert [(run.at_once, run.trial) for run in asked.members] == [(None, ())] * len(models)
    done = predict(models, images, tmp_path / "tried", views=TTA, options=RunOptions(device="cpu", workers=1))
    for run in done.members:
        sizes = [sample.size for sample in run.trial]
        assert sizes in ([1, 2], [1, 2, 4])
        assert run.at_once == min(run.trial, key=lambda sample: sample.seconds).size
        record = json.loads((run.folder / "_run.json").read_text())
        assert (record["at_once"], [sample["size"] for sample in record["trial"]]) == (run.at_once, sizes)
    assert contents(tmp_path / "usual") == contents(tmp_path / "tried")


def test_few_images_are_shared_by_all_cores(tmp_path: Path, images: Path, models: list[Path]) -> None:
    """Of 23 images, each of four workers has a batch of six rather than one of them sixteen."""
    done = predict(models[:1], images, tmp_path / "out", views=TTA, options=RunOptions(device="cpu", workers=4))
    assert (done.batch, done.workers) == (6, 4)


def test_little_memory_means_fewer_workers_and_says_so(tmp_path: Path, images: Path, models: list[Path]) -> None:
    """Room for two images is two workers of the eight asked for, with W603; room for none is E603 with status 6,
    and what was to be done afresh is still there.
    """
    predict(models, images, tmp_path / "usual", views=TTA, options=RunOptions(device="cpu"))
    need = need_of([read_model(path) for path in models], list_images(images), CPU)
    image = need.photo + need.pixels + need.layers
    recorder = Recorder()
    options: dict[str, Any] = {"views": TTA, "device": "cpu", "workers": 8, "batch": 16, "listener": recorder}
    done = run_predict(models, images, tmp_path / "out", memory=need.fixed + 2 * image, **options)
    assert (done.workers, done.batch) == (2, 1)
    assert [notice.code for notice in recorder.notices] == ["W603"]
    assert contents(tmp_path / "usual") == contents(tmp_path / "out")
    with pytest.raises(DeviceError, match=r"E603.*one image needs 1 MB beside 201 MB") as caught:
        run_predict(models, images, tmp_path / "none", memory=need.fixed, **options)
    assert caught.value.exit_status == 6
    with pytest.raises(DeviceError, match="E603"):
        run_predict(models, images, tmp_path / "out", memory=need.fixed, fresh=True, **options)
    assert contents(tmp_path / "usual") == contents(tmp_path / "out")


def test_a_part_that_cannot_be_written_ends_the_run(
    tmp_path: Path, images: Path, models: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer's error is the run's; the part before it is kept, none after it is begun, and the run can go on."""
    written: list[str] = []

    def fail(path: Path, part: Part) -> None:
        written.append(path.name)
        if path.name == "part-00001.parquet":
            raise DiskFullError("E701", "the disk is full")
        write_part(path, part)

    monkeypatch.setattr(parts, "write_part", fail)
    with pytest.raises(FileError, match="E701"):
        predict(models[:1], images, tmp_path / "out", views=TTA, options=RunOptions(device="cpu", batch=2))
    assert written == ["part-00000.parquet", "part-00001.parquet"]
    monkeypatch.undo()
    monkeypatch.setattr(parts, "PART_ROWS", 8)
    again = predict(models[:1], images, tmp_path / "out", views=TTA, options=RunOptions(device="cpu"))
    assert again.members[0].computed == 15


def test_members_do_not_change_one_another(tmp_path: Path, images: Path, models: list[Path]) -> None:
    """A member predicted alone leaves the files that it leaves beside others."""
    predict(models, images, tmp_path / "all", views=TTA, options=RunOptions(device="cpu"))
    for model in models:
        predict([model], images, tmp_path / "alone", views=TTA, options=RunOptions(device="cpu"))
    assert contents(tmp_path / "all") == contents(tmp_path / "alone")


def test_every_image_is_decoded_once_for_all_members_and_views(
    tmp_path: Path, images: Path, models: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three members and two views read each file exactly once."""
    read: list[str] = []

    def count(data: bytes, path: Path, preprocess: Preprocess) -> Any:
        read.append(path.name)
        return decode_for(data, path, preprocess)

    monkeypatch.setattr(pipeline_module, "decode_for", count)
    predict(models, images, tmp_path / "out", views=TTA, options=RunOptions(device="cpu"))
    assert sorted(read) == NAMES


@pytest.mark.parametrize("stop", [0, 8, 12, 20])
def test_fault_69_an_interrupted_run_goes_on_where_it_stopped(
    tmp_path: Path, images: Path, models: list[Path], stop: int
) -> None:
    """Stopped anywhere and run again, the files are those of an undisturbed run, and no answer is computed again."""
    with pytest.raises(Interrupted, match=f"stopped; {stop} of 23"):
        predict(
            models,
            images,
            tmp_path / "out",
            views=TTA,
            options=RunOptions(device="cpu", batch=4, listener=StopAfter(stop // 4)),
        )
    again = predict(models, images, tmp_path / "out", views=TTA, options=RunOptions(device="cpu"))
    assert {run.computed for run in again.members} == {23 - stop}
    predict(models, images, tmp_path / "whole", views=TTA, options=RunOptions(device="cpu"))
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_finished_run_is_not_done_again(
    tmp_path: Path, images: Path, models: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Running a finished command again computes nothing, starts no model, looks into no image and changes nothing, the
    record of what ran included.
    """
    predict(models, images, tmp_path / "out", views=TTA, options=RunOptions(device="cpu"))
    before, record = contents(tmp_path / "out"), (tmp_path / "out" / "a" / "_run.json").read_bytes()
    for needless in ("start_sessions", "need_of"):
        monkeypatch.setattr(predict_module, needless, None)
    again = predict(models, images, tmp_path / "out", views=TTA, options=RunOptions(device="cpu"))
    assert [run.computed for run in again.members] == [0, 0, 0]
    assert contents(tmp_path / "out") == before
    assert (tmp_path / "out" / "a" / "_run.json").read_bytes() == record


def test_a_member_can_be_added_later(tmp_path: Path, images: Path, models: list[Path]) -> None:
    """With two members there, a third one is computed alone."""
    predict(models[:2], images, tmp_path / "out", views=TTA, options=RunOptions(device="cpu"))
    done = predict(models, images, tmp_path / "out", views=TTA, options=RunOptions(device="cpu"))
    assert [run.computed for run in done.members] == [0, 0, 23]


def test_fault_70_a_second_writer_is_turned_away(tmp_path: Path, images: Path, models: list[Path]) -> None:
    """While one run holds a member's folder, another one for the same member is refused with status 75."""
    with locked(tmp_path / "out" / "a"), pytest.raises(LockedError, match=r"E703.*pid") as caught:
        predict(models[:1], images, tmp_path / "out", views=TTA, options=RunOptions(device="cpu"))
    assert caught.value.exit_status == 75


def another_model(models: list[Path], images: Path) -> dict[str, Any]:
    toys.write_model(models[0].parent, toys.card("a"), seed=99)
    return {}


def other_views(models: list[Path], images: Path) -> dict[str, Any]:
    return {"views": parse_views("vflip")}


def one_more_image(models: list[Path], images: Path) -> dict[str, Any]:
    toys.write_pictures(images, [*NAMES, "zz.jpg"])
    return {}


@pytest.mark.parametrize(
    ("change", "named"),
    [(another_model, "model file"), (other_views, "views"), (one_more_image, "image list")],
)
def test_fault_72_a_folder_of_another_run_is_refused(
    tmp_path: Path,
    images: Path,
    models: list[Path],
    change: Callable[[list[Path], Path], dict[str, Any]],
    named: str,
) -> None:
    """Another model, other views or another image list are E704 and named; `fresh` starts over."""
    predict(models[:1], images, tmp_path / "out", views=TTA, options=RunOptions(device="cpu"))
    options: dict[str, Any] = {"views": TTA, "device": "cpu"} | change(models, images)
    with pytest.raises(FileError, match=f"E704.*{named}"):
        run_predict(models[:1], images, tmp_path / "out", **options)
    done = run_predict(models[:1], images, tmp_path / "out", fresh=True, **options)
    assert done.members[0].computed == done.images


def test_fault_73_a_damaged_part_is_done_again(tmp_path: Path, images: Path, models: list[Path]) -> None:
    """A part that was cut short between runs is noticed, redone alone, and ends with the same bytes."""
    predict(models[:1], images, tmp_path / "out", views=TTA, options=RunOptions(device="cpu"))
    before = contents(tmp_path / "out")
    part = part_path(tmp_path / "out" / "a", 1)
    part.write_bytes(part.read_bytes()[:100])
    recorder = Recorder()
    again = predict(
        models[:1], images, tmp_path / "out", views=TTA, options=RunOptions(device="cpu", listener=recorder)
    )
    assert [notice.code for notice in recorder.notices] == ["W705"]
    assert again.members[0].computed == 8
    assert contents(tmp_path / "out") == before


def test_one_bad_image_loses_nothing(tmp_path: Path, images: Path, models: list[Path]) -> None:
    """All other images are predicted, every fault is listed at once, and nothing passes for finished; mended, only
    the parts concerned are done again and the result is that of good files from the start.
    """
    predict(models, images, tmp_path / "good", views=TTA, options=RunOptions(device="cpu"))
    kept = {name: (images / name).read_bytes() for name in ("03.jpg", "21.jpg")}
    (images / "03.jpg").write_bytes(kept["03.jpg"][:200])
    (images / "21.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"E326.*2 of 23") as caught:
        predict(models, images, tmp_path / "out", views=TTA, options=RunOptions(device="cpu"))
    assert caught.value.exit_status == 3
    listed = (tmp_path / "out" / "errors.csv").read_text().splitlines()
    assert [line.split(",")[:2] for line in listed[1:]] == [["03.jpg", "E301"], ["21.jpg", "E302"]]
    assert not list((tmp_path / "out").rglob(COMPLETE))
    for name, data in kept.items():
        (images / name).write_bytes(data)
    again = predict(models, images, tmp_path / "out", views=TTA, options=RunOptions(device="cpu"))
    assert {run.computed for run in again.members} == {15}
    assert contents(tmp_path / "out") == contents(tmp_path / "good")


def test_an_image_that_changed_since_is_predicted_again(tmp_path: Path, images: Path, models: list[Path]) -> None:
    """A file of another size makes its part, and only its part, be done again, with a notice."""
    predict(models[:1], images, tmp_path / "out", views=TTA, options=RunOptions(device="cpu"))
    (images / "05.jpg").write_bytes(toys.encode(toys.picture(99)))
    recorder = Recorder()
    again = predict(
        models[:1], images, tmp_path / "out", views=TTA, options=RunOptions(device="cpu", listener=recorder)
    )
    assert again.members[0].computed == 8
    assert [notice.code for notice in recorder.notices] == ["W705"]


def test_oddities_of_images_are_told_once_a_kind(tmp_path: Path, images: Path, models: list[Path]) -> None:
    """Two PNGs called .jpg make one notice that counts them."""
    for name in NAMES[:2]:
        (images / name).write_bytes(toys.encode(toys.picture(1), "PNG"))
    recorder = Recorder()
    predict(models[:1], images, tmp_path / "out", views=TTA, options=RunOptions(device="cpu", listener=recorder))
    assert [(notice.code, notice.message[:8]) for notice in recorder.notices] == [("I304", "2 images")]


def test_ids_decide_which_images_and_in_which_order(tmp_path: Path, images: Path, models: list[Path]) -> None:
    """With an id list, exactly its images are predicted, in its order."""
    chosen = [NAMES[9], NAMES[2], NAMES[5]]
    predict(models[:1], images, tmp_path / "out", views=TTA, ids=chosen, options=RunOptions(device="cpu"))
    assert read_predictions(tmp_path / "out" / "a").ids == tuple(chosen)


def no_images(tmp_path: Path, models: list[Path]) -> tuple[Sequence[Path], Path]:
    (tmp_path / "empty").mkdir()
    return models, tmp_path / "empty"


def same_name(tmp_path: Path, models: list[Path]) -> tuple[Sequence[Path], Path]:
    return [models[0], toys.write_model(tmp_path / "twin", toys.card("a"), seed=5)], tmp_path / "images"


@pytest.mark.parametrize(("change", "error"), [(no_images, DataError), (same_name, ModelError)])
def test_what_cannot_work_is_refused_before_anything_is_written(
    tmp_path: Path,
    images: Path,
    models: list[Path],
    change: Callable[[Path, list[Path]], tuple[Sequence[Path], Path]],
    error: type[EnsError],
) -> None:
    """An empty folder and two models of one name are errors that leave no predictions behind."""
    chosen, root = change(tmp_path, models)
    with pytest.raises(error):
        predict(chosen, root, tmp_path / "out", views=TTA, options=RunOptions(device="cpu"))
    assert not list((tmp_path / "out").rglob("part-*"))


def test_a_turned_view_needs_square_images(tmp_path: Path, images: Path, models: list[Path]) -> None:
    """rot90 on a model of 16 x 12 px is E201."""
    with pytest.raises(OptionError, match=r"E201.*16x12"):
        predict(models[:1], images, tmp_path / "out", views=parse_views("rot90"), options=RunOptions(device="cpu"))


class Small:
    """A device that has memory for two images at a time."""

    def __init__(self, runtime: Any, largest: int) -> None:
        self.runtime, self.largest = runtime, largest

    def run(self, outputs: Any, feed: Any) -> Any:
        if len(feed["image"]) > self.largest:
            raise RuntimeError("CUDA failure 2: out of memory")
        return self.runtime.run(outputs, feed)


def test_fault_62_a_full_device_halves_the_batch_and_says_so(
    tmp_path: Path, images: Path, models: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of memory halves the batch until it fits, with a notice a step, and the answers stay the same."""
    predict(models[:1], images, tmp_path / "whole", views=TTA, options=RunOptions(device="cpu"))

    def start_small(*args: Any, **options: Any) -> Session:
        session = start_session(*args, **options)
        return Session(session.card, session.sha256, session.device, Small(session.runtime, 2))

    monkeypatch.setattr("ensemble.runtime.start.start_session", start_small)
    recorder = Recorder()
    predict(
        models[:1],
        images,
        tmp_path / "out",
        views=TTA,
        options=RunOptions(device="cpu", batch=8, workers=1, listener=recorder),
    )
    assert [notice.code for notice in recorder.notices] == ["W602", "W602"]
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_fault_62_a_device_too_small_for_one_image_is_an_error(
    tmp_path: Path, images: Path, models: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """When not even one image fits, the error is E602 with status 6."""

    def start_small(*args: Any, **options: Any) -> Session:
        session = start_session(*args, **options)
        return Session(session.card, session.sha256, Device("cuda"), Small(session.runtime, 0))

    monkeypatch.setattr("ensemble.runtime.start.start_session", start_small)
    with pytest.raises(DeviceError, match="E602") as caught:
        predict(models[:1], images, tmp_path / "out", views=TTA, options=RunOptions(device="cpu", workers=1))
    assert caught.value.exit_status == 6


def test_what_really_ran_is_kept_beside_the_predictions(tmp_path: Path, images: Path, models: list[Path]) -> None:
    """_run.json names the device, the views, the rows computed and the notices of this run."""
    predict(models[:1], images, tmp_path / "out", views=TTA, options=RunOptions(device="cpu", batch=5, workers=2))
    record = json.loads((tmp_path / "out" / "a" / "_run.json").read_text())
    assert (record["device"], record["batch"], record["workers"]) == ("cpu", 5, 2)
    assert (record["views"], record["computed"], record["notices"]) == (["identity", "hflip"], 23, [])


def test_parquet_readers_open_what_a_run_leaves(tmp_path: Path, images: Path, models: list[Path]) -> None:
    """pyarrow reads a member's folder as it is, its other files notwithstanding: one row an image."""
    predict(models[:1], images, tmp_path / "out", views=TTA, options=RunOptions(device="cpu"))
    table = pq.read_table(tmp_path / "out" / "a")
    assert table.column_names == ["id", "identity", "hflip"]
    assert table.column("id").to_pylist() == NAMES


def test_a_gpus_pipeline_gives_the_same_answers(images: Path, models: list[Path]) -> None:
    """Decoding ahead for one device gives, in order, what computing in every worker gives."""
    listing = list_images(images)
    fixed = start_gpu_sessions({path.stem: read_model(path) for path in models}, device=CPU, rows=3, views=TTA)
    both = []
    for on_gpu, sessions in (
        (True, tuple(fixed.values())),
        (False, tuple(start_session(read_model(path)) for path in models)),
    ):
        work = [Work(range(start, min(start + 5, 23)), sessions) for start in range(0, 23, 5)]
        pipeline = Pipeline(Inputs(listing, views=TTA), on_gpu=on_gpu, workers=3)
        both.append(list(pipeline.run(work)))
        assert ({"copy", "idle", "full"} <= pipeline.watch.elapsed.keys()) == on_gpu
        assert [answer.asked for answer in both[-1]] == [one.rows for one in work]
    for gpu, cpu in zip(*both, strict=True):
        for member, views in cpu.logits.items():
            assert all(np.array_equal(gpu.logits[member][view], logits) for view, logits in views.items())


@pytest.mark.parametrize("stray", ["part-00000 (1).parquet", "part-00007.parquet"])
def test_a_stray_part_is_refused(tmp_path: Path, images: Path, models: list[Path], stray: str) -> None:
    """A copy of a part under another name is E704: Parquet readers would take its rows for more images."""
    predict(models[:1], images, tmp_path / "out", views=TTA, options=RunOptions(device="cpu"))
    part = part_path(tmp_path / "out" / "a", 0)
    (part.parent / stray).write_bytes(part.read_bytes())
    with pytest.raises(FileError, match=r"E704.*is not a part of this run"):
        predict(models[:1], images, tmp_path / "out", views=TTA, options=RunOptions(device="cpu"))


def test_parts_of_other_versions_are_not_mixed(
    tmp_path: Path, images: Path, models: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an upgrade of Pillow, a folder of the version before is E704."""
    predict(models[:1], images, tmp_path / "out", views=TTA, options=RunOptions(device="cpu"))
    monkeypatch.setattr("PIL.__version__", "99.0")
    with pytest.raises(FileError, match=r"E704.*versions of onnxruntime or Pillow"):
        predict(models[:1], images, tmp_path / "out", views=TTA, options=RunOptions(device="cpu"))
