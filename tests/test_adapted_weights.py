"""Users' weights kept as factors, as matrices and as values, against plain SGD of one user after the other."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from helpers import id_learner, one_user, ragged_episodes
from metarec.meta.adapted import AdaptedLinear
from metarec.meta.fast import FastStack


def plain(learner: nn.Module, episodes, user: int, steps: int, lr: float) -> dict[str, torch.Tensor]:
    """One user's weights after plain SGD steps."""
    own = copy.deepcopy(learner).task_view("encoder")
    for _ in range(steps):
        parameters = list(own.parameters())
        gradients = torch.autograd.grad(own.loss(one_user(episodes.support, user)).sum(), parameters, allow_unused=True)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    parameter.sub_(lr * gradient)
    return {name: parameter.detach() for name, parameter in own.named_parameters()}


@pytest.mark.parametrize("steps", [0, 1, 2, 12])
def test_weights_are_those_of_plain_steps_and_stay_when_the_shared_ones_move(steps):
    learner, episodes = id_learner(), ragged_episodes([6, 9, 4])
    view = learner.task_view("encoder")
    expected = [plain(learner, episodes, user, steps, 0.1) for user in range(3)]
    stack = FastStack(view, 3, steps)
    for _ in range(steps):
        stack = stack.step(stack("loss", episodes.support).sum(), 0.1)
    kept = stack.detached()
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.mul_(3)
    found = kept.weights()
    assert set(found) == set(expected[0])
    for user, weights in enumerate(expected):
        for name, weight in weights.items():
            torch.testing.assert_close(found[name][user], weight, msg=f"{name} of user {user}")
    assert [name for name, weight in found.items() if weight.requires_grad] == []


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_with_and_without_a_bias(bias):
    """Two calls a step, so many steps that factors become a matrix on the way."""
    torch.manual_seed(0)
    base = nn.Linear(6, 5, bias=bias).double()
    x, aim = torch.randn(2, 3, 2, 6).double(), torch.randn(3, 2, 5).double()
    own = [copy.deepcopy(base) for _ in range(3)]
    part = AdaptedLinear(base, users=3, steps=4)
    kinds = set()
    for _ in range(4):
        loss = ((part(x[0]) + part(x[1]) - aim) ** 2).sum()
        part.step(list(torch.autograd.grad(loss, part.watched(), allow_unused=True)), 0.05)
        kinds.add(part.dense is None)
        for user, layer in enumerate(own):
            parameters = list(layer.parameters())
            error = layer(x[0, user]) + layer(x[1, user]) - aim[user]
            for parameter, gradient in zip(parameters, torch.autograd.grad((error**2).sum(), parameters), strict=True):
                parameter.data.sub_(0.05 * gradient)
            torch.testing.assert_close(part(x[0])[user], layer(x[0, user]))
            part.calls.clear()
        found = part.weights()
        assert set(found) == {name for name, _ in base.named_parameters()}
        for name, weights in found.items():
            torch.testing.assert_close(weights, torch.stack([layer.get_parameter(name) for layer in own]))
    assert kinds == {True, False}
