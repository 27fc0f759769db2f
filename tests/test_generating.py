"""The generator of a trained learner: what is trained, what stays, and that features of cold items are learned."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from metarec.data import Dataset, split_by_time
from metarec.data.dataset import Catalog, Vocabulary
from metarec.datasets import PLANTED_SPLIT, planted
from metarec.nn import ColdItemGenerator, ModalityLearner
from metarec.nn.record import record_of
from metarec.recipes import sasrec
from metarec.recipes.generating import train_generator, with_generator
from metarec.recipes.nested_validation import last_clicks
from metarec.recipes.validation import ranked

WORLD = planted(users=400, items=60, adaptation=0.0)
UP, DOWN = split_by_time(WORLD, at=PLANTED_SPLIT)


def trained(epochs: int = 20, inputs: tuple[str, ...] = ("id",)) -> ModalityLearner:
    learner = sasrec.build(UP, inputs, dim=16)
    for _ in sasrec.train(learner, UP, epochs=epochs, users_per_batch=32):
        pass
    return learner


def test_only_the_generator_is_trained() -> None:
    learner = trained(2)
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    model = with_generator(learner, UP)
    items = model.items
    assert isinstance(items, ColdItemGenerator) and items.items is learner.items
    own = {name: value.clone() for name, value in items.projections.state_dict().items()}
    for _ in train_generator(model, UP, epochs=1, users_per_batch=32):
        pass
    assert all(torch.equal(value, learner.state_dict()[name]) for name, value in before.items())
    moved = [not torch.equal(value, items.projections.state_dict()[name]) for name, value in own.items()]
    assert all(moved) and "generator" in record_of(model).trained
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_warm_items_score_as_before_and_cold_ones_are_known() -> None:
    learner = trained(2)
    model = with_generator(learner, UP).eval()
    batch = next(iter(last_clicks(DOWN, 1)))
    warm = torch.from_numpy(UP.warm)
    batch.query.history[~warm[batch.query.history]] = int(warm.nonzero()[0])
    with torch.no_grad():
        plain, generating = learner(batch.query), model(batch.query)
    assert torch.equal(generating.item_mask, torch.arange(len(warm)) > 0) and torch.equal(plain.item_mask, warm)
    torch.testing.assert_close(generating.scores[..., warm], plain.scores[..., warm])


def test_cold_targets_are_found_by_their_features() -> None:
    learner = trained()
    model = with_generator(learner, UP)
    for _ in train_generator(model, UP, epochs=20, users_per_batch=32):
        pass
    batches = list(last_clicks(DOWN, 3))
    cold = [b for b in batches if (~torch.from_numpy(UP.warm)[b.query.target]).any()]
    for batch in cold:
        batch.query.weight[torch.from_numpy(UP.warm)[batch.query.target]] = 0
    plain, generating = (ranked(each, cold, exclude_seen=False).ndcg.mean() for each in (learner, model))
    chance = 4.54 / WORLD.catalog.size  # the sum of the discounts of ten places
    assert plain == 0 and generating > 2 * chance


def test_data_without_features_have_nothing_to_generate_from() -> None:
    data = Dataset(
        Vocabulary(["u", "v"], "user"),
        Catalog(Vocabulary(["a", "b"])),
        user=np.array([1, 1, 2, 2]),
        item=np.array([1, 2, 1, 2]),
        time=np.arange(4),
        warm=np.array([False, True, True]),
    )
    learner = sasrec.build(data, dim=8)
    with pytest.raises(ValueError, match="ColdItemGenerator"):
        with_generator(learner, data)
    with pytest.raises(ValueError, match="IdItems"):
        next(train_generator(learner, data))
