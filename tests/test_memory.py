"""How many users fit: a value by hand, and the directions in which it must move."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from helpers import id_learner, ragged_episodes
from metarec.meta import MetaLearner
from metarec.meta.memory import chunk_sizes, free, split_range, split_to_fit, users_in_budget
from metarec.types import Examples


def support(*, length: int = 10, examples: int = 9, negatives: int = 1) -> Examples:
    return Examples(
        torch.ones(3, length).long(),
        torch.zeros(3, examples).long(),
        torch.ones(3, examples).long(),
        torch.ones(3, examples, negatives).long(),
        torch.ones(3, examples),
    )


def test_by_hand():
    # A layer of 8 x 4 + 4 = 36 weights, width 8; 10 history items and 9 examples of 2 items each.
    # Kept per step: 2 x (10 x (8 + 4) + 18 x 8) + 36 = 564 floats; and 2 copies of the weights, 72 floats.
    one_step, three_steps = 4 * (72 + 564), 4 * (72 + 3 * 564)
    layer = nn.Linear(8, 4)
    assert users_in_budget(layer, support(), 1, one_step * 7) == 7
    assert users_in_budget(layer, support(), 1, one_step * 7 - 1) == 6
    assert users_in_budget(layer, support(), 3, three_steps * 5) == 5
    assert users_in_budget(layer.double(), support(), 1, one_step * 7) == 3, "float64 takes twice the room"
    assert users_in_budget(nn.Linear(8, 4), support(), 1) == 2**25 // one_step, "32 MiB on the CPU"


def test_half_of_what_is_free_on_the_users_gpu_is_taken(monkeypatch):
    gpu = torch.device("cuda", 1)
    numbers = {"memory_reserved": 700, "memory_allocated": 500, "mem_get_info": (1000, 5000)}
    for name, told in {**numbers, "get_per_process_memory_fraction": 0.2}.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, told=told: {gpu: told}[device], raising=False)
    assert free(gpu) == 0.2 * 5000 - 500, "what the process may take"
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device: 1.0)
    assert free(gpu) == 1000 + 200
    users = SimpleNamespace(history=SimpleNamespace(is_cuda=True, device=gpu))
    assert users_in_budget(nn.Identity(), users, 1, each=lambda view, examples, steps: 59) == 600 // 59
    assert users_in_budget(nn.Identity(), users, 1, 590, lambda view, examples, steps: 59) == 10


def test_at_least_one_user():
    for budget in (0, 1, 100):
        assert users_in_budget(nn.Linear(8, 4), support(), 1, budget) == 1
    assert users_in_budget(nn.Identity(), support(), 1, 0) == 1, "nothing adapts"


def test_more_memory_never_fits_fewer_users():
    fits = [users_in_budget(nn.Linear(8, 4), support(), 1, budget) for budget in range(0, 1_000_000, 7_919)]
    assert fits == sorted(fits) and fits[-1] > 20


@pytest.mark.parametrize(
    ("layer", "examples", "steps"),
    [
        (nn.Linear(8, 40), support(), 1),
        (nn.Linear(64, 4), support(), 1),
        (nn.Linear(8, 4), support(length=40), 1),
        (nn.Linear(8, 4), support(examples=30), 1),
        (nn.Linear(8, 4), support(negatives=5), 1),
        (nn.Linear(8, 4), support(), 5),
    ],
)
def test_larger_users_fit_less_often(layer, examples, steps):
    assert users_in_budget(layer, examples, steps, 10**7) < users_in_budget(nn.Linear(8, 4), support(), 1, 10**7)


def test_chunks_follow_their_own_longest_history():
    layer, lengths = nn.Linear(8, 4), [30, 30, 30, 12, 12, 3, 3, 3, 3, 3]
    column = torch.arange(30)
    history = torch.stack([torch.where(column < n, 1, 0) for n in lengths])
    position = torch.stack([torch.where(column < n, column, 0) for n in lengths])
    users = Examples(history, position, history, history.unsqueeze(-1), history.float())
    budget = 4 * (72 + 56 * 30 + 36) * 2  # two users of 30 items, 30 targets and 30 negatives
    found, start = chunk_sizes(layer, users, 1, budget), 0
    for size in found:
        # each item of history costs 2 x (8 + 4) floats, its target and negative 2 x 8 each
        longest = lengths[start]
        fits = budget // (4 * (72 + 56 * longest + 36))
        assert size == min(fits, len(lengths) - start)
        start += size
    assert start == len(lengths) and found == [2, 2, 4, 2]


def test_users_who_fit_at_once_are_adapted_without_a_look_at_their_numbers(monkeypatch):
    """On a GPU a look waits for all that is still being computed."""
    episodes = ragged_episodes([3, 9, 4, 6, 5])
    meta = MetaLearner(id_learner(context=False), lr=0.05, steps=2)
    expected = meta.adapt(episodes.support)(episodes.query).scores
    parts = MetaLearner(meta.learner, lr=0.05, steps=2, memory_budget=1)
    torch.testing.assert_close(parts.adapt(episodes.support)(episodes.query).scores, expected)

    def look(examples):
        raise AssertionError("looked at")

    monkeypatch.setattr(Examples, "trim", look)
    monkeypatch.setattr(Examples, "trim_history", look)
    torch.testing.assert_close(meta.adapt(episodes.support)(episodes.query).scores, expected)
    with pytest.raises(AssertionError, match="looked at"):
        parts.adapt(episodes.support)


def test_whoever_fits_at_once_is_one_chunk_without_a_look(monkeypatch):
    monkeypatch.setattr(Examples, "trim", None)
    each = lambda view, users, steps: 10  # noqa: E731
    for users, budget in ((1, None), (1, 10), (3, 30), (3, 39), (3, 1000)):
        assert chunk_sizes(nn.Identity(), support()[:users], 1, budget, each) == [users]
    assert chunk_sizes(nn.Identity(), support()[:0], 1, 0, each) == []


@pytest.mark.parametrize(("room", "sizes"), [(1, [5, 3, 2, 1, 1, 1, 2, 1, 1]), (2, [5, 3, 2, 1, 2]), (5, [5])])
def test_halves_are_halved_again_until_they_fit(room, sizes):
    tried = []

    def work(users: range) -> list[int]:
        tried.append(len(users))
        if len(users) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [10 * user for user in users]

    made = list(split_to_fit(work, range(5), split_range))
    assert tried == sizes
    assert [user for users, _ in made for user in users] == [0, 1, 2, 3, 4]
    assert all(found == [10 * user for user in users] for users, found in made)


def test_out_of_memory_halves_the_users_and_changes_nothing(monkeypatch):
    def gradient(meta: MetaLearner) -> tuple[float, torch.Tensor]:
        meta.learner.zero_grad()
        return meta.backward(episodes), torch.cat([p.grad.flatten() for p in meta.learner.parameters()])

    episodes = ragged_episodes([3, 9, 4, 6, 5])
    meta = MetaLearner(id_learner(context=False), lr=0.05, steps=2)
    loss, expected = gradient(meta)
    whole, tried = meta.gradients, []

    def small(part, view=None):
        tried.append(len(part))
        if len(part) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(part, view)

    monkeypatch.setattr(meta, "gradients", small)
    found_loss, found = gradient(meta)
    assert tried == [5, 3, 2, 1, 2]
    assert found_loss == pytest.approx(loss, rel=1e-12)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)

    def diverged(part, view=None):
        losses, parameters, gradients = small(part, view)
        return losses.masked_fill(part.user == 3, torch.nan), parameters, gradients

    monkeypatch.setattr(meta, "gradients", diverged)
    with pytest.raises(FloatingPointError, match=r"user codes \[3\] is not finite"):
        meta.backward(episodes)

    monkeypatch.setattr(meta, "gradients", lambda part, view: (_ for _ in ()).throw(torch.OutOfMemoryError("full")))
    with pytest.raises(torch.OutOfMemoryError, match="full"):
        meta.backward(episodes)


def test_a_measure_of_ones_own_cuts_the_chunks():
    each = lambda view, users, steps: 10 * steps  # noqa: E731
    assert chunk_sizes(nn.Linear(8, 4), support(), 1, 20, each) == [2, 1]
    assert chunk_sizes(nn.Linear(8, 4), support(), 2, 20, each) == [1, 1, 1]
    assert users_in_budget(nn.Linear(8, 4), support(), 1, 30, each) == 3


def test_a_view_that_does_not_adapt_takes_its_activations():
    # No weights, width 1: 2 x 18 floats of 4 bytes; and with a graph of no step at all, one byte at least.
    assert users_in_budget(nn.Identity(), support(), 1, 7 * 4 * 2 * 18) == 7
    assert users_in_budget(nn.Identity(), support(), 0, 7) == 7
