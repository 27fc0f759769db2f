"""Our modules wrapped directly in learn2learn's MAML, MetaSGD and GBML, in a user's own loop over users."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad

from helpers import DIM, ITEMS, id_learner, one_user, ragged_episodes, text_learner
from metarec.functional import softmax
from metarec.nn import AdaptiveFusion, ColdItemGenerator, ModalityLearner
from metarec.types import EpisodeBatch, Examples, Modality
from optional import learn2learn as l2l
from optional import needs_learn2learn

pytestmark = needs_learn2learn
LENGTHS = [5, 9, 4]
LR, STEPS = 0.05, 3
WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "MAML": lambda module: l2l.algorithms.MAML(module, lr=LR),
    "MAML, first order": lambda module: l2l.algorithms.MAML(module, lr=LR, first_order=True),
    "MetaSGD": lambda module: l2l.algorithms.MetaSGD(module, lr=LR),
    "GBML": lambda module: l2l.algorithms.GBML(module, transform=l2l.optim.ModuleTransform(scale), lr=LR),
}


def scale(size: int, _: int) -> nn.Module:
    """GBML's transform that makes it MetaSGD: one factor per weight, 1 at first."""
    return l2l.nn.Scale(size).double()


def generator_learner() -> ModalityLearner:
    """A learner whose last three items are cold and generated."""
    base = id_learner()
    warm = base.items.known & (torch.arange(ITEMS) < ITEMS - 3)
    text = Modality("text", base.context.features, base.context.known)
    items = ColdItemGenerator(base.items, [text], warm, dim=DIM, neighbours=3, probability=0.0).double()
    return ModalityLearner(items, base.encoder, context=base.context, candidates=warm).eval()


def whole(learner: ModalityLearner) -> tuple[nn.Module, Callable[[nn.Module, Examples], Tensor]]:
    """The whole learner is wrapped."""
    return learner, lambda wrapped, examples: wrapped.module.loss(examples).sum()


def encoder_inside(learner: ModalityLearner) -> tuple[nn.Module, Callable[[nn.Module, Examples], Tensor]]:
    """Only the encoder is wrapped, inside a learner around the shared items."""

    def loss(wrapped: nn.Module, examples: Examples) -> Tensor:
        around = ModalityLearner(learner.items, wrapped, context=learner.context, candidates=learner.candidates)
        return around.loss(examples).sum()

    return learner.encoder, loss


SETUPS = {
    "encoder in an ID learner": lambda: (id_learner(), encoder_inside),
    "encoder in a text learner": lambda: (text_learner(), encoder_inside),
    "ID learner": lambda: (id_learner(), whole),
    "text learner": lambda: (text_learner(), whole),
    "generator in front": lambda: (generator_learner(), whole),
}


def check_own_loop(
    parameters: nn.Module, wrapped: nn.Module, loss: Callable[..., Tensor], tasks: list[tuple[object, object]]
) -> None:
    """The loop of learn2learn's own documentation, and what must hold around it."""
    before, total = copy.deepcopy(parameters.state_dict()), torch.zeros(()).double()
    for support, query in tasks:
        task = wrapped.clone()
        first = loss(task, support)
        for _ in range(STEPS):
            task.adapt(loss(task, support))
        assert float(loss(task, support).detach()) < float(first.detach()), "adapting lowers the support loss"
        total = total + loss(task, query)
    total.backward()
    after = parameters.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items()), "the shared weights stay"
    gradients = {name: p.grad for name, p in parameters.named_parameters()}
    assert all(g is not None and torch.isfinite(g).all() for g in gradients.values())
    moved = [name for name, g in gradients.items() if g.abs().max() > 1e-9]
    assert len(moved) > 0.6 * len(gradients), "meta-gradients reach the wrapped weights"
    own = [p for name, p in wrapped.named_parameters() if not name.startswith("module.")]
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in own)
    assert not own or any(p.grad.abs().max() > 1e-9 for p in own), "and MetaSGD's and GBML's own"


@pytest.mark.parametrize("setup", SETUPS)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_users_own_loop(wrapper, setup):
    learner, how = SETUPS[setup]()
    module, loss = how(learner)
    episodes = ragged_episodes(LENGTHS)
    tasks = [(one_user(episodes.support, u), one_user(episodes.query, u)) for u in range(len(episodes))]
    check_own_loop(learner, WRAPPERS[wrapper](module), loss, tasks)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_users_own_loop_over_the_fusion(wrapper):
    episodes, learners = ragged_episodes(LENGTHS), [id_learner(), text_learner()]
    torch.manual_seed(0)
    fusion = AdaptiveFusion(2, DIM, hidden=6).double()
    allowed = torch.arange(ITEMS) > 0

    def loss(wrapped: nn.Module, examples: Examples) -> Tensor:
        with torch.no_grad():
            scored = [learner(examples) for learner in learners]
        return softmax(wrapped(scored), examples.target, allowed).sum()

    tasks = [(one_user(episodes.support, u), one_user(episodes.query, u)) for u in range(len(episodes))]
    check_own_loop(fusion, WRAPPERS[wrapper](fusion), loss, tasks)


class LossOf(nn.Module):
    """A learner's loss as a forward pass, for ``functional_call``."""

    def __init__(self, learner: ModalityLearner) -> None:
        super().__init__()
        self.learner = learner

    def forward(self, examples: Examples) -> Tensor:
        return self.learner.loss(examples).sum()


def by_hand(learner: ModalityLearner, episodes: EpisodeBatch, user: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Second-order MAML in six lines of torch.func: the query loss of one user and its meta-gradient."""
    module = LossOf(learner)
    support, query = one_user(episodes.support, user), one_user(episodes.query, user)

    def query_loss(weights: dict[str, Tensor]) -> Tensor:
        for _ in range(STEPS):
            slope = grad(lambda w: functional_call(module, w, (support,)))(weights)
            weights = {name: w - LR * slope[name] for name, w in weights.items()}
        return functional_call(module, weights, (query,))

    weights = {name: p.detach() for name, p in module.named_parameters()}
    return query_loss(weights), grad(query_loss)(weights)


@pytest.mark.parametrize("setup", ["ID learner", "text learner", "generator in front"])
@pytest.mark.parametrize("wrapper", ["MAML", "MetaSGD", "GBML"])
def test_equals_a_step_written_by_hand(wrapper, setup):
    learner, _ = SETUPS[setup]()
    episodes = ragged_episodes(LENGTHS)
    wrapped = WRAPPERS[wrapper](learner)
    for user in range(len(LENGTHS)):
        expected_loss, expected = by_hand(learner, episodes, user)
        learner.zero_grad()
        task = wrapped.clone()
        for _ in range(STEPS):
            task.adapt(task.module.loss(one_user(episodes.support, user)).sum())
        loss = task.module.loss(one_user(episodes.query, user)).sum()
        loss.backward()
        torch.testing.assert_close(loss.detach(), expected_loss, rtol=1e-10, atol=1e-10)
        for name, p in learner.named_parameters():
            torch.testing.assert_close(p.grad, expected[f"learner.{name}"], rtol=1e-10, atol=1e-10, msg=name)
