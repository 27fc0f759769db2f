"""Each baseline against a loop, a least-squares problem or a planted world."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from evaluation_worlds import ITEMS, clicks_of, make_data, warm_only
from metarec.data import EpisodeSampler, split_by_time
from metarec.data.dataset import Dataset
from metarec.datasets import PLANTED_SPLIT, planted
from metarec.evaluation import evaluate
from metarec.nn import IdItems
from metarec.recipes import EASE, ItemKNN, LivePopularity, sasrec
from metarec.recipes.next_item import every_click
from metarec.recipes.sasrec import SummedItems, gbce_loss
from metarec.types import Method, Scored


def matrix(data: Dataset) -> np.ndarray:
    """(users, I) who clicked what."""
    seen = np.zeros((data.users.size, data.catalog.size))
    seen[data.user, data.item] = 1
    return seen


def score(method: Method, data: Dataset) -> tuple[list[list[int]], Scored]:
    """Every user's clicks but the last, and the scores after them."""
    batch = next(EpisodeSampler(data, part="serving").epoch(0))
    own = dict(clicks_of(data))
    return [own[user][:-1] for user in batch.user.tolist()], method.adapt(batch.support)(batch.query)


@pytest.mark.parametrize("items", [10_000, 6])
def test_ease_is_the_ridge_regression_of_each_item_on_all_others(items: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metarec.recipes.ease.PAIRS", 100)  # some users at a time
    up = warm_only(make_data())
    x, warm, weight = matrix(up), np.flatnonzero(up.warm), np.zeros((ITEMS + 1, ITEMS + 1))
    clicks = [int((up.item == item).sum()) for item in warm]
    warm = sorted(warm, key=lambda item: (-clicks[list(warm).index(item)], item))[:items]
    warm = np.array(sorted(warm))
    for item in warm:
        others = warm[warm != item]
        gram = x[:, others].T @ x[:, others] + 7.0 * np.eye(len(others))
        weight[others, item] = np.linalg.solve(gram, x[:, others].T @ x[:, item])
    histories, found = score(EASE(up, penalty=7.0, items=items), make_data(4))
    for history, row in zip(histories, found.scores[:, 0].numpy(), strict=True):
        np.testing.assert_allclose(row, sum(weight[item] for item in set(history)), atol=1e-5)
    assert found.item_mask.nonzero().squeeze(1).tolist() == warm.tolist()
    assert found.has_known_history[:, 0].tolist() == [bool(np.isin(h, warm).any()) for h in histories]
    with pytest.raises(ValueError, match=r"items .*least 1, got 0"):
        EASE(up, items=0)
    with pytest.raises(ValueError, match=r"penalty .*0, got 0"):
        EASE(up, penalty=0)


@pytest.mark.parametrize(("neighbours", "decay"), [(2, 1.0), (5, 1.0), (100, 1.0), (5, 0.6), (100, 0.6)])
def test_itemknn_sums_the_similarities_of_the_nearest_items(neighbours: int, decay: float) -> None:
    up = warm_only(make_data())
    x = matrix(up)
    similar = np.zeros((ITEMS + 1, ITEMS + 1))
    for i in range(ITEMS + 1):
        for j in range(ITEMS + 1):
            if i != j:
                similar[i, j] = (x[:, i] * x[:, j]).sum() / (np.sqrt(x[:, i].sum() * x[:, j].sum()) + 3.0)
    model = ItemKNN(up, neighbours=neighbours, shrink=3.0, decay=decay)
    histories, found = score(model, make_data(4))
    assert model.catalog is not None and model.warm is not None
    again = ItemKNN.from_state(model.state(), model.catalog, model.warm)
    assert torch.equal(score(again, make_data(4))[1].scores, found.scores)
    for history, row in zip(histories, found.scores[:, 0].numpy(), strict=True):
        upper, lower = np.zeros(ITEMS + 1), np.zeros(ITEMS + 1)  # ties at the border may fall either way
        for item in set(history):
            border = np.sort(similar[item])[::-1][min(neighbours, ITEMS + 1) - 1]
            counts = decay ** history[::-1].index(item)
            upper += np.where(similar[item] >= border - 1e-9, similar[item], 0) * counts
            lower += np.where(similar[item] > border + 1e-9, similar[item], 0) * counts
        assert (row <= upper + 1e-5).all() and (row >= lower - 1e-5).all()
    with pytest.raises(ValueError, match="neighbours >= 1 and shrink >= 0, got 0 and 20"):
        ItemKNN(up, neighbours=0)
    with pytest.raises(ValueError, match=r"decay .*1, got 1.5"):
        ItemKNN(up, decay=1.5)


@pytest.mark.parametrize("half_life", [None, 4.0])
def test_live_popularity_counts_strictly_before_each_click(half_life: float | None) -> None:
    data = make_data()
    batch = next(EpisodeSampler(data, part="test").epoch(0))
    method = LivePopularity(data, window=30, half_life=half_life)
    assert batch.query.time is not None
    for time, row in zip(batch.query.time[:, 0].tolist(), method.counts(batch.query.time)[:, 0], strict=True):
        counts = np.zeros(ITEMS + 1)
        for item, at in zip(data.item.tolist(), data.time.tolist(), strict=True):
            if time - 30 <= at < time:
                counts[item] += 1 if half_life is None else 0.5 ** ((time - at) / half_life)
        np.testing.assert_allclose(row.numpy(), counts, atol=1e-5)
    assert method.information == "live"


def test_live_popularity_tells_seconds_apart_in_unix_time() -> None:
    data = make_data()
    data = replace(data, time=1_700_000_000 + data.time)
    at = torch.tensor([1_700_000_000 + second for second in (1, 2, 30)])
    found = LivePopularity(data, window=86400.0).counts(at)
    assert found.sum(1).tolist() == [1, 2, 30]
    assert LivePopularity(data, window=1.0).counts(at).sum(1).tolist() == [1, 1, 1]


def test_live_popularity_never_sees_what_comes_later() -> None:
    data = make_data()
    batch = next(EpisodeSampler(data, part="test").epoch(0))
    assert batch.query.time is not None
    middle = int(batch.query.time.median())
    other = np.where(data.time >= middle, 1 + data.item % ITEMS, data.item)  # everything from then on is another item
    changed = Dataset(data.users, data.catalog, data.user, other, data.time, data.warm)
    early = batch.query.time <= middle
    first, second = (LivePopularity(d, window=1000).counts(batch.query.time) for d in (data, changed))
    assert torch.equal(first[early], second[early]) and not torch.equal(first, second)
    now = LivePopularity(data, window=1000).adapt(batch.support)(replace(batch.query, time=None))  # served now
    np.testing.assert_allclose(now.scores[0, 0].exp() - 0.5, np.bincount(data.item, minlength=ITEMS + 1), atol=1e-4)
    with pytest.raises(ValueError, match=r"above 0, got \d+ interactions, 0 and None"):
        LivePopularity(data, window=0)


def test_every_click_after_the_first_is_asked_for_once() -> None:
    data = make_data()
    expected, found = {}, {}
    for user, clicks in clicks_of(data):
        if len(clicks) > 2:
            expected[user] = sorted((tuple(clicks[:at]), clicks[at]) for at in range(1, len(clicks)))
    for batch in EpisodeSampler(data, users_per_batch=5).epoch(0):
        examples = every_click(batch)
        for row, user in enumerate(batch.user.tolist()):
            found[user] = sorted(
                (tuple(examples.history[row, : int(p) + 1].tolist()), int(t))
                for p, t, w in zip(examples.position[row], examples.target[row], examples.weight[row], strict=True)
                if w > 0
            )
    assert found == expected


def test_gbce_is_binary_cross_entropy_with_the_positive_weighed_down() -> None:
    data = make_data()
    learner = sasrec.build(data, dim=4, dropout=0.0)
    batch = next(EpisodeSampler(data, negatives=3).epoch(0))
    examples = every_click(batch)
    items = learner.items.table()
    state = learner.states(examples)
    rate = 3 / (int(data.warm.sum()) - 1)
    for calibration in (0.0, 0.75, 1.0):
        beta = (1 - calibration) + calibration * rate
        positive = (state * items[examples.target]).sum(-1)
        negative = torch.einsum("bsd,bsnd->bsn", state, items[examples.negatives])
        parts = torch.cat([positive[..., None], negative], -1)
        wanted = torch.cat([torch.ones_like(positive)[..., None], torch.zeros_like(negative)], -1)
        each = nn.functional.binary_cross_entropy_with_logits(parts, wanted, reduction="none")
        each = beta * each[..., 0] + each[..., 1:].sum(-1)
        expected = (each * examples.weight).sum(1) / examples.weight.sum(1)
        torch.testing.assert_close(gbce_loss(learner, examples, rate, calibration=calibration), expected)


def test_summed_items_add_what_each_source_knows() -> None:
    warm = torch.tensor([False, True, True, False])
    ids, more = IdItems(4, 3, known=warm), IdItems(4, 3)
    both = SummedItems([ids, more], drop=0.5)
    expected = more.weight + ids.weight * warm[:, None]
    expected[0] = 0
    torch.testing.assert_close(both.eval().table(), expected)
    torch.testing.assert_close(both.scores(torch.eye(3))[1], expected[:, 1])
    torch.manual_seed(0)
    draws = torch.stack([both.train().table() for _ in range(400)])
    torch.testing.assert_close(draws.mean(0), expected / 2, atol=0.01, rtol=0)


@pytest.mark.parametrize("objective", ["softmax", "sampled_softmax", "bpr", "gbce"])
def test_sasrec_learns_a_shared_rule_under_every_loss(objective: sasrec.Loss) -> None:
    up, down = split_by_time(planted(users=300, items=40, adaptation=0.0), at=PLANTED_SPLIT)
    learner = sasrec.build(up, ("id", "text"), dim=16, layers=1, dropout=0.0)
    epochs, lr = (40, 3e-3) if objective == "gbce" else (8, 1e-2)  # gBCE is slower and breaks at high rates
    steps = list(sasrec.train(learner, up, objective=objective, epochs=epochs, lr=lr, users_per_batch=32, negatives=8))
    assert steps[-1].stage == f"SASRec {objective}" and steps[-1].epoch == epochs
    found = evaluate(learner, down, k=(4,)).metrics["recall@4"].mean
    assert found > (0.2 if objective == "gbce" else 0.5)  # 4 items in a cluster; chance is 0.1
    assert evaluate(learner, down).info["fitted_until"] == up.time.max()


def test_sasrec_needs_something_to_read() -> None:
    with pytest.raises(ValueError, match=r"'id' .*modalities"):
        sasrec.build(make_data(), ())
    with pytest.raises(ValueError, match="no modality 'smell'"):
        sasrec.build(make_data(), ("smell",))
