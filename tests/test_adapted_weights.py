"""Users' weights kept as factors, as matrices and as values, against plain SGD of one user after the other."""

from __future__ import annotations

import copy
import importlib
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from helpers import id_learner, one_user, ragged_episodes
from metarec.meta import adapted, ops
from metarec.meta.adapted import AdaptedLinear, AdaptedNorm
from metarec.meta.engine import InnerLoop
from metarec.meta.low_rank import LowRankUsers
from metarec.nn import IdItems, ModalityLearner, SequenceEncoder


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
    stack = LowRankUsers(view, 3)
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
    part = AdaptedLinear(base, users=3)
    part.expected_steps = 4
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


def stepped(base: nn.Linear, steps: int) -> AdaptedLinear:
    """Three users' layer after steps of two inputs each."""
    part = AdaptedLinear(base, users=3)
    part.expected_steps = steps
    x = torch.randn(steps, 3, 2, base.in_features, generator=torch.Generator().manual_seed(0)).double()
    for one in x:
        part.step(list(torch.autograd.grad(part(one).sin().sum(), part.watched(), allow_unused=True)), 0.05)
    return part


@pytest.mark.parametrize("steps", [1, 4])  # factors, and a matrix
@pytest.mark.parametrize("trained", ["weight bias", "weight", "bias", ""])
@pytest.mark.parametrize("bias", [True, False])
def test_outer_gradients_are_those_of_each_users_own_layer(bias, trained, steps):
    torch.manual_seed(0)
    base = nn.Linear(6, 5, bias=bias).double()
    for name, parameter in base.named_parameters():
        parameter.requires_grad_(name in trained.split())
    part, x = stepped(base, steps), torch.randn(3, 4, 6).double().requires_grad_()
    part.mode = "graph"
    part(x).square().sum().backward()
    found, own = part.weights(), {name: torch.zeros_like(p) for name, p in base.named_parameters()}
    for user in range(3):
        layer = nn.Linear(6, 5, bias=bias).double()
        layer.load_state_dict({name: value[user].detach() for name, value in found.items()})
        alone = x[user].detach().requires_grad_()
        layer(alone).square().sum().backward()
        torch.testing.assert_close(x.grad[user], alone.grad)
        for name, parameter in layer.named_parameters():
            own[name] += parameter.grad
    for name, parameter in base.named_parameters():
        if name in trained.split():
            torch.testing.assert_close(parameter.grad, own[name])
        else:
            assert parameter.grad is None


def test_shared_weights_are_constants_while_steps_are_taken():
    base = nn.LayerNorm(4).double()
    part, x = AdaptedNorm(base, users=2), torch.randn(2, 3, 4).double()
    for mode, reached in (("inner", False), ("graph", True)):
        part.mode = mode
        gradients = torch.autograd.grad(part(x).sin().sum(), list(base.parameters()), allow_unused=True)
        assert [gradient is not None for gradient in gradients] == [reached, reached]


def test_inputs_that_are_constants_get_no_gradient():
    part = stepped(nn.Linear(6, 5).double(), 1)
    part.transposed = None  # whoever calls it fails
    part(torch.randn(3, 2, 6).double()).sum().backward()
    assert len(part.calls) == 1


def test_factors_of_all_steps_have_one_room_and_leave_it_when_added_up():
    base = nn.Linear(20, 20).double()
    part, room, sizes = AdaptedLinear(base, users=3), set(), []
    part.expected_steps = 4
    held = []  # so that no address is used twice
    for _ in range(8):
        part(torch.randn(3, 2, 20).double()).sum().backward()
        part.step([None], 0.1)
        if part.rank:
            held.append((part.inputs, part.outputs))
            room.add((part.inputs.data_ptr(), part.outputs.data_ptr()))
            sizes.append((part.rank, part.inputs.shape[1]))
    assert sizes[:4] == [(2, 8), (4, 8), (6, 8), (8, 8)]
    assert len(room) == 1 + len(sizes) - 4, "a step more than said takes a new room"
    assert part.dense is not None and part.rank == 0
    assert part.inputs.untyped_storage().nbytes() + part.outputs.untyped_storage().nbytes() == 0


@pytest.mark.parametrize("missing", ["", "GPU", "CUDA", "float32", "Triton"])
def test_the_gpus_kernels_are_taken_where_they_run(missing, monkeypatch):
    found = {"triton": None if missing == "Triton" else object()}
    monkeypatch.setattr(adapted.importlib.util, "find_spec", lambda name: found[name])
    monkeypatch.setattr(torch.version, "hip", "6.0" if missing == "CUDA" else None)
    modules = {"metarec.meta.gpu": SimpleNamespace(low_rank_add=object(), scaled_norm=object())}
    monkeypatch.setattr(importlib, "import_module", lambda name: modules[name])
    like = SimpleNamespace(is_cuda=missing != "GPU", dtype=torch.float64 if missing == "float32" else torch.float32)
    assert adapted.kernels(like) is (None if missing else modules["metarec.meta.gpu"])


def test_every_part_takes_the_gpus_functions_where_there_are_any(monkeypatch):
    for gpu in (None, SimpleNamespace(low_rank_add=object(), scaled_norm=object())):
        monkeypatch.setattr(adapted, "kernels", lambda like, gpu=gpu: gpu)
        assert AdaptedLinear(nn.Linear(2, 2), users=1).low_rank_add is (gpu or ops).low_rank_add
        assert AdaptedNorm(nn.LayerNorm(2), users=1).scaled_norm is (gpu or ops).scaled_norm


def test_the_factors_of_all_steps_of_a_loop_get_memory_once(monkeypatch):
    view = ModalityLearner(IdItems(12, 64).frozen(), SequenceEncoder(64, layers=1)).double()
    users, step, rooms = LowRankUsers(view, 2), LowRankUsers.step, []

    def noted(self, *given):
        step(self, *given)
        rooms.append([part.inputs for part in self.parts.values() if isinstance(part, AdaptedLinear)])
        return self

    monkeypatch.setattr(LowRankUsers, "step", noted)
    users.steps(ragged_episodes([4, 5]).support, InnerLoop("bpr", steps=3, rate=0.1))
    assert len(rooms) == 3 and all(mine is first for room in rooms for mine, first in zip(room, rooms[0], strict=True))
