"""The last rows of an item table, where a class of items computes them alone."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from metarec.nn.items import Items

TOGETHER = 64  # rows that are computed at least: products of few round otherwise than those of a whole table


def rows_from(items: Items, first: int) -> Tensor | None:
    """The last rows (I - first, D) of the items' table; None where the class that makes the table does not give them.

    A class that has ``rows_from(first)`` promises that ``with_more`` leaves the vectors of the other items as they are.

    Example:
        >>> import torch
        >>> from metarec.nn.items import TableItems
        >>> rows_from(TableItems(torch.eye(3), torch.ones(3, dtype=torch.bool)), 2)
        tensor([[0., 0., 1.]])
    """
    for names in (vars(items), *map(vars, type(items).__mro__)):
        if "rows_from" in names:
            break
        if {"table", "forward", "frozen", "with_more"} & set(names):
            return None
    give: Callable[[int], Tensor | None] | None = getattr(items, "rows_from", None)
    start = max(0, min(first, len(items.known) - TOGETHER))
    rows = None if give is None else give(start)
    return None if rows is None else rows[first - start :]
