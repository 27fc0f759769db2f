"""What clicks weigh."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Weights = NDArray[np.float64]


def check_weights(weight: Weights, interactions: int, name: str) -> None:
    """Check that each interaction has a weight.

    Raises:
        ValueError: if they are of another number, or one is not above 0.
    """
    if weight.shape != (interactions,):
        raise ValueError(f"{name}: expected weights of {interactions} interactions, got {weight.shape}")
    bad = np.flatnonzero(~((weight > 0) & (weight < np.inf)))
    if len(bad):
        raise ValueError(f"{name}: the weight of interaction {bad[0]} is {weight[bad[0]]}, expected a number above 0")
