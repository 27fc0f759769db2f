"""Means over users with their standard errors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Metric:
    """A mean over users and its standard error.

    Attributes:
        mean: the mean; NaN where there is no user.
        se: sample standard deviation / sqrt(users); NaN with fewer than two users.

    Example:
        >>> print(Metric(0.1234, 0.0051))
        .123±.005
    """

    mean: float
    se: float

    def __str__(self) -> str:
        mean, se = ("-" if math.isnan(value) else f"{value:.3f}".removeprefix("0") for value in (self.mean, self.se))
        return f"{mean}±{se}" if mean != "-" else mean

    def to_dict(self) -> dict[str, float | None]:
        """``{"mean": ..., "se": ...}``, with None for NaN, which JSON cannot say."""
        return {name: None if math.isnan(value) else value for name, value in vars(self).items()}


def clustered_mean(values: NDArray[np.float64], user: NDArray[np.int64]) -> Metric:
    """Mean over rows, and its standard error, of which the rows of one user are one cluster.

    Args:
        values: (n,) of each row.
        user: (n,) whose they are.

    Example:
        >>> print(clustered_mean(np.array([1.0, 0.0, 1.0]), np.array([1, 1, 2])))
        .667±.222
    """
    mean = float(values.mean()) if len(values) else math.nan
    _, group = np.unique(user, return_inverse=True)
    clusters = int(group.max(initial=-1)) + 1
    if clusters < 2:
        return Metric(mean, math.nan)
    sums = np.bincount(group, values - mean, minlength=clusters)
    return Metric(mean, math.sqrt(clusters / (clusters - 1) * float((sums**2).sum())) / len(values))
