"""ItemKNN: the items most alike those in the history, by who clicked them.

Source: Deshpande and Karypis, TOIS 2004; cosine similarity with shrinkage.
"""

from __future__ import annotations

import torch

from metarec.data.dataset import Dataset
from metarec.functional import top_k
from metarec.recipes.ease import cooccurrences, from_history, most_clicked
from metarec.types import Examples, Scorer


class ItemKNN:
    """Scores an item by the summed similarity of the history's items, of which it must be a nearest neighbour.

    ``similarity_ij = n_ij / (sqrt(n_i n_j) + shrink)``, n the users who clicked the item or both items.

    Args:
        data: the upstream side of a split.
        neighbours: items that each item of the history speaks for.
        shrink: doubt in items with few clicks.
        items: so many at most, the most clicked; of the others it knows nothing.
        device: where the matrix, items by items, is made and kept.

    Raises:
        ValueError: if ``neighbours`` or ``items`` is below 1 or ``shrink`` negative.

    Example:
        >>> from metarec.data import split_by_time
        >>> from metarec.datasets import PLANTED_SPLIT, planted
        >>> from metarec.evaluation import evaluate
        >>> up, down = split_by_time(planted(users=60, items=40, adaptation=0.0), at=PLANTED_SPLIT)
        >>> evaluate(ItemKNN(up), down, k=(5,)).metrics["recall@5"].mean > 5 / 40
        True
    """

    information = "upstream"

    def __init__(
        self,
        data: Dataset,
        *,
        neighbours: int = 100,
        shrink: float = 20.0,
        items: int = 10_000,
        device: torch.device | str = "cpu",
    ) -> None:
        if neighbours < 1 or shrink < 0:
            raise ValueError(f"ItemKNN: expected neighbours >= 1 and shrink >= 0, got {neighbours} and {shrink}")
        codes = most_clicked(data, items)
        together = cooccurrences(data, codes, device)
        root = together.diagonal().sqrt()
        similarity = (together / (root[:, None] * root + shrink).clamp(min=1e-9)).fill_diagonal_(0)
        values, nearest = top_k(similarity, min(neighbours, len(similarity)))
        self.weight = torch.zeros_like(similarity).scatter(1, nearest, values)
        self.codes, self.size = torch.from_numpy(codes).to(device), data.catalog.size
        self.fitted_until = float(data.time.max())

    def adapt(self, support: Examples) -> Scorer:
        """Nothing to adapt: the history is all it reads."""
        return lambda examples: from_history(examples, self.weight, self.codes, self.size)
