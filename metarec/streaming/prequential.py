"""Evaluates a model on a stream: first asked, then told."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metarec.data.dataset import Dataset
from metarec.learning import DAY
from metarec.model import Model
from metarec.nn.record import INFORMATION, record_of
from metarec.report import Report
from metarec.streaming.asked import Asked, Rows, Stream, Users
from metarec.streaming.report import StreamReport
from metarec.streaming.steps import Step, frozen

Ask = Callable[[Model, int, float, float], None]


def evaluate_stream(
    model: Model,
    data: Dataset,
    *,
    step: Step = frozen,
    every: float | None = None,
    observe_every: float | None = None,
    start: float | None = None,
    users: Users = "cold",
    k: Sequence[int] = (5, 10, 20),
    exclude_seen: bool | None = None,
    seed: int = 0,
    after: Callable[[int, Model], None] | None = None,
) -> StreamReport:
    """Rank the last click of every user who comes after the model was fitted, and let the model move on meanwhile.

    Prequential evaluation: in each period, the users whose last click is in it are adapted to their clicks before, and
    that click is ranked by the model as it was when the period began. Then ``step`` gives the model the clicks of the
    period. The figures of a frozen model are those of :func:`metarec.evaluate` for part ``"serving"``.

    Args:
        model: fitted on the clicks until ``start``; it stays as it is.
        data: all clicks there are, before any split.
        step: gives the model of the next period: :func:`~metarec.streaming.frozen`,
            :func:`~metarec.streaming.counted`, :func:`~metarec.streaming.learned`,
            :func:`~metarec.streaming.retrained`, or your own.
        every: how long a period is, in the units of the data; a day by default.
        observe_every: within a period, let counts move on so often, as a service does; not at all by default. What was
            observed so is given to ``step`` again at the end of the period, with the model that the period began with.
        start: when the stream begins; by default right after the model's ``fitted_until``.
        users: ``"cold"``, who clicked for the first time after the start, or ``"known"``, who had before.
        k: list lengths.
        exclude_seen: leave what the user has clicked out of the ranking; by default as :func:`metarec.evaluate` does.
        seed: of the negatives that support examples carry.
        after: called with the number of each period and the model that comes out of it.

    Raises:
        ValueError: if nothing says when the stream begins, nobody is asked about, a period is not above 0, or a step
            gave a model that says it was fitted on clicks later than those it was given: it looked ahead.

    Example:
        >>> from metarec.data import split_by_time
        >>> from metarec.datasets import PLANTED_SPLIT, planted
        >>> from metarec.recipes import LivePopularity
        >>> from metarec.streaming import counted
        >>> data = planted(users=60, items=40)
        >>> up, down = split_by_time(data, at=PLANTED_SPLIT)
        >>> found = evaluate_stream(LivePopularity(up, window=1e9), data, start=PLANTED_SPLIT, step=counted)
        >>> len(found.report), found.clicks == len(down), found.report.information
        (12, True, 'live')
    """
    begin = record_of(model).fitted_until if start is None else start
    if begin is None:
        raise ValueError(f"evaluate_stream: {type(model).__name__} does not say until when it was fitted; give start=")
    every = model.second * DAY if every is None else every
    if not every > 0 or not (observe_every is None or observe_every > 0):
        raise ValueError(f"evaluate_stream: periods must be above 0, got {every} and {observe_every}")
    stream = Stream(data, float(begin), every)
    asked = Asked.of(model, stream, users, exclude_seen=exclude_seen, seed=seed)
    found = _Found(asked)
    walk = Walk(model, stream, step, found.ask, asked.last, every if observe_every is None else observe_every)
    for period in range(len(walk.begin)):
        walk.go(period)
        if after is not None:
            after(period, walk.model)
    return found.report(walk, tuple(map(int, k)), step is frozen)


class Walk:
    """One model on its way through the periods of a stream: asked about each, then told of it.

    Args:
        model: stays as it is.
        stream: the clicks.
        step: gives the model of the next period.
        ask: called with a model, the number of a period and two times, from one on and before another, of which the
            model knows no click.
        times: (n,) of what is asked for, in any order; where nothing is, counts need not move on.
        observe_every: within a period, counts move on so often.

    Attributes:
        model: of the period that is next.
        begin: (P,) when the periods begin.
        seconds: of processor time spent on ``"step"``, ``"observe"`` and ``"rank"``.
        clicks: that the model was given.
    """

    def __init__(
        self, model: Model, stream: Stream, step: Step, ask: Ask, times: NDArray[Any], observe_every: float
    ) -> None:
        self.first, self.model, self.stream, self.step, self.ask = model, model, stream, step, ask
        self.times, self.observe_every, self.begin = np.sort(times), observe_every, stream.edges[:-1]
        self.seconds = {"step": 0.0, "observe": 0.0, "rank": 0.0}
        self.clicks = 0

    def go(self, period: int) -> None:
        """Ask, then tell.

        Raises:
            ValueError: if the step gave a model that looked ahead.
        """
        first, last = (float(edge) for edge in self.stream.edges[period : period + 2])
        now, told = self.model, first
        for begin in np.arange(first, last, self.observe_every).tolist():
            end = min(begin + self.observe_every, last)
            if not np.diff(np.searchsorted(self.times, [begin, end])):
                continue
            if begin > told:
                with self._clock("observe"):
                    now = copy.copy(now).observe(self.stream.between(told, begin))
                told = begin
            with self._clock("rank"):
                self.ask(now, period, begin, end)
        clicks = self.stream.between(first, last)
        if len(clicks):
            with self._clock("step"):
                self.model = self.step(self.model, clicks, self.stream.between(-math.inf, first))
            self.clicks += len(clicks)
        until = record_of(self.model).fitted_until
        if until is not None and not until < last:
            raise ValueError(
                f"evaluate_stream: after the period until {last}, {type(self.model).__name__} says that it was fitted "
                f"until {until}: it looked ahead; let a step use only the clicks that it is given"
            )

    @contextmanager
    def _clock(self, what: str) -> Iterator[None]:
        began = time.process_time()
        yield
        self.seconds[what] += time.process_time() - began


class _Found:
    """The ranks of what was asked for."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.rows: Rows = []
        self.periods: list[int] = []

    def ask(self, model: Model, period: int, first: float, last: float) -> None:
        """Rank the clicks from one time on and before another."""
        found = self.asked.ranks(model, first, last)
        self.rows += found
        self.periods += [period] * sum(len(columns[0]) for columns in found)

    def report(self, walk: Walk, k: tuple[int, ...], is_frozen: bool) -> StreamReport:
        """What was found."""
        user, target, rank, is_repeat = (np.concatenate(column) for column in zip(*self.rows, strict=True))
        period = np.array(self.periods, dtype=np.int64)
        repeats = int(is_repeat.sum())
        order = np.argsort(user, kind="stable")
        if self.asked.exclude_seen:  # no list could show what was clicked before
            order = order[~is_repeat[order]]
        user, target, rank, is_repeat = (column[order] for column in (user, target, rank, is_repeat))
        information = record_of(walk.first).information if is_frozen else "live"
        information = max(information, record_of(walk.first).information, key=INFORMATION.index)
        info = {"method": type(walk.first).__name__, **self.asked.info, "information": information}
        info["repeated_targets"] = repeats
        is_cold, is_repeat = ~self.asked.warm[target], is_repeat.astype(np.bool_)
        report = Report(user, target, rank.astype(np.float64), is_cold, k=k, info=info, is_repeat=is_repeat)
        return StreamReport(report, period[order], walk.begin, walk.seconds, walk.clicks)
