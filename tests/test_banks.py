"""Learners that are encoded and scored together, against each learner by itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from learner_worlds import (
    BATCH,
    SIZE,
    close,
    learner,
    louder,
    maml,
    mml,
    recurrent,
    scored,
    shaken,
    text_alone,
)
from metarec import ModalityLearner
from metarec.functional import standardise
from metarec.meta.bank import Bank, banks_of
from metarec.nn import AdaptiveFusion, IdItems, SequenceEncoder
from metarec.recipes.anil import HeadLearner
from metarec.recipes.fusing import FusedMethod
from metarec.types import EpisodeBatch, Examples
from optional import needs_kernel


@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize("users", [slice(0, 1), slice(0, 5)])
def test_learners_of_one_width_are_summed_in_one_product(alike: bool, users: slice) -> None:
    whole = mml(test_steps={"id": 3, "default": 0})
    parts: dict[str, Any] = {name: whole.meta(name, generator=alike) for name in whole.learners}
    parts |= {
        "sum": learner(seed=4),
        "steps": maml(learner(seed=5), adapts="all"),
        "head": maml(HeadLearner(learner())),
    }
    (bank,) = banks_of({**parts, "wide": nn.Linear(2, 2)})
    batch = EpisodeBatch(BATCH.user[users], BATCH.support[users].trim(), BATCH.query[users].trim())
    state = bank.encode(batch.support, batch.query)
    weight, unknown = torch.randn(2, len(state), len(parts), generator=torch.Generator().manual_seed(1))
    expected = torch.zeros(len(state), SIZE)
    for number, (name, part) in enumerate(parts.items()):
        found = scored(part, batch)
        z = standardise(found.scores, found.item_mask, found.fitted).flatten(0, 1)
        expected += weight[:, number, None] * z + unknown[:, number, None] * ~found.item_mask
        assert torch.equal(bank.known[:, number], found.item_mask), name
    scores = bank.summed(state, weight, unknown)
    every = torch.arange(SIZE).expand(len(state), -1)
    torch.testing.assert_close(scores.approximate(0, SIZE), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scores.exact(every).float(), expected, rtol=1e-4, atol=1e-4)
    assert ((scores.exact(every) - scores.approximate(0, SIZE)).abs().amax(1) <= scores.error()).all()


def test_learners_of_other_widths_and_kinds_are_apart() -> None:
    parts: dict[str, Any] = {"a": learner(), "wide": learner(dim=16), "b": maml(learner()), "own": louder()}
    parts |= {"fused": mml(), "projected": maml(learner("text"), adapts="all")}
    assert [bank.names for bank in banks_of(parts)] == [("a", "b"), ("wide",)]


@needs_kernel
def test_learners_of_one_kind_share_a_call_of_the_kernel() -> None:
    same = {"a": maml(learner()), "b": maml(text_alone(context=False)), "c": maml(learner(seed=2)), "d": learner()}
    bank = Bank({**same, "e": learner(seed=1), "f": maml(learner(), steps=2), "g": maml(recurrent())})
    assert [numbers for numbers, _ in bank.together] == [[0, 2], [1], [3, 4], [5]] and bank.alone == [6]


def test_what_no_weighted_learner_knows_gets_the_lowest_score_of_its_user() -> None:
    known = torch.arange(SIZE) > 0
    halves = [known & (torch.arange(SIZE) % 3 != rest) for rest in (0, 1)]
    parts = []
    for seed, half in enumerate(halves):
        torch.manual_seed(seed)
        parts.append(shaken(maml(ModalityLearner(IdItems(SIZE, 8, known=half), SequenceEncoder(8, layers=1)))))
    history = torch.tensor([[3, 6, 9], [4, 7, 10], [3, 4, 5]])  # known to the second, to the first, to both
    position = torch.tensor([[0, 1]] * 3)
    support = Examples(history, position, history[:, 1:], history[:, 1:, None] + 1, torch.ones(3, 2))
    query = replace(support, position=position + 1)
    for fusion in (None, shaken(AdaptiveFusion(2, 8))):
        model = FusedMethod(parts, fusion).eval()
        found = scored(model, EpisodeBatch(torch.arange(3), support, query))
        state = model.encode(support, query)
        weights = model.user_weights(state)
        torch.testing.assert_close(weights, found.state.flatten(0, 1))
        assert (weights[2:4, 1] == 0).all() and (weights[0:2, 0] == 0).all()
        close(model.scores(state), found)
