"""What an evaluation found: the rank of every click asked for, the metrics made from them, and tables of both."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarec.files import write_json
from metarec.functional.ranking import mrr_at, ndcg_at, recall_at

METRICS: Mapping[str, Callable[[Tensor, int], Tensor]] = {"recall": recall_at, "mrr": mrr_at, "ndcg": ndcg_at}


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


@dataclass(frozen=True, eq=False)
class Report:
    """How a method ranked each user's next item, or several items of each user.

    The means are over the clicks asked for; their standard errors take the clicks of one user as one draw.

    Attributes:
        user: (n,) int64 user codes, ascending; a user with several clicks asked for has several rows.
        target: (n,) int64 item codes, what the user clicked next.
        rank: (n,) float64 ranks of the targets, ties at their mean rank.
        is_cold: (n,) bool, whether the target never occurs upstream.
        k: the list lengths of the metrics.
        info: what was evaluated, on what and how.

    Raises:
        ValueError: if the columns differ in length.

    Example:
        >>> one = np.array([1, 2])
        >>> report = Report(one, one, np.array([1.0, 4.0]), np.array([False, True]), k=(2,), info={"method": "M"})
        >>> report.metrics["recall@2"], report.cold["recall@2"].mean
        (Metric(mean=0.5, se=0.5), 0.0)
        >>> print(report)
        M: 2 users, information: upstream
                @2
        recall  .500±.500
        mrr     .500±.500
        ndcg    .500±.500
        cold items: 1 users
                @2
        recall  .000±-
        mrr     .000±-
        ndcg    .000±-
    """

    user: NDArray[np.int64]
    target: NDArray[np.int64]
    rank: NDArray[np.float64]
    is_cold: NDArray[np.bool_]
    k: tuple[int, ...] = (5, 10, 20)
    info: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lengths = [len(column) for column in (self.user, self.target, self.rank, self.is_cold)]
        if len(set(lengths)) > 1:
            raise ValueError(f"Report: user, target, rank and is_cold must have one value per user, got {lengths}")

    def __len__(self) -> int:
        return len(self.user)

    @property
    def information(self) -> str:
        """What the method could know: ``"upstream"``, ``"live"`` or ``"later"``, see :func:`metarec.evaluate`."""
        return str(self.info.get("information", "upstream"))

    @property
    def cold_users(self) -> int:
        """How many targets are cold items; each is a user's, if one click of each user was asked for."""
        return int(self.is_cold.sum())

    def values(self, metric: str) -> NDArray[np.float64]:
        """One metric of every row, (n,), e.g. of ``"ndcg@10"``.

        Raises:
            ValueError: if there is no such metric.
        """
        name, _, k = metric.partition("@")
        if name not in METRICS or not k.isdecimal():
            raise ValueError(f"no metric {metric!r}: expected one of {list(METRICS)}, '@' and a length, e.g. 'ndcg@10'")
        values: NDArray[np.float64] = METRICS[name](torch.from_numpy(self.rank), int(k)).numpy()
        return values

    def on(self, users: NDArray[np.bool_]) -> dict[str, Metric]:
        """The metrics of some rows only; ``users`` is an (n,) bool mask."""
        names = [f"{name}@{k}" for name in METRICS for k in self.k]
        return {name: _mean(self.values(name)[users], self.user[users]) for name in names}

    @cached_property
    def metrics(self) -> dict[str, Metric]:
        """``"recall@5"`` and so on over all users."""
        return self.on(np.ones(len(self), dtype=bool))

    @cached_property
    def cold(self) -> dict[str, Metric]:
        """The same over the users whose target is a cold item."""
        return self.on(self.is_cold)

    def to_dict(self) -> dict[str, object]:
        """Everything as plain values that JSON can hold."""
        return {
            "info": dict(self.info),
            "users": len(self),
            "cold_users": self.cold_users,
            "metrics": {name: metric.to_dict() for name, metric in self.metrics.items()},
            "cold_items": {name: metric.to_dict() for name, metric in self.cold.items()},
            "per_user": {
                name: column.tolist()
                for name, column in zip(
                    ("user", "target", "rank", "is_cold"),
                    (self.user, self.target, self.rank, self.is_cold),
                    strict=True,
                )
            },
        }

    def to_json(self, path: str | Path) -> None:
        """Write :meth:`to_dict` to a file, which is either whole or not there.

        Raises:
            TypeError: if ``info`` holds something that JSON cannot.
        """
        write_json(path, self.to_dict())

    def __str__(self) -> str:
        title = str(self.info.get("method", "report"))
        title += f" on {self.info['data']} ({self.info['part']})" if "data" in self.info else ""
        users = len(np.unique(self.user))
        clicks = "" if users == len(self) else f", {len(self):,} clicks"
        blocks = [(f"{title}: {users:,} users{clicks}, information: {self.information}", self.metrics)]
        blocks += [(f"cold items: {self.cold_users:,} users", self.cold)] if self.cold_users else []
        lines = []
        for head, metrics in blocks:
            rows = [[name, *(str(metrics[f"{name}@{k}"]) for k in self.k)] for name in METRICS]
            lines += [head, text_table([["", *(f"@{k}" for k in self.k)], *rows])]
        return "\n".join(lines)


def results_table(reports: Mapping[str, Report], *, cold: bool = False) -> str:
    """One row per method, one column per metric, each mean with its standard error.

    Args:
        reports: name of the method -> its report, all with the same ``k`` and the same information.
        cold: only the users whose target is a cold item.

    Raises:
        ValueError: if there is no report, their ``k`` differ, or the methods know different things.

    Example:
        >>> one = np.array([1, 2])
        >>> print(results_table({"M": Report(one, one, np.array([1.0, 4.0]), one > 1, k=(2,))}))
        method (upstream)  users  recall@2   mrr@2      ndcg@2
        M                  2      .500±.500  .500±.500  .500±.500
    """
    if len({report.k for report in reports.values()}) != 1:
        raise ValueError(f"results_table: expected reports with one k, got {[(n, r.k) for n, r in reports.items()]}")
    information = one_information(reports)
    rows = []
    for name, report in reports.items():
        metrics = report.cold if cold else report.metrics
        rows.append([name, f"{report.cold_users if cold else len(report):,}", *map(str, metrics.values())])
    return text_table([[f"method ({information})", "users", *metrics], *rows])


def one_information(reports: Mapping[str, Report]) -> str:
    """The information that all these methods had.

    Raises:
        ValueError: if they had different information; names who had what.
    """
    sets: dict[str, list[str]] = {}
    for name, report in reports.items():
        sets.setdefault(report.information, []).append(name)
    if len(sets) != 1:
        who = "; ".join(f"{information}: {', '.join(names)}" for information, names in sets.items())
        raise ValueError(
            f"methods can be compared only where they could know the same, got {who or 'no method'}; "
            "make one table of each information set"
        )
    return next(iter(sets))


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of equal length as lines with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _mean(values: NDArray[np.float64], user: NDArray[np.int64]) -> Metric:
    """Mean over rows; the rows of one user are one cluster of the standard error."""
    mean = float(values.mean()) if len(values) else math.nan
    _, group = np.unique(user, return_inverse=True)
    clusters = int(group.max(initial=-1)) + 1
    if clusters < 2:
        return Metric(mean, math.nan)
    sums = np.bincount(group, values - mean, minlength=clusters)
    return Metric(mean, math.sqrt(clusters / (clusters - 1) * float((sums**2).sum())) / len(values))
