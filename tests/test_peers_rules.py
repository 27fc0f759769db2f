"""Rules that libraries of this field break now and then, held here: see docs/comparing.md."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers import id_learner, ragged_episodes
from metarec import Report, evaluate, load_atomic, split_by_time
from metarec.data import Catalog, Dataset, Vocabulary
from metarec.files import read_tensors, write_tensors
from metarec.recipes import ItemKNN, Popularity
from metarec.recipes.metasgd import MetaSGD
from metarec.types import Examples, Scored, Scorer

ITEMS, USERS, K = 30, 24, (1, 2, 5, 10, 14)


def clicks(items: int = ITEMS, least: int = 6) -> Dataset:
    """Users of some clicks, among at most so many items; few items make many repeats."""
    draw = np.random.default_rng(0)
    user = np.repeat(np.arange(1, USERS + 1), draw.integers(least, 10, USERS))
    warm = np.arange(ITEMS + 1) > 0
    ids = Vocabulary([f"i{item:02}" for item in range(ITEMS)])
    people = Vocabulary([f"u{number:02}" for number in range(USERS)], "user")
    return Dataset(people, Catalog(ids), user, draw.integers(1, items + 1, len(user)), np.arange(len(user)), warm)


class Scores:
    """Scores of every item by its code, for the users that it knows; the others get nothing."""

    information = "upstream"

    def __init__(self, of_item: torch.Tensor, knows: float = math.inf) -> None:
        self.of_item, self.knows = of_item, knows

    def adapt(self, support: Examples) -> Scorer:
        def score(examples: Examples) -> Scored:
            shape = examples.target.shape
            told = examples.time <= self.knows if examples.time is not None else torch.ones(shape, dtype=torch.bool)
            known = told.unsqueeze(-1).expand(*shape, ITEMS + 1)
            scores = torch.where(known, self.of_item, 0.0)
            return Scored(scores, scores[..., :1], known, told)

        return score


def shares(report: Report) -> dict[str, float]:
    return {name: estimate.mean for name, estimate in report.metrics.items()}


@pytest.mark.parametrize("value", [0.0, -3.5, 1e30])
def test_a_method_that_tells_nothing_has_the_middle_rank_and_no_hit_above_it(value: float) -> None:
    report = evaluate(Scores(torch.full((ITEMS + 1,), value)), clicks(), k=(*K, 15, 16), exclude_seen=False)
    assert set(report.rank.tolist()) == {(ITEMS + 1) / 2}
    assert all(report.metrics[f"recall@{k}"].mean == (k >= (ITEMS + 1) / 2) for k in (*K, 15, 16))


def test_items_in_random_order_are_hit_as_often_as_chance_says() -> None:
    """Over all orders of the catalogue that a rotation gives, each user hits k of the candidates."""
    data, found = clicks(), []
    for turn in range(ITEMS):
        order = torch.cat([torch.zeros(1), torch.arange(ITEMS).roll(turn).float()])
        found.append(evaluate(Scores(order), data, k=K, exclude_seen=False))
    for k in K:
        assert np.mean([report.metrics[f"recall@{k}"].mean for report in found]) == pytest.approx(k / ITEMS)


def test_users_that_a_method_knows_nothing_of_raise_no_figure() -> None:
    data = clicks()
    last = {user: data.time[data.user == user].max() for user in range(1, USERS + 1)}
    some = replace(data, **{name: getattr(data, name)[data.user <= 8] for name in ("user", "item", "time")})
    method = Scores(torch.arange(ITEMS + 1).float(), knows=float(last[8]))
    few, all_users = (evaluate(method, given, k=K, exclude_seen=False) for given in (some, data))
    assert (len(few), len(all_users)) == (8, USERS)
    assert all_users.rank[:8].tolist() == few.rank.tolist()
    assert set(all_users.rank[8:].tolist()) == {(ITEMS + 1) / 2}
    assert max(shares(few).values()) > 0
    for name, value in shares(all_users).items():
        assert value == pytest.approx(shares(few)[name] * 8 / USERS), name


@pytest.mark.parametrize("exclude_seen", [False, True])
@pytest.mark.parametrize("positions", [1, 4])
def test_no_figure_exceeds_one_when_users_click_items_again(exclude_seen: bool, positions: int) -> None:
    data = clicks(items=3)
    assert data.repeat_share > 0.5
    best = Scores(-torch.arange(ITEMS + 1).float())  # the three items that hold all clicks come first
    for method in (best, ItemKNN(replace(data, time=data.time - len(data)))):
        found = evaluate(method, data, k=K, positions=positions, exclude_seen=exclude_seen, repeated="miss")
        assert found.info["repeated_targets"]
        assert all(0 <= value <= 1 for value in shares(found).values()), shares(found)
        assert exclude_seen or method is not best or found.metrics["recall@5"].mean == 1


def test_rows_of_one_moment_in_any_order_give_one_split(tmp_path: Path) -> None:
    """Times are days, as of purchases: many users start on one, and all of them stay on one side."""
    draw = np.random.default_rng(1)
    rows = [(f"u{n % 40:02}", f"i{draw.integers(20):02}", int(n % 40 // 4 + draw.integers(3))) for n in range(400)]
    start = {user: min(t for u, _, t in rows if u == user) for user, _, _ in rows}
    moment = sorted(start.values())[20]
    sides = set()
    for shuffle in range(6):
        mixed = [rows[place] for place in draw.permutation(len(rows))] if shuffle else rows
        path = tmp_path / f"{shuffle}" / "clicks.inter"
        path.parent.mkdir()
        lines = ["user_id:token\titem_id:token\ttimestamp:float", *(f"{u}\t{i}\t{t}" for u, i, t in mixed)]
        path.write_text("\n".join(lines), encoding="utf-8")
        up, down = split_by_time(load_atomic(path), at=moment, min_interactions=1)
        told = [sorted(zip(s.users.decode(s.user), s.catalog.items.decode(s.item), s.time.tolist(), strict=True))
                for s in (up, down)]  # fmt: skip
        assert {user for user, _, _ in told[1]} == {user for user, first in start.items() if first > moment}
        assert all(t <= moment for _, _, t in told[0]) and {t for _, _, t in told[0]} >= {moment}
        sides.add(str(told))
    assert list(start.values()).count(moment) > 1 and len(sides) == 1


def test_many_plays_of_one_item_are_that_many() -> None:
    data = clicks()
    plays = replace(data, item=np.full(len(data), 7, dtype=data.item.dtype))
    assert len(plays) > 127 and Popularity(plays).counts.tolist() == [len(plays) * (item == 7) for item in range(31)]


def test_a_transposed_tensor_is_saved_as_it_reads(tmp_path: Path) -> None:
    turned = torch.arange(6.0).view(2, 3).t()
    write_tensors(tmp_path / "x.safetensors", {"turned": turned}, {})
    assert read_tensors(tmp_path / "x.safetensors")[0]["turned"].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_tied_weights_stay_tied_under_meta_sgd() -> None:
    """As two blocks that begin alike and are moved by the sum of their gradients."""
    learner, episodes = id_learner(), ragged_episodes([5, 4, 6])
    apart = copy.deepcopy(learner)
    learner.encoder.blocks[1] = learner.encoder.blocks[0]
    apart.encoder.blocks[1].load_state_dict(apart.encoder.blocks[0].state_dict())
    found = MetaSGD(learner, lr=0.1, steps=3).adapt(episodes.support).weights()
    for user in range(3):
        own = copy.deepcopy(apart)
        weights, support = dict(own.encoder.named_parameters()), episodes.support[user : user + 1].trim()
        for _ in range(3):
            slopes = torch.autograd.grad(own.loss(support, "softmax").sum(), list(weights.values()), allow_unused=True)
            slope = dict(zip(weights, slopes, strict=True))
            with torch.no_grad():
                for name, weight in weights.items():
                    twins = {name, name.replace("blocks.0.", "blocks.1."), name.replace("blocks.1.", "blocks.0.")}
                    weight -= 0.1 * sum(slope[twin] for twin in twins)
        assert not any("blocks.1." in name for name in found)
        for name, value in found.items():
            torch.testing.assert_close(value[user], weights[name.removeprefix("encoder.")], rtol=1e-9, atol=1e-9)
