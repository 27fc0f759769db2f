"""Where fewer items are left than are asked for: shorter lists that say so, and no padding shown as an item."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest

from metarec import MML, Recommender, as_model
from metarec.model import Model
from metarec.recipes import EASE
from metarec.recommender import Recommendations
from metarec.service.answering import Answer, Filters, Job, answers
from metarec.serving import listing
from tiny import CONFIG, UP

IDS = UP.catalog.items.ids
HISTORIES = [["item3", "item14", "item3"], [], list(IDS[:38]), ["item7"], list(IDS), list(IDS[2:])]


@pytest.fixture(scope="module", params=["MML", "served"])
def recommender(request: pytest.FixtureRequest) -> Recommender:
    model: Model = MML.build(UP, CONFIG) if request.param == "MML" else as_model(EASE(UP), UP)
    return Recommender(model)


def by_hand(recommender: Recommender, number: int, among: set[str] | None = None) -> list[str]:
    """All that is left for a user, best first."""
    user = recommender.adapt(HISTORIES)[number]
    known, scores = recommender._states.current().known, user.scores.double()
    names = [n for c, n in enumerate(IDS, 1) if known[c] and n not in user.history and (among is None or n in among)]
    order = {name: code for code, name in enumerate(IDS, 1)}
    return sorted(names, key=lambda name: (-float(scores[order[name]]), order[name]))


@pytest.mark.parametrize("k", [1, 3, 38, 40, 41, 1000])
@pytest.mark.parametrize("at_once", [2, 256])
def test_lists_of_many_hold_what_is_left(
    recommender: Recommender, k: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(listing.USERS, "cpu", at_once)
    expected = [by_hand(recommender, number)[:k] for number in range(len(HISTORIES))]
    with pytest.warns(UserWarning, match=rf"as few as 0 items.* \d of 6 users, where k={k}: shorter lists"):
        found = recommender.adapt(HISTORIES).recommend(k=k)
    assert [[item.id for item in own] for own in found] == expected
    assert found.counts.tolist() == [len(own) for own in expected]
    assert found.codes.shape == found.scores.shape == found.ids.shape == (6, max(map(len, expected)))
    for own, row, codes, scores in zip(expected, found.ids, found.codes, found.scores, strict=True):
        assert row.tolist() == own + [None] * (len(row) - len(own))
        assert (codes[len(own) :] == 0).all() and (scores[len(own) :] == -np.inf).all()
        assert (codes[: len(own)] > 0).all() and np.isfinite(scores[: len(own)]).all()
    assert repr(found) == f"Recommendations(6 users, 0 to {max(map(len, expected))} items each)"


def test_one_list_is_shorter(recommender: Recommender) -> None:
    left = by_hand(recommender, 0)
    user = recommender.adapt(HISTORIES[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [item.id for item in user.recommend(k=len(left))] == left
    message = f"recommend: only {len(left)} items are left for this user, where k=99: shorter lists"
    with pytest.warns(UserWarning, match=re.escape(message)) as caught:
        assert [item.id for item in user.recommend(k=99)] == left
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match=r"only 0 items.* k=1"):
        assert user.recommend(k=1, allow=["item3"]) == []
    with pytest.warns(UserWarning, match="only 0 items"):
        assert user.recommend(k=1, allow=[]) == []
    with pytest.warns(UserWarning, match="only 0 items"):
        assert user.recommend(k=1, candidates=[]) == []


@pytest.mark.parametrize("k", [1, 2, 5])
def test_candidates_and_filters_leave_fewer(recommender: Recommender, k: int) -> None:
    users = recommender.adapt(HISTORIES)
    lists = [["item5", "item3", "item6", "item5"], ["item9"], ["item1", "item2"], list(IDS), [], ["item0"]]
    expected = [by_hand(recommender, number, set(own))[:k] for number, own in enumerate(lists)]
    with pytest.warns(UserWarning, match=rf"as few as 0 items.* . of 6 users, where k={k}"):
        found = users.recommend(k=k, candidates=lists)
    assert [[item.id for item in own] for own in found] == expected
    allow, deny = ["item5", "item6", "item7", "item14"], ["item6"]
    expected = [by_hand(recommender, number, {"item5", "item7", "item14"})[:k] for number in range(6)]
    with pytest.warns(UserWarning, match=rf"as few as 0 items.* . of 6 users, where k={k}"):
        assert [[i.id for i in own] for own in users.recommend(k=k, allow=allow, deny=deny)] == expected


def test_removed_items_leave_fewer(recommender: Recommender) -> None:
    recommender.remove_items(IDS[:35])
    user = recommender.adapt(["item3", "item35"])
    with pytest.warns(UserWarning, match=r"only \d items.* k=10"):
        found = [item.id for item in user.recommend(k=10)]
    recommender.restore_items(IDS)
    assert set(found) == {IDS[c - 1] for c in range(37, 41) if recommender._states.current().known[c]}


def test_the_service_gives_each_what_there_is_without_a_warning(recommender: Recommender) -> None:
    few = Filters(allow=frozenset({"item5", "item6"}))
    jobs = [Job(("item3",), 1, few), Job(("item5",), 9, few), Job(("item3", "item4"), 50, Filters())]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first, second, third = answers(recommender, jobs)
    assert isinstance(first, Answer) and isinstance(second, Answer) and isinstance(third, Answer)
    assert len(first.items) == 1 and [item.id for item in second.items] == ["item6"]
    assert [item.id for item in third.items] == [
        item.id for item in recommender.rank(recommender.adapt([["item3", "item4"]]), 50)[0]
    ]


def test_padding_is_no_item() -> None:
    lists = Recommendations(np.array([[2, 0], [0, 0]]), np.zeros((2, 2), np.float32), UP.catalog.items)
    assert [len(own) for own in lists] == [1, 0]
    assert lists.ids.tolist() == [["item1", None], [None, None]] and lists.counts.tolist() == [1, 0]
