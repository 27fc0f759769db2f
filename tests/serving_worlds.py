"""Models with weights large enough to matter, users to serve, and a method whose scores are written by hand."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import torch

from metarec.data import Catalog, Dataset, Modality, Vocabulary, split_by_time
from metarec.datasets import PLANTED_SPLIT, planted
from metarec.recipes import MML, MMLConfig
from metarec.types import Examples, Scored
from tiny import CONFIG, UP

HISTORIES = [
    ["item3", "item14", "item15", "item2"],
    [],
    ["item7"],
    [f"item{i}" for i in (1, 4, 1, 5, 9, 2, 6, 5, 3, 5)],
    ["item36", "item39", "item8"],
    ["item20", "item21"],
]


def some_without_features() -> Dataset:
    """Learners that know different items."""
    data = replace(planted(users=60, items=40), upstream_repeat_share=0.0)
    views = {}
    for number, (name, view) in enumerate(data.catalog.modalities.items()):
        present = view.present & (torch.arange(41) % 7 != number)
        views[name] = Modality(name, view.features * present.unsqueeze(1), present)
    up, _ = split_by_time(replace(data, catalog=replace(data.catalog, modalities=views)), at=PLANTED_SPLIT)
    return up


WORLDS = {
    "default": (UP, CONFIG),
    "softmax": (UP, replace(CONFIG, objectives=("softmax", "softmax"))),
    "sampled softmax": (UP, replace(CONFIG, objectives=("sampled_softmax", "softmax"), negatives=3)),
    "steps and rates per learner": (
        UP,
        replace(CONFIG, test_steps={"id": 3, "default": 1}, test_lr={"text": 0.5, "default": 0.1}),
    ),
    "no steps": (UP, replace(CONFIG, test_steps=0)),
    "all weights": (UP, replace(CONFIG, test_adapts="all", test_lr=0.3)),
    "other items known": (some_without_features(), CONFIG),
    "other items known, all weights": (some_without_features(), replace(CONFIG, test_adapts="all", test_lr=0.3)),
    "ids alone": (UP, replace(CONFIG, modalities=())),
    "paper": (UP, replace(CONFIG, variant="paper", max_length=5)),
}


def lively(data: Dataset, config: MMLConfig) -> MML:
    """An untrained model with weights large enough to matter."""
    model = MML.build(data, config).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
        for learner in model.learners.values():
            items = getattr(learner.items, "items", learner.items)
            if hasattr(items, "weight"):
                items.weight[0] = 0
    return model


class ByHand:
    """Scores 0, 1, 2, ... unless given; remembers what it was asked."""

    def __init__(self, ids: str, scores: list[float] | None = None, known: list[int] | None = None) -> None:
        self.catalog = Catalog(Vocabulary(ids))
        self.warm = np.arange(self.catalog.size) > 0
        self.config = SimpleNamespace(max_length=3, negatives=2)
        self.scores = torch.tensor(scores if scores is not None else [float(i) for i in range(self.catalog.size)])
        self.known = torch.tensor(known if known is not None else [1] * self.catalog.size) > 0
        self.active = True

    def adapt(self, support: Examples) -> ByHand:
        self.support, self.grad = support, torch.is_grad_enabled()
        return self

    def __call__(self, query: Examples) -> Scored:
        self.query = query
        return Scored(self.scores.expand(1, 1, -1), torch.zeros(1, 1, 1), self.known, torch.tensor([[self.active]]))
