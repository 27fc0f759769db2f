"""Nearest items by an index of faiss, for catalogues in which comparing all with all takes hours."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metarec.functional.neighbours import FEW, first_equal, nearest_items, usable_items
from metarec.functional.ranking import top_k

MANY = 100_000  # items from which on an index is worth its while
LINKS, DEPTH = 32, 64  # of each item in the graph, and items looked at on the way to the nearest
ROWS = 1 << 14  # items looked for at once


def near_items(features: Tensor, allowed: Tensor, k: int) -> Tensor:
    """The ``k`` allowed items with the largest dot product with each item, as :func:`nearest_items` says.

    On a CPU, of ``MANY`` allowed items, those that an index finds (hierarchical navigable small worlds; Malkov and
    Yashunin, 2018), where faiss is installed; a few of the nearest may be missed. All others are exact.

    Args:
        features: (I, F).
        allowed: (I,) bool.
        k: how many neighbours.

    Example:
        >>> near_items(torch.tensor([[0.0], [1.0], [2.0]]), torch.arange(3) > 0, 1).tolist()
        [[0], [2], [1]]
    """
    if features.is_cpu and int(allowed.sum()) >= MANY and importlib.util.find_spec("faiss") is not None:
        return indexed_items(features, allowed, k)
    return nearest_items(features, allowed, k)


def indexed_items(features: Tensor, allowed: Tensor, k: int) -> Tensor:
    """The same by faiss, whatever the number of items. Items with the same features are one entry of the index."""
    features, usable, columns = usable_items(features, allowed)
    out = torch.zeros(len(features), k, dtype=torch.int64)
    if len(columns) <= max(k, FEW):
        return nearest_items(features, allowed, k)
    others = features[columns]
    members = _members(first_equal(others), k + 1)
    entries = members[:, 0]
    rows = usable.nonzero().squeeze(-1)
    for some, value, entry in _searched(others[entries], features, rows, min(k + 1, len(entries))):
        found = members[entry.clamp(min=0)]
        codes = torch.where((found < 0) | (entry < 0).unsqueeze(-1), 0, columns[found.clamp(min=0)]).flatten(1)
        value = value.unsqueeze(-1).expand_as(found).flatten(1)
        codes, order = codes.sort(dim=1, stable=True)
        value = value.gather(1, order).masked_fill((codes == 0) | (codes == some.unsqueeze(-1)), -torch.inf)
        best, place = top_k(value, min(k, value.shape[1]))
        out[some, : place.shape[1]] = torch.where(best.isfinite(), codes.gather(1, place), 0)
    return out


def _members(first: Tensor, most: int) -> Tensor:
    """The rows (U, m) that are equal, for each different row: at most so many, in their order; -1 where there are none.

    Example:
        >>> _members(torch.tensor([0, 1, 0, 0]), 2).tolist()
        [[0, 2], [1, -1]]
    """
    different, group, count = first.unique(return_inverse=True, return_counts=True)
    order = group.argsort(stable=True)
    place = torch.arange(len(first)) - (count.cumsum(0) - count).repeat_interleave(count)
    out = torch.full((len(different), min(most, int(count.max()))), -1)
    kept = place < out.shape[1]
    out[group[order][kept], place[kept]] = order[kept]
    return out


def _searched(entries: Tensor, features: Tensor, rows: Tensor, k: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Some rows at a time, their products with the nearest entries, and which these are; by torch's threads."""
    faiss: Any = importlib.import_module("faiss")
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(torch.get_num_threads())
    try:
        index = faiss.IndexHNSWFlat(features.shape[1], LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = index.hnsw.efSearch = DEPTH
        index.add(_plain(entries))
        for some in rows.split(ROWS):
            yield some, *map(torch.from_numpy, index.search(_plain(features[some]), k))
    finally:
        faiss.omp_set_num_threads(before)


def _plain(features: Tensor) -> Any:
    return np.ascontiguousarray(features.float().numpy())
