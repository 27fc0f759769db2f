"""From a list request (how long, of which items) to the list."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from metarec.data.containers import plain, whole
from metarec.data.dataset import Catalog
from metarec.data.histories import Clicks
from metarec.data.vocabulary import Id
from metarec.meta.memory import split_range, split_to_fit
from metarec.recommendations import Recommendations
from metarec.scoring import Scores
from metarec.serving.ranking import USERS, best, chunks, columns_for, ordered

Ids = Collection[Id]


@dataclass(frozen=True, eq=False)
class ListRequest:
    """What lists should hold.

    Attributes:
        k: how many items.
        exclude_seen: leave out the user's clicks.
        allow: only these ids.
        deny: none of these ids.
        candidates: per user, score only these ids.
    """

    k: int
    exclude_seen: bool
    allow: Sequence[Id] | None
    deny: Sequence[Id] | None
    candidates: Sequence[Sequence[Id]] | None

    @classmethod
    def of(
        cls, k: int, exclude_seen: bool, allow: Ids | None, deny: Ids | None, candidates: Sequence[Ids] | None
    ) -> ListRequest:
        """What was asked for, its ids in any containers.

        Raises:
            ValueError: if ``k`` is no whole number of at least 1, or ids are in no container.
        """
        k = whole(k, "recommend: k")
        rows = None if candidates is None else plain(candidates, "recommend: candidates")
        return cls(
            k,
            exclude_seen,
            allow=None if allow is None else plain(allow, "recommend: allow", ordered=False),
            deny=None if deny is None else plain(deny, "recommend: deny", ordered=False),
            candidates=rows and [plain(own, f"recommend: candidates {n}", ordered=False) for n, own in enumerate(rows)],
        )

    def allowed(self, known: Tensor, catalog: Catalog) -> Tensor:
        """(I,) bool, the items that any user may get."""
        out = known.clone()
        out[0] = False
        if self.allow is not None:
            only = torch.zeros_like(out)
            only[_codes(self.allow, catalog, "allow").to(out.device)] = True
            out &= only
        for name, ids in (("deny", self.deny), ("", catalog.hidden)):
            if ids:
                out[_codes(ids, catalog, name).to(out.device)] = False
        return out


def top_k_lists(
    request: ListRequest,
    score: Callable[[slice], Scores],
    clicks: Clicks,
    known: Tensor,
    catalog: Catalog,
    columns: int | None = None,
) -> Recommendations:
    """The lists of B users, made for some users at a time; fewer where the GPU's memory turns out too small.

    A list is shorter than ``k`` where fewer items are left.

    Args:
        request: what the lists should hold.
        score: the scores of some of the users.
        clicks: of each user.
        known: (I,) bool, items that can be ranked.
        catalog: the items.
        columns: catalogue rows scored at once.

    Raises:
        ValueError: if an id is not known.
    """
    allowed = request.allowed(known, catalog)
    if request.candidates is not None and len(request.candidates) != len(clicks):
        raise ValueError(
            f"recommend: expected candidates for each of the {len(clicks)} users, got {len(request.candidates)} "
            "collections of ids"
        )
    most = USERS[known.device.type]
    columns = columns or columns_for(min(most, len(clicks)), known.device.type)

    def work(users: range) -> tuple[Tensor, Tensor]:
        part = slice(users.start, users.stop)
        if request.candidates is None:
            codes, values, left = _from_catalogue(request, score(part), clicks[part], allowed, columns)
        else:
            codes, values, left = _from_candidates(request, score(part), clicks[part], allowed, part.start, catalog)
        over = torch.arange(codes.shape[1], device=left.device) >= left.unsqueeze(1)
        values = values.float().masked_fill(over, -torch.inf)
        return codes.masked_fill(over, 0).cpu(), values.cpu()

    lists = [own for some in chunks(len(clicks), most) for _, own in split_to_fit(work, some, split_range)]
    width = max(codes.shape[1] for codes, _ in lists)
    codes = torch.cat([F.pad(own, (0, width - own.shape[1])) for own, _ in lists])
    values = torch.cat([F.pad(own, (0, width - own.shape[1]), value=-torch.inf) for _, own in lists])
    return Recommendations(codes.numpy(), values.numpy(), catalog.items, catalog.attributes.get("title"))


def _from_catalogue(
    request: ListRequest, scores: Scores, clicks: Clicks, allowed: Tensor, columns: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes and values of each user's list, as long as the longest, and how many items each user is left with."""
    user = torch.from_numpy(clicks.owners()).to(allowed.device)
    item = torch.from_numpy(clicks.codes).to(allowed.device)
    if not request.exclude_seen:
        user, item = user[:0], item[:0]
    left = int(allowed.sum()) - _taken(user, item, allowed, len(clicks))
    return *best(scores, min(request.k, int(left.max())), allowed, (user, item), columns), left


def _from_candidates(
    request: ListRequest, scores: Scores, clicks: Clicks, allowed: Tensor, first: int, catalog: Catalog
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`_from_catalogue`."""
    rows = [np.unique(catalog.items.encode(ids)) for ids in (request.candidates or ())[first : first + len(clicks)]]
    width = max(1, *(len(row) for row in rows))
    codes = torch.from_numpy(np.stack([np.pad(row, (0, width - len(row))) for row in rows])).to(allowed.device)
    usable = allowed[codes]
    if request.exclude_seen:
        for user, row in enumerate(rows):
            usable[user, : len(row)] &= torch.from_numpy(~np.isin(row, clicks.user(user))).to(allowed.device)
    left = usable.sum(1)
    k = min(request.k, int(left.max()))
    values, found = ordered(scores.exact(codes).masked_fill(~usable, -torch.inf), codes, k)
    return found, values, left


def _taken(user: Tensor, item: Tensor, allowed: Tensor, users: int) -> Tensor:
    """(users,) how many different allowed items each user has clicked."""
    pair = torch.unique(user * len(allowed) + item)
    counted = allowed[pair % len(allowed)].long()
    return torch.zeros(users, dtype=torch.int64, device=allowed.device).index_add_(0, pair // len(allowed), counted)


def _codes(ids: Collection[Id], catalog: Catalog, name: str) -> Tensor:
    try:
        return torch.from_numpy(catalog.items.encode(list(ids)))
    except ValueError as error:
        raise ValueError(f"recommend: {name}: {error}") from None
