"""An int8 export that is killed around its second check, with near ties in float32, ends with the same bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from ensemble.events import Recorder
from exporters import accuracy_gate
from exporters.export import Exported, ImageSet
from exporters.int8_select import Judges, Quantized, Selector
from tests.exporters.test_export_resumes import Killed, counted, every, graphs, kill_at, photographs, run

__all__ = ["counted", "graphs", "kill_at", "photographs"]
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

Export = Callable[..., Exported]


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, counted: Counter[str], photographs: ImageSet) -> Export:
    """Export with near ties in float32, where the first images that judge refuse the model and others accept it."""
    assert counted is not None
    monkeypatch.setattr(accuracy_gate, "MOST_IMAGES", 32)
    monkeypatch.setattr(accuracy_gate, "MOST_SPARE", 16)
    monkeypatch.setattr("exporters.int8.MOST_AGAIN", 0.5)
    original, judged = Selector.judge_on, []

    def expect(*_: Any, below: float = 0.0) -> float:
        return 0.0 if below else 1000.0

    def judge_on(self: Selector, gate: Judges, found: Quantized) -> Quantized:
        judged.append(len(gate.pixels))
        model = original(self, gate, found)
        changed = model.verdict.images if len(judged) == 1 else 0
        return replace(model, verdict=replace(model.verdict, changed=changed))

    def export(folder: Path, **given: Any) -> Exported:
        judged.clear()
        return run(folder, photographs, **given)

    monkeypatch.setattr("exporters.int8_select.expect_changes", expect)
    monkeypatch.setattr(Selector, "judge_on", judge_on)
    return export


def test_killed_around_the_second_check(
    tmp_path: Path,
    refused: Export,
    kill_at: Callable[[int], list[str]],
) -> None:
    """The last steps of an export are those of the second choice and of its check."""
    written, heard = kill_at(-1), Recorder()
    quiet = refused(tmp_path / "quiet", listener=heard)
    assert [notice.code for notice in heard.notices].count("I489") == 1
    assert "If" in {node.op_type for node in onnx.load(quiet.path).graph.node}
    assert quiet.card.checks["choosing_images"] == 32
    for number in every(len(written), max(1, len(written) // 4)):
        folder = tmp_path / f"{number}"
        kill_at(number)
        with pytest.raises(Killed):
            refused(folder)
        kill_at(-1)
        assert refused(folder).path.read_bytes() == quiet.path.read_bytes()
        assert [path.name for path in folder.iterdir()] == ["net.onnx"]
