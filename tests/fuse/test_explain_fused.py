"""`ens explain` of a fused file: the ensemble's answers over the maps of the member that the card names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from ensemble.analysis.explain import explain_source
from ensemble.analysis.map_source import MapInput
from ensemble.cli import ens
from ensemble.errors import DeployError, OptionError
from ensemble.events import Recorder
from ensemble.fuse.explain_fused import start_fused_maps
from ensemble.fuse.fused_session import start_fused
from ensemble.images.decode import read_image
from ensemble.labels import MASK18, LabelSpace
from tests.support.fused import fused_proto
from tests.support.toys import write_pictures

NAMES = ["a.jpg", "b.jpg", "c.jpg"]


def write(folder: Path, **changes: Any) -> Path:
    """A fused file, and three pictures beside it."""
    write_pictures(folder / "images", NAMES)
    path = folder / "both.onnx"
    path.write_bytes(fused_proto(**changes).SerializeToString())
    return path


def test_answers_are_the_ensembles_and_maps_the_members(tmp_path: Path) -> None:
    """Class and probability are those of the file, the map its output for the class; a notice says whose it is."""
    path, heard = write(tmp_path, bias=np.linspace(-3, 3, len(MASK18)).tolist()), Recorder()
    source = start_fused_maps(path, listener=heard)
    done = explain_source(source, [tmp_path / "images"], tmp_path / "out", listener=heard)
    assert [notice.code for notice in heard.notices] == ["I840"]
    assert "the maps those of toy0 (75% of the vote)" in heard.notices[0].message
    session = start_fused(path.read_bytes(), path)
    for one, name in zip(done.images, NAMES, strict=True):
        pixels = read_image(tmp_path / "images" / name).pixels
        found = session.run(pixels[np.newaxis])
        assert one.predicted == one.class_name == MASK18.names[found.classes[0]]
        assert one.probability == pytest.approx(found.probabilities[0, found.classes[0]])
        assert one.path.is_file()
        evidence = source.predict([MapInput(0, pixels, None, pixels, None)])
        assert found.maps is not None
        assert np.array_equal(evidence.maps(np.array([0]), np.array([5]))[0], found.maps[0, 5].astype(np.float64))
    assert (done.member, done.device) == ("both", "cpu")


def test_labels_that_apply_have_a_map_each(tmp_path: Path) -> None:
    """Of independent labels those of the file's thresholds, and the most probable one."""
    labels = LabelSpace.flat(6)
    path = write(tmp_path, independent=True, labels=labels)
    done = explain_source(start_fused_maps(path), [tmp_path / "images" / "a.jpg"], tmp_path / "out")
    found = start_fused(path.read_bytes(), path).run(read_image(tmp_path / "images" / "a.jpg").pixels[np.newaxis])
    assert found.applies is not None
    assert {one.class_name for one in done.images} == {labels.names[i] for i in np.flatnonzero(found.applies[0])}


def test_what_it_cannot_explain_is_refused(tmp_path: Path) -> None:
    """A file without maps is E840 with what to do; face crops need boxes; a device is not for a fused file."""
    with pytest.raises(DeployError, match="gives no class-activation maps") as caught:
        start_fused_maps(write(tmp_path, maps=False))
    assert caught.value.code == "E840"
    assert "--maps" in caught.value.hint
    with pytest.raises(OptionError, match="face boxes"):
        explain_source(start_fused_maps(write(tmp_path, boxes=True)), [tmp_path / "images"], tmp_path / "out")
    command = ["explain", str(write(tmp_path)), str(tmp_path / "images"), "-o", str(tmp_path / "out")]
    refused = CliRunner().invoke(ens, [*command, "--device", "cpu"]).exception
    assert isinstance(refused, OptionError)
    assert refused.message.startswith("--device")
    assert not (tmp_path / "out").exists()
    done = CliRunner().invoke(ens, [*command, "--class", "3"])
    assert done.exit_code == 0, done.output
    assert "3 images explained for both, on cpu" in done.output
