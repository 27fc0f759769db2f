"""Scorers whose scores are a table, and users who ask them: shared by the tests of ensembles."""

from __future__ import annotations

import torch
from torch import Tensor

from metarec.model import Model
from metarec.recipes.context_weights import ContextWeights
from metarec.scoring import Scores
from metarec.types import EpisodeBatch, Examples, Scored, Scorer

ITEMS = 30
SIZE = ITEMS + 1
EVERY = torch.arange(ITEMS + 1) > 0
WARM = EVERY & (torch.arange(ITEMS + 1) < 25)


class Table:
    """Scores by the last item read, over the items it knows."""

    def __init__(self, seed: int, known: Tensor, **declared: object) -> None:
        self.table = torch.randn(ITEMS + 1, ITEMS + 1, generator=torch.Generator().manual_seed(seed)) * 3
        self.known = known
        for name, value in declared.items():
            setattr(self, name, value)

    def adapt(self, support: Examples) -> Scorer:
        return self.score

    def score(self, examples: Examples) -> Scored:
        scores = self.table[examples.history.gather(1, examples.position)]
        return Scored(scores, scores[..., :1], self.known, torch.ones(examples.target.shape) > 0)


def tables() -> dict[str, Table]:
    """Three, one of which does not know the cold items."""
    return {"a": Table(0, EVERY), "b": Table(1, WARM), "c": Table(2, EVERY)}


def users(count: int, seed: int = 0) -> EpisodeBatch:
    """Queries of users with 1 to 8 clicks each."""
    generator = torch.Generator().manual_seed(seed)
    n = torch.randint(1, 9, (count, 1), generator=generator)
    history = torch.randint(1, ITEMS + 1, (count, 8), generator=generator) * (torch.arange(8) < n)
    gap = torch.randint(1, 100_000, (count, 1), generator=generator).double()
    negatives = torch.zeros(count, 1, 0, dtype=torch.int64)
    query = Examples(history, n - 1, torch.ones_like(n), negatives, torch.ones(count, 1), gap=gap)
    return EpisodeBatch(torch.arange(count), query, query)


def random_weights(names: tuple[str, ...] = ("a", "b", "c"), *, context: bool = True) -> ContextWeights:
    """Weights that are far from equal."""
    out = ContextWeights(names, context=context)
    with torch.no_grad():
        for parameter in (out.weight, out.unknown):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(7)))
        out.usual.copy_(torch.tensor([10.5, 1.1]))
    return out


def scored(model: Model, batch: EpisodeBatch) -> Scores:
    """A model's scores for the queries of some users."""
    return model.scores(model.encode(batch.support, batch.query))
