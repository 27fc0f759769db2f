"""Every engine of the inner loop against SGD of one user after the other in plain torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from helpers import id_learner, one_user, ragged_episodes
from metarec.meta import Engine, InnerLoop
from metarec.meta.choice import choose
from metarec.meta.compiled import CompiledUsers
from metarec.meta.library import library
from metarec.meta.low_rank import LowRankUsers
from metarec.meta.through_learn2learn import Learn2LearnUsers
from metarec.meta.vmap import VmapUsers
from metarec.nn import ModalityLearner
from optional import needs_kernel, needs_learn2learn

EPISODES = ragged_episodes([5, 9, 4])
RATE, OUTER = 0.1, "sampled_softmax"
ENGINES = [
    pytest.param(CompiledUsers, marks=needs_kernel),
    LowRankUsers,
    VmapUsers,
    pytest.param(Learn2LearnUsers, marks=needs_learn2learn),
]
Weights = Mapping[str, Tensor]


class Loss(nn.Module):
    """A view's loss as a forward pass, for ``functional_call``."""

    def __init__(self, view: nn.Module) -> None:
        super().__init__()
        self.view = view

    def forward(self, *args: Any) -> Tensor:
        return self.view.loss(*args).sum()


def one_by_one(view: nn.Module, loop: InnerLoop, start: Weights) -> tuple[dict[str, Tensor], Tensor]:
    """Adapted weights (B, ...) and query losses (B,) with their graph."""
    loss, adapted, losses = Loss(view), [], []
    for user in range(len(EPISODES)):
        support, query = one_user(EPISODES.support, user), one_user(EPISODES.query, user)
        own = {name: start[name][user].requires_grad_() if start else p for name, p in view.named_parameters()}
        for _ in range(loop.steps):
            inner = functional_call(loss, {f"view.{n}": w for n, w in own.items()}, (support, loop.objective))
            slopes = torch.autograd.grad(inner, list(own.values()), create_graph=loop.second_order)
            rates = loop.rate if isinstance(loop.rate, Mapping) else dict.fromkeys(own, loop.rate)
            own = {name: w - rates[name] * g for (name, w), g in zip(own.items(), slopes, strict=True)}
        adapted.append(own)
        losses.append(functional_call(loss, {f"view.{n}": w for n, w in own.items()}, (query, OUTER)))
    return {name: torch.stack([own[name] for own in adapted]) for name in adapted[0]}, torch.stack(losses)


def rates_of(view: nn.Module) -> dict[str, Tensor]:
    """A step size for every single weight, some of them uphill."""
    return {name: (RATE * torch.randn_like(p)).requires_grad_() for name, p in view.named_parameters()}


def given(view: nn.Module) -> dict[str, Tensor]:
    """Weights of each user's own."""
    return {n: (p + 0.1 * torch.randn(len(EPISODES), *p.shape).to(p)).detach() for n, p in view.named_parameters()}


def close(found: Tensor | None, expected: Tensor | None) -> None:
    zero = torch.zeros(())
    some = [torch.zeros_like(t) if t is not None else zero for t in (expected, found)]
    found, expected = (t if t is not None else some[n] for n, t in enumerate((found, expected)))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


@pytest.fixture
def learner() -> ModalityLearner:
    return id_learner()


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("by_name", [False, True])
@pytest.mark.parametrize("second_order", [False, True])
@pytest.mark.parametrize("engine", ENGINES)
def test_users_equal_a_loop_over_users(
    engine: type[Engine], second_order: bool, by_name: bool, steps: int, started: bool, learner: ModalityLearner
) -> None:
    view = learner.task_view("encoder")
    rate = rates_of(view) if by_name else RATE
    loop = InnerLoop("bpr", steps=steps, rate=rate, second_order=second_order)
    start = given(view) if started else {}
    fast = engine in (CompiledUsers, LowRankUsers)
    can = not (by_name and engine is not VmapUsers) and not (second_order and fast)
    assert engine.fits(view, loop, start) == can
    if not can:
        with pytest.raises(ValueError, match=r"this engine"):
            engine(view, len(EPISODES), start).steps(EPISODES.support, replace(loop, steps=1))
        return
    expected, losses = one_by_one(view, loop, start)
    reached = [*learner.parameters(), *(rate.values() if by_name else ())]
    slopes = torch.autograd.grad(losses.sum(), reached, allow_unused=True)

    parts = (replace(loop, steps=min(1, steps)), replace(loop, steps=max(0, steps - 1)))  # users can be continued
    users = engine(learner.task_view("encoder"), len(EPISODES), start)
    for part in parts:
        users = users.steps(EPISODES.support, part)
    users = users.attached()
    found = users("loss", EPISODES.query, OUTER)
    close(found, losses)
    assert users.weights().keys() == expected.keys()
    for name, value in users.weights().items():
        close(value, expected[name])
    for own, slope in zip(torch.autograd.grad(found.sum(), reached, allow_unused=True), slopes, strict=True):
        close(own, slope)
    at_once = engine(learner.task_view("encoder"), len(EPISODES), start).query_gradients(EPISODES, loop, OUTER, reached)
    close(at_once[0], losses)
    for own, slope in zip(at_once[1], slopes, strict=True):
        close(own, slope)


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("engine", ENGINES)
def test_detached_users_are_values_that_others_can_start_from(
    engine: type[Engine], started: bool, learner: ModalityLearner
) -> None:
    view, loop = learner.task_view("encoder"), InnerLoop("softmax", steps=2, rate=RATE)
    start = given(view) if started else {}
    twice, _ = one_by_one(view, replace(loop, steps=4), start)
    kept = engine(view, len(EPISODES), start).steps(EPISODES.support, loop).detached()
    first = kept.weights()
    on = engine(view, len(EPISODES), first).steps(EPISODES.support, loop).detached().weights()
    before = {name: value.clone() for name, value in first.items()}
    with torch.no_grad():
        for p in learner.parameters():
            p.mul_(3)
    for name, value in kept.weights().items():
        assert not value.requires_grad
        close(value, before[name])
        close(on[name], twice[name])


def test_the_fastest_engine_that_computes_the_same_is_chosen(
    learner: ModalityLearner, monkeypatch: pytest.MonkeyPatch
) -> None:
    view, plain = learner.task_view("encoder"), InnerLoop("bpr", steps=1, rate=RATE)
    start = given(view)
    fastest = LowRankUsers if library() is None else CompiledUsers
    assert choose(view, plain, {}) is choose(view, plain, start) is fastest
    others = {
        "second order": (replace(plain, second_order=True), {}),
        "rates by name": (replace(plain, rate=rates_of(view)), {}),
        "start with a graph": (plain, {name: w.requires_grad_() for name, w in given(view).items()}),
        "start of some": (plain, {"encoder.position": start["encoder.position"]}),
    }
    assert {name: choose(view, *how) for name, how in others.items()} == dict.fromkeys(others, VmapUsers)
    assert choose(learner.task_view("all"), plain, {}) is VmapUsers
    assert choose(view, plain, {}, "learn2learn") is Learn2LearnUsers
    monkeypatch.setattr("metarec.meta.compiled.library", lambda: None)
    assert choose(view, plain, {}) is choose(view, plain, start) is LowRankUsers


def test_a_step_size_for_every_weight_or_one_for_all(learner: ModalityLearner) -> None:
    view = learner.task_view("encoder")
    rates = rates_of(view)
    del rates["encoder.position"]
    with pytest.raises(ValueError, match=r"encoder\.position"):
        VmapUsers(view, len(EPISODES)).steps(EPISODES.support, InnerLoop("bpr", steps=1, rate=rates))
