"""The contract of a model for what adapts a learner: MAML and its kin."""

from __future__ import annotations

import copy
from typing import Any, Self

from torch import Tensor

from metarec.meta.bank import Bank, fits
from metarec.meta.longer_bank import bank_after
from metarec.nn.tabled import TabledModel

SETTINGS = ("lr", "steps", "adapts", "objectives")  # that a bank depends on besides the numbers


class OfLearner:
    """An attribute that a meta-learner has from its learner: it is read there and set there."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, meta: Any, owner: type | None = None) -> Any:
        return getattr(meta.learner, self.name, None) if meta is not None else None

    def __set__(self, meta: Any, value: Any) -> None:
        setattr(meta.learner, self.name, value)


class AdaptingModel(TabledModel):
    """A base for modules that adapt their ``learner`` to users; what is known of the items, the learner knows."""

    learner: Any
    catalog: Any = OfLearner()
    warm: Any = OfLearner()
    repeat_share: Any = OfLearner()
    second: Any = OfLearner()
    scales: Any = OfLearner()
    fitted: Any = OfLearner()
    max_length: Any = OfLearner()

    def _bank_name(self) -> str:
        return f"bank {[vars(self).get(name) for name in SETTINGS]}"

    def _longer_bank(self, before: Bank) -> Bank | None:
        return bank_after(before, {type(self).__name__: self}, self.warm) if fits(self) else None

    def _new_bank(self) -> Bank | None:
        """The learner frozen with its inner steps; None if its scores are no products."""
        if not fits(self):
            return None
        ids = None if self.catalog is None else self.catalog.items.ids
        told: Any = {"fitted": self.fitted, "ids": ids, "warm": self.warm, "negatives": self.negatives}
        return Bank({type(self).__name__: self}, **told)

    def known_items(self) -> Tensor:
        """(I,) bool, items whose vectors mean something."""
        known: Tensor = self.learner.items.known
        return known

    def add_items(self, added: Any) -> Self:
        """The same meta-learner of a learner of more items.

        Raises:
            TypeError: if the learner takes in no items.
        """
        if not hasattr(self.learner, "add_items"):
            super().add_items(added)
        out = copy.copy(self)
        vars(out)["_modules"] = {**vars(self)["_modules"], "learner": self.learner.add_items(added)}
        return out.keep_bank_of(self)
