"""Where users stand after adapting: all that serving keeps of the inner loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, eq=False)
class Standing:
    """Where B users stand: what scoring needs of them, and where their next steps start if they go on.

    Attributes:
        state: (B, M, D) each learner's state after the last click.
        active: (B, M) bool, learners that know something of the history.
        rows: (B, M, U) int64, item rows that the user has changed, -1 where there are fewer.
        corrections: (B, M, U) what that adds to their scores.
        weights: (B, M, P) each learner's adapted weights, if they are kept.
    """

    state: Tensor
    active: Tensor
    rows: Tensor
    corrections: Tensor
    weights: Tensor | None = None

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What scoring needs, in the order of the constructor."""
        return self.state, self.active, self.rows, self.corrections

    def __getitem__(self, users: slice | Tensor) -> Self:
        """Some of the users."""
        return self._each(lambda tensor: tensor[users])

    def to(self, device: torch.device) -> Self:
        """The same on another device."""
        return self._each(lambda tensor: tensor.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Self:
        weights = None if self.weights is None else change(self.weights)
        state, active, rows, corrections = map(change, self.tensors())
        return type(self)(state, active, rows, corrections, weights)

    @classmethod
    def join(cls, parts: Sequence[Standing]) -> Standing:
        """Users one after the other, with room for the most rows."""
        if len(parts) == 1:
            return parts[0]
        room = max(part.rows.shape[2] for part in parts)
        rows = [F.pad(p.rows, (0, room - p.rows.shape[2]), value=-1) for p in parts]
        corrections = [F.pad(p.corrections, (0, room - p.corrections.shape[2])) for p in parts]
        kept = [part.weights for part in parts if part.weights is not None]
        return cls(
            torch.cat([p.state for p in parts]),
            torch.cat([p.active for p in parts]),
            torch.cat(rows),
            torch.cat(corrections),
            torch.cat(kept) if kept else None,
        )
