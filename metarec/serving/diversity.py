"""Diversification: lists whose items differ, by maximal marginal relevance over features or by a quota of categories.

Both choose from the best items of each user, in the order of their scores. Source of the first: J. Carbonell,
J. Goldstein, "The use of MMR, diversity-based reranking", SIGIR 1998.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from metarec.data.categories import category_codes
from metarec.data.containers import whole
from metarec.data.dataset import Catalog
from metarec.data.vocabulary import Ints
from metarec.recommendations import Recommendations
from metarec.serving.ranking import chunks

Diversity = float | Mapping[str, int]
POOL = 10  # times as many items as the list has are chosen from
_USERS = 64  # users whose pools are compared at once


def diversified(
    lists: Callable[[int], Recommendations], k: int, diversity: Diversity, catalog: Catalog
) -> Recommendations:
    """Lists of k items, chosen from longer ones.

    Args:
        lists: makes the lists of a length.
        k: how many items.
        diversity: the weight of diversity, from 0 to 1; or column -> how many items of each category at most.
        catalog: the items.

    Raises:
        ValueError: if ``diversity`` is neither, or the catalogue has no features or no such column.
    """
    if isinstance(diversity, Mapping):
        return _within_quotas(lists, k, {c: whole(n, f"diversity: {c}") for c, n in diversity.items()}, catalog)
    if isinstance(diversity, bool | str) or not 0 <= (weight := float(diversity)) <= 1:
        raise ValueError(
            "recommend: diversity must be a number from 0 to 1, or at most how many items of each category, as in "
            f"{{'genres': 3}}; got {diversity!r}"
        )
    if not catalog.modalities:
        raise ValueError(
            "recommend: diversity by features needs features, and the catalogue has none; give at most how many items "
            f"of each category, by one of its attributes {sorted(catalog.attributes)}"
        )
    pool = lists(POOL * k)
    codes, scores = torch.from_numpy(pool.codes), torch.from_numpy(pool.scores)
    parts = [slice(some.start, some.stop) for some in chunks(len(codes), _USERS)]
    chosen = torch.cat(
        [marginal_relevance(scores[p], similarities(codes[p], catalog), k, float(weight)) for p in parts]
    )
    return _chosen(pool, chosen.numpy())


def marginal_relevance(scores: Tensor, similarity: Tensor, k: int, diversity: float) -> Tensor:
    """Maximal marginal relevance: one item after the other, each relevant and unlike those before it.

    Args:
        scores: (B, N), best first, minus infinity after the end; relevance is where they lie between a user's worst, 0,
            and best, 1.
        similarity: (B, N, N) between -1 and 1.
        k: how many to choose.
        diversity: how much the greatest similarity to an item before counts, against relevance.

    Returns:
        (B, min(k, N)) places, in the order in which they were chosen.

    Example:
        >>> alike = torch.tensor([[[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 1.0]]])
        >>> [marginal_relevance(torch.tensor([[3.0, 2.0, 1.0]]), alike, 2, d).tolist() for d in (0.0, 0.5)]
        [[[0, 1]], [[0, 2]]]
    """
    real = scores > -torch.inf
    low = scores.masked_fill(~real, torch.inf).amin(1, keepdim=True)
    relevance = (scores - low) / (scores[:, :1] - low).clamp(min=torch.finfo(scores.dtype).tiny)
    nearest, free, rows = torch.zeros_like(scores), real.clone(), torch.arange(len(scores))
    found: list[Tensor] = []
    for _ in range(min(k, scores.shape[1])):
        value = (1 - diversity) * relevance - diversity * nearest
        best = torch.where(free, value, -torch.inf)
        place = torch.where(free.any(1), best.argmax(1), scores.shape[1] - 1)
        like = similarity[rows, place]
        nearest = torch.maximum(nearest, like) if found else like
        free[rows, place] = False
        found.append(place)
    return torch.stack(found, 1)


def similarities(codes: Tensor, catalog: Catalog) -> Tensor:
    """(B, N, N) cosines of the features of items (B, N), the mean over the modalities that both have; 0 without any."""
    total, shared = (torch.zeros(*codes.shape, codes.shape[1]) for _ in range(2))
    for view in catalog.modalities.values():
        has = view.present.cpu()[codes].float()
        unit = F.normalize(view.features.cpu()[codes], dim=-1) * has.unsqueeze(-1)
        total += unit @ unit.mT
        shared += has.unsqueeze(-1) * has.unsqueeze(1)
    return total / shared.clamp(min=1)


def _within_quotas(
    lists: Callable[[int], Recommendations], k: int, quotas: Mapping[str, int], catalog: Catalog
) -> Recommendations:
    """From the best item down, whatever its categories have room for; further down until all lists are full."""
    length = POOL * k
    while True:
        pool = lists(length)
        taken: NDArray[np.bool_] = np.ones(pool.codes.shape, dtype=np.bool_)
        known, where = np.unique(pool.codes, return_inverse=True)
        table = {column: category_codes(catalog, column, known) for column in quotas}
        own = {column: words[where.reshape(taken.shape)] for column, words in table.items()}
        room = {column: np.full((len(taken), int(words.max()) + 1), quotas[column]) for column, words in own.items()}
        free, rows = np.full(len(taken), k), np.arange(len(taken))[:, None]
        for place in range(taken.shape[1]):
            here = {column: words[:, place] for column, words in own.items()}
            fits = [((room[c][rows, words] > 0) | (words == 0)).all(1) for c, words in here.items()]
            taken[:, place] = np.logical_and.reduce([pool.codes[:, place] > 0, free > 0, *fits])
            free -= taken[:, place]
            for column, words in here.items():
                room[column][rows, words] -= taken[:, [place]]
        if length >= catalog.size or not ((free > 0) & (pool.counts == length)).any():
            return _chosen(pool, _places(taken, k))
        length *= 4


def _places(taken: NDArray[np.bool_], k: int) -> Ints:
    """(B, up to k) the columns that are taken; the last column, which no full pool needs, after the end."""
    width = min(k, int(taken.sum(1).max(initial=0)))
    order: Ints = np.argsort(~taken, axis=1, kind="stable")[:, :width]
    return np.where(np.take_along_axis(taken, order, 1), order, -1)


def _chosen(pool: Recommendations, places: Ints) -> Recommendations:
    """The entries of longer lists at some places; none at -1."""
    codes, scores = (np.take_along_axis(column, places, 1) for column in (pool.codes, pool.scores))
    return replace(pool, codes=np.where(places < 0, 0, codes), scores=np.where(places < 0, -np.inf, scores))
