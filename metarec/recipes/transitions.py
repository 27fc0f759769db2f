"""Item-to-item counts: first-order transitions (Markov chain) and co-clicks within a window."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from metarec.data.dataset import Dataset
from metarec.model import Saved, register
from metarec.recipes.asked_pairs import summed_by_user
from metarec.recipes.click_log import ClickLog, Floats
from metarec.recipes.counting import Counts, last_read, setting
from metarec.recipes.pair_counts import PairCounts
from metarec.recipes.pair_events import PairRule
from metarec.recipes.sparse_scores import SparseScores
from metarec.scoring import Scores, UserState
from metarec.types import Examples

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

_FADING: Floats = FORGET ** np.arange(READ, dtype=np.float64)


@register
class Transitions(Counts, nn.Module):
    """Scores an item by how often it followed the user's last clicks, among the clicks of others (log of a sum).

    ``score_i = log(least + sum_r FORGET^r n(x_r, i) / (n(x_r) + SHRINK))``, where x_r is the user's r-th last click,
    n(x, i) how often users clicked i among the ``REACH`` clicks after x, and n(x) the sum over i. Of items that nobody
    clicked upstream it knows nothing; live, there is no such item.

    What is true after all clicks is kept as sums, so that a user costs no more than the items that followed their
    clicks, and ``observe`` no more than the new clicks. Live counts at a time of the past, as in an evaluation, are
    added up from single clicks. All of it is on the CPU; scores are where the users' states are.

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
    both_ways = False
    known: Tensor
    _counted: PairCounts

    def __init__(self, data: Dataset, *, half_life: float | None = None, live: bool = False) -> None:
        if half_life is not None and not (half_life > 0 and live):
            raise ValueError(f"transitions: expected a half-life above 0, and live, got {half_life} and live={live}")
        super().__init__()
        self.attach(data)
        self.fitted_until = None if live or not len(data) else float(data.time.max())
        if not (data.user[1:] == data.user[:-1]).any():
            raise ValueError(f"transitions: {data.name} has no user with two clicks, so nothing follows anything")
        rule = self._rule(half_life)
        self._begin(PairCounts.of(ClickLog.of(data), rule, data.catalog.size), live, data.warm)

    def _rule(self, half_life: float | None) -> PairRule:
        return PairRule(REACH, self.both_ways, math.inf if half_life is None else half_life, FORGOTTEN)

    def _begin(self, counted: PairCounts, live: bool, warm: NDArray[Any]) -> None:
        self.live, self.information = live, "live" if live else "upstream"
        self._counted = counted if live else counted.closed()
        items = np.arange(len(warm)) > 0 if live else warm
        self.register_buffer("known", torch.from_numpy(items.copy()), persistent=False)
        self.register_buffer("observed", torch.zeros((), dtype=torch.int64), persistent=False)

    @property
    def half_life(self) -> float:
        """Age at which a transition counts half; infinite where all count alike."""
        return self._counted.rule.half_life

    def item_mask(self) -> Tensor:
        """(I,) bool, the items clicked upstream; live, all."""
        return self.known

    def read(self, query: Examples) -> dict[str, Tensor]:
        """``history``, (N, READ) int32, the last clicks, the last one first; everybody is active."""
        history = last_read(query, READ)
        return {"active": torch.ones(len(history), dtype=torch.bool, device=history.device), "history": history}

    def scores(self, state: UserState) -> Scores:
        """The log of what the last clicks lead to, ``log(least)`` for all else."""
        counted, history = self._counted, state.tensors["history"]
        items = history.cpu().numpy()
        items = items[:, : int((items > 0).sum(1).max(initial=1))].astype(np.int64)
        time = state.tensors["time"].cpu().numpy() if self.live else None
        share = lambda total, clicks: self._share(_FADING[: items.shape[1]], total, clicks)  # noqa: E731
        start, item, value = summed_by_user(counted.asked(items, time), share, len(items), len(counted.clicks))
        value = np.log(self.least + self._each(value, lambda: counted.clicks_of(item, start, time)))
        return SparseScores.of(start, item, value, math.log(self.least), self.measured(self.known), history.device)

    def _share(self, weight: Floats, total: Floats, clicks: Floats) -> Floats:
        """What each transition of a click counts, (n, R), from the click's weight and all the transitions of its item.

        Co-clicks go by the clicks of the item.
        """
        return weight / (total + SHRINK)

    def _each(self, value: Floats, clicks: Callable[[], Floats]) -> Floats:
        """The sums of some items, from how often those were clicked if that is asked for."""
        return value

    def _grow(self, items: int) -> None:
        self._counted = self._counted.padded(items)
        more = torch.full((items - len(self.known),), self.live, device=self.known.device)
        self.known = torch.cat([self.known, more])

    def _told(self) -> Saved:
        """Live, all clicks; upstream, the sums as compressed sparse rows, with the clicks of each item."""
        rule, log = self._counted.rule, self._counted.log
        half_life = rule.half_life if rule.fades else None
        settings = {"live": self.live, "half_life": half_life}
        return Saved(settings, log.tensors() if log is not None else self._counted.rows())

    def _take(self, saved: Saved) -> None:
        live, half_life = (setting(saved.settings, *ask) for ask in (("live", bool), ("half_life", float)))
        if half_life is not None and not (half_life > 0 and live and not self.both_ways):
            raise ValueError(f"half_life: expected None, or above 0 and live, got {half_life} and live={live}")
        rule = self._rule(half_life)
        if live:
            counted = PairCounts.of(ClickLog.of_tensors(saved.tensors, len(self.warm)), rule, len(self.warm))
        else:
            counted = PairCounts.of_rows(saved.tensors, rule, len(self.warm))
        self._begin(counted, live, self.warm)


@register
class CoClicks(Transitions):
    """Co-occurrence counts: scores an item by clicks beside the user's last ones, before or after (log of a sum).

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
    both_ways = True

    def __init__(self, data: Dataset, *, live: bool = False) -> None:
        super().__init__(data, live=live)

    def _share(self, weight: Floats, total: Floats, clicks: Floats) -> Floats:
        return weight / np.sqrt(clicks + FEW)

    def _each(self, value: Floats, clicks: Callable[[], Floats]) -> Floats:
        return value / np.sqrt(clicks() + FEW)
