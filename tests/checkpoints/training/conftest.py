"""The pictures that the tests of trainings share."""

from __future__ import annotations

import pytest

from checkpoints.data.folds import Folds, make_folds
from checkpoints.data.mask_contest import Row
from tests.support.bars import draw_bars


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> tuple[Row, ...]:
    """Nine people of 18 classes."""
    return draw_bars(tmp_path_factory.mktemp("bars"))


@pytest.fixture(scope="module")
def folds(rows: tuple[Row, ...]) -> Folds:
    """Three folds of three people."""
    return make_folds(rows, folds=3, seed=0)
