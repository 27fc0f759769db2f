"""The clicks of a stream in the order of time, and the users who are asked about while it goes on."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from metarec.asking import ranked
from metarec.data.dataset import Dataset, Ints
from metarec.data.examples import filter_interactions
from metarec.data.rows import take
from metarec.data.sampler import LEAST_CLICKS, EpisodeSampler
from metarec.functional.histories import leaves_out_seen, rule_in_words
from metarec.model import Model
from metarec.modes import device_of, evaluating
from metarec.nn.record import longest_history, negatives_of

Users = Literal["cold", "known"]
Rows = list[tuple[NDArray[Any], ...]]
LEAST = LEAST_CLICKS["test"]  # clicks of a user who is asked about, as a split has them


@dataclass(frozen=True, eq=False)
class Stream:
    """The clicks after a moment.

    Attributes:
        data: all clicks there are.
        start: the moment.
        every: how long a period is.
    """

    data: Dataset
    start: float
    every: float

    @cached_property
    def _order(self) -> Ints:
        return np.argsort(self.data.time, kind="stable")

    @cached_property
    def _time(self) -> NDArray[Any]:
        return self.data.time[self._order]

    def between(self, first: float, last: float) -> Dataset:
        """The clicks from one time on and before another."""
        place = np.searchsorted(self._time, [first, last])
        rows = np.sort(self._order[place[0] : place[1]])
        return take(self.data, rows, dropped={})

    @cached_property
    def edges(self) -> NDArray[np.float64]:
        """(P + 1,) where the periods begin, the first right after the start, and where the last one ends."""
        first, end = (math.nextafter(float(at), math.inf) for at in (self.start, self._time[-1]))
        count = max(1, math.ceil((end - first) / self.every))
        return np.append(first + self.every * np.arange(count), max(first + self.every * count, end))


@dataclass(frozen=True, eq=False)
class Asked:
    """The users whose last clicks are asked for.

    Attributes:
        data: their clicks.
        warm: (I,) bool, items that the model had seen at the start.
        exclude_seen: leave what they have clicked out of the ranking.
        seed: of the negatives that support examples carry.
        info: for the report.
    """

    data: Dataset
    warm: NDArray[np.bool_]
    exclude_seen: bool
    seed: int
    info: dict[str, object]

    @classmethod
    def of(cls, model: Model, stream: Stream, users: Users, *, exclude_seen: bool | None, seed: int) -> Self:
        """Those of a stream.

        Raises:
            ValueError: if there is nobody.
        """
        if users not in ("cold", "known"):
            raise ValueError(f"evaluate_stream: users must be 'cold' or 'known', got {users!r}")
        data, counts = stream.data, np.diff(stream.data.offsets)
        is_cold = data.time[data.offsets[:-1]] > stream.start
        late = data.time[data.offsets[1:] - 1] > stream.start
        who = (counts >= LEAST) & late & (is_cold if users == "cold" else ~is_cold)
        if not who.any():
            raise ValueError(
                f"evaluate_stream: {data.name} has no {users} user with {LEAST} clicks and the last of them after "
                f"{stream.start}; choose an earlier start, or the other users"
            )
        warm = data.warm if model.warm is None else np.asarray(model.warm)
        own = replace(filter_interactions(data, np.repeat(who, counts)), warm=warm)
        share = data.known_repeat_share if model.repeat_share is None else model.repeat_share
        leaves_out = leaves_out_seen(share) if exclude_seen is None else exclude_seen
        rule = rule_in_words(leaves_out, share if exclude_seen is None else None)
        info = {"data": data.name, "users": users, "exclude_seen": leaves_out, "rule": rule, "seed": seed}
        return cls(own, warm, leaves_out, seed, {"part": "stream", **info})

    @cached_property
    def last(self) -> NDArray[Any]:
        """(u,) when each of them clicked last."""
        return self.data.time[self.data.offsets[1:] - 1]

    def between(self, first: float, last: float) -> Ints:
        """Codes of the users whose last click is from one time on and before another."""
        return self.data.user_codes[(self.last >= first) & (self.last < last)]

    def ranks(self, model: Model, first: float, last: float) -> Rows:
        """User, target, rank and whether it is a repeat, of the last clicks from one time on and before another."""
        codes = self.between(first, last)
        if not len(codes):
            return []
        now = self.data if model.warm is None else replace(self.data, warm=np.asarray(model.warm))
        length, negatives = longest_history(model), negatives_of(model)
        sampler = EpisodeSampler(
            now,
            part="serving",
            only=codes,
            users_per_batch=512,
            negatives=negatives,
            max_length=length,
            seed=self.seed,
        )
        with evaluating(model):
            found = [
                ranked(model, batch.to(device_of(model)), sampler, None, exclude_seen=self.exclude_seen, length=1)
                for batch in sampler.epoch(0)
            ]
        columns = ((one.user, one.target, one.rank, one.is_repeat) for one in found)
        return [tuple(column.cpu().numpy() for column in own) for own in columns]
