"""The best items of many users over a large catalogue, without a matrix of users by items.

A matrix product finds a few more candidates than are asked for; their scores are then computed again, one by one in
double precision, so that the list does not depend on how users and catalogue were cut into pieces. Where the margin
is too thin to be sure (many items of equal score), that user's whole catalogue is scored exactly.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from metarec.scoring import Scores

FLOATS = {"cpu": 1 << 22, "cuda": 1 << 28}  # scores held at once
USERS = {"cpu": 128, "cuda": 4096}  # users at once
_STRIDE = 64
_EXACT = 2048  # candidates at once in the exact pass


def best(
    scores: Scores, k: int, allowed: Tensor, excluded: tuple[Tensor, Tensor], columns: int | None = None
) -> tuple[Tensor, Tensor]:
    """The k best allowed items of each user, best first, ties in the order of their codes.

    Args:
        scores: of B users.
        k: at most the number of items that some user is left with.
        allowed: (I,) bool, False at padding.
        excluded: user (n,) and item code (n,) pairs that are left out.
        columns: catalogue rows scored at once.

    Returns:
        codes: (B, k) int64.
        values: (B, k) float64; -inf once a user has no more items left.
    """
    if columns is None:
        columns = columns_for(len(scores), allowed.device.type)
    take = k + k // 4 + 8
    values, codes = _shortlist(scores, min(take, len(allowed)), allowed, excluded, columns)
    exact = scores.exact(codes).masked_fill(values == -torch.inf, -torch.inf)
    found, order = ordered(exact, codes, k)
    if not k:
        return order, found
    unsure = (found[:, -1] > -torch.inf) & (found[:, -1] <= values[:, -1].double() + scores.error())
    if take < len(allowed) and bool(unsure.any()):
        for user in unsure.nonzero().squeeze(-1).tolist():
            order[user], found[user] = _whole(scores, user, k, allowed, excluded)
    return order, found


def columns_for(users: int, device: str) -> int:
    """How much of the catalogue is scored at once for so many users."""
    return max(_STRIDE * 64, FLOATS[device] // max(1, users))


def _shortlist(
    scores: Scores, take: int, allowed: Tensor, excluded: tuple[Tensor, Tensor], columns: int
) -> tuple[Tensor, Tensor]:
    """Values and codes of about the best items, (B, take)."""
    values: Tensor | None = None
    codes: Tensor | None = None
    user, item = excluded
    everything = bool(allowed[1:].all())
    for start in range(0, len(allowed), columns):
        stop = min(start + columns, len(allowed))
        piece = scores.approximate(start, stop)
        if not everything:
            piece.masked_fill_(~allowed[start:stop], -torch.inf)
        elif start == 0:
            piece[:, 0] = -torch.inf
        here = (item >= start) & (item < stop) if stop - start < len(allowed) else slice(None)
        piece[user[here], item[here] - start] = -torch.inf
        top, index = largest(piece, min(take, stop - start))
        if values is not None and codes is not None:
            top, index = torch.cat([values, top], 1), torch.cat([codes, index + start], 1)
            top, chosen = top.topk(min(take, top.shape[1]))
            index = index.gather(1, chosen)
            values, codes = top, index
        else:
            values, codes = top, index + start
    if values is None or codes is None:
        raise ValueError("best: the catalogue is empty")
    return values, codes


def largest(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """As ``x.topk(k)`` along the last of two dimensions, faster where k is small against a long row.

    The largest k lie in the k groups with the largest maxima, and maxima are quick.

    Example:
        >>> largest(torch.arange(100_000.0).unsqueeze(0), k=2)[1]
        tensor([[99999, 99998]])
    """
    users, length = x.shape
    groups = length // _STRIDE
    if groups < 4 * k or x.device.type != "cpu":
        top = x.topk(k)
        return top.values, top.indices
    main = x[:, : groups * _STRIDE].view(users, _STRIDE, groups)
    chosen = main.amax(1).topk(k, sorted=False).indices
    inside = chosen.unsqueeze(1) + groups * torch.arange(_STRIDE).unsqueeze(1)
    rest = torch.arange(groups * _STRIDE, length).expand(users, -1)
    index = torch.cat([inside.flatten(1), rest], 1)
    values, order = x.gather(1, index).topk(k)
    return values, index.gather(1, order)


def ordered(values: Tensor, codes: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest values (B, k) and their codes, ties by ascending code.

    Example:
        >>> ordered(torch.tensor([[1.0, 2.0, 1.0]]), torch.tensor([[9, 5, 4]]), k=2)
        (tensor([[2., 1.]]), tensor([[5, 4]]))
    """
    codes, by_code = codes.sort(dim=1)
    values, by_value = (values.gather(1, by_code) + 0.0).sort(dim=1, descending=True, stable=True)
    return values[:, :k], codes.gather(1, by_value[:, :k])


def _whole(
    scores: Scores, user: int, k: int, allowed: Tensor, excluded: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Codes and values (k,) of one user from exact scores of everything."""
    mine = allowed.clone()
    mine[0] = False
    mine[excluded[1][excluded[0] == user]] = False
    codes = mine.nonzero().squeeze(-1)
    own = scores[user : user + 1]
    values = torch.cat([own.exact(part.unsqueeze(0))[0] for part in codes.split(_EXACT)])
    found, order = (values + 0.0).sort(descending=True, stable=True)
    return codes[order[:k]], found[:k]


def chunks(users: int, most: int) -> Iterator[range]:
    """Users, so many at once.

    Example:
        >>> list(chunks(5, most=2))
        [range(0, 2), range(2, 4), range(4, 5)]
    """
    everybody = range(users)
    return (everybody[start : start + most] for start in range(0, users, most))
