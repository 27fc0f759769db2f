"""Vocabulary, catalogue and interactions as frozen values."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from metarec.types import Modality

Ints = NDArray[np.int64]
Times = NDArray[np.int64] | NDArray[np.float64]


class Vocabulary:
    """External ids (strings) and their codes: the i-th id has code i + 1, and 0 is padding.

    Args:
        ids: the external ids, each once.
        what: what the ids name; used in messages.

    Raises:
        ValueError: if an id appears twice.

    Example:
        >>> v = Vocabulary(["B004", "B017"], what="item")
        >>> v.encode(["B017"]).tolist(), v.decode([1]), len(v), v.size
        ([2], ['B004'], 2, 3)
        >>> v.encode(["B018"])
        Traceback (most recent call last):
        ...
        ValueError: unknown item id 'B018' (at position 0); nearest known ids: 'B017', 'B004'
    """

    def __init__(self, ids: Iterable[str], what: str = "item") -> None:
        self.ids: tuple[str, ...] = tuple(ids)
        self.what = what
        self._code = {name: code for code, name in enumerate(self.ids, start=1)}
        if len(self._code) != len(self.ids):
            twice = next(name for code, name in enumerate(self.ids, 1) if self._code[name] != code)
            raise ValueError(f"{what} id {twice!r} appears more than once in the vocabulary")

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, name: object) -> bool:
        return name in self._code

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.ids == other.ids

    def __hash__(self) -> int:
        return hash(self.ids)

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} {self.what} ids)"

    @property
    def size(self) -> int:
        """Rows of a table indexed by code: the ids and the padding row."""
        return len(self.ids) + 1

    def encode(self, ids: Sequence[str]) -> Ints:
        """Codes of external ids, (len(ids),) int64.

        Raises:
            ValueError: if an id is not known; names it and the nearest known ids.
        """
        try:
            return np.fromiter(map(self._code.__getitem__, ids), dtype=np.int64, count=len(ids))
        except KeyError:
            position, name = next((i, n) for i, n in enumerate(ids) if n not in self._code)
            near = difflib.get_close_matches(str(name), self.ids, n=3, cutoff=0.5)
            hint = f"nearest known ids: {', '.join(map(repr, near))}" if near else f"known ids look like {self.ids[:3]}"
            raise ValueError(f"unknown {self.what} id {name!r} (at position {position}); {hint}") from None

    def decode(self, codes: Iterable[int]) -> list[str]:
        """External ids of codes.

        Raises:
            ValueError: if a code is 0 (padding) or past the end.
        """
        out = []
        for code in codes:
            if not 1 <= int(code) <= len(self.ids):
                raise ValueError(f"{self.what} code {int(code)} is outside 1..{len(self.ids)}")
            out.append(self.ids[int(code) - 1])
        return out


@dataclass(frozen=True)
class Catalog:
    """The items: their ids, their modality features and, where the item file gives them, their attributes.

    Attributes:
        items: the item vocabulary.
        modalities: name -> Modality, rows in the order of the vocabulary.
        attributes: column name -> one string per item id (``""`` where missing), e.g. titles.
        hidden: ids of items that are not to be recommended any more.

    Raises:
        ValueError: if a modality or attribute does not have one row per item, or a hidden id is not known.

    Example:
        >>> catalog = Catalog(Vocabulary(["B004", "B017"]), attributes={"title": ["Alien", "Heat"]})
        >>> catalog.size, catalog.attributes["title"][catalog.items.encode(["B017"])[0] - 1]
        (3, 'Heat')
    """

    items: Vocabulary
    modalities: Mapping[str, Modality] = field(default_factory=dict)
    attributes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    hidden: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for name, modality in self.modalities.items():
            if len(modality.features) != self.items.size:
                raise ValueError(f"modality {name!r} has {len(modality.features)} rows, expected {self.items.size}")
        for name, column in self.attributes.items():
            if len(column) != len(self.items):
                raise ValueError(f"attribute {name!r} has {len(column)} values, expected {len(self.items)}")
        self.items.encode(sorted(self.hidden))
        object.__setattr__(self, "modalities", MappingProxyType(dict(self.modalities)))
        object.__setattr__(self, "attributes", MappingProxyType(dict(self.attributes)))

    def __getitem__(self, modality: str) -> Modality:
        if modality not in self.modalities:
            raise ValueError(f"the catalogue has no modality {modality!r}; it has {sorted(self.modalities)}")
        return self.modalities[modality]

    @property
    def size(self) -> int:
        """I, the rows of any item table: the items and the padding row."""
        return self.items.size

    def grown(self, added: Catalog) -> Catalog:
        """This catalogue followed by other items; the codes of its own stay as they are.

        Args:
            added: modalities and attributes that it does not have are missing for its items.

        Raises:
            ValueError: if an id is in both, or ``added`` has a modality that this one lacks or of another width.

        Example:
            >>> more = Catalog(Vocabulary("ab")).grown(Catalog(Vocabulary("c")))
            >>> more.items.ids, more.size
            (('a', 'b', 'c'), 4)
        """
        for name, modality in added.modalities.items():
            if modality.dim != self[name].dim:
                raise ValueError(f"modality {name!r}: expected {self[name].dim} columns, got {modality.dim}")
        more = len(added.items)
        return Catalog(
            Vocabulary((*self.items.ids, *added.items.ids), self.items.what),
            {name: own.followed_by(added.modalities.get(name), more) for name, own in self.modalities.items()},
            {name: (*own, *added.attributes.get(name, [""] * more)) for name, own in self.attributes.items()},
            self.hidden,
        )


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
        upstream_repeat_share: ``repeat_share`` of the upstream side, known to both sides of a split.

    Raises:
        ValueError: if the columns differ in length or are not sorted.

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
    upstream_repeat_share: float | None = None

    def __post_init__(self) -> None:
        if not len(self.user) == len(self.item) == len(self.time):
            raise ValueError(
                f"{self.name}: user, item and time must have one value per interaction, got "
                f"{len(self.user)}, {len(self.item)} and {len(self.time)}"
            )
        same = self.user[1:] == self.user[:-1]
        if (self.user[1:] < self.user[:-1]).any() or (same & (self.time[1:] < self.time[:-1])).any():
            raise ValueError(f"{self.name}: interactions must be sorted by user, then time")
        if self.warm.shape != (self.catalog.size,):
            raise ValueError(f"{self.name}: warm must have shape ({self.catalog.size},), got {self.warm.shape}")

    def __len__(self) -> int:
        return len(self.user)

    def __repr__(self) -> str:
        return (
            f"Dataset({self.name}: {len(self):,} interactions, {len(self.user_codes):,} users, "
            f"{len(self.catalog.items):,} items, modalities {sorted(self.catalog.modalities)})"
        )

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


def _distinct(values: Ints) -> int:
    """How many different values there are; sorting them takes a tenth of the time of ``np.unique``."""
    ordered = np.sort(values)
    return int((ordered[1:] != ordered[:-1]).sum()) + bool(len(ordered))
