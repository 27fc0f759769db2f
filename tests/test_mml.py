"""The MML recipe: it learns the planted world, scores chance on noise, and ranks cold items by their features."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from metarec.data import EpisodeSampler, split_by_time
from metarec.data.dataset import Dataset
from metarec.datasets import PLANTED_SPLIT, planted
from metarec.evaluation import evaluate
from metarec.recipes.config import MMLConfig
from metarec.recipes.mml import MML, train
from metarec.recipes.popularity import Popularity
from metarec.types import Method

ITEMS, CLUSTERS, K = 60, 10, 10
COLD_USERS = 600
CHANCE = K / ITEMS
FOUR_ERRORS = 4 * math.sqrt(CHANCE * (1 - CHANCE) / COLD_USERS)
TRAINED_ON = 600  # of the 2,400 upstream users: more are not needed, and the seconds are
SMALL = MMLConfig(
    modalities=("text",),
    dim=32,
    layers=1,
    heads=2,
    max_length=20,
    dropout=0.0,
    warmup_epochs=0,
    epochs=5,
    users_per_batch=64,
    queries=4,
    lr=3e-3,
    inner_steps=5,
    inner_lr=0.1,
    objectives=("softmax", "softmax"),
    negatives=1,
    neighbours=5,
    generated=0.1,
    generator_epochs=2,
    generator_lr=3e-3,
    fusion_users=0.25,
    fusion_epochs=10,
    fusion_lr=1e-2,
)


def world(items: int = ITEMS, **dials: float) -> tuple[Dataset, Dataset]:
    return split_by_time(planted(users=5 * COLD_USERS, items=items, seed=1, **dials), at=PLANTED_SPLIT)


def trained(up: Dataset, config: MMLConfig, users: int = TRAINED_ON) -> MML:
    model = MML.build(up, config)
    for _ in train(model, EpisodeSampler(up, seed=0, only=up.user_codes[:users])):
        pass
    assert not model.training
    return model


def recall(method: Method, down: Dataset) -> tuple[float, float]:
    """Recall among the first ten and its standard error, from the ranks alone."""
    rank = evaluate(method, down).rank
    assert len(rank) == COLD_USERS
    hit = float((rank <= K).mean())
    return hit, math.sqrt(hit * (1 - hit) / len(rank))


def top_of(method: Method, down: Dataset, among: Tensor, targets: Tensor) -> list[tuple[int, int]]:
    """(first of some items, target) of the cold users whose target is one of ``targets``; codes."""
    pairs = []
    for batch in EpisodeSampler(down, part="test", users_per_batch=200).epoch(0):
        with torch.no_grad():
            scores = method.adapt(batch.support)(batch.query).scores[:, 0]
        first = scores.masked_fill(~among, -torch.inf).argmax(-1)
        target = batch.query.target[:, 0]
        keep = targets[target]
        pairs += list(zip(first[keep].tolist(), target[keep].tolist(), strict=True))
    return pairs


def same_cluster(pairs: list[tuple[int, int]]) -> float:
    """Share of pairs of one cluster; item code c is the (c-1)-th item, of cluster (c-1) % 10 by the world's rule."""
    return float(np.mean([(a - 1) % CLUSTERS == (b - 1) % CLUSTERS for a, b in pairs]))


@pytest.fixture(scope="module")
def personal() -> tuple[MML, Dataset, Dataset]:
    """A world in which every user has a rule of his own, and MML trained on it."""
    up, down = world(adaptation=1.0)
    return trained(up, replace(SMALL, lr=1e-2, inner_lr=0.5, generator_lr=2e-2, epochs=9)), up, down


def test_adapting_beats_the_unadapted_learner_and_popularity(personal):
    model, up, down = personal
    methods = model.methods()
    floor, floor_error = recall(methods["text, not adapted"], down)
    popular, popular_error = recall(Popularity(up), down)
    assert floor < CHANCE + FOUR_ERRORS and popular < CHANCE + FOUR_ERRORS, "the average user tells nothing"
    for name in ("text", "text + generator", "weight fusion", "adaptive fusion"):
        adapted, error = recall(methods[name], down)
        assert adapted > 0.5, name
        assert adapted - floor > 10 * math.hypot(error, floor_error), name
        assert adapted - popular > 10 * math.hypot(error, popular_error), name
    assert recall(methods["text"], down)[0] > 0.8


def test_the_first_item_is_of_the_right_cluster_only_after_adapting(personal):
    model, _, down = personal
    anything = torch.arange(ITEMS + 1) > 0
    right = {
        name: same_cluster(top_of(model.methods()[name], down, anything, anything))
        for name in ("text", "text, not adapted")
    }
    assert right["text"] > 0.75
    assert right["text, not adapted"] < 1 / CLUSTERS + 4 * math.sqrt(0.1 * 0.9 / COLD_USERS)


def test_without_steps_the_adapted_method_is_the_unadapted_one(personal):
    model, _, down = personal
    still = MML.build(personal[1], replace(SMALL, test_steps=0))
    still.load_state_dict(model.state_dict())
    a = evaluate(still.meta("text", generator=False), down).rank
    b = evaluate(model.learner("text", generator=False), down).rank
    np.testing.assert_allclose(a, b)


def test_user_order_changes_nothing(personal):
    model, _, down = personal
    batch = next(EpisodeSampler(down, part="test", users_per_batch=40).epoch(0))
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        straight = model.adapt(batch.support)(batch.query).scores
        permuted = model.adapt(batch.support[order])(batch.query[order]).scores
    torch.testing.assert_close(permuted, straight[order], rtol=1e-3, atol=1e-4)


def test_noise_scores_chance():
    up, down = world(noise=1.0)
    model = trained(up, replace(SMALL, epochs=2, warmup_epochs=1, generator_epochs=1), users=300)
    for name, method in {**model.methods(), "popularity": Popularity(up)}.items():
        assert abs(recall(method, down)[0] - CHANCE) < FOUR_ERRORS, name


MANY, NEW = 200, 20  # items, and those of them that are cold: two of each cluster


def bound(chance: float, users: int) -> float:
    """Chance and four standard errors; the shuffle draws once for each cold item, the users once each."""
    return chance + 4 * math.sqrt(chance * (1 - chance) * (1 / NEW + 1 / users))


@pytest.fixture(scope="module", params=[False, True], ids=["features", "shuffled"])
def shared_rule(request) -> tuple[bool, MML, Dataset]:
    """A world with one rule for all, with features that tell the clusters apart and with shuffled ones."""
    up, down = world(MANY, adaptation=0.0, shuffle_features=request.param)
    config = replace(SMALL, warmup_epochs=6, epochs=1, generator_epochs=6, generator_lr=1e-2, generated=0.5)
    return request.param, trained(up, config, users=800), down


@pytest.mark.parametrize("name", ["text", "text + generator", "id + generator"])
def test_features_that_carry_the_signal_tell_cold_items_apart(shared_rule, name):
    shuffled, model, down = shared_rule
    cold = torch.arange(MANY + 1) > MANY - NEW
    pairs = top_of(model.methods()[name], down, cold, cold)
    right, limit = same_cluster(pairs), bound(1 / CLUSTERS, len(pairs))
    assert right < limit if shuffled else right > limit


def test_features_that_carry_the_signal_make_cold_items_rankable(shared_rule):
    shuffled, model, down = shared_rule
    found = {}
    for name in ("id", "id + generator", "text"):
        report = evaluate(model.methods()[name], down)
        found[name] = float((report.rank[report.is_cold] <= K).mean())
    chance = K / MANY
    assert found["id"] < chance, "an item that training has not seen has no ID vector"
    if shuffled:
        assert found["text"] < bound(chance, int(report.is_cold.sum()))
    else:
        assert min(found["text"], found["id + generator"]) > 4 * chance  # 10 * chance at most


def reordered(model: MML, up: Dataset) -> MML:
    """The same weights in a model whose two modalities come in the other order."""
    a, b = model.config.modalities
    other = MML.build(up, replace(model.config, modalities=(b, a)))
    state, swap = {}, {"0": "1", "1": "0"}
    for name, value in model.state_dict().items():
        parts = name.split(".")
        if parts[0] == "learners" and parts[3] in ("projections", "attentions"):
            parts[4] = swap[parts[4]]
        if name == "learners.id.context.projection.weight":
            width = up.catalog[a].dim
            value = torch.cat([value[:, width:], value[:, :width]], 1)
        if name in ("fusion.bias", "fusion.scale"):
            value = value[[0, 2, 1]]
        state[".".join(parts)] = value
    other.load_state_dict(state)
    return other


def test_the_order_of_the_learners_changes_nothing():
    up, down = split_by_time(planted(users=100, items=40), at=PLANTED_SPLIT)
    model = MML.build(up, replace(SMALL, modalities=("text", "image"), dim=8))
    torch.manual_seed(0)
    with torch.no_grad():
        for p in (*model.fusion.parameters(), *model.learners.parameters()):
            p.add_(0.1 * torch.randn_like(p))
    assert list(model.learners) == ["id", "text", "image"]
    other = reordered(model, up)
    assert list(other.learners) == ["id", "image", "text"]
    batch = next(EpisodeSampler(down, part="test").epoch(0))
    support = replace(batch.support, weight=batch.support.weight.double())
    with torch.no_grad():
        expected = model.double().eval().adapt(support)(batch.query).scores
        found = other.double().eval().adapt(support)(batch.query).scores
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_training_leaves_what_is_not_trained_alone():
    up, _ = split_by_time(planted(users=60, items=40), at=PLANTED_SPLIT)
    model = MML.build(up, replace(SMALL, epochs=1, generator_epochs=1, generated=0.5, fusion_epochs=1, dim=8))
    started = {name: value.clone() for name, value in model.state_dict().items()}
    changed: dict[str, set[str]] = {}
    for step in train(model, EpisodeSampler(up, seed=0)):
        now = model.state_dict()
        moved = {name for name in now if not torch.equal(now[name], started[name])}
        changed.setdefault(step.stage, set()).update(moved)
        started = {name: value.clone() for name, value in now.items()}
    assert list(changed) == ["id", "text", "id generator", "text generator", "fusion"]
    for stage, names in changed.items():
        assert names, stage
        if stage == "fusion":
            continue  # the best fusion weights are put back at the end
        learner = stage.split()[0]
        assert all(name.startswith(f"learners.{learner}.") for name in names)
        generated = [".projections." in name or ".attentions." in name for name in names]
        assert all(generated) if stage.endswith("generator") else not any(generated)


def first_losses() -> dict[str, float]:
    """The first loss of every stage of a tiny training."""
    up, _ = split_by_time(planted(users=60, items=40, seed=0), at=PLANTED_SPLIT)
    config = replace(
        SMALL,
        dim=8,
        layers=2,
        warmup_epochs=1,
        epochs=1,
        generator_epochs=1,
        users_per_batch=16,
        objectives=("bpr", "softmax"),
    )
    losses: dict[str, float] = {}
    for step in train(MML.build(up, config, seed=0), EpisodeSampler(up, seed=0)):
        losses.setdefault(step.stage, step.loss)
    return losses


PINNED = {
    "id warm-up": 3.5916,
    "id": 3.5613,
    "text warm-up": 3.5826,
    "text": 3.5514,
    "id generator": 3.5395,
    "text generator": 3.5434,
    "fusion": 3.9065,
}


def test_first_losses():
    found = first_losses()
    assert found == pytest.approx(PINNED, abs=1e-3)
    # Small ID vectors score all 36 warm items alike.
    assert found["id warm-up"] == pytest.approx(math.log(36), abs=0.1)


def test_the_same_seed_gives_the_same_training_and_another_does_not():
    up, _ = split_by_time(planted(users=40, items=40), at=PLANTED_SPLIT)
    config = replace(SMALL, dim=8, epochs=1, generator_epochs=1, fusion_epochs=1, dropout=0.2)

    def weights(seed: int) -> dict[str, Tensor]:
        model = MML.build(up, config, seed=seed)
        torch.rand(seed + 3)  # what was drawn elsewhere before does not matter
        for _ in train(model, EpisodeSampler(up, seed=seed)):
            pass
        return model.state_dict()

    first, again, other = weights(0), weights(0), weights(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["learners.id.items.items.weight"], other["learners.id.items.items.weight"])
