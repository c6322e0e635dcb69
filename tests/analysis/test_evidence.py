"""Disagreements of a report: one image per person, with confidences, and the evidence of the members that vote."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ensemble.analysis.disagreements import Disagreement, Vote, find_disagreements, person_of
from ensemble.analysis.evidence import draw_evidence
from ensemble.blend.blend import blend
from ensemble.blend.recipe import make_recipe
from ensemble.events import Recorder
from ensemble.labels import MASK18, LabelSpace
from ensemble.predictions.truth import Truth
from tests.support import toys
from tests.support.members import draw_logits, make_member

LABELS = LabelSpace.flat(4)


def test_a_person_has_one_image_and_each_vote_its_members_probabilities() -> None:
    """Of three images a person, the one of most information stands; confidences are the members' own probabilities."""
    ids = tuple(f"{n // 3:02d}/{n}.jpg" for n in range(30))
    members = [make_member(f"m{seed}", draw_logits(seed), ids=ids, labels=LABELS) for seed in range(3)]
    alone = {one.member: blend([one], make_recipe([one])) for one in members}
    blended = blend(members, make_recipe(members))
    found = find_disagreements(alone, blended, None, None)
    assert len({one.image[:2] for one in found}) == len(found) == 10
    for one in found:
        row = blended.ids.index(one.image)
        assert one.confidence == pytest.approx(blended.probabilities[row].max())
        for vote in one.votes:
            for name, p in zip(vote.members, vote.confidences, strict=True):
                assert p == pytest.approx(alone[name].probabilities[row].max())
    information = {one.image: one.information for one in found}
    assert list(information.values()) == sorted(information.values(), reverse=True)


def test_people_are_those_of_the_truth_else_of_folders_that_images_share() -> None:
    """A folder of a single image, and one of all images, tell nothing about people."""
    truth = Truth(("a.jpg", "b.jpg"), np.zeros(2, dtype=np.intp), ("p", "p"), LABELS)
    assert person_of(("b.jpg", "a.jpg"), truth) == ["p", "p"]
    assert person_of(("b.jpg", "c.jpg"), truth) == ["b.jpg", "c.jpg"]
    assert person_of(("x/1", "x/2", "y/1"), None) == ["x", "x", "y/1"]
    assert person_of(("x/1", "x/2"), None) == ["x/1", "x/2"]


@pytest.mark.slow
def test_the_surest_member_with_a_model_shows_its_evidence(tmp_path: Path) -> None:
    """A vote has the map of its surest explainable member; a model without features is named, and has none."""
    from exporters.export import ExportOptions, export
    from tests.support.networks import make_checkpoint

    options = ExportOptions(labels=MASK18, size=(64, 64), features=True)
    model = export(make_checkpoint("test_resnet", name="a.pth"), tmp_path / "models", options=options).path
    plain = ExportOptions(labels=MASK18, size=(64, 64))
    blind = export(make_checkpoint("test_resnet", name="b.pth"), tmp_path / "models", options=plain).path
    toys.write_pictures(tmp_path / "images", ["1.png", "2.png"])
    first, second = MASK18.names[0], MASK18.names[7]
    votes = (Vote(first, ("a", "b"), (0.7, 0.9)), Vote(second, ("c",), (0.8,)))
    disputes = [
        Disagreement("1.png", 0.5, first, 0.6, votes, None, None),
        Disagreement("2.png", 0.4, second, 0.6, (Vote(second, ("a",), (0.7,)),), None, None),
    ]
    heard = Recorder()
    found = draw_evidence(disputes, tmp_path / "images", [model, blind], listener=heard)
    assert {image: [(m.member, m.class_name) for m in maps] for image, maps in found.items()} == {
        "1.png": [("a", first)],
        "2.png": [("a", second)],
    }
    assert Image.open(io.BytesIO(found["1.png"][0].picture)).size == (144, 144)
    assert [(one.code, "b (b.onnx has no output 'features')" in one.message) for one in heard.notices] == [
        ("I592", True)
    ]
