"""The catalog of 90 faults: a test with each number in its name, here or elsewhere."""

from __future__ import annotations

import io
import random
import re
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from checkpoints.training.loggers import ExperimentLogger
from ensemble.blend.blend import blend
from ensemble.blend.pooling import parse_pool
from ensemble.blend.recipe import Group, Recipe, make_recipe
from ensemble.errors import PredictionError
from ensemble.events import Recorder
from ensemble.images.decode import decode_image
from ensemble.images.views import parse_views
from ensemble.labels import LabelSpace
from ensemble.predict.predict import predict
from ensemble.predictions.dataset import read_predictions
from tests.harness.fuzz import TARGETS, Fuzzer, fuzz_at_random
from tests.harness.fuzz_text import TEXT_TARGETS
from tests.harness.mutate import GUARDS, Guard
from tests.support import toys
from tests.support.corpus import encode, outcome, picture
from tests.support.members import draw_logits, make_member
from tests.support.sources import ROOT, SOURCES, calls


def test_every_row_of_the_catalog_has_a_test() -> None:
    """Each number from 1 to 90 stands in the name of a test."""
    names = "\n".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.rglob("test_*.py"))
    assert {int(number) for number in re.findall(r"^def test_fault_(\d\d)_", names, re.MULTILINE)} == set(range(1, 91))


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: f"{guard.file} {guard.code.strip()}")
def test_every_guard_stands_once(guard: Guard) -> None:
    """`python -m tests.harness.mutate` can remove each guard that it lists, and the test that misses it exists."""
    assert (ROOT / guard.file).read_text(encoding="utf-8").count(guard.code) == 1
    file, _, name = guard.test.partition("::")
    assert f"def {name}" in (ROOT / "tests" / file).read_text(encoding="utf-8")


def test_fault_03_damage_in_the_middle_of_a_jpeg_is_seen_by_nobody() -> None:
    """Bytes changed inside a JPEG's pixels give other pixels and no complaint: which docs/security.md says."""
    whole = encode(picture(200, 200), "JPEG")
    damaged = bytearray(whole)
    damaged[len(whole) // 2 : len(whole) // 2 + 40] = b"U" * 40
    photo = decode_image(bytes(damaged))
    assert photo.notices == ()
    assert not np.array_equal(photo.pixels, decode_image(whole).pixels)
    assert "middle decodes without complaint" in (decode_image.__doc__ or "")
    assert "no decoder notices" in (ROOT / "docs/security.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", ["PPM", "ICO", "TGA", "PCX", "SGI", "DDS"])
def test_fault_16_no_other_decoder_is_asked(kind: str) -> None:
    """Formats that Pillow can read and the list does not have are refused, and their decoders never see a byte."""
    data = encode(picture(16, 16), kind)
    Image.open(io.BytesIO(data)).load()
    assert outcome(data) in {"E303", "E309"}


def test_fault_58_members_may_want_other_sizes(tmp_path: Path) -> None:
    """Models of two input sizes are predicted side by side, each with the pixels of its own size."""
    toys.write_pictures(tmp_path / "images", ["a.jpg", "b.jpg"])
    cards = [toys.card("small", size=(8, 8)), toys.card("large", size=(20, 24))]
    models = [toys.write_model(tmp_path, card) for card in cards]
    views = parse_views("identity")
    together = predict(models, tmp_path / "images", tmp_path / "both", views=views)
    for model, run in zip(models, together.members, strict=True):
        (alone,) = predict([model], tmp_path / "images", tmp_path / model.stem, views=views).members
        both, one = read_predictions(run.folder), read_predictions(alone.folder)
        assert np.array_equal(both.logits["identity"], one.logits["identity"])


def test_fault_76_no_time_is_measured_by_the_clock_of_the_day() -> None:
    """Nothing takes a duration from a clock that can be set back."""
    for path in SOURCES:
        called = {called for called, _ in calls(path)}
        assert not called & {"time.time", "time.time_ns", "datetime.now", "datetime.datetime.now"}, path.name


LABELS = LabelSpace.flat(4)


@pytest.mark.parametrize("temperature", [0.0, -1.0, 1e-300, 1e300, float("nan"), float("inf")])
def test_fault_84_a_temperature_that_is_none_is_refused(temperature: float) -> None:
    """Zero, negative, infinite and absurd temperatures and NaN are E518, before anything is divided by them."""
    with pytest.raises(PredictionError, match=r"E518.*temperature of a must be from 1e-12 to 1e\+12"):
        Recipe(
            parse_pool("linear"), {"identity": 1.0}, {"a": Group(1.0, {"a": "0" * 64}, temperature=temperature)}, LABELS
        )


@pytest.mark.parametrize("temperature", [1e-12, 1, 1e12])
@pytest.mark.parametrize("pool", ["linear", "logit", "geometric", "power:50", "power:-20"])
def test_fault_84_no_softmax_overflows(pool: str, temperature: float) -> None:
    """Logits of a million at any temperature give probabilities that are finite and sum to 1, in every pool."""
    a, b = (make_member(name, draw_logits(seed) * 1e6) for seed, name in enumerate("ab"))
    recipe = make_recipe([a, b], pool=parse_pool(pool))
    groups = {name: replace(group, temperature=temperature) for name, group in recipe.groups.items()}
    probabilities = blend([a, b], replace(recipe, groups=groups)).probabilities
    assert np.isfinite(probabilities).all()
    assert probabilities.sum(axis=1) == pytest.approx(1)


@pytest.mark.parametrize("key", [None, "secret"])
def test_fault_90_a_logger_without_key_or_server_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str | None
) -> None:
    """Without a key W&B is offline from the start; where its server fails that is W443 once, and nothing is raised."""
    asked: list[str | None] = []

    def init(*, mode: str | None, **_: object) -> None:
        asked.append(mode)
        raise TimeoutError("the server did not answer")

    module = ModuleType("wandb")
    monkeypatch.setattr(module, "init", init, raising=False)
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    if key is not None:
        monkeypatch.setenv("WANDB_API_KEY", key)
    heard = Recorder()
    ExperimentLogger("wandb", tmp_path, "a", {}, listener=heard).close()
    assert asked == ["offline" if key is None else None]
    assert [notice.code for notice in heard.notices] == ["W443"]


def test_fault_90_a_logger_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that never answers is W443 like any other, and what it says much later is not listened to."""
    released, heard = threading.Event(), Recorder()
    module = ModuleType("wandb")
    monkeypatch.setattr(module, "init", lambda **_: released.wait(), raising=False)
    monkeypatch.setitem(sys.modules, "wandb", module)
    logger = ExperimentLogger("wandb", tmp_path, "a", {}, listener=heard, timeout=0.01)
    released.set()
    logger.close()
    assert [notice.code for notice in heard.notices] == ["W443"]
    assert "no response" in heard.notices[0].message


INPUTS = {
    "image": 400,
    "onnx": 400,
    "csv": 150,
    "checkpoint": 8,
    "card": 300,
    "recipe": 100,
    "labels": 30,
    "part": 30,
    "boxes": 60,
    "tables": 30,
    "pages": 30,
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "inputs"), INPUTS.items())
def test_mutated_files_raise_nothing_but_our_errors(tmp_path: Path, name: str, inputs: int) -> None:
    """The readers' corpora and some mutations are read or refused; `tests.harness.fuzz` does it for longer."""
    target = (TARGETS | TEXT_TARGETS)[name](tmp_path)
    fuzzer = Fuzzer(target.check, tmp_path / "findings", megabytes=None)
    fuzz_at_random(fuzzer, target.corpus, random.Random(0), range(inputs))
    assert sum(fuzzer.outcomes.values()) == len(target.corpus) + inputs
    assert fuzzer.outcomes["read"] > 0
    assert len(fuzzer.outcomes) > 1 or name in {"csv", "pages"}


def test_the_fuzzer_keeps_what_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that is not ours, too much time and too much memory are raised, and the input is kept."""

    def fail(data: bytes) -> None:
        if data == b"bad":
            raise ValueError

    # without the bound: this process may have run tests that took more
    Fuzzer(fail, tmp_path, megabytes=None).run(b"good")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match=r"^$"):
        Fuzzer(fail, tmp_path, megabytes=None).run(b"bad")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"bad"]
    with pytest.raises(AssertionError, match="MB"):
        Fuzzer(fail, tmp_path, megabytes=1).run(b"large")
    monkeypatch.setattr("tests.harness.fuzz.SECONDS", -1)
    with pytest.raises(AssertionError, match=" s and "):
        Fuzzer(fail, tmp_path, megabytes=None).run(b"slow")
