"""Encoders that hold parameters in lists, or make them late: adapted as a loop over users does, or refused."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metarec.data import EpisodeSampler
from metarec.meta import MetaLearner
from metarec.nn import IdItems, ModalityLearner
from tiny import UP

DIM = 8


class Held(nn.Module):
    """Reads its layer's weight a second time, from a container of its own."""

    def __init__(self, hold, read):
        super().__init__()
        self.layer = nn.Linear(DIM, DIM)
        self.held, self.read = hold(self.layer), read

    def forward(self, x: Tensor, keep: Tensor, context: Tensor | None = None) -> Tensor:
        return F.linear(self.layer(x), self.read(self.held))


HOLD = {
    "list": (lambda layer: [layer.weight], lambda held: held[0]),
    "parameters": (lambda layer: list(layer.parameters()), lambda held: held[0]),
    "dict of tuples": (lambda layer: {"own": (None, layer.weight)}, lambda held: held["own"][1]),
}


class Late(nn.Module):
    """Makes its layer at the first call."""

    def __init__(self):
        super().__init__()
        self.last, self.layer = nn.Linear(DIM, DIM), None

    def forward(self, x: Tensor, keep: Tensor, context: Tensor | None = None) -> Tensor:
        if self.layer is None:
            self.layer = nn.Linear(DIM, DIM, dtype=x.dtype)
        return self.last(self.layer(x))


def learner_of(encoder):
    torch.manual_seed(0)
    learner = ModalityLearner(IdItems(UP.catalog.size, DIM), encoder).double().eval()
    with torch.no_grad():
        learner.items.weight.mul_(30)
    return learner


@pytest.fixture
def episodes():
    return next(EpisodeSampler(UP, users_per_batch=4).epoch(0))


def by_hand(learner, episodes, lr, steps):
    """Plain gradient descent on the encoder itself, one user after another."""
    weights, rows = list(learner.encoder.parameters()), []
    start = [w.detach().clone() for w in weights]
    for user in range(len(episodes)):
        for _ in range(steps):
            loss = learner.loss(episodes.support[user : user + 1]).sum()
            gradients = torch.autograd.grad(loss, weights)
            with torch.no_grad():
                for weight, gradient in zip(weights, gradients, strict=True):
                    weight -= lr * gradient
        with torch.no_grad():
            rows.append(learner(episodes.query[user : user + 1]).scores)
            for weight, value in zip(weights, start, strict=True):
                weight.copy_(value)
    return torch.cat(rows)


@pytest.mark.parametrize("second_order", [False, True])
@pytest.mark.parametrize("how", HOLD)
def test_a_parameter_in_a_container_adapts_too(how, second_order, episodes):
    torch.manual_seed(1)
    learner = learner_of(Held(*HOLD[how]))
    meta = MetaLearner(learner, lr=0.1, steps=3, second_order=second_order).eval()
    found = meta.adapt(episodes.support)(episodes.query).scores
    torch.testing.assert_close(found, by_hand(learner, episodes, 0.1, 3), rtol=0, atol=1e-9)
    held = HOLD[how][1](learner.encoder.held)
    assert held is learner.encoder.layer.weight  # left as it was


@pytest.mark.parametrize("second_order", [False, True])
def test_a_layer_made_by_the_forward_pass_is_refused_until_it_is_there(second_order, episodes):
    learner = learner_of(Late())
    meta = MetaLearner(learner, lr=0.1, steps=2, second_order=second_order).eval()
    with pytest.raises(TypeError, match=r"Late\.layer: .*forward"):
        meta.adapt(episodes.support)
    assert learner.encoder.layer is None
    learner.encoder.layer = nn.Linear(DIM, DIM).double()
    found = meta.adapt(episodes.support)(episodes.query).scores
    torch.testing.assert_close(found, by_hand(learner, episodes, 0.1, 2), rtol=0, atol=1e-9)
