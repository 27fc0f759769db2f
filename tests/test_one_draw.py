"""A loss draws item vectors once: history, target, negatives and candidates are of one table."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers import DIM, ITEMS, features, id_learner, one_user, ragged_episodes
from metarec.functional import losses
from metarec.meta import MetaLearner
from metarec.nn import ColdItemGenerator, IdItems, Items, ModalityLearner, TableItems
from metarec.nn.items import drawn_once
from metarec.recipes.sasrec import SummedItems, gbce_loss
from metarec.types import Examples, Modality

EXAMPLES = ragged_episodes([6, 9, 4]).support


class Noisy(nn.Module):
    """Items of somebody's own: a table with noise, which is counted and drawn anew at each call."""

    adapts_rows = True

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.draws = nn.Parameter(torch.randn(ITEMS, DIM).double()), 0
        self.register_buffer("known", torch.arange(ITEMS) > 0)

    def table(self) -> Tensor:
        self.draws += 1
        return self.weight + torch.randn_like(self.weight)

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.table())

    def scores(self, state: Tensor, ids: Tensor | None = None) -> Tensor:
        return state @ self.table()[slice(None) if ids is None else ids].T

    def frozen(self) -> TableItems:
        return TableItems(self.table(), self.known)


class Dropped(IdItems):
    """A deterministic class made random by its subclass, which leaves table() and frozen() as they are."""

    def forward(self, ids: Tensor) -> Tensor:
        return F.dropout(super().forward(ids), 0.5, self.training)


def generator() -> ColdItemGenerator:
    text = features(0)
    modality = Modality("text", text.features, text.known)
    return ColdItemGenerator(IdItems(ITEMS, DIM), [modality], torch.arange(ITEMS) > 0, dim=DIM, probability=0.5)


MAKERS = {
    "noisy": Noisy,
    "dropped": lambda: Dropped(ITEMS, DIM),
    "summed": lambda: SummedItems([IdItems(ITEMS, DIM), features(0)], drop=0.5),
    "generated": generator,
}


@pytest.fixture(params=MAKERS)
def learner(request: pytest.FixtureRequest) -> ModalityLearner:
    torch.manual_seed(0)
    made = ModalityLearner(MAKERS[request.param](), id_learner().encoder).double().train()
    with torch.no_grad():
        for p in made.items.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return made


def table_of(items: Items) -> Tensor:
    """The table that the next loss will draw."""
    return items(torch.arange(ITEMS)) if isinstance(items, Dropped) else items.table()


def by_the_formula(learner: ModalityLearner, table: Tensor, examples: Examples, objective: str) -> Tensor:
    """Each user's loss, (B,), with one table for everything, by the definitions."""
    found = []
    for user in range(len(examples)):
        own = one_user(examples, user)
        state = learner.encoder(table[own.history], own.history > 0, None, own.position)[0]
        logits, each = state @ table.T, []
        for s, target in enumerate(own.target[0].tolist()):
            drawn = own.negatives[0, s].tolist()
            if objective == "softmax":
                drawn = [item for item in range(ITEMS) if bool(learner.candidates[item]) and item != target]
            if objective == "bpr":
                each.append(torch.stack([losses.bpr(logits[s, target], logits[s, [n]]) for n in drawn]).mean())
            elif objective == "gbce":
                beta = 0.5 * (0.75 * (1 - 1 / 0.5) + 1 / 0.5)
                each.append(-beta * F.logsigmoid(logits[s, target]) - F.logsigmoid(-logits[s, drawn]).sum())
            else:
                each.append(-logits[s, [target, *drawn]].log_softmax(0)[0])
        found.append(torch.stack(each).mean())
    return torch.stack(found)


@pytest.mark.parametrize("objective", ["bpr", "sampled_softmax", "softmax", "gbce"])
def test_a_loss_and_its_gradients_are_those_of_one_table(learner, objective):
    torch.manual_seed(7)
    with torch.random.fork_rng():
        expected = by_the_formula(learner, table_of(learner.items), EXAMPLES, objective)
    slopes = torch.autograd.grad(expected.sum(), list(learner.parameters()), allow_unused=True)
    found = gbce_loss(learner, EXAMPLES, 0.5) if objective == "gbce" else learner.loss(EXAMPLES, objective)
    torch.testing.assert_close(found, expected)
    for p, slope in zip(learner.parameters(), slopes, strict=True):
        (own,) = torch.autograd.grad(found.sum(), p, retain_graph=True, allow_unused=True)
        torch.testing.assert_close(
            torch.zeros_like(p) if own is None else own, torch.zeros_like(p) if slope is None else slope
        )


def test_draws_are_counted_and_differ_from_loss_to_loss():
    learner = ModalityLearner(Noisy(), id_learner().encoder).double()
    first, second = (learner.loss(EXAMPLES, "softmax") for _ in range(2))
    assert learner.items.draws == 2 and not torch.allclose(first, second)
    learner.products(EXAMPLES)
    assert learner.items.draws == 3


def test_users_who_adapt_share_one_draw_with_their_query():
    learner = ModalityLearner(Noisy(), id_learner(context=False).encoder).double()
    episodes = ragged_episodes([5, 7])
    MetaLearner(learner, lr=0.1, steps=3).query_loss(episodes)
    assert learner.items.draws == 1
    for adapts in ("encoder", "all"):
        learner.items.draws = 0
        MetaLearner(learner, lr=0.1, steps=3, adapts=adapts).backward(episodes)
        assert learner.items.draws <= 2  # one for the sizes of the chunks, one for the chunk


def test_deterministic_items_are_asked_as_they_are():
    for items in (IdItems(ITEMS, DIM), features(0), TableItems(torch.eye(3), torch.ones(3) > 0)):
        assert drawn_once(items) is items
        same = copy.copy(items)
        same.__class__ = type("Renamed", (type(items),), {})
        assert drawn_once(same) is same
    assert isinstance(drawn_once(Dropped(ITEMS, DIM)), TableItems)


def test_a_module_with_a_frozen_form_of_its_own_is_frozen_by_it():
    class Zero(Dropped):
        def forward(self, ids: Tensor) -> Tensor:
            return super().forward(ids)

        def frozen(self) -> TableItems:
            return TableItems(torch.zeros_like(self.weight), self.known)

    assert not drawn_once(Zero(ITEMS, DIM)).table().any()
