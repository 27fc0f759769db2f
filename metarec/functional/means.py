"""Means over users with their standard errors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import polars as pl


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


def metrics_frame(slices: Mapping[str, tuple[int, Mapping[str, Metric]]]) -> pl.DataFrame:
    """Metrics as a polars frame, a row for each.

    Args:
        slices: name of a slice -> how many users are in it, and its metrics by names such as ``"ndcg@10"``.

    Returns:
        Columns ``slice``, ``metric``, ``k``, ``mean``, ``se`` (null where it is not known) and ``users``.

    Example:
        >>> metrics_frame({"all": (2, {"ndcg@10": Metric(0.5, 0.25)})}).rows()
        [('all', 'ndcg', 10, 0.5, 0.25, 2)]
    """
    import polars as pl

    rows = [
        {"slice": part, "metric": name.partition("@")[0], "k": int(name.partition("@")[2])}
        | metric.to_dict()
        | {"users": users}
        for part, (users, metrics) in slices.items()
        for name, metric in metrics.items()
    ]
    return pl.DataFrame(rows, schema_overrides={"mean": pl.Float64, "se": pl.Float64})
