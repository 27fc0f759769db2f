"""Clicks of many users without a list per user, and the support examples that a model adapts to."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray

from metarec.data.containers import plain_rows
from metarec.data.dataset import Ints, Vocabulary
from metarec.types import Examples


@dataclass(frozen=True, eq=False)
class Clicks:
    """The clicks of B users in time order, one after the other.

    Attributes:
        codes: (n,) int64 item codes.
        offsets: (B + 1,) int64, where each user starts; the last entry is n.

    Example:
        >>> clicks = Clicks.of([["b", "a"], [], ["c"]], Vocabulary(["a", "b", "c"]))
        >>> clicks.codes.tolist(), clicks.counts.tolist(), clicks[2:].codes.tolist()
        ([2, 1, 3], [2, 0, 1], [3])
    """

    codes: Ints
    offsets: Ints

    @classmethod
    def of(cls, histories: Sequence[Sequence[str]], items: Vocabulary) -> Clicks:
        """Encode external ids.

        Raises:
            ValueError: if a history is no sequence of ids, or an id is not known (naming user, id and the nearest ids).
        """
        spelled = Spelled(histories, items)
        spelled.clicks.codes[:] = spelled.encoded(spelled.histories)
        return spelled.clicks

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

    @property
    def counts(self) -> Ints:
        """(B,) clicks of each user."""
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


class Spelled:
    """Clicks of B users as external ids, which are encoded when they are asked for: a GPU goes on meanwhile.

    Args:
        histories: of each user, in any containers that have an order.
        items: encodes the ids.

    Raises:
        ValueError: if a history is no sequence of ids.

    Attributes:
        clicks: those of all users who have been asked for, and 0 for the others.

    Example:
        >>> spelled = Spelled([["b", "a"], [], ["c"]], Vocabulary(["a", "b", "c"]))
        >>> spelled[np.array([2])].codes.tolist(), spelled.clicks.codes.tolist()
        ([3], [0, 0, 3])
    """

    def __init__(self, histories: Sequence[Sequence[str]], items: Vocabulary) -> None:
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

    def encoded(self, histories: Iterable[Sequence[str]]) -> Ints:
        """The codes of some users' ids, one user after the other."""
        try:
            return self.items.encode(list(chain.from_iterable(histories)))
        except ValueError:
            if len(self.histories) > 1:
                _blame(self.histories, self.items)
            raise


def _offsets(counts: Ints) -> Ints:
    return np.append(0, np.cumsum(counts))


def _blame(histories: Sequence[Sequence[str]], items: Vocabulary) -> None:
    """Raises the error of the first history with an unknown id, naming its user."""
    for number, history in enumerate(histories):
        try:
            items.encode(history)
        except ValueError as error:
            raise ValueError(f"user {number}: {error}") from None


class SupportMaker:
    """Makes support examples whose negatives depend on the user's own clicks alone, not on who else is adapted to.

    Args:
        warm: (I,) bool, items that may be negatives.
        negatives: N per example, uniform over the warm items without the target.
        max_length: most items of a history; the last ones count.

    Example:
        >>> maker = SupportMaker(np.array([False, True, True, True]), negatives=1, max_length=50)
        >>> support, query = maker(Clicks.join([np.array([3, 1, 2]), np.array([2])]))
        >>> support.history.tolist(), support.target.tolist(), support.weight.tolist()
        ([[3, 1], [2, 0]], [[1, 2], [0, 0]], [[1.0, 1.0], [0.0, 0.0]])
        >>> query.history.tolist(), query.position.tolist()
        ([[3, 1, 2], [2, 0, 0]], [[2], [0]])
    """

    def __init__(self, warm: NDArray[np.bool_], negatives: int, max_length: int) -> None:
        self.negatives, self.max_length = negatives, max_length
        self.warm = np.flatnonzero(warm)
        self.rank = np.where(warm, np.cumsum(warm) - 1, len(self.warm))

    def __call__(self, clicks: Clicks) -> tuple[Examples, Examples]:
        """Support and query of B users, each with at least one click.

        Returns:
            support: every click after the first is a target; S = max(1, longest history - 1).
            query: Q = 1, the state after the last click; the target is unknown and stands as 0.
        """
        n = np.minimum(clicks.counts, self.max_length)
        column = np.arange(int(n.max()))
        read = np.where(column < n[:, None], (clicks.offsets[1:] - n)[:, None] + column, -1)
        history = np.where(read >= 0, clicks.codes[read], 0)
        target = history[:, 1:] if len(column) > 1 else np.zeros_like(history)
        real = target > 0
        position = column[: target.shape[1]] * real
        known = history[:, : target.shape[1]] * (real | (column[: target.shape[1]] == 0))
        support = (known, position, target, self._negatives(target) * real[..., None], real.astype(np.float32))
        ends, one = (n - 1)[:, None], np.ones((len(n), 1), dtype=np.float32)
        zero = np.zeros((len(n), 1), dtype=np.int64)
        query = (history, ends, zero, np.zeros((len(n), 1, self.negatives), dtype=np.int64), one)
        return _examples(support), _examples(query)

    def grown(self, size: int) -> SupportMaker:
        """The same for a larger catalogue, whose further items are no negatives."""
        out = copy.copy(self)
        out.rank = np.pad(self.rank, (0, size - len(self.rank)), constant_values=len(self.warm))
        return out

    def _negatives(self, target: Ints) -> Ints:
        """(B, S, N) warm items, a function of the example's place and target."""
        place = np.arange(target.shape[1], dtype=np.uint64)[:, None]
        draw = np.arange(self.negatives, dtype=np.uint64)
        key = target[..., None].astype(np.uint64) << np.uint64(32) | place << np.uint64(16) | draw
        rank = self.rank[target][..., None]
        room = len(self.warm) - (rank < len(self.warm))
        chosen = (_mixed(key) % room.astype(np.uint64)).astype(np.int64)
        return self.warm[chosen + (chosen >= rank)]


def _examples(arrays: Sequence[NDArray[np.generic]]) -> Examples:
    return Examples(*(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays))


def sent(examples: Examples, device: torch.device) -> Examples:
    """Support or query on another device; on the way to a GPU, nobody waits for what it is still busy with."""
    if device.type != "cuda":
        return examples.to(device)
    moved = (t.pin_memory().to(device, non_blocking=True) for t in examples.tensors())  # pragma: no cover
    return Examples(*moved)  # pragma: no cover


def _mixed(key: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele, Lea and Flood, OOPSLA 2014): every bit depends on every bit."""
    key = key + np.uint64(0x9E3779B97F4A7C15)
    key = (key ^ key >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    key = (key ^ key >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    out: NDArray[np.uint64] = key ^ key >> np.uint64(31)
    return out
