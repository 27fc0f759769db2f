"""What serving keeps of a method of one's own."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from metarec.modes import evaluating
from metarec.serving.ranking import Scores
from metarec.serving.scores import GivenScores
from metarec.serving.standing import Standing
from metarec.types import Examples, Method


class GivenSnapshot:
    """A method of one's own: its scores of the whole catalogue are what a user keeps.

    What the method does inside is not known here, so threads ask it one after the other.

    Args:
        method: the method.
        items: I.
    """

    stranger: Standing | None = None
    names: tuple[str, ...] = ()

    def __init__(self, method: Method, items: int) -> None:
        self.method = method
        self._lock = threading.Lock()
        with evaluating(method) as self.device:
            self.shape = (1, items)
            self.known = torch.ones(items, dtype=torch.bool, device=self.device)

    def start(self) -> Tensor:
        """Nothing that could be kept.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"keep_weights: only an MML has weights to keep, got {type(self.method).__name__}")

    def adapt(self, support: Examples, query: Examples, start: Tensor | None = None) -> Standing:
        """Adapt to B users and score the catalogue."""
        with self._lock, evaluating(self.method) as device, torch.no_grad():
            scored = self.method.adapt(support.to(device))(query.to(device))
        self.known = scored.known
        none = scored.scores.new_zeros(len(support), 1, 0)
        return Standing(scored.scores, scored.active, none.long(), none)

    def weights(self, standing: Standing) -> Tensor:
        """(B, 0): there is no fusion."""
        return standing.state[:, 0, :0]

    def scores(self, standing: Standing) -> Scores:
        """The scores as they were given."""
        return GivenScores(standing.state[:, 0])

    def chances(self, standing: Standing) -> Tensor:
        """(I,) the mean over users of the softmax of their scores."""
        return standing.state[:, 0].softmax(-1).mean(0)
