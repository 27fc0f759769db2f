"""Interactions as a frozen value."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from metarec.data.catalog import Catalog
from metarec.data.clock import DAYS, Times, check_times, told_day
from metarec.data.encodings import Encoding
from metarec.data.item_counts import ItemCounts
from metarec.data.kinds import OtherEvents
from metarec.data.profiles import Profiles
from metarec.data.vocabulary import Ints, Vocabulary
from metarec.data.weights import Weights, check_weights

Columns = Sequence[str] | Mapping[str, str | None]

__all__ = ["Catalog", "Dataset", "Ints", "Vocabulary"]


@dataclass(frozen=True)
class Dataset:
    """Interactions of users with a catalogue, sorted by user, then time, ties in file order.

    Attributes:
        users: the user vocabulary (shared by both sides of a split).
        catalog: the items.
        user: (n,) int64 user codes.
        item: (n,) int64 item codes.
        time: (n,) int64 or float64, in the units of the file.
        warm: (I,) bool, items that occur upstream; every other item is cold.
        name: where the data came from, used in messages and reports.
        dropped: what was left out on the way here and how much of it.
        day: how many units of ``time`` are a day; 0 where ``time`` is none of the calendar, as where it numbers the
            rows; None, the default, to tell it from the times, see :meth:`days`.
        profiles: what is known of the users, if anything is.
        upstream_repeat_share: ``repeat_share`` of the upstream side, known to both sides of a split.
        upstream_counts: how often each item was clicked on the upstream side, likewise.
        weight: (n,) what each click weighs beside its user's others when a learner is trained; None for all the same.
        others: events of other kinds, which learners read in histories; None where there are none.

    Raises:
        ValueError: if the columns differ in length or are not sorted, the times are not int64 or finite float64, or
            ``day`` is not finite or negative, or a weight is not above 0.

    Example:
        >>> people, catalog = Vocabulary(["ann", "bob"], "user"), Catalog(Vocabulary("abc"))
        >>> data = Dataset(people, catalog, user=np.array([1, 1, 2]), item=np.array([3, 1, 3]),
        ...                time=np.array([5, 8, 7]), warm=np.array([False, True, False, True]))
        >>> data, data.cold_items.tolist()
        (Dataset(data: 3 interactions, 2 users, 3 items, modalities []), [2])
    """

    users: Vocabulary
    catalog: Catalog
    user: Ints
    item: Ints
    time: Times
    warm: NDArray[np.bool_]
    name: str = "data"
    dropped: Mapping[str, int] = field(default_factory=dict)
    day: float | None = None
    upstream_repeat_share: float | None = None
    profiles: Profiles | None = None
    upstream_counts: ItemCounts | None = None
    weight: Weights | None = None
    others: OtherEvents | None = None

    def __post_init__(self) -> None:
        if not len(self.user) == len(self.item) == len(self.time):
            raise ValueError(
                f"{self.name}: user, item and time must have one value per interaction, got "
                f"{len(self.user)}, {len(self.item)} and {len(self.time)}"
            )
        check_times(self.time, self.day, self.name)
        same = self.user[1:] == self.user[:-1]
        if (self.user[1:] < self.user[:-1]).any() or (same & (self.time[1:] < self.time[:-1])).any():
            raise ValueError(f"{self.name}: interactions must be sorted by user, then time")
        if self.warm.shape != (self.catalog.size,):
            raise ValueError(f"{self.name}: warm must have shape ({self.catalog.size},), got {self.warm.shape}")
        if self.weight is not None:
            check_weights(self.weight, len(self), self.name)
        if self.others is not None:
            self.others.check_codes(self.users.size, self.catalog, self.name)
        if self.profiles is not None and len(self.profiles.features) != self.users.size:
            raise ValueError(
                f"{self.name}: expected profiles of {self.users.size} rows, got {len(self.profiles.features)}"
            )

    @classmethod
    def from_frame(
        cls,
        clicks: Any,
        items: Any = None,
        *,
        features: Mapping[str, Any] = MappingProxyType({}),
        attributes: Columns = (),
        users: Any = None,
        profile: Columns | Mapping[str, Encoding] = (),
        user: str | None = None,
        item: str | None = None,
        time: str | None = None,
        title: str | None = None,
        weight: str | None = None,
        kind: str | None = None,
        target: str | None = None,
        positive: Mapping[str, float] = MappingProxyType({}),
        ignore: Sequence[str] = (),
    ) -> Self:
        """Interactions, items and their features from frames or files of columns.

        A frame is one of pandas, polars (lazy too), Arrow, DuckDB or any other library that narwhals knows, in any
        order of rows and under any index; or the path of a Parquet file (a folder or pattern of them) or a CSV file,
        of which only the columns that are needed are read, a Parquet file some rows at a time.

        Every row is a click, but for ``positive``. Ids are text or whole numbers, and come back so; in CSV they are
        text. Codes depend on the ids sorted as text, not on the order of the rows: they are those of ``load_atomic``
        on the same data. Times are datetimes (UTC where they have a zone), dates, ISO text or numbers, and keep their
        unit; ``day`` says which it is. Rows without a user, an item or a time are left out and counted in ``dropped``.

        Args:
            clicks: one row a click.
            items: one row an item: its id, a title, and whatever else there is, kept as text in
                ``catalog.attributes``; the values of a list stand side by side.
            features: name of a modality -> vectors: an array with a row for each row of ``items``, a mapping from id
                to vector, a frame or file with the ids and a column of vectors or columns of numbers, or a feature
                file that ``load_atomic`` reads.
            attributes: columns of ``items`` to learn from, together the modality ``attributes``: text, lists of values
                (genres, tags) and numbers, any of them missing; or such columns -> what separates several values in a
                text, as in ``{"genres": "|", "price": None}``. Codes of categories must be text, or they are numbers.
            users: one row a user: its id and whatever is known of it.
            profile: columns of ``users`` to learn from, likewise; or ``model.profile``, how a model encodes them.
            user: the column of users; by default the one that is called like it: ``user_id``, ``userId``,
                ``customer_id``, ``visitorid`` ...
            item: the column of items, here and in ``items``; by default ``item_id``, ``product_id``, ``movieId``,
                ``asin`` ...
            time: the column of times; by default the one that is called like a time or, failing that, holds times of
                the calendar; where there is none, the order of the rows is the order in time.
            title: the column of titles in ``items``, which becomes the attribute ``title``; by default ``title``,
                ``name`` ...
            weight: a column of numbers above 0, ratings or counts, say: what each click weighs in training.
            kind: a column of text that says what each row is, ``view``, ``cart`` or ``purchase``, say.
            target: the kind that is to be predicted: rows of it are the clicks. Those of other kinds, ``others``, are
                read in histories and nothing else: they are neither targets nor counted nor recommended again.
            positive: column -> least value of a click, e.g. ``{"rating": 4}``; other rows are left out.
            ignore: columns of the clicks to pass over, whatever they look like.

        Raises:
            FileNotFoundError: if there is no such file.
            TypeError: if something is neither a frame nor a path, or ``attributes`` or ``profile`` no names.
            ValueError: if a column is missing or could be two things, or a value is not what its column should hold;
                names the frame, the column, the row and the value.

        Example:
            >>> import polars as pl
            >>> clicks = pl.DataFrame({"userId": [7, 7, 12], "sku": ["b", "a", "b"], "when": ["2024-05-01"] * 3})
            >>> data = Dataset.from_frame(clicks, pl.DataFrame({"sku": ["a", "b"], "name": ["Alien", "Heat"]}))
            >>> data
            Dataset(data: 3 interactions, 2 users, 2 items, modalities [])
            >>> data.users.decode(data.user), data.catalog.attributes["title"]
            ([12, 7, 7], ['Alien', 'Heat'])
        """
        from metarec.data.frames import Named, Said, read_frames

        named = Named(user, item, time, title, _named("attributes", attributes), _named("profile", profile))
        said = Said(positive, ignore, weight, kind, target)
        return cls(**read_frames(clicks, items, users, features, named, said))

    def __len__(self) -> int:
        return len(self.user)

    def __repr__(self) -> str:
        twice = f", {self.duplicates:,} of them duplicates" if self.duplicates else ""
        again = f", {self.repeat_share:.1%} repeats" if self.repeat_share else ""
        left = {what: self._with_share(what, count) for what, count in self.dropped.items()}
        out = f", left out {left}" if left else ""
        beside = "" if self.others is None else f", beside {self.others}"
        return (
            f"Dataset({self.name}: {len(self):,} interactions{twice}{again}, {len(self.user_codes):,} users, "
            f"{len(self.catalog.items):,} items, modalities {sorted(self.catalog.modalities)}{beside}{out})"
        )

    def _with_share(self, what: str, count: int) -> int | str:
        """A count, and its share where it is one of rows that could have been clicks."""
        if not what.startswith("rows with"):
            return count
        rows = len(self) + sum(more for name, more in self.dropped.items() if name.startswith("rows with"))
        return f"{count:,} ({count / rows:.1%})"

    def days(self, count: float, day: float | None = None) -> float:
        """How long so many days are, in the units of ``time``: for windows and half-lives.

        The unit is told from the times where ``day`` of the data does not give it: unix seconds, milli-, micro- or
        nanoseconds, or days since 1970.

        Args:
            count: how many days.
            day: how many units a day has, if not that many.

        Raises:
            ValueError: if neither the times nor an argument say how long a day is.

        Example:
            >>> from dataclasses import replace
            >>> from metarec.datasets import movietweetings
            >>> data = movietweetings()
            >>> data.days(7), replace(data, time=data.time * 1000).days(7)
            (604800.0, 604800000.0)
        """
        told = self._told_day
        if day is None and not told:
            first, last = (self.time.min(), self.time.max()) if len(self) else (None, None)
            raise ValueError(
                f"{self.name}: how long is a day? Its times, from {first} to {last}, are no unix times; give day=, the "
                "units of time in a day, or dataclasses.replace(data, day=...)"
            )
        if day is not None and told and day != told:
            warnings.warn(
                f"{self.name}: day={day:g} is given, but by its times a day has {told:g} units; leave day out for that",
                stacklevel=2,
            )
        return count * (told if day is None else day)

    @cached_property
    def _told_day(self) -> float:
        return told_day(self.time) if self.day is None else self.day

    @property
    def second(self) -> float:
        """How many units of ``time`` are a second; 1 where nothing says."""
        return self._told_day / DAYS["seconds"] or 1.0

    @cached_property
    def user_codes(self) -> Ints:
        """(u,) codes of the users that occur, ascending."""
        return self.user[self.offsets[:-1]]

    @cached_property
    def offsets(self) -> Ints:
        """(u + 1,) where each user of ``user_codes`` starts in the columns; the last entry is their length."""
        return np.append(np.flatnonzero(np.diff(self.user, prepend=0)), len(self.user)).astype(np.int64)

    @cached_property
    def duplicates(self) -> int:
        """How many interactions stand in the data already: the same user, item and time."""
        tie = (self.user[1:] == self.user[:-1]) & (self.time[1:] == self.time[:-1])
        moment = np.cumsum(np.append(False, ~tie))  # one number per user and time
        tied = np.append(tie, False) | np.append(False, tie)
        return len(moment[tied]) - _distinct(moment[tied] * self.catalog.size + self.item[tied])

    @cached_property
    def repeat_share(self) -> float:
        """The share of the interactions, each counted once, whose user had the item before: 0 to 1.

        Example:
            >>> people, catalog = Vocabulary(["ann"], "user"), Catalog(Vocabulary("ab"))
            >>> user, warm = np.array([1, 1, 1, 1]), np.array([False, True, True])
            >>> data = Dataset(people, catalog, user, np.array([1, 1, 2, 1]), np.array([5, 5, 6, 7]), warm)
            >>> round(data.repeat_share, 2), data.duplicates
            (0.33, 1)
        """
        once = len(self) - self.duplicates
        return (once - _distinct(self.user * self.catalog.size + self.item)) / max(once, 1)

    @property
    def known_repeat_share(self) -> float:
        """The upstream side's share of repeats, if this is a side of a split, and else its own."""
        return self.repeat_share if self.upstream_repeat_share is None else self.upstream_repeat_share

    @property
    def cold_items(self) -> Ints:
        """Codes of the items that never occur upstream."""
        return np.flatnonzero(~self.warm[1:]) + 1


def _named(what: str, columns: Any) -> Mapping[str, Any]:
    """Columns to learn from, and what separates several values in a text, if anything does."""
    if isinstance(columns, str):
        raise TypeError(f"{what}: expected names of columns, got the text {columns!r}; write [{columns!r}]")
    return columns if isinstance(columns, Mapping) else dict.fromkeys(columns)


def _distinct(values: Ints) -> int:
    """How many different values there are; sorting them takes a tenth of the time of ``np.unique``."""
    ordered = np.sort(values)
    return int((ordered[1:] != ordered[:-1]).sum()) + bool(len(ordered))
