"""Ragged click histories of many users: one array of item codes with offsets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np

from metarec.data.catalog import Catalog
from metarec.data.containers import plain, plain_rows
from metarec.data.vocabulary import Id, Ints, Vocabulary
from metarec.functional.kinds import ITEM, coded


@dataclass(frozen=True, eq=False)
class Clicks:
    """Ragged histories of B users: events in time order, one user after the other.

    Attributes:
        codes: (n,) int64 item codes, where all events are clicks; those of other kinds as
            :func:`~metarec.functional.kinds.coded` makes them.
        offsets: (B + 1,) int64, where each user starts; the last entry is n.

    Example:
        >>> clicks = Clicks.of([["b", "a"], [], ["c"]], Vocabulary(["a", "b", "c"]))
        >>> clicks.codes.tolist(), clicks.counts.tolist(), clicks[2:].codes.tolist()
        ([2, 1, 3], [2, 0, 1], [3])
    """

    codes: Ints
    offsets: Ints

    @classmethod
    def of(cls, histories: Sequence[Sequence[Id]], items: Vocabulary) -> Clicks:
        """Encode external ids.

        Raises:
            ValueError: if a history is no sequence of ids, or an id is not known (naming user, id and the nearest ids).
        """
        lazy = LazyHistories(histories, items)
        lazy.clicks.codes[:] = lazy.encoded(lazy.histories)
        return lazy.clicks

    @classmethod
    def of_kinds(
        cls, histories: Sequence[Sequence[Id]], given: Sequence[Any], items: Vocabulary, kinds: Sequence[str]
    ) -> Clicks:
        """Encode external ids, and the names of the kinds of events with them.

        Args:
            histories: ids, of each user.
            given: of each user one name per id; None where all are clicks.
            items: encodes the ids.
            kinds: names of all kinds.

        Raises:
            ValueError: as :meth:`of`, or if there are not as many kinds as ids, or one is not known.
        """
        clicks = cls.of(histories, items)
        return cls(coded(clicks.codes, kind_codes(given, clicks.counts, kinds)), clicks.offsets)

    @classmethod
    def join(cls, parts: Sequence[Ints]) -> Clicks:
        """One array of codes per user."""
        counts = np.fromiter(map(len, parts), dtype=np.int64, count=len(parts))
        return cls(np.concatenate(parts) if len(parts) else np.zeros(0, dtype=np.int64), _offsets(counts))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, users: slice | Ints) -> Clicks:
        """Some of the users, in the order asked for."""
        if isinstance(users, slice):
            start, stop, step = users.indices(len(self))
            if step == 1:
                first, last = self.offsets[start], self.offsets[max(start, stop)]
                return Clicks(self.codes[first:last], self.offsets[start : max(start, stop) + 1] - first)
            users = np.arange(start, stop, step)
        offsets = _offsets(self.counts[users])
        return Clicks(self.codes[self.places(users, offsets)], offsets)

    def places(self, users: Ints, offsets: Ints) -> Ints:
        """Where the clicks of some users stand, who one after the other would start at ``offsets``."""
        out: Ints = np.arange(offsets[-1]) + np.repeat(self.offsets[:-1][users] - offsets[:-1], np.diff(offsets))
        return out

    @cached_property
    def clicked(self) -> Clicks:
        """The clicks alone, without events of other kinds."""
        own = self.codes <= ITEM
        if own.all():
            return self
        counts = np.bincount(self.owners()[own], minlength=len(self))
        return Clicks(self.codes[own], _offsets(counts))

    @cached_property
    def counts(self) -> Ints:
        """(B,) events of each user."""
        return np.diff(self.offsets)

    def user(self, user: int) -> Ints:
        """The codes of one user."""
        return self.codes[self.offsets[user] : self.offsets[user + 1]]

    def owners(self) -> Ints:
        """(n,) the user of each click."""
        return np.repeat(np.arange(len(self)), self.counts)

    def extended(self, more: Clicks) -> Clicks:
        """Each user's clicks followed by more of them."""
        if len(self) == 1:
            return Clicks(np.concatenate([self.codes, more.codes]), self.offsets + more.offsets)
        owners = np.concatenate([self.owners(), more.owners()])
        order = np.argsort(owners, kind="stable")
        return Clicks(np.concatenate([self.codes, more.codes])[order], self.offsets + more.offsets)


class LazyHistories:
    """Histories of B users as external ids, encoded lazily: a GPU works while the next users' ids are looked up.

    Args:
        histories: of each user, in any containers that have an order.
        items: encodes the ids.

    Raises:
        ValueError: if a history is no sequence of ids.

    Attributes:
        clicks: those of all users who have been asked for, and 0 for the others.

    Example:
        >>> lazy = LazyHistories([["b", "a"], [], ["c"]], Vocabulary(["a", "b", "c"]))
        >>> lazy[np.array([2])].codes.tolist(), lazy.clicks.codes.tolist()
        ([3], [0, 0, 3])
    """

    def __init__(self, histories: Sequence[Sequence[Id]], items: Vocabulary) -> None:
        self.histories, self.items = plain_rows(histories, "adapt"), items
        self.counts: Ints = np.fromiter(map(len, self.histories), dtype=np.int64, count=len(self.histories))
        offsets = _offsets(self.counts)
        self.clicks = Clicks(np.zeros(offsets[-1], dtype=np.int64), offsets)

    def __getitem__(self, users: Ints) -> Clicks:
        """Some of the users, in the order asked for.

        Raises:
            ValueError: if an id is not known, naming the first user with one, whoever was asked for.
        """
        codes = self.encoded(map(self.histories.__getitem__, users.tolist()))
        offsets = _offsets(self.counts[users])
        self.clicks.codes[self.clicks.places(users, offsets)] = codes
        return Clicks(codes, offsets)

    def encoded(self, histories: Iterable[Sequence[Id]]) -> Ints:
        """The codes of some users' ids, one user after the other."""
        try:
            return self.items.encode(list(chain.from_iterable(histories)))
        except ValueError:
            if len(self.histories) > 1:
                _blame(self.histories, self.items)
            raise


def _offsets(counts: Ints) -> Ints:
    return np.append(0, np.cumsum(counts))


def _blame(histories: Sequence[Sequence[Id]], items: Vocabulary) -> None:
    """Raises the error of the first history with an unknown id, naming its user."""
    for number, history in enumerate(histories):
        try:
            items.encode(history)
        except ValueError as error:
            raise ValueError(f"user {number}: {error}") from None


def kind_codes(given: Sequence[Any], counts: Ints, kinds: Sequence[str]) -> Ints:
    """(n,) codes of the kinds of all users' events, from their names.

    Args:
        given: of each user one name per event; None where all are clicks.
        counts: (B,) events of each user.
        kinds: names of all kinds, that of clicks first.

    Raises:
        ValueError: if there are not so many, or one is not known; names the user and the kind.

    Example:
        >>> kind_codes([["view", "buy"], None], np.array([2, 1]), ("buy", "view")).tolist()
        [1, 0, 0]
    """
    if not kinds:
        raise ValueError("kinds: the model knows clicks alone; fit it on data with kind= and target=")
    if len(given) != len(counts):
        raise ValueError(f"kinds: expected those of {len(counts)} users, got {len(given)}")
    code, out = {name: number for number, name in enumerate(kinds)}, []
    for user, (own, count) in enumerate(zip(given, counts.tolist(), strict=True)):
        names = [kinds[0]] * count if own is None else plain(own, "kinds")
        if len(names) != count:
            raise ValueError(f"user {user}: kinds: expected one for each of {count} events, got {len(names)}")
        if strange := [name for name in names if name not in code]:
            raise ValueError(f"user {user}: kinds: unknown kind {strange[0]!r:.80}; the model knows {list(kinds)}")
        out += [code[name] for name in names]
    return np.array(out, dtype=np.int64)


def histories(given: Sequence[Sequence[Id]], kinds: Sequence[Any] | None, catalog: Catalog) -> Clicks | LazyHistories:
    """Histories of B users, as lazily as can be.

    Args:
        given: external ids, of each user.
        kinds: of each user the names of the kinds of the events, or None; None where all are clicks.
        catalog: the items.

    Raises:
        ValueError: as :class:`LazyHistories` and :meth:`Clicks.of_kinds`.
    """
    if kinds is None:
        return LazyHistories(given, catalog.items)
    return Clicks.of_kinds(given, plain(kinds, "kinds"), catalog.items, catalog.kinds)
