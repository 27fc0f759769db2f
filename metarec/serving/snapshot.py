"""What serving computes once per model: tables of item vectors and their moments, and learners that read from them."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from metarec.recipes.fusing import FusedBank
from metarec.recipes.mml import MML
from metarec.scoring import UserState
from metarec.serving.clicks import sent
from metarec.serving.given import GivenSnapshot
from metarec.serving.prepared import check_learner
from metarec.serving.ranking import Scores
from metarec.serving.servable import Servable
from metarec.serving.standing import Standing
from metarec.types import Examples


class Snapshot(Protocol):
    """A model as serving sees it; it does not change when the model is trained on.

    Attributes:
        names: the learners that a user's weights are about; none where there is no fusion.
        known: (I,) bool, items that can be ranked.
        device: where it computes.
        shape: M and D of a user's states.
        stranger: where a user without clicks stands, once somebody has asked; without weights.
    """

    names: tuple[str, ...]
    shape: tuple[int, int]
    known: Tensor
    stranger: Standing | None
    device: torch.device

    def adapt(self, support: Examples, query: Examples, start: Tensor | None = None) -> Standing:
        """Adapt to B users; those that start from weights (B, M, P) of their own keep the weights that they end at."""
        ...

    def start(self) -> Tensor:
        """(M, P) the shared weights, from which a user starts."""
        ...

    def weights(self, standing: Standing) -> Tensor:
        """(B, M) how much each learner counts for each user."""
        ...

    def scores(self, standing: Standing) -> Scores:
        """What ranks B users."""
        ...

    def chances(self, standing: Standing) -> Tensor:
        """(I,) how likely each item that training knew is clicked next, on average over B users and their learners."""
        ...


class FusedSnapshot:
    """An :class:`~metarec.MML` with all its tables computed.

    Args:
        model: on any device, in any mode.
    """

    stranger: Standing | None = None

    def __init__(self, model: MML) -> None:
        for name in model.learners:
            check_learner(model.learner(name))
        self.bank = FusedBank(model.named_metas(), model.fusion, fitted=model.fitted, ids=model.catalog.items.ids)
        self.names, self.device, self.tables = self.bank.names, self.bank.device, self.bank.tables
        self.known = self.bank.known.any(1)
        self.shape = self.tables.mean.shape[0], self.tables.mean.shape[1]

    def start(self) -> Tensor:
        """(M, P) the shared weights of the encoders, one after the other.

        Raises:
            ValueError: if item rows adapt too.
        """
        return self.bank.start()

    def adapt(self, support: Examples, query: Examples, start: Tensor | None = None) -> Standing:
        """Adapt to B users."""
        given = None if start is None else UserState({"active": start[..., 0] > 0, "weights": start})
        found = self.bank.encode(sent(support, self.device), sent(query, self.device), start=given).tensors
        none = found["state"][..., :0]
        rows, corrections = found.get("rows", none.long()), found.get("corrections", none)
        return Standing(found["state"], found["active"], rows, corrections, found.get("weights"))

    def weights(self, standing: Standing) -> Tensor:
        """(B, M) the weights of the fusion."""
        return self.bank.weights(state_of(standing))

    def scores(self, standing: Standing) -> Scores:
        """The fused scores of B users."""
        self.bank.tables = self.tables
        return self.bank.fused(state_of(standing))

    def chances(self, standing: Standing) -> Tensor:
        """(I,) the mean over users and learners of the softmax of a learner's scores over the items it knows."""
        return self.bank.chances(state_of(standing))


def state_of(standing: Standing) -> UserState:
    """Where users stand as models say it."""
    names = ("state", "active", "rows", "corrections")
    return UserState(dict(zip(names, standing.tensors(), strict=True)))


def snapshot_of(model: Servable) -> Snapshot:
    """A model's snapshot as it is now."""
    return FusedSnapshot(model) if isinstance(model, MML) else GivenSnapshot(model, model.catalog.size)
