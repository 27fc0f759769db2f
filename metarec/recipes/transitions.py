"""Baselines and scorers of blends: what others clicked soon after, or beside, what this user clicked."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from metarec.data.dataset import Dataset
from metarec.functional.histories import readable
from metarec.recipes.popularity import after
from metarec.types import Examples, Scored, Scorer

REACH = 10
"""A click leads to each of the same user's next so many."""
READ = 20
"""A user's last so many clicks are looked at."""
FORGET = 0.9
"""An earlier click counts so much of the one after it."""
SHRINK = 30.0
"""Transitions that an item is taken to have led nowhere with, so that few say little."""
FEW = 10.0
"""Clicks that every item has on top of its own, where what is rare would seem close to anything it was clicked with."""
FORGOTTEN = 12
"""Half-lives after which a transition is left out."""
AT_ONCE = 1 << 23
"""Transitions that are summed at once."""


class Transitions(nn.Module):
    """Scores an item by how often it followed the user's last clicks, among the clicks of others (log of a sum).

    ``score_i = log(least + sum_r FORGET^r n(x_r, i) / (n(x_r) + SHRINK))``, where x_r is the user's r-th last click,
    n(x, i) how often users clicked i among the ``REACH`` clicks after x, and n(x) the sum over i. Of items that nobody
    clicked upstream it knows nothing; live, there is no such item.

    Args:
        data: the upstream side of a split; or, for ``live``, all clicks there are, before any split.
        half_life: age at which a transition counts half, in the units of the data (``data.days(3)``), where they are
            counted live; all count alike by default.
        live: count what comes strictly before the time of each example, whatever side of a split it is on: the
            information is ``"live"``. Examples without a time, of users served now, are asked for after the last click.

    Raises:
        ValueError: if no user has two clicks, or the half-life is not above 0 or given without ``live``.

    Example:
        >>> from metarec.data.dataset import Catalog, Vocabulary
        >>> data = Dataset(Vocabulary(["u", "v"], "user"), Catalog(Vocabulary(["a", "b", "c"])),
        ...                user=np.array([1, 1, 2, 2]), item=np.array([1, 2, 1, 3]), time=np.array([1, 5, 2, 9]),
        ...                warm=np.array([False, True, True, True]))
        >>> asked = Examples(torch.tensor([[1]]), torch.zeros(1, 1, dtype=torch.int64),
        ...                  torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1, 0, dtype=torch.int64),
        ...                  torch.ones(1, 1), time=torch.tensor([[7]]))
        >>> Transitions(data).adapt(asked)(asked).scores[0, 0].exp()  # 1 / (2 + SHRINK) for b and for c
        tensor([1.0000e-04, 1.0000e-04, 3.1350e-02, 3.1350e-02])
        >>> Transitions(data, half_life=2, live=True).adapt(asked)(asked).scores[0, 0].exp()  # only b, a half-life ago
        tensor([1.0000e-04, 1.0000e-04, 1.6493e-02, 1.0000e-04])
    """

    least = 1e-4  # what an item gets that nothing leads to; the log adds up with other scores
    clicked: Tensor
    key: Tensor
    following: Tensor
    at: Tensor
    known: Tensor

    def __init__(self, data: Dataset, *, half_life: float | None = None, live: bool = False) -> None:
        if half_life is not None and not (half_life > 0 and live):
            raise ValueError(f"transitions: expected a half-life above 0, and live, got {half_life} and live={live}")
        super().__init__()
        self.size, self.live, self.half_life = data.catalog.size, live, half_life or math.inf
        self.information = "live" if live else "upstream"
        self.fitted_until = None if live or not len(data) else float(data.time.max())
        items = np.arange(self.size) > 0 if live else data.warm
        self.register_buffer("known", torch.from_numpy(items), persistent=False)
        time = np.sort(data.time.astype(np.float64))
        pairs = [self._pairs(data, apart) for apart in range(1, REACH + 1)]
        before, after, at = (np.concatenate(column) for column in zip(*pairs, strict=True))
        if not len(at):
            raise ValueError(f"transitions: {data.name} has no user with two clicks, so nothing follows anything")
        key = before * (len(time) + 1) + np.searchsorted(time, at)  # by item, then by time: clicks before it
        order = np.argsort(key, kind="stable")
        for name, column in (("clicked", time), ("key", key[order]), ("following", after[order]), ("at", at[order])):
            self.register_buffer(name, torch.from_numpy(column), persistent=False)

    @staticmethod
    def _pairs(data: Dataset, apart: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Items, those that the same users clicked so many clicks later, and when."""
        same = data.user[apart:] == data.user[:-apart]
        before, after = data.item[:-apart][same].astype(np.int64), data.item[apart:][same].astype(np.int64)
        return before, after, data.time[apart:][same].astype(np.float64)

    def adapt(self, support: Examples) -> Scorer:
        """Nothing to adapt: what follows what is the same for every user."""
        return self._score

    def now(self, examples: Examples) -> Tensor:
        """(B, Q) float64, the time that each example is asked at; after all clicks where none is known."""
        if self.live and examples.time is not None:
            return examples.time.double()
        return after(self.clicked[-1]).expand(examples.target.shape)

    def _score(self, examples: Examples) -> Scored:
        shape = examples.target.shape
        recent, forgotten = self._recent(examples)
        chance = self._chances(recent.flatten(0, -2), forgotten.flatten(0, -2), self.now(examples).flatten())
        return Scored(
            scores=(chance + self.least).log().reshape(*shape, self.size),
            state=chance.new_zeros(*shape, 1),
            known=self.known,
            active=torch.ones(shape, dtype=torch.bool, device=chance.device),
        )

    def _recent(self, examples: Examples) -> tuple[Tensor, Tensor]:
        """The last clicks (B, Q, READ) that each example reads, the last one first, 0 after them, and their weights."""
        read = (readable(examples) & (examples.history > 0)[:, None]).int()
        back = read.flip(-1).cumsum(-1).flip(-1) * read  # 1 for the last click, 2 for that before it
        slot = torch.where(back > READ, 0, back).long()
        items = examples.history[:, None].expand_as(slot)
        recent = items.new_zeros(*slot.shape[:-1], READ + 1).scatter(-1, slot, items)[..., 1:]
        return recent, FORGET ** torch.arange(READ, device=recent.device) * (recent > 0)

    def _chances(self, recent: Tensor, weight: Tensor, now: Tensor) -> Tensor:
        """(n, I) from the last clicks of n examples (n, READ), their weights and the times (n,)."""
        last = torch.searchsorted(self.clicked, now.contiguous())
        old = torch.searchsorted(
            self.clicked, (now - FORGOTTEN * self.half_life).nan_to_num(nan=-math.inf).contiguous()
        )
        low, high = (
            torch.searchsorted(self.key, recent * (len(self.clicked) + 1) + bound[:, None]) for bound in (old, last)
        )
        count = (high - low) * (recent > 0)
        out = weight.new_zeros(len(recent), self.size)
        per_row = count.sum(-1).cumsum(0)
        start = 0
        while start < len(recent):
            done = 0 if start == 0 else int(per_row[start - 1])
            stop = max(start + 1, int(torch.searchsorted(per_row, done + AT_ONCE)))
            rows = slice(start, stop)
            heavy = self._weighed(weight[rows], recent[rows], last[rows])
            out[rows] = self._summed(low[rows].flatten(), count[rows].flatten(), heavy.flatten(), now[rows])
            start = stop
        return self._each(out, last)

    def _weighed(self, weight: Tensor, recent: Tensor, last: Tensor) -> Tensor:
        """Weights (n, READ) of items (n, READ), as they are told apart before their transitions are known."""
        return weight

    def _each(self, chance: Tensor, last: Tensor) -> Tensor:
        """Chances (n, I), from the sums."""
        return chance

    def _share(self, weight: Tensor, total: Tensor) -> Tensor:
        """What each transition counts, from the weight of its item and all the transitions of that."""
        return weight / (total + SHRINK)

    def _summed(self, low: Tensor, count: Tensor, weight: Tensor, now: Tensor) -> Tensor:
        """(n, I) sums over ranges of transitions, READ of them for each of n examples."""
        place = torch.repeat_interleave(torch.arange(len(low), device=low.device), count)
        event = torch.arange(len(place), device=low.device) + (low - count.cumsum(0) + count)[place]
        row = place // READ
        worth = torch.ones_like(event, dtype=weight.dtype)
        if math.isfinite(self.half_life):
            worth = torch.exp2((self.at[event] - now[row]) / self.half_life).to(weight.dtype)
        total = weight.new_zeros(len(low)).index_add_(0, place, worth)
        share = self._share(weight, total)[place] * worth
        flat = weight.new_zeros(len(now) * self.size).index_add_(0, row * self.size + self.following[event], share)
        return flat.reshape(len(now), self.size)


class CoClicks(Transitions):
    """Scores an item by how often it was clicked beside the user's last clicks, before or after (log of a sum).

    ``score_i = log(least + sum_r FORGET^r n(x_r, i) / sqrt((c(x_r) + FEW) (c(i) + FEW)))``, where n(x, i) is how often
    users clicked i at most ``REACH`` clicks from x, and c the clicks of an item. What everybody clicks is not close to
    anything: this says less of what is popular than :class:`Transitions`.

    Args:
        data: as there.
        live: as there.

    Raises:
        ValueError: if no user has two clicks.

    Example:
        >>> from metarec.data.dataset import Catalog, Vocabulary
        >>> data = Dataset(Vocabulary(["u"], "user"), Catalog(Vocabulary(["a", "b", "c"])), user=np.array([1, 1]),
        ...                item=np.array([2, 1]), time=np.array([1, 5]), warm=np.array([False, True, True, False]))
        >>> asked = Examples(torch.tensor([[1]]), torch.zeros(1, 1, dtype=torch.int64),
        ...                  torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1, 0, dtype=torch.int64),
        ...                  torch.ones(1, 1))
        >>> CoClicks(data).adapt(asked)(asked).scores[0, 0].exp()  # 1 / (1 + FEW) for b
        tensor([0.0010, 0.0010, 0.0919, 0.0010])
    """

    least = 1e-3
    own: Tensor

    def __init__(self, data: Dataset, *, live: bool = False) -> None:
        super().__init__(data, live=live)
        at = torch.searchsorted(self.clicked, torch.from_numpy(data.time.astype(np.float64)))
        own = torch.from_numpy(data.item.astype(np.int64)) * (len(data) + 1) + at
        self.register_buffer("own", own.sort().values, persistent=False)

    @staticmethod
    def _pairs(data: Dataset, apart: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        before, after, at = Transitions._pairs(data, apart)
        return np.concatenate([before, after]), np.concatenate([after, before]), np.concatenate([at, at])

    def _root(self, last: Tensor) -> Tensor:
        """(n, I) roots of the clicks of each item among the first ``last`` (n,) of all clicks."""
        first = torch.arange(self.size, device=last.device) * (len(self.clicked) + 1)
        count = torch.searchsorted(self.own, first + last[:, None]) - torch.searchsorted(self.own, first)
        return (count + FEW).sqrt()

    def _weighed(self, weight: Tensor, recent: Tensor, last: Tensor) -> Tensor:
        return weight / self._root(last).gather(1, recent)

    def _each(self, chance: Tensor, last: Tensor) -> Tensor:
        return chance / self._root(last)

    def _share(self, weight: Tensor, total: Tensor) -> Tensor:
        return weight
