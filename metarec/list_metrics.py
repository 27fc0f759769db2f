"""What a report says of the lists beside the ranks of the targets: measured batch by batch, no list is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from metarec.data.categories import category_codes
from metarec.data.dataset import Dataset
from metarec.functional.lists import diversity_at, mean_at, miscalibration, self_information, shares

COVERAGE = "coverage"
PER_LIST = ("novelty", "diversity", "popularity", "miscalibration")


class ListMeter:
    """Measures the lists of one evaluation.

    Args:
        data: whose catalogue the lists are of. Novelty and popularity need the counts of its upstream side, diversity
            needs features; what cannot be measured has no name in ``names``.
        k: list lengths.
        category: the column of ``catalog.attributes`` whose words miscalibration is about; by default it is about
            head, middle and tail of the items by popularity.

    Raises:
        ValueError: if the catalogue has no such column.

    Attributes:
        names: of the columns of :meth:`measure`, e.g. ``"novelty@10"``.

    Example:
        >>> from metarec.data import split_by_time
        >>> from metarec.datasets import PLANTED_SPLIT, planted
        >>> up, down = split_by_time(planted(users=60, items=40), at=PLANTED_SPLIT)
        >>> meter, click = ListMeter(down, (2,), "cluster"), torch.tensor([0])
        >>> found = meter.measure(torch.tensor([[1, 11]]), (click, click + 21), click)
        >>> [name for name, value in zip(meter.names, found[0], strict=True) if abs(float(value)) < 1e-9]
        ['miscalibration@2']
        >>> meter.coverage()
        {'coverage@2': 0.05}
    """

    def __init__(self, data: Dataset, k: Sequence[int], category: str | None = None) -> None:
        self.k, self.items = tuple(map(int, k)), max(1, len(data.catalog.items))
        self._place = torch.full((data.catalog.size,), torch.iinfo(torch.int64).max)
        counts, tables = data.upstream_counts, list(data.catalog.modalities.values())
        self._ways = {}
        if counts is not None:
            new = self_information(torch.from_numpy(counts.users), counts.everybody)
            self._ways["novelty"] = partial(mean_at, values=new)
        if tables:
            features = [(table.features.cpu(), table.present.cpu()) for table in tables]
            self._ways["diversity"] = partial(diversity_at, features=features)
        if counts is not None:
            self._ways["popularity"] = partial(mean_at, values=torch.from_numpy(counts.clicks))
        self._groups = None if counts is None else torch.from_numpy(counts.popularity_groups()).unsqueeze(1) + 1
        if category is not None:
            self._groups = torch.from_numpy(category_codes(data.catalog, category))
        kinds = [*self._ways, *(["miscalibration"] if self._groups is not None else [])]
        self.names = [f"{name}@{k}" for name in kinds for k in self.k]

    def measure(
        self, lists: Tensor, history: tuple[Tensor, Tensor], owner: Tensor, counted: Tensor | None = None
    ) -> Tensor:
        """Measure some lists.

        Args:
            lists: (n, K) item codes, best first, 0 after the end of a list.
            history: user (m,) and item code (m,) of what the users had clicked.
            owner: (n,) the user of each list.
            counted: (n,) bool, the lists that coverage is about; all by default.

        Returns:
            (n, len(names)) float64.
        """
        some = lists if counted is None else lists[counted]
        places = torch.arange(lists.shape[1]).expand_as(some)
        self._place.scatter_reduce_(0, some.flatten(), places.flatten(), "amin")
        columns = [way(lists, k=self.k) for way in self._ways.values()]
        if self._groups is not None:
            users = int(torch.cat([history[0], owner]).max()) + 1 if len(owner) else 0
            own = shares(*history, users, self._groups)[owner]
            for k in self.k:
                first = lists[:, :k]
                row = torch.arange(len(lists)).unsqueeze(1).expand_as(first)
                listed = shares(row[first > 0], first[first > 0], len(lists), self._groups)
                columns.append(miscalibration(own, listed).unsqueeze(1))
        return torch.cat([torch.zeros(len(lists), 0, dtype=torch.float64), *columns], 1)

    def coverage(self) -> Mapping[str, float]:
        """The share of the catalogue that was in any list so far, by list length."""
        return {f"{COVERAGE}@{k}": int((self._place[1:] < k).sum()) / self.items for k in self.k}
