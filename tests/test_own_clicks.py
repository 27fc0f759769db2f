"""A user's own clicks: features against loops, weights against the likelihood, what is learned in planted worlds."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import metarec as mr
from metarec.data import EpisodeSampler
from metarec.data.dataset import Catalog, Dataset, Vocabulary
from metarec.recipes import own_clicks
from metarec.recipes.own_clicks import FEATURES, OwnClicks, _examples

ITEMS = 12


def world(*, users: int = 60, repeats: float = 0.5, seed: int = 0) -> Dataset:
    """Users who click one of their last two items again with some probability, and else a new one."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(1, users + 1):
        history: list[int] = []
        for _ in range(15):
            again = len(history) > 1 and rng.random() < repeats
            history.append(int(rng.choice(history[-2:])) if again else int(rng.integers(1, ITEMS + 1)))
        rows += [(user, item, 100 * user + place) for place, item in enumerate(history)]
    user, item, time = np.array(rows).T
    names = Vocabulary([f"u{n}" for n in range(users)], "user"), Catalog(Vocabulary([f"i{n}" for n in range(ITEMS)]))
    return Dataset(*names, user=user, item=item, time=time, warm=np.arange(ITEMS + 1) > 0)


DATA = world()
MODEL = OwnClicks(DATA)


def term(model: OwnClicks, history: list[int], item: int) -> float:
    """The score of one clicked item, by the formula."""
    places = [place for place, clicked in enumerate(history) if clicked == item]
    age = len(history) - places[-1]
    repeats = len(history) - len(set(history))
    usual = 1 / (1 + math.exp(-float(model.again[1:].mean())))
    share = (repeats + own_clicks.PRIOR * usual) / (len(history) + own_clicks.PRIOR)
    features = [
        1.0,
        math.log(len(places)),
        math.log(age),
        float(age == 1),
        float(model.again[item]),
        math.log(share / (1 - share)),
        math.log(len(history)),
        abs(math.log(age) - float(model.gap[item])),
    ]
    return sum(w * f for w, f in zip(model.weight.tolist(), features, strict=True))


def scores(model: OwnClicks, histories: list[list[int]]) -> torch.Tensor:
    width = max(map(len, histories))
    history = torch.tensor([own + [0] * (width - len(own)) for own in histories])
    position = torch.tensor([[len(own) - 1] for own in histories])
    one = torch.ones(len(histories), 1)
    query = mr.Examples(history, position, position * 0 + 1, torch.zeros(len(histories), 1, 0).long(), one)
    return model.scores(model.encode(query, query)).approximate(0, ITEMS + 1)


def test_scores_are_those_of_the_formula() -> None:
    histories = [[3, 1, 3, 2], [5], [1, 1, 1, 4, 2, 4]]
    found = scores(MODEL, histories)
    for row, history in zip(found, histories, strict=True):
        for item in range(ITEMS + 1):
            expected = term(MODEL, history, item) if item in history else 0.0
            assert float(row[item]) == pytest.approx(expected, abs=1e-5)


def test_the_habits_of_items_are_counted() -> None:
    again, gaps = np.zeros(ITEMS + 1), [[] for _ in range(ITEMS + 1)]  # type: list, by item
    clicks = np.bincount(DATA.item, minlength=ITEMS + 1)
    for user in np.unique(DATA.user):
        own = DATA.item[DATA.user == user][np.argsort(DATA.time[DATA.user == user], kind="stable")]
        last: dict[int, int] = {}
        for place, item in enumerate(own.tolist()):
            if item in last:
                again[item] += 1
                gaps[item].append(math.log(place - last[item]))
            last[item] = place
    usual, mean = again.sum() / clicks.sum(), np.mean([gap for own in gaps for gap in own])
    for item in range(1, ITEMS + 1):
        share = (again[item] + own_clicks.PRIOR * usual) / (clicks[item] + own_clicks.PRIOR)
        gap = (sum(gaps[item]) + own_clicks.PRIOR * mean) / (len(gaps[item]) + own_clicks.PRIOR)
        assert float(MODEL.again[item]) == pytest.approx(math.log(share / (1 - share)))
        assert float(MODEL.gap[item]) == pytest.approx(gap)


def test_the_weights_are_likeliest() -> None:
    history, target = _examples(DATA, 0)
    popular = np.bincount(DATA.item, minlength=ITEMS + 1) + 0.5
    popular[0] = 0
    popular = popular / popular.sum()

    def loss(weight: torch.Tensor) -> float:
        kept, MODEL.weight = MODEL.weight, weight
        total = 0.0
        for row, clicked in zip(history[:200], target[:200], strict=True):
            own = [item for item in row.tolist() if item]
            terms = {item: term(MODEL, own, item) for item in set(own)}
            rest = 1 - sum(popular[item] for item in terms)
            total -= terms.get(int(clicked), 0.0)
            total += math.log(rest + sum(popular[item] * math.exp(value) for item, value in terms.items()))
        MODEL.weight = kept
        return total / 200

    best = loss(MODEL.weight)
    draw = torch.Generator().manual_seed(0)
    for _ in range(5):
        assert loss(MODEL.weight + 0.5 * torch.randn(FEATURES, generator=draw, dtype=torch.float64)) > best


def test_what_was_clicked_lately_is_ranked_first_where_that_is_the_rule() -> None:
    found = scores(MODEL, [[1, 2, 3, 4, 5]])[0]
    assert sorted(found.topk(2).indices.tolist()) == [4, 5]
    assert float(scores(OwnClicks(world(repeats=0.0)), [[1, 2, 3, 4, 5]])[0].max()) < float(found.max()) - 1


def test_scores_are_not_standardised() -> None:
    batch = next(EpisodeSampler(DATA, part="serving").epoch(0))
    mean, deviation = MODEL.scores(MODEL.encode(batch.support, batch.query)).moments()
    assert mean.eq(0).all() and deviation.eq(1).all()


def test_saved_and_with_more_items(tmp_path: Path) -> None:
    mr.save(MODEL, tmp_path / "own.safetensors")
    loaded = mr.load(tmp_path / "own.safetensors")
    assert torch.equal(scores(loaded, [[3, 1, 3]]), scores(MODEL, [[3, 1, 3]]))
    more = MODEL.add_items(Catalog(Vocabulary(["new"])))
    assert more.item_mask().tolist() == [False] + [True] * (ITEMS + 1)
    assert float(more.again[-1]) == pytest.approx(float(MODEL.again[1:].mean()))
    assert torch.equal(scores(more, [[3, 1, 3]]), scores(MODEL, [[3, 1, 3]]))


def test_no_interaction_is_refused() -> None:
    none = np.array([], dtype=np.int64)
    names = Vocabulary(["u"], "user"), Catalog(Vocabulary(["a"]))
    with pytest.raises(ValueError, match="none"):
        OwnClicks(Dataset(*names, user=none, item=none, time=none, warm=np.array([False, True])))


def test_weights_are_those_of_many_clicks_and_hardly_of_the_draw() -> None:
    data = world(users=1_700)
    history, target = _examples(data, 0)
    assert len(history) == len(target) == 20_000
    one, other = (OwnClicks(data, seed=seed).weight for seed in (0, 1))
    torch.testing.assert_close(one, other, atol=0.2, rtol=0.0)
