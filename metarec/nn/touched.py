"""Sparse per-user updates of an embedding table: only the rows that a user touches."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metarec.functional.kinds import items_of
from metarec.nn.items import Items, TableItems
from metarec.types import Examples


class TouchedRows(nn.Module):
    """A shared embedding table plus one user's sparse update of the rows it touches.

    ``vector(i) = items(i) + delta[slot of i]`` where ``touched[slot] == i``. The delta starts at zero and gets the
    gradient that row i of the table would have had, so adapting it is adapting the table; memory is (U, D) per user.

    Args:
        items: frozen items, shared by all users.
    """

    adapts_rows = True
    deterministic = True
    touched: Tensor
    known: Tensor

    def __init__(self, items: Items) -> None:
        super().__init__()
        self.items = items
        dim = items.table().shape[1]
        self.delta = nn.Parameter(items.table().new_zeros(0, dim))
        self.register_buffer("touched", torch.zeros(0, dtype=torch.int64, device=items.known.device), persistent=False)
        self.register_buffer("known", items.known, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Vectors (..., D) of item codes (...)."""
        slots = (ids.unsqueeze(-1) == self.touched).to(self.delta.dtype)
        return self.items(ids) + slots @ self.delta

    def scores(self, state: Tensor, ids: Tensor | None = None) -> Tensor:
        """Scores (..., I), or (..., C) against ids (C,): the shared ones, corrected on the touched rows."""
        shared = self.items.scores(state)
        correction = state @ self.delta.transpose(-2, -1) * (self.touched > 0).to(state.dtype)
        rows = self.touched.clamp(min=0).expand(correction.shape)
        own = shared.scatter_add(-1, rows, correction)
        return own if ids is None else own[..., ids]

    def table(self) -> Tensor:
        """The user's whole catalogue, (I, D)."""
        own = self.touched > 0
        return self.items.table().index_add(0, self.touched[own], self.delta[own])

    def frozen(self) -> TableItems:
        """The user's whole catalogue as a table."""
        return TableItems(self.table(), self.known)

    def per_user(self, support: Examples) -> dict[str, Tensor]:
        """Each user's touched ids (B, U), -1 where there are fewer, and zero deltas (B, U, D)."""
        users = len(support)
        ids = torch.cat([items_of(support.history), support.target, support.negatives.reshape(users, -1)], dim=1)
        ids = ids.sort(dim=1).values
        repeated = torch.zeros_like(ids, dtype=torch.bool)
        repeated[:, 1:] = ids[:, 1:] == ids[:, :-1]
        touched = ids.masked_fill(repeated | (ids == 0), -1).sort(dim=1, descending=True).values
        touched = touched[:, : max(1, int((touched > 0).sum(1).max()))]
        return {"touched": touched, "delta": self.delta.new_zeros(*touched.shape, self.delta.shape[1])}
