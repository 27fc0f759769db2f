"""LightGCN against dense matrices; first-order MAML and Reptile against loops."""

import copy

import pytest
import torch

from evaluation_worlds import ITEMS, make_data, warm_only
from metarec.data import EpisodeSampler, split_by_time
from metarec.datasets import PLANTED_SPLIT, planted
from metarec.meta import MetaLearner
from metarec.recipes import sasrec
from metarec.recipes.lightgcn import LightGCN
from metarec.recipes.metalearned import maml, reptile
from metarec.recipes.next_item import every_click


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_lightgcn_is_powers_of_the_normalised_adjacency(layers: int) -> None:
    up = warm_only(make_data())
    model = LightGCN(up, dim=5, layers=layers).double()
    codes = up.user_codes.tolist()
    clicked = torch.zeros(len(codes), ITEMS + 1, dtype=torch.float64)
    for user, item in zip(up.user.tolist(), up.item.tolist(), strict=True):
        clicked[codes.index(user), item] = 1
    normal = clicked / (clicked.sum(1, keepdim=True) * clicked.sum(0, keepdim=True)).clamp(min=1).sqrt()
    both = len(codes) + ITEMS + 1
    adjacency = torch.zeros(both, both, dtype=torch.float64)
    adjacency[: len(codes), len(codes) :], adjacency[len(codes) :, : len(codes)] = normal, normal.T
    start = torch.cat([model.users, model.items])
    powers = [torch.linalg.matrix_power(adjacency, k) @ start for k in range(layers + 1)]
    expected = sum(powers[1:], powers[0]) / (layers + 1)
    users, items = model.propagated()
    torch.testing.assert_close(users, expected[: len(codes)], atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(torch.stack(items).mean(0), expected[len(codes) :], atol=1e-7, rtol=1e-6)


def test_a_cold_user_is_read_as_a_node_with_the_same_clicks_would_be() -> None:
    up = warm_only(make_data())
    model = LightGCN(up, dim=5, layers=2)
    batch = next(EpisodeSampler(up, part="serving", negatives=0).epoch(0))
    users, items = model.propagated()
    for row, user in enumerate(batch.user.tolist()):
        history = [int(i) for i in up.item[up.user == user]]
        query = batch.query[row : row + 1]
        width = len(history)
        whole = type(query)(  # as if the last click were known too
            torch.tensor([history]), torch.tensor([[width - 1]]), query.target, query.negatives, query.weight
        )
        found = model.adapt(batch.support)(whole)
        node = up.user_codes.tolist().index(user)
        expected = (users[node] - model.users[node] / 3) @ torch.stack(items).mean(0).T
        torch.testing.assert_close(found.scores[0, 0], expected, atol=1e-6, rtol=1e-4)


def test_lightgcn_learns_its_graph() -> None:
    up, _ = split_by_time(planted(users=60, items=40), at=PLANTED_SPLIT)
    losses = [step.loss for step in LightGCN(up, dim=16).train_on_edges(epochs=40, lr=1e-2)]
    assert losses[-1] < losses[0] - 0.3
    again = [step.loss for step in LightGCN(up, dim=16).train_on_edges(epochs=2, lr=1e-2)]
    assert again == losses[:2]


def world() -> tuple[MetaLearner, EpisodeSampler]:
    up, _ = split_by_time(planted(users=40, items=20), at=PLANTED_SPLIT)
    learner = sasrec.build(up, dim=4, layers=1, dropout=0.0)
    meta = MetaLearner(learner, lr=0.5, steps=3, objectives=("softmax", "softmax"), engine="native")
    return meta, EpisodeSampler(up, users_per_batch=100, queries=0.5, negatives=0)


def test_reptile_moves_the_weights_towards_the_mean_of_the_users_own() -> None:
    meta, sampler = world()
    before = copy.deepcopy(meta.learner)
    batch = next(sampler.epoch(0))
    mean = {name: torch.zeros_like(p) for name, p in before.named_parameters()}
    for row in range(len(batch)):
        own = copy.deepcopy(before)
        examples = every_click(batch)[row : row + 1]
        for _ in range(3):
            own.zero_grad()
            own.loss(examples, "softmax").sum().backward()
            with torch.no_grad():
                for name, p in own.named_parameters():
                    if name.startswith("encoder"):
                        p -= 0.5 * p.grad  # type: ignore[operator]
        for name, p in own.named_parameters():
            mean[name] += p.detach() / len(batch)
    steps = list(reptile(meta, sampler, epochs=1, rate=0.3))
    assert steps[-1].epoch_done and steps[-1].users == len(batch)
    for name, p in meta.learner.named_parameters():
        start = dict(before.named_parameters())[name]
        torch.testing.assert_close(p - start, 0.3 * (mean[name] - start), atol=2e-5, rtol=1e-3)


def test_maml_takes_adams_step_on_the_gradient_at_the_adapted_weights() -> None:
    meta, sampler = world()
    other = copy.deepcopy(meta)
    optimizer = torch.optim.Adam(other.parameters(), lr=1e-2)
    loss = other.backward(next(sampler.epoch(0)))
    optimizer.step()
    step = list(maml(meta, sampler, epochs=1, lr=1e-2))[-1]
    assert step.stage == "MAML" and step.loss == pytest.approx(loss)
    for mine, theirs in zip(meta.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)
    assert not meta.training
