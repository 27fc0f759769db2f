"""A user's own clicks: which items are clicked again, by how often, how lately, and how regularly.

A conditional logit (McFadden, 1974) over all items, of which those that the user has clicked get a term of their own
beside the popularity of the item:

    log P(i | history) = log p_i + [i was clicked] w . f(i, history) - log Z,

with p the shares of the clicks upstream. The features are a constant; the logs of the item's clicks by this user, of
the clicks since the last of them, and whether it was the very last; how often the item is clicked again upstream; how
much of the user's history are repeats; the log of its length; and how far the time since the last click, in clicks, is
from the item's usual gap. The term is the score: what an item was not clicked gets 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from metarec.data import EpisodeSampler
from metarec.data.dataset import Dataset
from metarec.model import Saved, register
from metarec.recipes.click_log import Floats
from metarec.recipes.counting import Counts, all_read, numbers
from metarec.recipes.next_item import every_click
from metarec.recipes.sparse_scores import SparseScores
from metarec.scoring import Scores, UserState
from metarec.types import Examples

FEATURES = 8
PRIOR = 10.0  # clicks of an average item or user that shares are shrunk by
EXAMPLES = (
    20_000  # clicks that the weights are fitted to: with 5,000, of a hundred users, their signs changed with the seed
)
PENALTY = 1e-4  # of the squared weights, beside the mean loss
LENGTH = 50  # clicks of a history that are read


@register
class OwnClicks(Counts):
    """Scores the items of the user's own history; all others get 0.

    Args:
        data: the upstream side of a split.
        seed: which clicks the weights are fitted to, if there are more than ``EXAMPLES``.

    Raises:
        ValueError: if there is no interaction.

    Example:
        >>> from metarec.data.dataset import Catalog, Vocabulary
        >>> n = np.arange(40)
        >>> data = Dataset(Vocabulary(["u", "v"], "user"), Catalog(Vocabulary(["a", "b", "c"])), user=1 + n // 20,
        ...                item=1 + n % 2, time=n, warm=np.array([False, True, True, False]))
        >>> model = OwnClicks(data)  # everybody goes from a to b and back
        >>> clicks = Examples(torch.tensor([[1, 2]]), torch.tensor([[1]]), torch.tensor([[1]]),
        ...                   torch.zeros(1, 1, 0, dtype=torch.int64), torch.ones(1, 1))
        >>> model.scores(model.encode(clicks, clicks)).approximate(0, 4).argmax().item()
        1
    """

    def __init__(self, data: Dataset, *, seed: int = 0) -> None:
        if not len(data):
            raise ValueError(f"OwnClicks: expected interactions, got none in {data.name}")
        self.attach(data)
        self.fitted_until = float(data.time.max())
        self._begin(*_habits(data), torch.zeros(FEATURES, dtype=torch.float64))
        self.weight = self._fit(*_examples(data, seed), data)

    def _begin(self, again: Floats, gap: Floats, weight: Tensor) -> None:
        """Note by item the log-odds of being clicked again and the log of the usual gap, and the weights."""
        self.again, self.gap, self.weight = torch.from_numpy(again), torch.from_numpy(gap), weight

    def item_mask(self) -> Tensor:
        """(I,) bool, all items."""
        return torch.arange(len(self.again)) > 0

    def read(self, query: Examples) -> dict[str, Tensor]:
        """``history``, (N, L) int32; active is who has clicked anything."""
        history = all_read(query)
        return {"active": (history > 0).any(1), "history": history}

    def scores(self, state: UserState) -> Scores:
        """What the clicked items get; see :class:`OwnScores`."""
        history = state.tensors["history"].long()
        last, features = self._features(history.cpu())
        row, place = last.nonzero(as_tuple=True)
        item, value = history.cpu()[row, place], features[row, place] @ self.weight
        order = (row * len(self.again) + item).argsort()
        start = F.pad(last.sum(1).cumsum(0), (1, 0))
        found = OwnScores(start, item[order], value[order], 0.0, self.item_mask())
        return found.to(history.device)

    def _features(self, history: Tensor) -> tuple[Tensor, Tensor]:
        """Where (N, L) the last click on each item is, and its features (N, L, FEATURES) float64."""
        real = history > 0
        same = (history[:, :, None] == history[:, None]) & real[:, None]
        back = real.flip(1).cumsum(1).flip(1)  # 1 for the last click
        last = real & ~same.triu(1).any(-1)
        length = real.sum(1, keepdim=True)
        repeats = length - last.sum(1, keepdim=True)
        prior = torch.sigmoid(self.again[1:].mean()) if len(self.again) > 1 else torch.tensor(0.5)
        share = (repeats + PRIOR * prior) / (length + PRIOR)
        columns = [
            torch.ones_like(history),
            same.sum(-1).clamp(min=1).log(),
            back.clamp(min=1).log(),
            back == 1,
            self.again[history],
            torch.logit(share.double(), 1e-6).expand(history.shape),
            length.clamp(min=1).log().expand(history.shape),
            (back.clamp(min=1).log() - self.gap[history]).abs(),
        ]
        return last, torch.stack([column.double() for column in columns], -1)

    def _fit(self, history: Tensor, target: Tensor, data: Dataset) -> Tensor:
        """The weights that make the clicks (n,) after histories (n, L) likeliest."""
        popular = torch.from_numpy(np.bincount(data.item, minlength=len(self.again)) + 0.5)
        popular[0] = 0
        last, features = self._features(history)
        share = (popular / popular.sum())[history] * last
        mine, left = last & (history == target[:, None]), 1 - share.sum(1)
        weight = self.weight.clone().requires_grad_()
        optimizer = torch.optim.LBFGS([weight], max_iter=50, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            term = features @ weight
            total = left + (share * term.clamp(max=50).exp()).sum(1)
            loss = (total.log() - (term * mine).sum(1)).mean() + PENALTY * (weight**2).sum()
            loss.backward()
            return loss

        with torch.enable_grad():
            optimizer.step(closure)
        return weight.detach()

    def _grow(self, items: int) -> None:
        more = items - len(self.again)
        again, gap = (torch.cat([own, own[1:].mean().expand(more)]).numpy() for own in (self.again, self.gap))
        self._begin(again, gap, self.weight)

    def _told(self) -> Saved:
        """The items' habits and the weights."""
        return Saved({}, {"again": self.again, "gap": self.gap, "weight": self.weight})

    def _take(self, saved: Saved) -> None:
        size = len(self.warm)
        again, gap = (numbers(saved.tensors, name, torch.float64, size) for name in ("again", "gap"))
        self._begin(again, gap, torch.from_numpy(numbers(saved.tensors, "weight", torch.float64, FEATURES)))


@dataclass(frozen=True, eq=False)
class OwnScores(SparseScores):
    """Scores that are log-odds already: they are not standardised by mean and deviation."""

    log_odds = True

    def error(self) -> Tensor:
        """(N,) float64; sums of several models assume scores of deviation 1, which these are not."""
        return 16 * super().error()

    def to(self, device: torch.device | str) -> OwnScores:
        """The same on another device."""
        return replace(self, **{name: getattr(self, name).to(device) for name in ("start", "item", "value", "known")})


def _habits(data: Dataset) -> tuple[Floats, Floats]:
    """By catalogue row the log-odds that a click on the item is a repeat, and the mean log of the gap in clicks."""
    order = np.lexsort((np.arange(len(data)), data.time, data.user))
    user, item = data.user[order], data.item[order]
    place = np.arange(len(user)) - np.searchsorted(user, user)
    by_item = np.lexsort((place, item, user))
    same = (np.diff(user[by_item]) == 0) & (np.diff(item[by_item]) == 0)
    again, gaps = item[by_item][1:][same], np.log(np.diff(place[by_item])[same])
    size = data.catalog.size
    clicks, repeats = np.bincount(item, minlength=size), np.bincount(again, minlength=size)
    usual, mean = max(1.0, float(repeats.sum())) / len(item), float(gaps.mean()) if len(gaps) else 0.0
    share = _shrunk(repeats, clicks, usual)
    return np.log(share) - np.log1p(-share), _shrunk(np.bincount(again, gaps, size), repeats, mean)


def _shrunk(total: NDArray[Any], count: NDArray[Any], usual: float) -> Floats:
    """Means of counts, as if each had ``PRIOR`` usual ones more."""
    shrunk: Floats = (total + PRIOR * usual) / (count + PRIOR)
    return shrunk


def _examples(data: Dataset, seed: int) -> tuple[Tensor, Tensor]:
    """Histories (n, L) and the items (n,) that were clicked next, of some users drawn at random."""
    found, count = [], 0
    for batch in EpisodeSampler(data, seed=seed, negatives=0, max_length=LENGTH).epoch(0):
        examples = every_click(batch)
        real = (examples.weight > 0).flatten()
        history = all_read(examples).long()[real]
        found.append((F.pad(history, (0, LENGTH - history.shape[1])), examples.target.flatten()[real]))
        count += len(history)
        if count >= EXAMPLES:
            break
    if not found:
        return torch.zeros(0, LENGTH, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    history, target = (torch.cat(column)[:EXAMPLES] for column in zip(*found, strict=True))
    return history, target
