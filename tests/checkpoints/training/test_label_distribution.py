"""Label distributions: the targets in years and in values, what keeps its class, and where the loss gets them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm

from checkpoints.data.folds import make_folds
from checkpoints.data.mask_contest import NO_CLASS, Row, class_of
from checkpoints.training.job import TrainJob, load_job_images
from checkpoints.training.label_distribution import age_borders, parse_spread, require_valid_spreads, spread_targets
from checkpoints.training.settings import TrainSettings, settings_dict
from checkpoints.training.train_fold import train_fold
from ensemble.card import Preprocess
from ensemble.errors import OptionError
from ensemble.events import Recorder
from ensemble.labels import MASK18, LabelSpace
from tests.support.bars import draw_bars

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

SETTINGS = TrainSettings(
    "test_resnet", Preprocess((32, 24)), epochs=1, augment="none", label_distribution=("age=4",), learning_rate=0.01
)


def person(
    age: int | None, *, mask: int = 1, gender: int = 1, label: int | None = None, moved: int | None = None
) -> Row:
    found = class_of(mask, gender, age or 0) if label is None else label
    return Row(f"{age}.png", str(age), mask, gender, age, found, Path("x.png"), moved=moved)


def spread(rows: list[Row], settings: TrainSettings = SETTINGS, heard: Recorder | None = None) -> np.ndarray:
    found = spread_targets(rows, settings, borders=age_borders(rows, settings.labels), listener=heard or Recorder())
    assert found is not None
    return found


def test_ages_are_spread_over_the_groups_in_years() -> None:
    """Someone of 29, sigma 4, has Phi(0.125) of the first group, and mask and gender stay certain."""
    heard = Recorder()
    ages = [20, 29, 45, 59, 60, 80]
    found = spread([person(age) for age in ages], heard=heard).reshape(-1, 3, 2, 3)
    np.testing.assert_allclose(found[:, 1, 1].sum(axis=1), 1, atol=1e-6)
    first, last = norm.cdf((29.5 - np.array(ages)) / 4), norm.cdf((np.array(ages) - 59.5) / 4)
    np.testing.assert_allclose(found[:, 1, 1], np.stack([first, 1 - first - last, last], axis=1), atol=1e-6)
    (notice,) = heard.notices
    assert notice.code == "I473"
    assert "cut at 29.5 and 59.5 years, standard deviation 4 years" in notice.message


def test_values_are_spread_by_their_distance_where_there_are_no_ages() -> None:
    """Five grades with sigma 0.5 have weights exp(-2 d^2), normalized, also at the ends."""
    settings = replace(SETTINGS, labels=LabelSpace.flat(5), label_distribution=("class=0.5",))
    rows = [Row(str(i), str(i), None, None, None, i, Path("x.png")) for i in range(5)]
    heard = Recorder()
    weights = np.exp(-2.0 * (np.arange(5) - np.arange(5)[:, None]) ** 2)
    np.testing.assert_allclose(spread(rows, settings, heard), weights / weights.sum(axis=1, keepdims=True), rtol=1e-5)
    assert "standard deviation 0.5 values" in heard.notices[0].message


def test_an_age_cut_moves_the_border() -> None:
    """Where people of 58 are trained as 60 and over, most of a target of 58 is in that group."""
    rows = [person(57), person(58, moved=class_of(1, 1, 60)), person(61)]
    assert age_borders(rows, MASK18) == (29.5, 57.5)
    assert spread(rows)[1].argmax() == class_of(1, 1, 60)


def test_images_against_their_age_keep_their_group() -> None:
    """A class that a fix set against the age, and an image without an age, have a certain target; I473 counts them."""
    heard = Recorder()
    rows = [person(29), person(29, label=class_of(1, 1, 70)), person(None)]
    found = spread(rows, heard=heard)
    assert found[0].max() < 1
    assert [found[i].max() for i in (1, 2)] == [1, 1]
    assert found[1].argmax() == class_of(1, 1, 70)
    assert "2 of 3 images keep their group" in heard.notices[0].message


@pytest.mark.parametrize("text", ["age", "=4", "age=", "age=0", "age=-1", "age=nan", "age=inf", "age=four"])
def test_a_spread_that_is_none_is_refused(text: str) -> None:
    """Anything but an axis and a finite number above 0 is E204."""
    with pytest.raises(OptionError) as caught:
        parse_spread(text)
    assert caught.value.code == "E204"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"label_distribution": ("gender=1",)}, "gender has the values male, female"),
        ({"label_distribution": ("age=1", "age=2")}, "twice"),
        ({"label_distribution": ("year=1",)}, "no axis 'year'"),
        ({"activation": "sigmoid", "labels": LabelSpace.flat(3), "label_distribution": ("class=1",)}, "several labels"),
    ],
)
def test_axes_without_an_order_are_refused_by_name(settings: dict[str, object], words: str) -> None:
    """Two values, an axis named twice or unknown, and several labels per image are E204."""
    with pytest.raises(OptionError, match=words):
        require_valid_spreads(replace(SETTINGS, **settings))  # type: ignore[arg-type]


def test_a_training_takes_the_spread_targets_and_scores_the_true_classes(tmp_path: Path) -> None:
    """The loss gets the distribution, the scores the labels; an age that changes within its group changes the job."""
    rows = draw_bars(tmp_path)
    folds = make_folds(rows, folds=3, seed=0)
    job = TrainJob(rows, folds, "b", SETTINGS, tmp_path / "a")
    images = load_job_images(job).labeled
    assert images.loss_targets.shape == (len(rows), 18)
    assert images.labels.tolist() == [row.label for row in rows]
    kept = np.arange(len(rows)) < 5
    np.testing.assert_array_equal(images[kept].loss_targets, images.loss_targets[:5])
    np.testing.assert_array_equal(images[kept].concatenate(images[kept]).loss_targets[5:], images.loss_targets[:5])
    plain = TrainJob(rows, folds, "b", replace(SETTINGS, label_distribution=()), tmp_path / "b")
    assert train_fold(job, 1).path.read_bytes() != train_fold(plain, 1).path.read_bytes()
    older = [replace(row, age=row.age + 1) if row.age == 20 else row for row in rows]
    assert [row.label for row in older] == [row.label for row in rows]
    assert TrainJob(older, folds, "b", SETTINGS, tmp_path).fingerprint() != job.fingerprint()
    assert "ages" not in plain.fingerprint()
    assert "label_distribution" not in settings_dict(plain.settings)


def test_images_of_several_labels_have_no_class_to_spread() -> None:
    """Without the option nothing is made, whatever the rows are."""
    rows = [Row("a", "a", None, None, None, NO_CLASS, Path("x.png"), present=(0, 1))]
    settings = replace(SETTINGS, label_distribution=(), activation="sigmoid", labels=LabelSpace.flat(2))
    assert spread_targets(rows, settings, borders=None) is None
