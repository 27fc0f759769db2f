"""From what is wanted of a list (how long, of which items) to the list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from metarec.data.dataset import Catalog
from metarec.meta.memory import halves, in_halves
from metarec.serving.clicks import Clicks
from metarec.serving.ranking import LOWEST, USERS, Scores, best, columns_for, ordered, pieces
from metarec.serving.users import Ids, Recommendations


@dataclass(frozen=True, eq=False)
class Wanted:
    """What lists should hold.

    Attributes:
        k: how many items.
        exclude_seen: leave out the user's clicks.
        allow: only these ids.
        deny: none of these ids.
        candidates: per user, score only these ids.
    """

    k: int
    exclude_seen: bool = True
    allow: Ids | None = None
    deny: Ids | None = None
    candidates: Sequence[Ids] | None = None

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


def listed(
    wanted: Wanted, scores: Scores, clicks: Clicks, known: Tensor, catalog: Catalog, columns: int | None = None
) -> Recommendations:
    """The lists of B users, made for some users at a time; fewer where the GPU's memory turns out too small.

    Raises:
        ValueError: if an id is not known, or ``k`` is less than 1 or more than what a user is left with.
    """
    allowed = wanted.allowed(known, catalog)
    if wanted.candidates is not None and len(wanted.candidates) != len(clicks):
        raise ValueError(
            f"recommend: expected candidates for each of the {len(clicks)} users, got {len(wanted.candidates)} "
            "collections of ids"
        )
    most = USERS[known.device.type]
    columns = columns or columns_for(min(most, len(clicks)), known.device.type)

    def work(users: range) -> tuple[Tensor, Tensor]:
        part = slice(users.start, users.stop)
        if wanted.candidates is None:
            found = _from_catalogue(wanted, scores[part], clicks[part], allowed, part.start, columns)
        else:
            found = _from_candidates(wanted, scores[part], clicks[part], allowed, part.start, catalog)
        return found[0].cpu(), _shown(found[1]).float().cpu()

    lists = [own for some in pieces(len(clicks), most) for _, own in in_halves(work, some, halves)]
    codes, values = (torch.cat(parts).numpy() for parts in zip(*lists, strict=True))
    return Recommendations(codes, values, catalog.items)


def _from_catalogue(
    wanted: Wanted, scores: Scores, clicks: Clicks, allowed: Tensor, first: int, columns: int | None
) -> tuple[Tensor, Tensor]:
    user = torch.from_numpy(clicks.owners()).to(allowed.device)
    item = torch.from_numpy(clicks.codes).to(allowed.device)
    if not wanted.exclude_seen:
        user, item = user[:0], item[:0]
    left = int(allowed.sum()) - _taken(user, item, allowed, len(clicks))
    _check(wanted, left, first, "that the model knows", len(clicks) == 1 and first == 0)
    return best(scores, wanted.k, allowed, (user, item), columns)


def _from_candidates(
    wanted: Wanted, scores: Scores, clicks: Clicks, allowed: Tensor, first: int, catalog: Catalog
) -> tuple[Tensor, Tensor]:
    rows = [
        np.unique(catalog.items.encode(list(ids))) for ids in (wanted.candidates or ())[first : first + len(clicks)]
    ]
    width = max(1, *(len(row) for row in rows))
    codes = torch.from_numpy(np.stack([np.pad(row, (0, width - len(row))) for row in rows])).to(allowed.device)
    usable = allowed[codes]
    if wanted.exclude_seen:
        for user, row in enumerate(rows):
            usable[user, : len(row)] &= torch.from_numpy(~np.isin(row, clicks.user(user))).to(allowed.device)
    _check(wanted, usable.sum(1), first, "among the candidates", len(clicks) == 1 and first == 0)
    values, found = ordered(scores.exact(codes).masked_fill(~usable, -torch.inf), codes, wanted.k)
    return found, values


def _taken(user: Tensor, item: Tensor, allowed: Tensor, users: int) -> Tensor:
    """(users,) how many different allowed items each user has clicked."""
    pair = torch.unique(user * len(allowed) + item)
    counted = allowed[pair % len(allowed)].long()
    return torch.zeros(users, dtype=torch.int64, device=allowed.device).index_add_(0, pair // len(allowed), counted)


def _check(wanted: Wanted, left: Tensor, first: int, where: str, one: bool) -> None:
    least = int(left.min())
    if 1 <= wanted.k <= least:
        return
    who = "this user" if one else f"user {first + int(left.argmin())}"
    seen = f" and that {who} has not clicked" if wanted.exclude_seen else "" if one else f", for {who}"
    lists = " and that allow and deny leave" if wanted.allow is not None or wanted.deny else ""
    raise ValueError(
        f"recommend: k must be at least 1 and at most {least}, the number of items {where}{lists}{seen}, got {wanted.k}"
    )


def _shown(values: Tensor) -> Tensor:
    """Items that no modality of the user knows get the lowest score of the user's list."""
    real = values > LOWEST / 2
    lowest = values.masked_fill(~real, torch.inf).amin(1, keepdim=True)
    return torch.where(real, values, torch.where(lowest.isfinite(), lowest, torch.zeros_like(lowest)))


def _codes(ids: Ids, catalog: Catalog, name: str) -> Tensor:
    try:
        return torch.from_numpy(catalog.items.encode(list(ids)))
    except ValueError as error:
        raise ValueError(f"recommend: {name}: {error}") from None
