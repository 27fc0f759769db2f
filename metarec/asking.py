"""Ranks of the targets of one evaluation batch, and the user whose scores cannot be ranked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from metarec.data.dataset import Dataset
from metarec.data.examples import clicked_before
from metarec.data.sampler import EpisodeSampler
from metarec.functional.ranking import ranks, top_k
from metarec.model import Model, dense
from metarec.types import EpisodeBatch, Method

WITHHELD = {"validation": 2, "test": 1, "serving": 1}  # last clicks that come after what is asked from


@dataclass(frozen=True, eq=False)
class Ranked:
    """The query examples of one batch, ranked.

    Attributes:
        user: (n,) int64 user codes.
        target: (n,) int64 item codes.
        rank: (n,) of the targets.
        is_repeat: (n,) bool, whether the user had clicked the target.
        lists: (n, K) int64, the best items that the method knows; 0 after the end of a list.
        owner: (n,) int64, the row of ``history`` that each example belongs to.
        history: row and item code, (m,) each, of the clicks before.
    """

    user: Tensor
    target: Tensor
    rank: Tensor
    is_repeat: Tensor
    lists: Tensor
    owner: Tensor
    history: tuple[Tensor, Tensor]


def ranked(
    method: Method,
    batch: EpisodeBatch,
    sampler: EpisodeSampler,
    last: int | None,
    *,
    exclude_seen: bool,
    length: int,
) -> Ranked:
    """Rank the target of every query example, and list the best items.

    Args:
        method: what is asked.
        batch: the users.
        sampler: where they come from.
        last: of what a user clicked before, only so many clicks count as seen; None for all.
        exclude_seen: leave what was seen out of the ranking.
        length: K of the lists.

    Raises:
        ValueError: if the scores do not cover the catalogue, or one is not finite.
    """
    query, items, device = batch.query, sampler.data.catalog.size, batch.user.device
    before = clicked_before(sampler.data, batch.user.cpu().numpy(), WITHHELD[sampler.part], last)
    row, item = (torch.from_numpy(column).to(device) for column in before)
    seen = torch.zeros(len(batch), 1, items, dtype=torch.bool, device=device)
    seen[row, 0, item] = True
    with torch.no_grad():
        ask = method.adapt(batch.support) if not isinstance(method, Model) else partial(dense, method, batch.support)
        scored = ask(query)
        scores = scored.scores
        if scores.shape != (*query.target.shape, items):
            raise ValueError(f"expected scores {(*query.target.shape, items)}, got {tuple(scores.shape)}")
        allowed = ~seen if exclude_seen else torch.ones_like(seen)
        allowed[..., 0] = False
        ordered = scores.masked_fill(~scored.item_mask, torch.finfo(scores.dtype).min)
        rank = ranks(ordered, query.target, allowed=allowed)
        real = query.weight > 0
        shown = scores[real].masked_fill(~(scored.item_mask & allowed).expand_as(scores)[real], -torch.inf)
        best, lists = top_k(shown, min(length, items))
    is_repeat = seen.gather(-1, query.target.unsqueeze(-1)).squeeze(-1)
    user, owner = batch.user[:, None].expand_as(real)[real], real.nonzero()[:, 0]
    lists = lists.masked_fill(best == -torch.inf, 0)
    return Ranked(user, query.target[real], rank[real], is_repeat[real], lists, owner, (row, item))


def whose(work: Callable[[EpisodeBatch], object], batch: EpisodeBatch, data: Dataset) -> tuple[str, ValueError] | None:
    """The first user of a batch that fails alone, and how; None if nobody does."""
    for one in batch.chunks(1):
        try:
            work(one)
        except ValueError as error:
            return f", user {data.users.decode(one.user.tolist())[0]!r}", error
    return None


def check_read_alike(method: object, data: Dataset) -> None:
    """See that profiles and kinds of events of data that were read apart mean what they mean to a model.

    Raises:
        ValueError: if profiles are encoded otherwise, or the kinds are others.
    """
    encodings = getattr(method, "profile", None)
    if encodings and data.profiles is not None and dict(encodings) != dict(data.profiles.encodings):
        raise ValueError(
            f"{data.name}: its profiles are encoded by its own users, and the model's by those it was fitted on; read "
            "the data with profile=model.profile"
        )
    kinds = getattr(getattr(method, "catalog", None), "kinds", ())
    if kinds and data.others is not None and data.catalog.kinds != kinds:
        raise ValueError(
            f"{data.name}: its kinds of events are {list(data.catalog.kinds)}, the model's are {list(kinds)}; put "
            "it on the model's items with on_catalog(data, model.catalog, model.warm)"
        )
