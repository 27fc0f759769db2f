import tempfile
from pathlib import Path

import numpy as np
import torch

import metarec as mr
from metarec.model import Saved
from metarec.scoring import DenseScores, UserState


@mr.register
class Freshest(mr.Model):
    """What was clicked last by anybody, the latest first; the same for everybody."""

    def __init__(self, upstream: mr.Dataset) -> None:
        self.attach(upstream)
        latest = np.zeros(upstream.catalog.size)
        np.maximum.at(latest, upstream.item, upstream.time)
        self.latest = torch.from_numpy(latest)

    def item_mask(self) -> torch.Tensor:
        return self.latest > 0

    def encode(
        self,
        support: mr.Examples,
        query: mr.Examples,
        *,
        start: UserState | None = None,
        keep_weights: bool = False,
    ) -> UserState:
        return UserState({"active": torch.ones(query.target.numel(), dtype=torch.bool)})

    def scores(self, state: UserState) -> DenseScores:
        return DenseScores(self.latest.expand(len(state), -1), self.item_mask())

    def state(self) -> Saved:
        return Saved({}, {"latest": self.latest})

    @classmethod
    def from_state(cls, saved: Saved, catalog: mr.Catalog, warm: np.ndarray) -> "Freshest":
        latest = saved.tensors["latest"]
        if latest.dtype != torch.float64 or latest.shape != (catalog.size,):
            raise ValueError(f"latest must be one float64 for each of {catalog.size} rows, got {latest.shape}")
        model = cls.__new__(cls)
        model.latest, model.catalog, model.warm = latest, catalog, warm
        return model


up, down = mr.split_by_time(mr.datasets.planted(users=60, items=40), at=mr.datasets.PLANTED_SPLIT)
learner = mr.recipes.sasrec.build(up, ("id", "text"), dim=8)
for _step in mr.recipes.sasrec.train(learner, up, epochs=1):
    pass
ensemble = mr.recipes.Ensemble({"SASRec": learner, "freshest": Freshest(up)}, up)

path = Path(tempfile.mkdtemp()) / "shop.safetensors"
mr.save(ensemble, path)
again = mr.load(path)
print(type(again).__name__, list(again.members()))
print(np.array_equal(mr.evaluate(again, down).rank, mr.evaluate(ensemble, down).rank))
