"""The inner steps through learn2learn's MAML, for those who ask for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from torch import Tensor, nn

from metarec.meta.engine import InnerLoop, Rate, one_rate
from metarec.meta.vmap import VmapUsers


class Learn2LearnUsers(VmapUsers):
    """Users whose steps ``learn2learn.algorithms.MAML`` takes, all users at once."""

    @classmethod
    def fits(cls, view: nn.Module, loop: InnerLoop, start: Mapping[str, Tensor]) -> bool:
        """Whether the steps are of one size."""
        return not isinstance(loop.rate, Mapping)

    def step(self, loss: Tensor, rate: Rate, second_order: bool = False) -> Self:
        """One SGD step of every user on the sum of their losses, by ``MAML.adapt``."""
        from learn2learn.algorithms import MAML

        if not self.adapting() or not loss.requires_grad:
            return self
        maml = MAML(self, lr=one_rate(rate), first_order=not second_order, allow_unused=True)
        maml.adapt(loss)
        out: Self = maml.module
        return out
