"""The array types that the whole program shares; each use states its shape beside it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
"""Decoded images, RGB: ``(H, W, 3)``, or ``(N, H, W, 3)`` for a batch."""

Logits = NDArray[np.float32]
"""A model's outputs before the softmax: ``(N, C)``."""

Floats = NDArray[np.float64]
"""Probabilities, metrics and all other values that are computed in double precision."""

Classes = NDArray[np.intp]
"""Class indices: ``(N,)``."""

Mask = NDArray[np.bool_]
"""Which rows are selected: ``(N,)``."""
