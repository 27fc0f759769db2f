"""How models rank the clicks of users whom nothing was trained on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from metarec.functional.fusion import check_scores
from metarec.functional.histories import seen_items
from metarec.functional.ranking import ndcg_at, ranks
from metarec.types import EpisodeBatch, Method

LENGTH = 10  # of the list whose NDCG is looked at
METRIC = f"ndcg@{LENGTH}"


@dataclass(frozen=True)
class Ranked:
    """NDCG@10 of n clicks.

    Attributes:
        user: (n,) codes.
        ndcg: (n,) float64.
    """

    user: Tensor
    ndcg: Tensor

    def by_user(self) -> Tensor:
        """(U,) the mean of each user's clicks, users in ascending order of their codes."""
        own, place, count = self.user.unique(return_inverse=True, return_counts=True)
        mean: Tensor = self.ndcg.new_zeros(len(own)).index_add(0, place, self.ndcg) / count
        return mean


@torch.no_grad()
def ranked(
    method: Method,
    batches: Iterable[EpisodeBatch],
    *,
    items: Tensor | None = None,
    exclude_seen: bool = True,
    name: str = "model",
) -> Ranked:
    """How a model ranks the queries of some users.

    Args:
        method: what ranks.
        batches: the users, on its device.
        items: (I,) bool, what lists are made of, on its device; all by default.
        exclude_seen: leave what a user has clicked out of the list, and clicks on it out of the queries.
        name: of the model, for messages.

    Raises:
        ValueError: if a score is not finite.
    """
    rows = [_of_batch(method, batch, name, items, exclude_seen=exclude_seen) for batch in batches]
    if not rows:
        return Ranked(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.float64))
    return Ranked(*(torch.cat(column) for column in zip(*rows, strict=True)))


def _of_batch(
    method: Method, batch: EpisodeBatch, name: str, items: Tensor | None, *, exclude_seen: bool
) -> tuple[Tensor, Tensor]:
    query, real = batch.query, batch.query.weight > 0
    scored = method.adapt(batch.support)(query)
    check_scores(scored, name)
    seen = seen_items(query, scored.scores.shape[-1]) & exclude_seen
    real = real & ~seen.gather(-1, query.target.unsqueeze(-1)).squeeze(-1)  # a list without seen items has none of them
    allowed = ~seen if items is None else items & ~seen
    allowed[..., 0] = False
    scores = scored.scores.masked_fill(~scored.item_mask, torch.finfo(scored.scores.dtype).min)
    found = ndcg_at(ranks(scores, query.target, allowed=allowed), LENGTH)
    return batch.user[:, None].expand_as(real)[real], found[real].double()
