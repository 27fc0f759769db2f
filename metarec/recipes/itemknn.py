"""ItemKNN: the items most alike those in the history, by who clicked them.

Source: Deshpande and Karypis, TOIS 2004; cosine similarity with shrinkage.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from metarec.data.dataset import Dataset, Ints
from metarec.files import expect_tensor
from metarec.functional import top_k
from metarec.model import Saved, register
from metarec.recipes.asked_pairs import Asked, ranges, summed_by_user
from metarec.recipes.click_log import Floats, check_codes
from metarec.recipes.counting import numbers
from metarec.recipes.ease import SomeItems, check_ascending, cooccurrences, distinct, most_clicked, placed
from metarec.recipes.sparse_scores import SparseScores
from metarec.scoring import Scores, UserState


@register
class ItemKNN(SomeItems):
    """Scores an item by the summed similarity of the history's items, of which it must be a nearest neighbour.

    ``similarity_ij = n_ij / (sqrt(n_i n_j) + shrink)``, n the users who clicked the item or both items. With a
    ``decay`` below 1 an item of the history counts by ``decay ** (clicks after the last one on it)``.

    Args:
        data: the upstream side of a split.
        neighbours: items that each item of the history speaks for.
        shrink: doubt in items with few clicks.
        decay: what a click counts, for each click after it; 1 for all alike.
        items: so many at most, the most clicked; of the others it knows nothing.
        device: where the matrix, items by items, is made and kept.

    Raises:
        ValueError: if ``neighbours`` or ``items`` is below 1, ``shrink`` negative, or ``decay`` not above 0 or above 1.

    Example:
        >>> from metarec.data import split_by_time
        >>> from metarec.datasets import PLANTED_SPLIT, planted
        >>> from metarec.evaluation import evaluate
        >>> up, down = split_by_time(planted(users=60, items=40, adaptation=0.0), at=PLANTED_SPLIT)
        >>> evaluate(ItemKNN(up), down, k=(5,)).metrics["recall@5"].mean > 5 / 40
        True
    """

    def __init__(
        self,
        data: Dataset,
        *,
        neighbours: int = 100,
        shrink: float = 20.0,
        decay: float = 1.0,
        items: int = 10_000,
        device: torch.device | str = "cpu",
    ) -> None:
        if neighbours < 1 or shrink < 0:
            raise ValueError(f"ItemKNN: expected neighbours >= 1 and shrink >= 0, got {neighbours} and {shrink}")
        self.attach(data)
        self.decay = _checked(decay)
        codes = most_clicked(data, items)
        together = cooccurrences(data, codes, device)
        root = together.diagonal().sqrt()
        similarity = (together / (root[:, None] * root + shrink).clamp(min=1e-9)).fill_diagonal_(0)
        values, nearest = (found.cpu() for found in top_k(similarity, min(neighbours, len(similarity))))
        row, column = (values > 0).nonzero(as_tuple=True)
        start = np.searchsorted(row.numpy(), np.arange(len(codes) + 1))
        self._begin(codes, start, codes[nearest[row, column].numpy()], values[row, column].numpy(), data.catalog.size)
        self.fitted_until = float(data.time.max())

    def _begin(self, codes: Ints, start: Ints, item: Ints, value: NDArray[np.float32], items: int) -> None:
        """Note the neighbours of the items ``codes``: those from ``start`` on of ``item``, and how alike they are."""
        self.codes = torch.from_numpy(codes)
        self._start, self._item, self._value = start, item, value
        self._place = placed(self.codes, items)

    def scores(self, state: UserState) -> Scores:
        """The summed similarities of the clicked items' neighbours, 0 for all else."""
        history = state.tensors["history"].cpu().long()
        place, last, order = distinct(self._place[history])
        after = (history > 0).flip(1).cumsum(1).flip(1).gather(1, order) - 1
        weight = (self.decay ** after.clamp(min=0).double()).numpy()
        own, real = place.numpy(), last.numpy()
        low, count = self._start[own * real], np.where(real, np.diff(self._start)[own * real], 0)
        asked = Asked(low, count, self._entries, weight, np.zeros(own.shape))
        sums = summed_by_user([asked], lambda total, clicks: total, len(own), len(self._place))
        return SparseScores.of(*sums, 0.0, self.item_mask(), state.tensors["history"].device)

    def _entries(self, low: Ints, count: Ints, user: Ints) -> tuple[Ints, Floats]:
        item, value = ranges(low, count, self._item, self._value)
        return item, value.astype(np.float64)

    def _told(self) -> Saved:
        """The neighbours of each item, and what clicks count."""
        tensors = {
            "codes": self.codes.int(),
            "start": torch.from_numpy(self._start),
            "item": torch.from_numpy(self._item.astype(np.int32)),
            "value": torch.from_numpy(self._value),
        }
        return Saved({"decay": self.decay}, tensors)

    def _take(self, saved: Saved) -> None:
        codes = expect_tensor(saved.tensors, "codes", torch.int32, 1).numpy().astype(np.int64)
        check_ascending("codes", codes, len(self.warm))
        start = numbers(saved.tensors, "start", torch.int64, len(codes) + 1)
        item = expect_tensor(saved.tensors, "item", torch.int32, 1).numpy().astype(np.int64)
        value = numbers(saved.tensors, "value", torch.float32, len(item))
        check_codes("item", item, len(self.warm))
        if start[0] != 0 or start[-1] != len(item) or (np.diff(start) < 0).any():
            raise ValueError(f"start does not divide {len(item)} neighbours among {len(codes)} items")
        if not np.isin(item, codes).all() or (value <= 0).any():
            raise ValueError("item and value: expected neighbours among the codes, with values above 0")
        self.decay = _checked(saved.settings.get("decay", 1.0))
        self._begin(codes, start, item, value, len(self.warm))


def _checked(decay: object) -> float:
    if not isinstance(decay, int | float) or isinstance(decay, bool) or not 0 < decay <= 1:
        raise ValueError(f"decay must be above 0 and at most 1, got {decay!r}")
    return float(decay)
