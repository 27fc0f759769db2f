"""From a list request (how long, of which items) to the list."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarec.data.containers import plain, whole
from metarec.data.dataset import Catalog
from metarec.data.histories import Clicks
from metarec.data.vocabulary import Id, Ints
from metarec.meta.memory import split_range, split_to_fit
from metarec.recommendations import Recommendations
from metarec.scoring import Scores
from metarec.serving.ranking import USERS, best, chunks, columns_for, ordered
from metarec.serving.threads import in_threads

Ids = Collection[Id]
T = TypeVar("T", bound=np.generic)


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

    def work(users: range) -> tuple[Ints, NDArray[np.float32]]:
        part = slice(users.start, users.stop)
        if request.candidates is None:
            codes, values = _from_catalogue(request, score(part), clicks[part], allowed, columns)
        else:
            codes, values = _from_candidates(request, score(part), clicks[part], allowed, part.start, catalog)
        return codes.cpu().numpy(), values.float().cpu().numpy()

    def fitting(users: range) -> list[tuple[Ints, NDArray[np.float32]]]:
        return [own for _, own in split_to_fit(work, users, split_range)]

    parts = in_threads(fitting, list(chunks(len(clicks), most)), known.device)
    lists = [own for part in parts for own in part]
    width = max(codes.shape[1] for codes, _ in lists)
    codes, values = _below([own for own, _ in lists], width, 0), _below([own for _, own in lists], width, -np.inf)
    left = values > -np.inf
    if not left.all():
        longest = left.sum(1).max()
        codes, values = (codes * left)[:, :longest], values[:, :longest]
    return Recommendations(codes, values, catalog.items, catalog.attributes.get("title"))


def _below(parts: Sequence[NDArray[T]], width: int, fill: float) -> NDArray[T]:
    """Rows below rows, filled up to one width."""
    if len(parts) == 1:
        return parts[0]
    return np.concatenate([np.pad(own, ((0, 0), (0, width - own.shape[1])), constant_values=fill) for own in parts])


def _from_catalogue(
    request: ListRequest, scores: Scores, clicks: Clicks, allowed: Tensor, columns: int | None
) -> tuple[Tensor, Tensor]:
    """Codes and values of each user's list, minus infinity once no item is left."""
    user, item = (torch.from_numpy(own).to(allowed.device) for own in (clicks.owners(), clicks.codes))
    if not request.exclude_seen:
        user, item = user[:0], item[:0]
    return best(scores, min(request.k, len(allowed)), allowed, (user, item), columns)


def _from_candidates(
    request: ListRequest, scores: Scores, clicks: Clicks, allowed: Tensor, first: int, catalog: Catalog
) -> tuple[Tensor, Tensor]:
    """As :func:`_from_catalogue`."""
    rows = [np.unique(catalog.items.encode(ids)) for ids in (request.candidates or ())[first : first + len(clicks)]]
    width = max(1, *(len(row) for row in rows))
    codes = torch.from_numpy(np.stack([np.pad(row, (0, width - len(row))) for row in rows])).to(allowed.device)
    usable = allowed[codes]
    if request.exclude_seen:
        for user, row in enumerate(rows):
            usable[user, : len(row)] &= torch.from_numpy(~np.isin(row, clicks.user(user))).to(allowed.device)
    values, found = ordered(scores.exact(codes).masked_fill(~usable, -torch.inf), codes, request.k)
    return found, values


def _codes(ids: Collection[Id], catalog: Catalog, name: str) -> Tensor:
    try:
        return torch.from_numpy(catalog.items.encode(list(ids)))
    except ValueError as error:
        raise ValueError(f"recommend: {name}: {error}") from None
