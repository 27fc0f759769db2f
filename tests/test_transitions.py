"""What follows what, against loops over all clicks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from metarec.data import EpisodeSampler, split_by_time
from metarec.data.dataset import Catalog, Dataset, Vocabulary
from metarec.datasets import PLANTED_SPLIT, planted
from metarec.evaluation import evaluate
from metarec.recipes import CoClicks, Transitions, asked_pairs, transitions
from metarec.types import Examples

HALF_LIFE = 40.0


def by_hand(data: Dataset, history: list[int], now: float, half_life: float) -> np.ndarray:
    """The score of every item, click by click."""
    chance = np.zeros(data.catalog.size)
    for back, item in enumerate([i for i in history if i][::-1][: transitions.READ]):
        led = np.zeros(data.catalog.size)
        for first in range(len(data)):
            for second in range(first + 1, min(first + transitions.REACH, len(data) - 1) + 1):
                if data.user[first] != data.user[second] or data.item[first] != item or not data.time[second] < now:
                    continue
                age = now - data.time[second] if math.isfinite(half_life) else 0.0
                if age <= transitions.FORGOTTEN * half_life:
                    led[data.item[second]] += 0.5 ** (age / half_life)
        chance += transitions.FORGET**back * led / (led.sum() + transitions.SHRINK)
    return np.log(Transitions.least + chance)


@pytest.mark.parametrize("live", [False, True])
def test_scores_are_those_of_a_loop_over_clicks(monkeypatch, live):
    monkeypatch.setattr(asked_pairs, "AT_ONCE", 300)  # several pieces
    monkeypatch.setattr(transitions, "READ", 4)
    data = planted(users=25, items=20)
    up, down = split_by_time(data, at=PLANTED_SPLIT)
    method = Transitions(data, half_life=HALF_LIFE, live=True) if live else Transitions(up)
    batch = next(EpisodeSampler(down, part="serving").epoch(0))
    found = method.adapt(batch.support)(batch.query)
    for row in range(len(batch)):
        read = batch.query.history[row, : int(batch.query.position[row, 0]) + 1].tolist()
        now = float(batch.query.time[row, 0]) if live else math.inf
        expected = by_hand(data if live else up, read, now, HALF_LIFE if live else math.inf)
        np.testing.assert_allclose(found.scores[row, 0].numpy(), expected, atol=1e-4)
    assert found.item_mask.tolist() == ([False] + [True] * 20 if live else up.warm.tolist())


@pytest.mark.parametrize("live", [False, True])
def test_co_clicks_are_those_of_a_loop_over_clicks(live):
    data = planted(users=25, items=20)
    up, down = split_by_time(data, at=PLANTED_SPLIT)
    counted = data if live else up
    batch = next(EpisodeSampler(down, part="serving").epoch(0))
    method = CoClicks(counted, live=live)
    found = method.adapt(batch.support)(batch.query).scores[:, 0].numpy()
    for row in range(len(batch)):
        now = float(batch.query.time[row, 0]) if live else math.inf
        clicks = np.bincount(counted.item[counted.time < now], minlength=21) + transitions.FEW
        beside = np.zeros((21, 21))
        for first in range(len(counted)):
            for second in range(first + 1, min(first + transitions.REACH, len(counted) - 1) + 1):
                if counted.user[first] == counted.user[second] and counted.time[second] < now:
                    one, other = counted.item[first], counted.item[second]
                    beside[one, other] += 1
                    beside[other, one] += 1
        read = [i for i in batch.query.history[row, : int(batch.query.position[row, 0]) + 1].tolist() if i]
        chance = sum(
            transitions.FORGET**back * beside[item] / np.sqrt(clicks[item] * clicks)
            for back, item in enumerate(read[::-1][: transitions.READ])
        )
        np.testing.assert_allclose(found[row], np.log(CoClicks.least + chance), atol=1e-4)


def test_several_examples_of_one_history_read_what_they_may():
    up, _ = split_by_time(planted(users=25, items=20), at=PLANTED_SPLIT)
    batch = next(EpisodeSampler(up, part="validation").epoch(0))
    together = Transitions(up).adapt(batch.support)(batch.support).scores
    for at in range(batch.support.target.shape[1]):
        s = batch.support
        one = Examples(*(t if t is s.history else t[:, at : at + 1] for t in s.tensors()))
        real = one.weight[:, 0] > 0
        alone = Transitions(up).adapt(one)(one).scores[:, 0]
        torch.testing.assert_close(together[real, at], alone[real])


def test_nothing_of_the_future_is_read_and_new_users_are_asked_for_after_all():
    data = planted(users=25, items=20)
    up, down = split_by_time(data, at=PLANTED_SPLIT)
    batch = next(EpisodeSampler(down, part="serving").epoch(0))
    first = float(batch.query.time.min())
    before = data.time < first
    cut = Dataset(data.users, data.catalog, data.user[before], data.item[before], data.time[before], data.warm)
    row = int(batch.query.time[:, 0].argmin())
    of = batch.query[row : row + 1]
    torch.testing.assert_close(
        Transitions(data, half_life=9.0, live=True).adapt(of)(of).scores,
        Transitions(cut, half_life=9.0, live=True).adapt(of)(of).scores,
    )
    later = Examples(*of.tensors())
    at_the_end = Examples(*of.tensors(), time=torch.full((1, 1), float(data.time.max()) + 1))
    method = Transitions(data, half_life=9.0, live=True)
    torch.testing.assert_close(method.adapt(of)(later).scores, method.adapt(of)(at_the_end).scores)
    assert evaluate(method, down).information == "live" and evaluate(Transitions(up), down).information == "upstream"


def test_what_cannot_be_counted_is_refused():
    alone = Dataset(
        Vocabulary(["u", "v"], "user"), Catalog(Vocabulary(["a"])), np.array([1, 2]), np.array([1, 1]),
        np.array([1, 2]), np.array([False, True]), "alone",
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"alone .*clicks"):
        Transitions(alone)
    for given in ({"half_life": 0, "live": True}, {"half_life": 5.0}):
        with pytest.raises(ValueError, match="expected a half-life above 0, and live, got"):
            Transitions(planted(users=25, items=20), **given)
