"""The full softmax of many users at once: losses and gradients are those of the learner's own loss, user by user."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from helpers import ITEMS, id_learner, ragged_episodes, text_learner
from metarec.meta import MetaLearner, VmapUsers, compiled
from metarec.meta.choice import choose
from metarec.meta.compiled import in_kernel
from metarec.meta.engine import Engine, InnerLoop
from metarec.meta.low_rank import LowRankUsers
from metarec.nn import ModalityLearner, SequenceEncoder
from metarec.recipes.next_item import backward_softmax
from metarec.types import EpisodeBatch, Examples
from optional import needs_kernel

LOOP = InnerLoop("bpr", steps=2, rate=0.1)
EPISODES = ragged_episodes([9, 3, 5])
ENGINES = [pytest.param(None, marks=needs_kernel), LowRankUsers]


def with_padding() -> EpisodeBatch:
    """Two examples of each user, of which the last user's second is none."""
    query = EPISODES.query
    twice = [torch.cat([t, t.roll(1, 0)], 1) for t in (query.position, query.target, query.negatives, query.weight)]
    twice[0][:, 1] = 0
    twice[3][2, 1] = 0
    return EpisodeBatch(EPISODES.user, EPISODES.support, Examples(query.history, *twice))


def gradients(engine: type[Engine], learner: ModalityLearner, part: EpisodeBatch) -> tuple[Tensor, list[Tensor | None]]:
    users = engine(learner.task_view("encoder"), len(part))
    return users.query_gradients(part, LOOP, "softmax", list(learner.parameters()))


@pytest.mark.parametrize("few", [False, True])
@pytest.mark.parametrize("make", [id_learner, text_learner])
@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_gives_what_vmap_over_users_gives(
    engine: type[Engine] | None, make: Callable[[], ModalityLearner], few: bool
) -> None:
    learner, part = make(), with_padding()
    if few:  # some targets are no candidates
        learner.candidates = learner.candidates & (torch.arange(ITEMS) % 2 == 0)
    chosen = choose(learner.task_view("encoder"), LOOP, {}) if engine is None else engine
    losses, expected = gradients(VmapUsers, learner, part)
    found, own = gradients(chosen, learner, part)
    torch.testing.assert_close(found, losses.detach(), rtol=1e-9, atol=1e-10)
    for one, other in zip(own, expected, strict=True):
        assert (one is None or not one.any()) if other is None else one is not None
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


class Twice(ModalityLearner):
    """A learner whose loss is its own."""

    def loss(self, examples: Examples, objective: str = "bpr") -> Tensor:
        return 2 * super().loss(examples, objective)  # type: ignore[arg-type]


def test_a_loss_of_somebodys_own_is_not_replaced() -> None:
    learner = id_learner()
    own = Twice(learner.items, learner.encoder, context=learner.context)
    loss, plain = (MetaLearner(m, lr=0.0, objectives=("bpr", "softmax")).backward(EPISODES) for m in (own, learner))
    assert loss == pytest.approx(2 * plain, rel=1e-9)


@needs_kernel
def test_ordinary_training_takes_the_kernel_and_without_it_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, part = id_learner(), with_padding()
    kernel = in_kernel(learner, 3)
    assert kernel is not None and type(kernel.encoder) is not SequenceEncoder
    assert type(learner.encoder) is SequenceEncoder, "the learner itself stays as it is"
    found = []
    for there in (True, False):
        if not there:
            monkeypatch.setattr(compiled, "library", lambda: None)
            assert in_kernel(learner, 3) is None
        learner.zero_grad()
        loss = backward_softmax(learner, part, lambda some: some.query)
        found.append((loss, [p.grad for p in learner.parameters()]))
    (with_it, own), (without, others) = found
    assert with_it == pytest.approx(without, rel=1e-10)
    for one, other in zip(own, others, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


@needs_kernel
def test_memory_that_is_handed_on_is_nobody_elses_yet() -> None:
    learner, part = id_learner(), with_padding()
    views = [in_kernel(learner, 3) for _ in range(2)]
    states = [view.states(part.query) for view in views if view is not None]  # both graphs are alive
    alone = learner.states(part.query)
    expected = torch.autograd.grad(alone.square().sum(), learner.encoder.position)[0]
    for state in states:
        torch.testing.assert_close(state, alone, rtol=1e-9, atol=1e-10)
    for state in reversed(states):
        found = torch.autograd.grad(state.square().sum(), learner.encoder.position)[0]
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
