"""A GPU whose memory is full: users are served fewer at a time, and get what they would have got."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from metarec.data.histories import Clicks
from metarec.meta.bank import Bank
from metarec.meta.memory import split_range
from metarec.nn.linear_scores import LinearScores
from metarec.recommender import Recommender
from metarec.scoring import UserState
from metarec.serving import adapting, listing
from metarec.types import Examples
from tiny import trained

HISTORIES = [[f"item{(7 * user + 3 * place) % 40}" for place in range(2 + user % 5)] for user in range(23)]
CANDIDATES = [[f"item{(user + n) % 40}" for n in range(20)] for user in range(23)]


class Full:
    """Refuses more than so many users at once, and remembers how many it was asked for."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.asked: list[int] = []

    def check(self, users: int) -> None:
        self.asked.append(users)
        if users > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.fixture(scope="module")
def recommender() -> Recommender:
    found = Recommender(trained())
    found.adapt([])  # what is computed once does not count
    return found


def test_adapting_goes_on_with_halves(
    recommender: Recommender, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = recommender.adapt(HISTORIES, keep_weights=True)
    full, whole = Full(most=4), Bank.encode

    def encode(self: Bank, support: Examples, query: Examples, **how: Any) -> UserState:
        full.check(len(support))
        return whole(self, support, query, **how)

    monkeypatch.setattr(Bank, "encode", encode)
    monkeypatch.setitem(adapting.USERS, "cpu", 16)
    with caplog.at_level(logging.WARNING, "metarec"):
        found = recommender.adapt(HISTORIES, keep_weights=True)
    assert full.asked == [16, 8, 4, 4, 8, 4, 4, 7, 4, 3]
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        f"out of memory with {users} users at once" for users in (16, 8, 8, 7)
    ]
    assert set(found.state.tensors) == set(expected.state.tensors) >= {"state", "active", "weights"}
    for name, tensor in expected.state.tensors.items():
        torch.testing.assert_close(found.state.tensors[name], tensor)
    full.most = 0
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        recommender.adapt(HISTORIES)


@pytest.mark.parametrize("candidates", [None, CANDIDATES])
def test_lists_are_made_with_halves(
    recommender: Recommender, monkeypatch: pytest.MonkeyPatch, candidates: list[list[str]] | None
) -> None:
    users = recommender.adapt(HISTORIES)
    expected = users.recommend(k=7, candidates=candidates)
    full, whole, widths = Full(most=6), LinearScores.exact, []

    def exact(self: LinearScores, codes: Tensor) -> Tensor:
        full.check(len(self))
        return whole(self, codes)

    def approximate(self: LinearScores, start: int, stop: int) -> Tensor:
        widths.append(stop - start)
        return piece(self, start, stop)

    piece = LinearScores.approximate
    monkeypatch.setattr(listing, "columns_for", lambda users, device: 410 // users)
    monkeypatch.setattr(LinearScores, "exact", exact)
    monkeypatch.setattr(LinearScores, "approximate", approximate)
    found = users.recommend(k=7, candidates=candidates)
    assert full.asked == [23, 12, 6, 6, 11, 6, 5]
    # 410 // 23 items of 41 at once, also where fewer users are left: halving must not widen what is scored
    assert set(widths) == (set() if candidates else {17, 7})
    np.testing.assert_array_equal(found.codes, expected.codes)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)


def test_halves_are_all_of_them_in_order() -> None:
    for count in range(2, 20):
        first, second = split_range(range(5, 5 + count))
        assert [*first, *second] == list(range(5, 5 + count)) and 0 <= len(first) - len(second) <= 1


def test_no_user_at_all_is_an_error_as_before(recommender: Recommender) -> None:
    with pytest.raises(ValueError, match="there is no user"):
        adapting.encoded(
            recommender._states.current(), adapting.EncodeRequest(Clicks.of([], recommender.catalog.items))
        )
