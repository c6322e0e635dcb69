"""Parity of int8 models with two networks: an image at the threshold may be answered by either of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ensemble.arrays import Logits
from ensemble.card import ModelCard
from ensemble.errors import DeviceError
from ensemble.events import Recorder
from ensemble.labels import LabelSpace
from ensemble.runtime.device import Device
from ensemble.runtime.model_file import read_model
from ensemble.runtime.parity import (
    compare_logits,
    draw_pictures,
    near_ties_of,
    record_logits,
    require_parity,
    require_recorded,
)
from ensemble.runtime.session import start_session
from tests.support import toys

SIZE = (16, 12)
EXPECTED = np.tile(np.array([4.0, 3.5, -2.0], np.float32), (8, 1))


def card(**checks: object) -> ModelCard:
    labels = LabelSpace.flat(("a", "b", "c"))
    return replace(toys.card("m", labels=labels), precision="int8", checks=checks)


def moved(*rows: int, by: float = 2.0) -> Logits:
    """The expected logits, but for one of each of these rows."""
    found = EXPECTED.copy()
    found[list(rows), 2] += by
    return found


def test_only_a_model_with_two_networks_has_near_ties() -> None:
    """The card records the threshold of such a model, under one of two names, and no other has images to leave out."""
    for key in ("near_ties", "fp32_fallback"):
        assert near_ties_of(card(**{key: {"below": 0.1, "share": 0.05}})) == 2
    assert near_ties_of(card()) == 0


@pytest.mark.parametrize(
    ("rows", "by", "near_ties", "holds", "left_out"),
    [
        ((3,), 2.0, 2, True, 1),
        ((3, 5), 2.0, 2, True, 2),
        ((1, 3, 5), 2.0, 2, False, 0),
        ((3,), 2.0, 0, False, 0),
        ((3,), 4.5, 2, False, 0),
        ((3,), float("nan"), 2, False, 0),
        ((), 0.0, 2, True, 0),
    ],
)
def test_few_images_beyond_the_limit_are_near_ties(
    rows: tuple[int, ...], by: float, near_ties: int, holds: bool, left_out: int
) -> None:
    """Up to two of eight, each off by less than a broken kernel is; the rest is compared as always."""
    found = compare_logits(EXPECTED, moved(*rows, by=by), limit=0.3, near_ties=near_ties)
    assert (found.holds, found.near_ties) == (holds, left_out)
    if holds:
        assert found.error == 0
        assert str(found).endswith("near a tie") == (left_out > 0)


def test_a_class_that_changed_at_a_tie_is_left_out_with_its_image() -> None:
    """The clear lead of another class counts as beyond the limit, also where the error is within it."""
    found = EXPECTED.copy()
    found[2] = [3.0, 4.2, -2.0]
    expected = EXPECTED.copy()
    expected[2] = [4.0, 3.3, -2.0]
    assert not compare_logits(expected, found, limit=0.15).holds
    assert compare_logits(expected, found, limit=0.15, near_ties=2).near_ties == 1


def test_a_runtime_and_a_processor_may_answer_near_ties_by_the_other_network() -> None:
    """Both checks of a start leave them out and say so, for a card with a threshold and for no other."""
    tied = card(near_ties={"below": 0.1, "share": 0.05})
    parity = require_parity(
        lambda _: moved(4), lambda _: EXPECTED, SIZE, near_ties=near_ties_of(tied), who="m", precision="int8"
    )
    assert parity.near_ties == 1
    with pytest.raises(DeviceError, match="E606"):
        require_parity(
            lambda _: moved(4), lambda _: EXPECTED, SIZE, near_ties=near_ties_of(card()), who="m", precision="int8"
        )
    recorded = record_logits(lambda _: EXPECTED, SIZE)
    require_recorded(
        lambda _: moved(4), replace(tied, checks=dict(tied.checks) | recorded), listener=(heard := Recorder())
    )
    assert "without 1 near a tie" in heard.notices[0].message
    with pytest.raises(DeviceError, match="E606"):
        require_recorded(lambda _: moved(4), card(**recorded))
    assert len(draw_pictures(SIZE)) == len(EXPECTED)


def test_openvino_is_compared_with_its_own_answers_at_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A card with OpenVINO's logits needs no ONNX Runtime beside it; other logits are E606, which names the CPU."""
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    openvino = Device("openvino")
    plain = card(scheme="openvino")
    session = start_session(read_model(toys.write_model(tmp_path, plain)), device=openvino)
    found = record_logits(session.run, SIZE, openvino=True)
    monkeypatch.setattr("ensemble.runtime.session.require_parity", lambda *_, **__: pytest.fail("compared"))
    same = replace(plain, checks=dict(plain.checks) | found)
    heard = Recorder()
    start_session(read_model(toys.write_model(tmp_path, same)), device=openvino, listener=heard)
    assert heard.notices == []
    other = {name: [row[::-1] for row in rows] for name, rows in found.items()}
    changed = toys.write_model(tmp_path, replace(plain, checks=dict(plain.checks) | other))
    with pytest.raises(DeviceError, match="E606") as caught:
        start_session(read_model(changed), device=openvino)
    assert "--device cpu" in caught.value.hint
