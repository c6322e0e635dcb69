"""A cluster gives the bytes of one machine, whatever becomes of its workers."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from ensemble.arrays import Pixels
from ensemble.cli import ens
from ensemble.errors import DataError, DeviceError, EnsError, Interrupted, OptionError
from ensemble.events import Recorder
from ensemble.images.views import parse_views
from ensemble.install import install_command
from ensemble.predict import parts
from ensemble.predict.bad_images import OnBadImage
from ensemble.predict.batch_size import Trial
from ensemble.predict.options import RunOptions
from ensemble.predict.predict import predict
from ensemble.predict.ray_worker import Cluster, PartWorker, connect
from ensemble.predict.result import Predicted
from ensemble.runtime.device import CPU, Device
from ensemble.runtime.session import Session
from tests.support import toys
from tests.support.cluster_run import contents
from tests.support.gpus import fake_gpus
from tests.support.limits import HANG
from tests.support.runs import StopAfter, run_predict

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_a_worker_killed_in_the_middle_of_a_run_changes_no_byte(tmp_path: Path) -> None:
    """On two real workers, one killed by SIGKILL: the parts, marker and errors.csv of a local run, nothing lost or
    doubled; mended, the run goes on with the one part concerned and ends with the same bytes, as tar shards do.
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT), "ENS_TEST_MARKER": str(tmp_path)}
    command = [sys.executable, "-m", "tests.support.cluster_run", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=HANG)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1, "Ray must not print to stdout"
    found = json.loads(done.stdout)
    assert found["killed"] == 1
    assert "W610" in found["notices"]
    assert "I304" in found["notices"]
    assert found["same"] == [True, True]
    assert found["files"] == 2 * (12 + 1)
    assert found["resumed"] == [4, 4]
    assert found["seconds"] > 0
    assert found["signals"]
    assert len(found["faults"]) == 2
    assert all("E326" in fault and "1 of 46" in fault for fault in found["faults"])


class Future:
    """The promise of a result: of a function, which runs when it is asked for."""

    def __init__(self, compute: Callable[[], Any]) -> None:
        self.compute = compute


class RayError(Exception):
    """What Ray raises when a worker or its machine is gone."""


class FakeRay:
    """Ray in one process: what is waited for is ready in an order of the test's choice, and workers die when told."""

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=type("RayTaskError", (RayError,), {}))

    def __init__(
        self, *, cpus: int = 2, gpus: int = 0, deaths: dict[str, int] | None = None, last: bool = False
    ) -> None:
        self.resources = {"CPU": float(cpus)} | ({"GPU": float(gpus)} if gpus else {})
        self.deaths = dict(deaths or {})  # by method: the next so many calls kill the worker
        self.last = last
        self.hired: list[dict[str, Any]] = []
        self.alive = 0
        self.asked = 0

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": self.resources}, {"Alive": False, "Resources": {"CPU": 64.0}}]

    def cluster_resources(self) -> dict[str, float]:
        return self.resources

    def put(self, value: Any) -> Any:
        return value

    def remote(self, kind: type) -> Any:
        return SimpleNamespace(options=lambda **options: SimpleNamespace(remote=lambda: self._hire(kind(), options)))

    def _hire(self, worker: Any, options: dict[str, Any]) -> Any:
        self.hired.append(options)
        self.alive += 1

        def method(name: str) -> Any:
            def call(*arguments: Any) -> Future:
                return Future(lambda: self._call(worker, name, arguments))

            return SimpleNamespace(remote=call)

        return SimpleNamespace(start=method("start"), run=method("run"))

    def _call(self, worker: Any, name: str, arguments: tuple[Any, ...]) -> Any:
        if self.deaths.get(name, 0):
            self.deaths[name] -= 1
            raise RayError("the worker process has died")
        self.asked += name == "run"
        # what goes to another machine and comes back is pickled
        sent = pickle.loads(pickle.dumps(arguments))
        return pickle.loads(pickle.dumps(getattr(worker, name)(*sent)))

    def wait(self, futures: list[Future], *, num_returns: int) -> tuple[list[Future], list[Future]]:
        assert num_returns == 1
        chosen = futures[-1 if self.last else 0]
        return [chosen], [future for future in futures if future is not chosen]

    def get(self, future: Future) -> Any:
        return future.compute()

    def kill(self, actor: Any) -> None:
        self.alive -= 1


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of four rows, so that a few pictures make many."""
    monkeypatch.setattr(parts, "PART_ROWS", 4)


def run(root: Path, ray: FakeRay | None, name: str, *, listener: Recorder | None = None, **options: Any) -> Predicted:
    """Predict 38 pictures with one model."""
    if not (root / "images").exists():
        toys.write_pictures(root / "images", [f"{i:02d}.jpg" for i in range(38)])
    model = toys.write_model(root / "models", toys.card("a"))
    cluster = None if ray is None else Cluster(ray)
    settings: dict[str, Any] = {"views": parse_views("hflip"), "device": "cpu", "workers": 1} | options
    settings |= {"cluster": cluster, "listener": listener or Recorder()}
    return run_predict([model], root / "images", root / name, **settings)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("deaths", [{}, {"run": 2}, {"start": 2}, {"start": 1, "run": 1}])
def test_the_order_of_answers_and_deaths_change_no_byte(tmp_path: Path, deaths: dict[str, int], last: bool) -> None:
    """Whichever worker answers first and whichever dies while it starts or runs, the files are those of a local run;
    every worker is ended, and each part was asked for once but for those that were lost.
    """
    run(tmp_path, None, "local")
    ray, recorder = FakeRay(cpus=3, deaths=deaths, last=last), Recorder()
    run(tmp_path, ray, "cluster", listener=recorder)
    assert contents(tmp_path / "cluster") == contents(tmp_path / "local")
    assert (ray.alive, ray.asked) == (0, 10)
    assert [notice.code for notice in recorder.notices] == ["W610"] * deaths.get("run", 0)
    assert len(ray.hired) == 3 + sum(deaths.values())


@pytest.mark.parametrize(
    ("deaths", "named"), [({"run": 99}, r"E610.*same images: .*\.jpg"), ({"start": 99}, "E610.*started the models")]
)
def test_workers_that_keep_dying_end_the_run(tmp_path: Path, deaths: dict[str, int], named: str) -> None:
    """A part that three workers died over, and models that three died of, are E610; no worker is left."""
    ray = FakeRay(cpus=1, deaths=deaths)
    with pytest.raises(DeviceError, match=named):
        run(tmp_path, ray, "cluster")
    assert ray.alive == 0


def test_an_image_that_crashes_workers_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After two deaths over a part its images are tried alone here; the one that crashes is E325, and all others are
    predicted as without it.
    """

    class Crashing(FakeRay):
        def _call(self, worker: Any, name: str, arguments: tuple[Any, ...]) -> Any:
            ids = arguments[0].listing.ids if name == "run" else ()
            if "09.jpg" in ids and ids.index("09.jpg") not in arguments[0].known:
                raise RayError("the worker process has died")
            return super()._call(worker, name, arguments)

    def find(listing: Any, rows: Any, **_: Any) -> dict[int, DataError]:
        tried.extend(listing.ids[row] for row in rows)
        return {listing.ids.index("09.jpg"): DataError("E325", "09.jpg: crashes the decoder (SIGSEGV)")}

    tried: list[str] = []
    monkeypatch.setattr("ensemble.predict.ray_pipeline.find_faults", find)
    recorder, ray = Recorder(), Crashing(cpus=1)
    done = run(tmp_path, ray, "cluster", listener=recorder, on_bad_image="skip")
    assert done.missing == ("09.jpg",)
    assert tried == ["08.jpg", "09.jpg", "10.jpg", "11.jpg"]
    assert [notice.code for notice in recorder.notices] == ["W610", "W610", "W326"]
    assert "09.jpg,E325" in (tmp_path / "cluster" / "errors.csv").read_text()
    assert ray.alive == 0


@pytest.mark.parametrize("policy", ["fill", "skip"])
def test_bad_images_become_what_they_become_on_one_machine(tmp_path: Path, policy: OnBadImage) -> None:
    """The files are those of a local run with the same policy; what is known to crash is sent to no worker."""
    run(tmp_path, None, "whole")
    (tmp_path / "images" / "09.jpg").write_bytes(b"")
    run(tmp_path, None, "local", on_bad_image=policy)
    done = run(tmp_path, FakeRay(), "cluster", on_bad_image=policy)
    assert (done.filled or done.missing) == ("09.jpg",)
    assert contents(tmp_path / "cluster") == contents(tmp_path / "local")
    (tmp_path / "cluster" / "a" / "part-00002.parquet").unlink()
    with pytest.MonkeyPatch.context() as patch:
        crash = DataError("E325", "09.jpg: crashes the decoder (SIGSEGV)")
        patch.setattr("ensemble.predict.slice_folder.find_faults", lambda *_, **__: {9: crash, 10: crash})
        again = run(tmp_path, FakeRay(), "cluster", on_bad_image=policy)
    assert again.members[0].computed == 2
    assert (again.filled or again.missing) == ("09.jpg", "10.jpg")


def test_nothing_is_noted_as_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All parts go out at once and no image is decoded here: after a kill there would be the whole list to try."""
    noted: list[object] = []
    monkeypatch.setattr("ensemble.predict.resumable.note", lambda *arguments: noted.append(arguments))
    run(tmp_path, FakeRay(), "cluster")
    assert not noted
    run(tmp_path, None, "local")
    assert noted


def test_a_finished_run_hires_nobody(tmp_path: Path) -> None:
    """Nothing is left to do after a local run of the same thing, so no worker starts; a part that is missing is one
    worker's errand.
    """
    run(tmp_path, None, "out")
    ray = FakeRay()
    run(tmp_path, ray, "out")
    assert ray.hired == []
    (tmp_path / "out" / "a" / "part-00003.parquet").unlink()
    done = run(tmp_path, ray, "out")
    assert (len(ray.hired), done.members[0].computed) == (1, 4)


@pytest.mark.parametrize(("batch", "sizes"), [(None, {1, 2}), (3, {3, 2, 1})])
def test_a_worker_of_a_cluster_tries_sizes_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int | None, sizes: set[int]
) -> None:
    """A worker finds out how many images go at once, over all its parts and telling nobody, unless that was said."""
    asked: list[int] = []
    run_one = Session.run

    def counting(session: Session, pixels: Pixels) -> Any:
        asked.append(len(pixels))
        return run_one(session, pixels)

    trials: list[Trial] = []

    class Counted(Trial):
        def __init__(self, sizes: Sequence[int]) -> None:
            super().__init__(sizes)
            trials.append(self)

    monkeypatch.setattr(Session, "run", counting)
    monkeypatch.setattr("ensemble.predict.pipeline.Trial", Counted)
    done = run(tmp_path, FakeRay(cpus=1), "cluster", batch=batch)
    assert sizes <= set(asked) <= sizes | {4}
    assert len(trials) == (batch is None)
    assert [(one.at_once, one.trial) for one in done.members] == [(None, ())]


def test_stopping_ends_the_workers_and_keeps_what_is_done(tmp_path: Path) -> None:
    """Ctrl-C between two parts ends every worker; the next run goes on, locally if one likes."""
    ray = FakeRay()
    with pytest.raises(EnsError, match=r"E801.*8 of 38"):
        run(tmp_path, ray, "out", listener=Recorder(StopAfter(2)))
    assert ray.alive == 0
    assert run(tmp_path, None, "out").members[0].computed == 30


def test_a_signal_that_ray_swallows_is_told_all_the_same(tmp_path: Path) -> None:
    """Ray's wait raises a bare KeyboardInterrupt on SIGTERM too; the exit status is still that of SIGTERM."""

    class Deaf(FakeRay):
        def wait(self, futures: list[Future], *, num_returns: int) -> tuple[list[Future], list[Future]]:
            raise KeyboardInterrupt

    toys.write_pictures(tmp_path / "images", ["a.jpg"])
    model, ray = toys.write_model(tmp_path), Deaf()
    with pytest.raises(EnsError, match="E801") as caught:
        predict(
            [model],
            tmp_path / "images",
            tmp_path / "out",
            views=parse_views("hflip"),
            cluster=Cluster(ray, [15]),
            options=RunOptions(device="cpu"),
        )
    assert isinstance(caught.value, Interrupted)
    assert (caught.value.status, ray.alive) == (143, 0)


def other_versions(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    answers = iter(["onnxruntime 1", "onnxruntime 2", "onnxruntime 2"])
    monkeypatch.setattr("ensemble.predict.ray_pipeline.versions", lambda: next(answers))
    monkeypatch.setattr("ensemble.predict.ray_worker.versions", lambda: next(answers))


def no_images(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    monkeypatch.setattr("ensemble.predict.ray_worker.Path.exists", lambda path: False)


@pytest.mark.parametrize(
    ("change", "named"),
    [(other_versions, "E611.*onnxruntime 2, but here is onnxruntime 1"), (no_images, "E611.*see.*00.jpg")],
)
def test_a_worker_that_would_give_other_answers_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[pytest.MonkeyPatch, Path], None], named: str
) -> None:
    """A machine with other versions, or without the images, is E611 and named: it is not mixed in, and its missing
    images are not taken for damaged ones.
    """
    change(monkeypatch, tmp_path)
    with pytest.raises(DeviceError, match=named):
        run(tmp_path, FakeRay(), "out")
    assert not list((tmp_path / "out").rglob("part-*"))


def test_a_device_that_a_worker_lacks_is_its_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--device cuda is proved where it runs: a worker without CUDA is E601, although nothing was asked of this one."""
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    ray = FakeRay(cpus=8, gpus=2)
    with pytest.raises(DeviceError, match=r"E601.*cuda"):
        run(tmp_path, ray, "out", device="cuda", workers=None)
    assert ray.hired == [{"num_cpus": 4, "num_gpus": 1, "max_restarts": 0}] * 2


@pytest.mark.parametrize("batch", [None, 2])
def test_workers_with_gpus_give_the_bytes_of_one_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int | None
) -> None:
    """Workers start models of one batch size with the run's views, as this machine does, and write the same parts."""
    with fake_gpus(monkeypatch, tmp_path):
        run(tmp_path, None, "local", device="cuda", batch=batch)
        run(tmp_path, FakeRay(cpus=4, gpus=2), "cluster", device="cuda", batch=batch, workers=None)
    assert contents(tmp_path / "cluster") == contents(tmp_path / "local")


@pytest.mark.parametrize(
    ("cpus", "gpus", "device", "threads", "expected"),
    [
        (16, 0, CPU, None, (4, 4)),
        (2, 0, CPU, None, (1, 2)),
        (16, 0, CPU, 1, (16, 1)),
        (16, 2, Device("cuda"), None, (2, 8)),
        (16, 2, Device("cuda"), 4, (2, 4)),
    ],
)
def test_workers_are_as_many_as_there_is_room_for(
    cpus: int, gpus: int, device: Device, threads: int | None, expected: tuple[int, int]
) -> None:
    """A worker takes its threads in cores, and on GPUs one GPU; machines that have left do not count."""
    assert Cluster(FakeRay(cpus=cpus, gpus=gpus)).places(device, threads) == expected


@pytest.mark.parametrize(("device", "threads"), [(CPU, 64), (Device("cuda"), None)])
def test_a_cluster_without_room_is_refused(device: Device, threads: int | None) -> None:
    """More threads than any machine has, or a GPU that none has, is E611 and not an endless wait."""
    with pytest.raises(DeviceError, match="E611"):
        Cluster(FakeRay(cpus=8)).places(device, threads)


def test_auto_is_what_the_cluster_has() -> None:
    """auto is CUDA with GPUs in the cluster and else the CPU; one GPU of several cannot be named."""
    assert Cluster(FakeRay(gpus=1)).choose_device("auto") == Device("cuda")
    assert Cluster(FakeRay()).choose_device("auto") == CPU
    with pytest.raises(OptionError, match="E204"):
        Cluster(FakeRay(gpus=2)).choose_device("cuda:1")


def test_without_ray_the_line_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Ray is not installed, the engine is E205 with the extra."""
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(OptionError, match="E205") as caught, connect(None):
        pass
    assert caught.value.hint == install_command(extra="ray")


def test_an_address_needs_the_engine(tmp_path: Path) -> None:
    """--address without --engine ray would be passed over in silence, and is E204."""
    model = toys.write_model(tmp_path)
    done = CliRunner().invoke(ens, ["predict", str(model), "--images", str(tmp_path), "--address", "auto"])
    assert isinstance(done.exception, OptionError)
    assert "E204" in str(done.exception)


def test_a_worker_reports_its_own_errors() -> None:
    """An error of ours comes back as a value, with its code: Ray would wrap it into one of its own."""
    job = SimpleNamespace(versions="others", image="", device="cpu", provider="")
    found = PartWorker().start(job)  # type: ignore[arg-type]
    assert isinstance(found, DeviceError)
    assert found.code == "E611"
