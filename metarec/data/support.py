"""Support and query sets of served users: every click after the first is an example, the next one is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarec.data.histories import Clicks
from metarec.data.vocabulary import Ints
from metarec.functional.kinds import ITEM
from metarec.types import Examples


class SupportMaker:
    """Builds support and query sets from histories; a user's negatives depend on its own clicks alone.

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
        self.is_warm, self.warm = warm, np.flatnonzero(warm)
        self.rank = np.where(warm, np.cumsum(warm) - 1, len(self.warm))

    def __call__(self, clicks: Clicks) -> tuple[Examples, Examples]:
        """Support and query of B users, each with at least one event.

        Returns:
            support: every click after the first is a target; S = max(1, longest history - 1).
            query: Q = 1, the state after the last click; the target is unknown and stands as 0.
        """
        events, clicks = clicks, clicks.clicked
        support, query = self._of_clicks(clicks)
        return (support, query) if clicks is events else self._beside(support, query, events)

    def _beside(self, support: Examples, query: Examples, events: Clicks) -> tuple[Examples, Examples]:
        """The same with the events of all kinds that may be read."""
        most = np.minimum(events.counts, self.max_length)
        column = np.arange(int(most.max()))
        first = events.offsets[1:] - most
        row = np.where(column < most[:, None], first[:, None] + column, -1)
        codes = torch.from_numpy(np.where(row >= 0, events.codes[row], 0))
        place = np.append(np.flatnonzero(events.codes <= ITEM), 0)  # of the clicks among all events
        clicks = events.clicked
        n = np.minimum(clicks.counts, self.max_length)
        real = support.weight.numpy() > 0
        target = np.where(real, (clicks.offsets[1:] - n)[:, None] + support.position.numpy() + 1, -1)
        read = np.where(real, np.maximum(place[target] - 1 - first[:, None], -1), -1)
        asked = replace(query, events=codes, read=torch.from_numpy(most - 1)[:, None])
        return replace(support, events=codes, read=torch.from_numpy(read)), asked

    def _of_clicks(self, clicks: Clicks) -> tuple[Examples, Examples]:
        n = np.minimum(clicks.counts, self.max_length)
        column = np.arange(max(1, int(n.max())))
        codes = np.append(clicks.codes, 0)  # so that there is one, of users without clicks
        read = np.where(column < n[:, None], (clicks.offsets[1:] - n)[:, None] + column, -1)
        history = np.where(read >= 0, codes[read], 0)
        target = history[:, 1:] if len(column) > 1 else np.zeros_like(history)
        real = target > 0
        position = column[: target.shape[1]] * real
        known = history[:, : target.shape[1]] * (real | (column[: target.shape[1]] == 0))
        support = (known, position, target, self._negatives(target) * real[..., None], real.astype(np.float32))
        ends, one = np.maximum(n - 1, 0)[:, None], np.ones((len(n), 1), dtype=np.float32)
        zero = np.zeros((len(n), 1), dtype=np.int64)
        query = (history, ends, zero, np.zeros((len(n), 1, self.negatives), dtype=np.int64), one)
        return _examples(support), _examples(query)

    def with_negatives(self, support: Examples) -> Examples:
        """The same examples with the negatives that are drawn for users who are served."""
        real = (support.weight > 0).numpy()[..., None]
        return replace(support, negatives=torch.from_numpy(self._negatives(support.target.numpy()) * real))

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
    """Move a support or query set to another device; copies to a GPU do not block."""
    if examples.history.device == device:
        return examples
    return examples.each(lambda tensor: copied(tensor, device))


def copied(tensor: Tensor, device: torch.device) -> Tensor:
    """Move a tensor to another device; a copy to a GPU comes from pinned memory and does not block."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)  # pragma: no cover


def _mixed(key: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele, Lea and Flood, OOPSLA 2014): every bit depends on every bit."""
    key = key + np.uint64(0x9E3779B97F4A7C15)
    key = (key ^ key >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    key = (key ^ key >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    out: NDArray[np.uint64] = key ^ key >> np.uint64(31)
    return out
