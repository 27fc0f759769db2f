"""A recipe of one's own: text alone, meta-trained so that a few clicks are enough."""

from collections.abc import Iterator
from dataclasses import replace

import torch

import metarec as mr
from metarec.functional import standardise_features


def build(up: mr.Dataset, *, dim: int = 32, lr: float = 0.05) -> mr.MetaLearner:
    """A learner of texts that adapts its encoder to each user."""
    raw = up.catalog["text"]
    features = replace(raw, features=standardise_features(raw.features, raw.present))
    learner = mr.ModalityLearner(
        items=mr.FeatureItems(features, dim),
        encoder=mr.SequenceEncoder(dim, layers=1, dropout=0.1),
        candidates=torch.from_numpy(up.warm),
    )
    losses = ("softmax", "softmax")
    return mr.MetaLearner(learner, lr=lr, steps=3, objectives=losses)


def train(meta: mr.MetaLearner, sampler: mr.EpisodeSampler, epochs: int) -> Iterator[float]:
    """Adam on the query loss after adaptation; yields the mean loss of each epoch."""
    optimizer = torch.optim.Adam(meta.parameters(), lr=3e-3)
    for epoch in range(epochs):
        losses = []
        for episodes in sampler.epoch(epoch):
            optimizer.zero_grad()
            losses.append(meta.backward(episodes))
            optimizer.step()
        yield sum(losses) / len(losses)
    meta.fitted_until = float(sampler.data.time.max())  # type: ignore[assignment]


if __name__ == "__main__":
    torch.manual_seed(0)
    data = mr.datasets.planted(users=500, items=60)
    up, down = mr.split_by_time(data, at=mr.datasets.PLANTED_SPLIT)
    meta = build(up)
    sampler = mr.EpisodeSampler(up, users_per_batch=32, queries=0.5)
    losses = list(train(meta, sampler, epochs=20))
    print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f}")
    for method in (mr.Popularity(up), meta):
        print(mr.evaluate(method, down, k=(5,)))
