"""Evaluation reports: the rank of every target, metrics with standard errors, and tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarec.files import write_json
from metarec.functional.means import Metric, clustered_mean, metrics_frame
from metarec.functional.ranking import mrr_at, ndcg_at, recall_at
from metarec.functional.text import text_table

if TYPE_CHECKING:
    import polars as pl

NONE = np.zeros(0, dtype=np.bool_)  # repeats of a report that names none, whatever its length
SLICES = (("cold", "warm"), ("repeated", "new"))  # shown where there is any of the first
METRICS: Mapping[str, Callable[[Tensor, int], Tensor]] = {"recall": recall_at, "mrr": mrr_at, "ndcg": ndcg_at}


@dataclass(frozen=True, eq=False)
class Report:
    """Evaluation results of one method: the rank of each user's next item, or of several items, and metrics of them.

    The means are over the clicks asked for; their standard errors take the clicks of one user as one draw.

    Attributes:
        user: (n,) int64 user codes, ascending; a user with several clicks asked for has several rows.
        target: (n,) int64 item codes, what the user clicked next.
        rank: (n,) float64 ranks of the targets, ties at their mean rank.
        is_cold: (n,) bool, whether the target never occurs upstream.
        k: the list lengths of the metrics.
        info: what was evaluated, on what and how.
        is_repeat: (n,) bool, whether the user had clicked the target before; by default none had.
        lists: metric of the lists, e.g. ``"novelty@10"`` -> (n,) float64, NaN where there is none.
        coverage: e.g. ``"coverage@10"`` -> the share of the catalogue that was in any list.

    Raises:
        ValueError: if the columns differ in length, or a rank is below 1 or no number.

    Example:
        >>> one = np.array([1, 2])
        >>> report = Report(one, one, np.array([1.0, 4.0]), one > 2, k=(2,), info={"method": "M"})
        >>> report.metrics["recall@2"], report.cold["recall@2"].mean
        (Metric(mean=0.5, se=0.5), nan)
        >>> print(report)
        M: 2 users, information: upstream
                @2
        recall  .500±.500
        mrr     .500±.500
        ndcg    .500±.500
    """

    user: NDArray[np.int64]
    target: NDArray[np.int64]
    rank: NDArray[np.float64]
    is_cold: NDArray[np.bool_]
    k: tuple[int, ...] = (5, 10, 20)
    info: Mapping[str, object] = field(default_factory=dict)
    is_repeat: NDArray[np.bool_] = field(default_factory=lambda: NONE)
    lists: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    coverage: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.is_repeat is NONE:
            object.__setattr__(self, "is_repeat", np.zeros(len(self), dtype=np.bool_))
        columns = {**self._columns(), **self.lists}
        lengths = [len(column) for column in columns.values()]
        if len(set(lengths)) > 1:
            raise ValueError(f"Report: {', '.join(columns)} must have one value per user, got {lengths}")
        if not (self.rank >= 1).all():
            row = int(np.flatnonzero(~(self.rank >= 1))[0])
            raise ValueError(f"Report: ranks start at 1, got {self.rank[row]} of user code {self.user[row]}")

    def _columns(self) -> dict[str, NDArray[Any]]:
        return {name: getattr(self, name) for name in ("user", "target", "rank", "is_cold", "is_repeat")}

    def __len__(self) -> int:
        return len(self.user)

    @property
    def information(self) -> str:
        """What the method could know: ``"upstream"``, ``"live"`` or ``"later"``, see :func:`metarec.evaluate`."""
        return str(self.info.get("information", "upstream"))

    @cached_property
    def rows(self) -> dict[str, NDArray[np.bool_]]:
        """(n,) masks of the slices: targets that are cold or warm items, and that the user had clicked or not."""
        cold, repeated = self.is_cold, self.is_repeat
        return {"cold": cold, "warm": ~cold, "repeated": repeated, "new": ~repeated}

    @property
    def cold_users(self) -> int:
        """How many targets are cold items; each is a user's, if one click of each user was asked for."""
        return int(self.is_cold.sum())

    def values(self, metric: str) -> NDArray[np.float64]:
        """One metric of every row, (n,), e.g. of ``"ndcg@10"`` or ``"novelty@10"``.

        Raises:
            ValueError: if there is no such metric.
        """
        if metric in self.lists:
            return self.lists[metric]
        name, _, k = metric.partition("@")
        if name not in METRICS or not k.isdecimal():
            known = f"{list(METRICS)}, '@' and a length, e.g. 'ndcg@10', or one of {list(self.lists)}"
            raise ValueError(f"no metric {metric!r}: expected one of {known}")
        values: NDArray[np.float64] = METRICS[name](torch.from_numpy(self.rank), int(k)).numpy()
        return values

    def on(self, users: NDArray[np.bool_]) -> dict[str, Metric]:
        """The metrics of some rows only; ``users`` is an (n,) bool mask."""
        names = [f"{name}@{k}" for name in METRICS for k in self.k]
        return {name: clustered_mean(self.values(name)[users], self.user[users]) for name in names}

    @cached_property
    def metrics(self) -> dict[str, Metric]:
        """``"recall@5"`` and so on over all users."""
        return self.on(np.ones(len(self), dtype=bool))

    @cached_property
    def beyond(self) -> dict[str, Metric]:
        """Coverage (of all lists), novelty, diversity, popularity, miscalibration; see :func:`metarec.evaluate`."""
        found = {name: Metric(share, math.nan) for name, share in self.coverage.items()}
        for name, values in self.lists.items():
            some = ~np.isnan(values)
            found[name] = clustered_mean(values[some], self.user[some])
        return found

    @cached_property
    def cold(self) -> dict[str, Metric]:
        """The same over the users whose target is a cold item."""
        return self.slices["cold"]

    def one_slice(self, name: str | None) -> NDArray[np.bool_]:
        """(n,) mask of one slice; of all rows for None.

        Raises:
            ValueError: if there is no such slice.
        """
        if name is None:
            return np.ones(len(self), dtype=np.bool_)
        if name not in self.rows:
            raise ValueError(f"no slice {name!r}: expected one of {list(self.rows)}")
        return self.rows[name]

    @cached_property
    def slices(self) -> dict[str, dict[str, Metric]]:
        """The same over the rows of each slice: ``"cold"``, ``"warm"``, ``"repeated"`` and ``"new"`` targets."""
        return {name: self.on(rows) for name, rows in self.rows.items()}

    def to_dict(self) -> dict[str, object]:
        """Everything as plain values that JSON can hold."""
        return {
            "info": dict(self.info),
            "users": len(self),
            "cold_users": self.cold_users,
            "metrics": {name: metric.to_dict() for name, metric in self.metrics.items()},
            "beyond_accuracy": {name: metric.to_dict() for name, metric in self.beyond.items()},
            "cold_items": {name: metric.to_dict() for name, metric in self.cold.items()},
            "slices": self.slices_to_dict(),
            "per_user": {
                **{name: column.tolist() for name, column in self._columns().items()},
                **{name: [None if math.isnan(v) else v for v in own.tolist()] for name, own in self.lists.items()},
                "rank": [rank if math.isfinite(rank) else None for rank in self.rank.tolist()],  # None: missed
            },
        }

    def slices_to_dict(self) -> dict[str, dict[str, object]]:
        """Each slice's number of rows, as ``"users"``, and its metrics, as plain values."""
        plain = {name: {n: m.to_dict() for n, m in metrics.items()} for name, metrics in self.slices.items()}
        return {name: {"users": int(self.rows[name].sum()), **metrics} for name, metrics in plain.items()}

    def to_frame(self) -> pl.DataFrame:
        """The metrics as a polars frame, a row for each.

        Returns:
            Columns ``slice`` (``"all"``, ``"cold"``, ``"warm"``, ``"repeated"``, ``"new"``), ``metric``, ``k``,
            ``mean``, ``se`` (null where there are too few users) and ``users``; what is beyond accuracy is of all.

        Example:
            >>> one = np.array([1, 2])
            >>> frame = Report(one, one, np.array([1.0, 4.0]), one > 2, k=(2,)).to_frame()
            >>> frame.columns, frame.row(0)
            (['slice', 'metric', 'k', 'mean', 'se', 'users'], ('all', 'recall', 2, 0.5, 0.5, 2))
        """
        parts = {"all": (len(self), {**self.metrics, **self.beyond})}
        return metrics_frame(parts | {name: (int(self.rows[name].sum()), m) for name, m in self.slices.items()})

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
        blocks = [
            (f"{title}: {users:,} users{clicks}, information: {self.information}", {**self.metrics, **self.beyond})
        ]
        parted = [name for pair in SLICES for name in pair if self.rows[pair[0]].any()]
        blocks += [(f"{name} items: {int(self.rows[name].sum()):,} users", self.slices[name]) for name in parted]
        lines = []
        for head, metrics in blocks:
            names = dict.fromkeys(name.partition("@")[0] for name in metrics)
            rows = [[name, *(str(metrics[f"{name}@{k}"]).removesuffix("±-") for k in self.k)] for name in names]
            lines += [head, text_table([["", *(f"@{k}" for k in self.k)], *rows])]
        return "\n".join([*lines, *self._remarks()])

    def _remarks(self) -> list[str]:
        """What a reader of the figures must know, a line each."""
        said = []
        if self.info.get("said") is False:
            said.append("information: taken to be later, for the method does not say until when it was fitted")
        if untrained := self.info.get("untrained"):
            said.append(f"not trained: {', '.join(map(str, untrained))}")  # type: ignore[call-overload]
        if "rule" in self.info:
            count = self.info.get("repeated_targets", 0)
            fates = {"leave_out": ", not asked for", "miss": ", counted as missed"}
            fate = fates.get(str(self.info.get("repeated")), "")
            said.append(f"{self.info['rule']}; {count:,} targets are repeats{fate}")
        return said


def results_table(reports: Mapping[str, Report], *, cold: bool = False, only: str | None = None) -> str:
    """One row per method, one column per metric, each mean with its standard error.

    Args:
        reports: name of the method -> its report, all with the same ``k``, the same information and the same rule on
            seen items.
        cold: only the users whose target is a cold item.
        only: one of the report's slices, e.g. ``"repeated"``.

    Raises:
        ValueError: if there is no report, there is no such slice, their ``k`` or rules differ, or the methods know
            different things.

    Example:
        >>> one = np.array([1, 2])
        >>> print(results_table({"M": Report(one, one, np.array([1.0, 4.0]), one > 1, k=(2,))}))
        method (upstream)  users  recall@2   mrr@2      ndcg@2
        M                  2      .500±.500  .500±.500  .500±.500
    """
    if len({report.k for report in reports.values()}) != 1:
        raise ValueError(f"results_table: expected reports with one k, got {[(n, r.k) for n, r in reports.items()]}")
    information = one_information(reports)
    one_rule(reports)
    only = "cold" if cold else only
    masks = {name: report.one_slice(only) for name, report in reports.items()}
    rows = [[name, f"{mask.sum():,}", *map(str, reports[name].on(mask).values())] for name, mask in masks.items()]
    return text_table([[f"method ({information})", "users", *next(iter(reports.values())).metrics], *rows])


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


def one_rule(reports: Mapping[str, Report]) -> None:
    """See that seen items were left out of all these reports or of none, and repeats counted alike.

    Raises:
        ValueError: if not; names who did what.
    """
    for what in ("exclude_seen", "repeated"):
        found = {name: report.info[what] for name, report in reports.items() if what in report.info}
        if len(set(found.values())) > 1:
            raise ValueError(
                f"methods can be compared only where seen items are treated alike, got {what} of {found}; "
                "give evaluate the same exclude_seen and repeated"
            )
