"""The threads of BLAS while a head is fitted."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager

from threadpoolctl import ThreadpoolController

_FEW = 1_000_000


@functools.cache
def _controller() -> ThreadpoolController:
    """Return the BLAS libraries of this process; to find them takes milliseconds, and a head is fitted many times."""
    return ThreadpoolController()


def limit_blas(values: int) -> AbstractContextManager[None]:
    """Use one thread of BLAS in the block for a matrix of few ``values``: more would mostly wait for each other."""
    limited: AbstractContextManager[None] = _controller().limit(limits=1 if values < _FEW else None, user_api="blas")
    return limited
