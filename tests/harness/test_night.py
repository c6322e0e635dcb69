"""A night of kills, a full disk and bad files, with toys in place of photographs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness.night import spend_night
from tests.support import toys

pytestmark = pytest.mark.slow


def test_a_disturbed_night_leaves_what_a_quiet_one_does(tmp_path: Path) -> None:
    """Two kills, a full disk, 34 odd and 25 bad files and ten impossible lists: `errors.csv` names the bad ones alone,
    all other rows have the bytes of a quiet run, and the submission lacks the bad ones, or has them filled.
    """
    names = [f"{i:03d}.jpg" for i in range(100)]
    toys.write_pictures(tmp_path / "photographs", names)
    models = [toys.write_model(tmp_path, toys.card(member), seed=seed) for seed, member in enumerate("ab")]
    (tmp_path / "home").mkdir()
    night = spend_night(
        tmp_path / "photographs", models, tmp_path / "home", ids=names, part_rows=8, pause=0.001, mount=False
    )
    assert len(night.good) == 134
    assert len(night.bad) == 25
