"""Is one method better than another? Paired, over users, within one information set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from metarec.report import Report, one_information, one_rule

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """By how much a method beats a baseline, with the interval of a paired bootstrap over users.

    Attributes:
        information: what both could know.
        metric: e.g. ``"ndcg@10"``.
        baseline: the baseline's mean.
        method: the method's mean.
        gain: ``method - baseline``.
        gain_low: lower end of its interval.
        gain_high: upper end of its interval.
        relative_gain: ``method / baseline - 1``; infinite where the baseline is at 0.
        interval_low: lower end of the interval of the relative gain.
        interval_high: upper end of the interval of the relative gain.
        users: users drawn from.
    """

    information: str
    metric: str
    baseline: float
    method: float
    gain: float
    gain_low: float
    gain_high: float
    relative_gain: float
    interval_low: float
    interval_high: float
    users: int

    def to_dict(self) -> dict[str, object]:
        """All fields as plain values, None for what is not finite, which JSON cannot say."""
        return {n: None if isinstance(v, float) and not np.isfinite(v) else v for n, v in asdict(self).items()}


def compare(
    method: Report | Sequence[Report],
    baseline: Report | Sequence[Report],
    metric: str = "ndcg@10",
    *,
    cold: bool = False,
    only: str | None = None,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Compare two methods click by click, and bootstrap the users.

    All clicks of a user are drawn together, so several test positions of one user are no independent evidence. Of
    several reports (one a seed) the values of each click are averaged first.

    Args:
        method: its report, or one report for each seed.
        baseline: the same of the other; the number of seeds may differ.
        metric: name and length; clicks without a value are left out.
        cold: only the clicks on cold items.
        only: one of the report's slices, e.g. ``"repeated"``.
        resamples: bootstrap draws.
        level: of the interval, e.g. 0.95 for the percentiles 2.5 and 97.5.
        seed: of the draws.

    Raises:
        ValueError: if the reports are of different clicks, information or rules on seen items, or there is none.

    Example:
        >>> user = np.arange(100)
        >>> good, bad = (Report(user, user, np.full(100, rank), user > 50, k=(10,)) for rank in (1.0, 3.0))
        >>> found = compare(good, bad)
        >>> found.baseline, found.method, found.relative_gain, found.interval_low, found.interval_high
        (0.5, 1.0, 1.0, 1.0, 1.0)
    """
    ours, theirs = ([r] if isinstance(r, Report) else list(r) for r in (method, baseline))
    if not ours or not theirs:
        raise ValueError("compare: expected at least one report of each method, got none")
    information = _information_of_all([*ours, *theirs])
    user, a, b = _paired(ours, theirs, metric, "cold" if cold else only)
    _, group = np.unique(user, return_inverse=True)
    users = int(group.max(initial=-1)) + 1
    if not users:
        raise ValueError("compare: no click is left to compare on")
    clicks, sum_a, sum_b = (np.bincount(group, v, minlength=users) for v in (np.ones(len(a)), a, b))
    draws = np.random.default_rng(seed).multinomial(users, np.full(users, 1 / users), size=resamples)
    mean_a, mean_b = draws @ sum_a / (draws @ clicks), draws @ sum_b / (draws @ clicks)
    ends = [50 * (1 - level), 50 * (1 + level)]
    low, high = np.percentile(mean_a - mean_b, ends, method="inverted_cdf")
    relative_low, relative_high = np.percentile(_relative(mean_a, mean_b), ends, method="inverted_cdf")
    return Comparison(
        information,
        metric,
        baseline=float(b.mean()),
        method=float(a.mean()),
        gain=float(a.mean() - b.mean()),
        gain_low=float(low),
        gain_high=float(high),
        relative_gain=float(_relative(a.mean(keepdims=True), b.mean(keepdims=True))[0]),
        interval_low=float(relative_low),
        interval_high=float(relative_high),
        users=users,
    )


def _paired(
    ours: Sequence[Report], theirs: Sequence[Report], metric: str, only: str | None
) -> tuple[NDArray[np.int64], Values, Values]:
    """User and both means over the seeds, (n,) each, of every click that has a value."""
    a, b = (np.mean([report.values(metric) for report in side], axis=0) for side in (ours, theirs))
    rows = ours[0].one_slice(only) & ~np.isnan(a - b)
    return ours[0].user[rows], a[rows], b[rows]


def _relative(method: Values, baseline: Values) -> Values:
    """By how much of the baseline the method is better; 0 where both are 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(method == baseline, 0.0, method / baseline - 1)


def _information_of_all(reports: Sequence[Report]) -> str:
    """The information that all reports stand for, once it is seen that they are of the same clicks and rule."""
    for report in reports[1:]:
        same = np.array_equal(report.user, reports[0].user) and np.array_equal(report.target, reports[0].target)
        if not same:
            raise ValueError(
                f"compare: the reports are of different clicks ({len(reports[0])} and {len(report)} rows); evaluate "
                "both methods on the same data with the same part, positions, max_length and exclude_seen"
            )
    named = {f"{report.info.get('method', 'report')} {number}": report for number, report in enumerate(reports)}
    one_rule(named)
    return one_information(named)
