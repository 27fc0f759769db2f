"""Negative sampling against whole-number arithmetic of Python, and against the distribution that is asked for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from metarec.data import EpisodeSampler
from metarec.data.negatives import NegativeSampler, mixed, mixed_int, signed
from metarec.data.vocabulary import Vocabulary
from metarec.datasets import planted
from metarec.types import Examples

DATA = planted(users=50, items=40)
SIXTY_FOUR = 1 << 64


def splitmix(key: int) -> int:
    """As published: the state moves on by the golden ratio, then two multiplications."""
    key = (key + 0x9E3779B97F4A7C15) % SIXTY_FOUR
    key = (key ^ key // 2**30) * 0xBF58476D1CE4E5B9 % SIXTY_FOUR
    key = (key ^ key // 2**27) * 0x94D049BB133111EB % SIXTY_FOUR
    return key ^ key // 2**31


def asked(target: list[list[int]]) -> Examples:
    """Examples with these targets; 0 is padding."""
    ids = torch.tensor(target)
    place = torch.arange(ids.shape[1]).expand_as(ids) * (ids > 0)
    return Examples(ids, place, ids, ids.new_zeros(*ids.shape, 0), (ids > 0).float())


def test_bits_are_those_of_splitmix64() -> None:
    state, stream = 1234567, []
    for _ in range(3):
        stream.append(splitmix(state))
        state += 0x9E3779B97F4A7C15
    assert stream == [6457827717110365317, 3203168211198807973, 9817491932198370423]  # of the reference in C
    keys = [0, 1, SIXTY_FOUR - 1, SIXTY_FOUR // 2, 123456789123456789]
    assert [mixed_int(key) for key in keys] == [splitmix(key) for key in keys]
    assert mixed(torch.tensor([signed(key) for key in keys])).tolist() == [signed(splitmix(key)) for key in keys]


def test_every_draw_matches_a_loop_in_whole_numbers() -> None:
    weights = np.array([0, 3, 0, 1, 2, 5])
    target, users, seed, epoch = [[3, 5, 2], [1, 4, 0]], [9, 40], 6, 2
    drawn = NegativeSampler(weights, 4, seed)(asked(target), torch.tensor(users), epoch).negatives.tolist()
    for row, user in enumerate(users):
        stream = splitmix(splitmix(splitmix(seed) ^ epoch) ^ user)
        for place, item in enumerate(target[row]):
            others = [code for code, weight in enumerate(weights) for _ in range(weight) if code != item]
            for number in range(4):
                counter = place * 2**32 + number
                bits = splitmix((stream + counter * 0x9E3779B97F4A7C15) % SIXTY_FOUR)
                assert drawn[row][place][number] == (others[bits // 2 % len(others)] if item else 0)


def test_draws_do_not_depend_on_batches_processes_or_how_many_are_drawn() -> None:
    sampler = EpisodeSampler(DATA, seed=3, users_per_batch=8, negatives=5)
    whole = drawn_by_user(sampler)
    for other in (replace(sampler, users_per_batch=50), replace(sampler, negatives=9), sampler.for_users(range(1, 20))):
        for user, negatives in drawn_by_user(other).items():
            assert torch.equal(negatives[:, :5], whole[user])
    shares = [part for rank in range(3) for part in sampler.epoch(1, slice(rank, None, 3))]
    for part in shares:
        for row, user in enumerate(part.user.tolist()):
            assert torch.equal(part.support.negatives[row][part.support.weight[row] > 0], whole[user])
    assert sum(map(len, shares)) == sampler.users


def drawn_by_user(sampler: EpisodeSampler) -> dict[int, Tensor]:
    """(S, N) of every user, without padding."""
    return {
        user: batch.support.negatives[row][batch.support.weight[row] > 0]
        for batch in sampler.prefetch(1)
        for row, user in enumerate(batch.user.tolist())
    }


@pytest.mark.parametrize("apart", ["number", "position", "user", "epoch", "seed"])
def test_any_two_draws_are_independent(apart: str) -> None:
    """The pairs of 5 items that two neighbouring draws give, 25 cells, against equal shares."""
    users = torch.arange(20_000)
    examples = asked([[6, 6]]).each(lambda tensor: tensor.expand(len(users), *tensor.shape[1:]))

    def draw(seed: int = 0, epoch: int = 0, user: int = 0) -> Tensor:
        weights = np.array([0, 1, 1, 1, 1, 1, 0])
        return NegativeSampler(weights, 2, seed)(examples, users + user, epoch).negatives

    first = draw()
    others = {
        "number": first[:, 0, 1],
        "position": first[:, 1, 0],
        "user": draw(user=1)[:, 0, 0],
        "epoch": draw(epoch=1)[:, 0, 0],
        "seed": draw(seed=1)[:, 0, 0],
    }
    cells = torch.bincount((first[:, 0, 0] - 1) * 5 + others[apart] - 1, minlength=25).double()
    assert float(((cells - 800) ** 2 / 800).sum()) < 60  # chi-square of 24 degrees: one in 15,000 above 60


def test_a_user_has_the_same_negatives_in_any_vocabulary() -> None:
    """Half of the users, read apart: they have other codes and are asked about the same."""
    kept = DATA.user > 25
    texts = DATA.users.texts[25:]
    apart = replace(
        DATA, users=Vocabulary(texts, "user"), user=DATA.user[kept] - 25, item=DATA.item[kept], time=DATA.time[kept]
    )
    whole = EpisodeSampler(DATA, part="test", negatives=3).for_users(DATA.user_codes[25:])
    found = drawn_by_user(EpisodeSampler(apart, part="test", negatives=3))
    expected = drawn_by_user(whole)
    assert len(found) == 25
    for user, negatives in found.items():
        assert torch.equal(negatives, expected[user + 25])
