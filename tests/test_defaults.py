"""What is not said: each call without its settings does what it does with all of them said by hand."""

from __future__ import annotations

import copy
import itertools
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metarec.data import Dataset
from metarec.recipes import EASE, ItemKNN, inner_steps, sasrec, select_inner_steps
from metarec.recipes.candidates import candidate_scores
from metarec.recipes.context_weights import ContextWeights
from metarec.recipes.lightgcn import LightGCN
from metarec.recommender import Recommender
from metarec.service.journal import Journal
from metarec.types import Examples, Progress, Scored
from score_tables import WARM, tables, users
from serving_worlds import HISTORIES, lively
from tiny import CONFIG, DOWN, UP

SASREC = {"dim": 64, "layers": 2, "max_length": 50, "dropout": 0.3, "drop_inputs": 0.0, "seed": 0}
TRAIN = {"epochs": 10, "lr": 1e-3, "users_per_batch": 128, "negatives": 64, "seed": 0}
EDGES = {"epochs": 100, "lr": 3e-3, "edges": 4096, "decay": 1e-4}


def alike(one: nn.Module, other: nn.Module) -> None:
    assert str(one) == str(other)
    mine, theirs = one.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def after(model: Any, train: Callable[[Any], Any], steps: int = 2) -> tuple[Any, list[Progress]]:
    """A copy after some steps of a training, and what those steps report, without their speed."""
    own = copy.deepcopy(model)
    return own, [replace(step, users_per_second=0.0) for step in itertools.islice(train(own), steps)]


def test_sasrec_is_built() -> None:
    alike(sasrec.build(UP), sasrec.build(UP, ("id",), **SASREC))
    both = ("id", "text")
    assert sasrec.build(UP, both).items.drop == 0.0
    alike(sasrec.build(UP, both), sasrec.build(UP, both, **SASREC))


@pytest.mark.parametrize("objective", [None, "gbce"])
def test_sasrec_is_trained(objective: Any) -> None:
    said = {} if objective is None else {"objective": objective}
    one, steps = after(sasrec.build(UP, dim=8), lambda model: sasrec.train(model, UP, **said))
    by_hand = {"objective": objective or "softmax", **TRAIN}
    other, expected = after(sasrec.build(UP, dim=8), lambda model: sasrec.train(model, UP, **by_hand))
    assert steps == expected
    alike(one, other)


def test_lightgcn_is_built_and_trained() -> None:
    one, steps = after(LightGCN(UP), lambda model: model.train_on_edges())
    other, expected = after(LightGCN(UP, dim=64, layers=2, seed=0), lambda model: model.train_on_edges(**EDGES))
    assert steps == expected and one.layers == 2
    alike(one, other)


@pytest.mark.parametrize(("model", "file"), [(EASE, "ease"), (ItemKNN, "itemknn")])
def test_ten_thousand_items_are_compared(model: Callable[[Dataset], Any], file: str, monkeypatch: Any) -> None:
    asked, codes = [], UP.warm.nonzero()[0]
    monkeypatch.setattr(f"metarec.recipes.{file}.most_clicked", lambda data, items: asked.append(items) or codes)
    model(UP)
    assert asked == [10_000]


def test_lists_have_ten_items() -> None:
    recommender = Recommender(lively(UP, CONFIG))
    users = recommender.adapt(HISTORIES)
    for lists in (recommender.rank(users), users.recommend()):
        assert len(lists[0]) == 10
    assert len(users[0].recommend()) == 10


def test_the_journal_waits_ten_seconds_for_another_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits, connect = [], sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path, wait, **how: waits.append(wait) or connect(path, wait, **how))
    Journal(tmp_path / "journal", model="0a1b")
    assert set(waits) == {10.0}


def test_weights_are_fitted_by_a_generalised_cross_entropy_of_point_four() -> None:
    seen = candidate_scores(tables(), WARM, [users(60)], exclude_seen=False)
    one, other = ContextWeights(tables()), ContextWeights(tables(), context=True)
    one.fit(seen), other.fit(seen, penalty=1e-3, top=0.4, iterations=40)
    alike(one, other)


class Moves(nn.Module):
    """Stands in for MML: inner steps move the targets of the first users from one place of their lists to another."""

    def __init__(self, moved: int, still: int, users: int = 1000) -> None:
        super().__init__()
        self.weight, self.learners, self.config = nn.Parameter(torch.zeros(())), {"id": None}, CONFIG
        self.moved, self.still, self.users = moved, still, users

    def meta(self, name: str) -> Moves:
        return self

    def adapt(self, support: Examples) -> Callable[[Examples], Scored]:
        gains = (torch.arange(len(support)) < self.users) & (self.config.steps("id") > 0)
        return lambda query: at_places(query, torch.where(gains, self.moved, self.still))


def at_places(query: Examples, places: Tensor) -> Scored:
    """Scores by which the targets of each user are at a place among all items."""
    target, (users, queries) = query.target.unsqueeze(-1), query.target.shape
    items = torch.arange(UP.catalog.size)
    scores = items.float().repeat(users, queries, 1)
    others = scores.scatter(-1, target, -1.0).sort(descending=True).values
    above = others.gather(-1, (places - 1).view(-1, 1, 1).expand(-1, queries, 1))
    scores.scatter_(-1, target, above + 0.5)
    return Scored(scores, scores[..., :1], items > 0, torch.ones(users, queries) > 0)


@pytest.mark.parametrize(
    ("moved", "still", "gains"), [(10, 12, True), (11, 12, False), (12, 10, False), (3, 3, False), (1, 2, True)]
)
def test_inner_steps_are_judged_by_the_first_ten_places(moved: int, still: int, gains: bool) -> None:
    assert selected(Moves(moved, still)) == (CONFIG.inner_steps if gains else 0)


def test_a_gain_is_more_than_two_standard_errors() -> None:
    count = len(DOWN.user_codes)
    for gaining in range(1, count):
        share = gaining / count
        errors = share / (share * (1 - share) / (count - 1)) ** 0.5
        assert selected(Moves(1, 20, gaining)) == (CONFIG.inner_steps if errors > 2 else 0)


def selected(model: Any) -> int:
    """In lists that show seen items, so that places are those of the whole catalogue."""
    return select_inner_steps(model, replace(DOWN, upstream_repeat_share=1.0))["id"]


def test_inner_steps_are_judged_on_the_last_five_clicks(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, last_clicks = [], inner_steps.last_clicks
    monkeypatch.setattr(inner_steps, "last_clicks", lambda data, n: asked.append(n) or last_clicks(data, n))
    model: Any = Moves(1, 2)
    select_inner_steps(model, DOWN)
    assert asked == [5]
