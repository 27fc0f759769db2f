"""Items and learners against plain Python: one prefix, one candidate, one user at a time."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from helpers import DIM, ITEMS, features, id_learner, one_user, ragged_episodes, text_learner
from metarec.nn import FeatureItems, IdItems, ModalityLearner, SequenceEncoder, TableItems
from metarec.nn.touched import TouchedRows
from metarec.types import Examples, Modality

LENGTHS = [3, 9, 4, 6, 5]
LEARNERS = {"id": id_learner, "text": text_learner}


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def every_example(examples: Examples) -> list[tuple[int, int]]:
    """(user, s) of the examples that are not padding."""
    users, columns = examples.weight.shape
    return [(u, s) for u in range(users) for s in range(columns) if examples.weight[u, s] > 0]


def prefix_state(learner: ModalityLearner, examples: Examples, user: int, s: int) -> Tensor:
    """(D,) state of one example, by a pass over its own prefix alone."""
    prefix = examples.history[user, : int(examples.position[user, s]) + 1]
    context = None if learner.context is None else learner.context.table()[prefix]
    return learner.encoder(learner.items.table()[prefix], torch.ones(len(prefix), dtype=torch.bool), context)[-1]


@torch.no_grad()
def one_loss(learner: ModalityLearner, examples: Examples, user: int, s: int, objective: str) -> float:
    table, target = learner.items.table(), int(examples.target[user, s])
    score = lambda item: prefix_state(learner, examples, user, s) @ table[item]  # noqa: E731
    drawn = examples.negatives[user, s].tolist()
    if objective == "bpr":
        margins = [float(score(target) - score(item)) for item in drawn]
        return sum(-math.log(1e-10 + 1 / (1 + math.exp(-m))) for m in margins) / len(margins)
    if objective == "softmax":
        drawn = [i for i in range(ITEMS) if bool(learner.candidates[i]) and i != target]
    logits = torch.stack([score(item) for item in [target, *drawn]])
    return float(F.cross_entropy(logits[None], torch.tensor([0])))


@pytest.mark.parametrize("objective", ["bpr", "sampled_softmax", "softmax"])
@pytest.mark.parametrize("kind", LEARNERS)
def test_loss_equals_a_plain_loop_over_prefixes(kind, objective):
    learner, examples = LEARNERS[kind](), ragged_episodes(LENGTHS).support
    learner.candidates = torch.arange(ITEMS) % 2 == 1  # some targets are among the candidates, some are not
    found = learner.loss(examples, objective)
    for user in range(len(LENGTHS)):
        each = [one_loss(learner, examples, u, s, objective) for u, s in every_example(examples) if u == user]
        assert float(found[user].detach()) == pytest.approx(sum(each) / len(each), rel=1e-10)


@pytest.mark.parametrize("kind", LEARNERS)
def test_scores_equal_a_plain_loop_over_candidates(kind):
    learner, query = LEARNERS[kind](), ragged_episodes(LENGTHS).query
    scored, table = learner(query), learner.items.table()
    for user in range(len(LENGTHS)):
        state = prefix_state(learner, query, user, 0)
        close(scored.state[user, 0], state)
        for item in range(ITEMS):
            close(scored.scores[user, 0, item], state @ table[item])


@pytest.mark.parametrize("objective", ["bpr", "sampled_softmax", "softmax"])
def test_what_stands_at_padding_changes_nothing(objective):
    learner, support = id_learner(), ragged_episodes(LENGTHS).support
    real = support.weight > 0
    junk = replace(
        support,
        target=torch.where(real, support.target, 7),
        negatives=torch.where(real[..., None], support.negatives, 5),
        position=torch.where(real, support.position, 1),
    )
    assert not torch.equal(junk.target, support.target)
    close(learner.loss(junk, objective), learner.loss(support, objective))


@pytest.mark.parametrize("kind", LEARNERS)
def test_padding_and_batch_mates_change_nothing(kind):
    learner, support = LEARNERS[kind](), ragged_episodes(LENGTHS).support
    losses, scored = learner.loss(support), learner(support)
    for user, length in enumerate(LENGTHS):
        alone = one_user(support, user)
        assert alone.history.shape[1] == length - 2
        close(losses[user], learner.loss(alone)[0])
        close(scored.scores[user, : length - 2], learner(alone).scores[0])
        assert torch.equal(scored.has_known_history[user, : length - 2], learner(alone).has_known_history[0])


@pytest.mark.parametrize("kind", LEARNERS)
def test_user_order_changes_nothing(kind):
    learner, support = LEARNERS[kind](), ragged_episodes(LENGTHS).support
    order = torch.tensor([3, 0, 4, 2, 1])
    close(learner.loss(support[order]), learner.loss(support)[order])
    close(learner(support[order]).scores, learner(support).scores[order])


def test_active_is_whether_any_item_read_so_far_is_known():
    learner = text_learner()
    last = ITEMS - 1  # the item without features
    history = torch.tensor([[last, last, 3, last, 0], [2, last, 0, 0, 0], [last, 0, 0, 0, 0]])
    position = torch.tensor([[0, 1, 2, 3], [0, 1, 1, 1], [0, 0, 0, 0]])
    examples = Examples(history, position, torch.ones(3, 4).long(), torch.ones(3, 4, 1).long(), torch.ones(3, 4))
    scored = learner(examples)
    assert scored.has_known_history.tolist() == [[False, False, True, True], [True] * 4, [False] * 4]
    assert scored.item_mask.tolist() == [False] + [True] * (ITEMS - 2) + [False]


def test_feature_items_score_as_their_table():
    items = features(0).double()
    state = torch.randn(2, 3, DIM).double()
    weight, bias = items.projection.weight, items.projection.bias
    table = torch.stack([weight @ row + bias for row in items.features])
    close(items.table(), table)
    close(items.scores(state), state @ table.T)
    ids = torch.tensor([[3, 0], [ITEMS - 1, 3]])
    close(items(ids), table[ids])
    close(items.frozen()(ids[ids > 0]), table[ids[ids > 0]])
    close(items(torch.tensor(ITEMS - 1)), bias)


def test_features_train_only_when_asked():
    fixed = FeatureItems(Modality("text", torch.randn(4, 3), torch.arange(4) > 0), 2)
    given = torch.randn(4, 3)
    free = FeatureItems(Modality("text", given, torch.arange(4) > 0), 2, train_features=True)
    assert [name for name, _ in fixed.named_parameters()] == ["projection.weight", "projection.bias"]
    assert "features" in dict(free.named_parameters())
    with torch.no_grad():
        free.features.add_(1)
    assert not torch.equal(free.features, given), "the caller's features are not what trains"


@pytest.mark.parametrize("objective", ["bpr", "sampled_softmax", "softmax"])
def test_the_padding_row_gets_no_gradient(objective):
    learner, support = id_learner(context=False), ragged_episodes(LENGTHS).support
    learner.loss(support, objective).sum().backward()
    gradient = learner.items.weight.grad
    assert torch.equal(gradient[0], torch.zeros(DIM).double())
    assert (gradient[1:].abs().sum(1) > 0).sum() > 5


def test_a_new_table_has_a_zero_padding_row_and_does_not_know_it():
    items = IdItems(5, 3, known=torch.ones(5, dtype=torch.bool))
    assert torch.equal(items.weight[0], torch.zeros(3)) and items.known.tolist() == [False, True, True, True, True]


def test_touched_rows_equal_a_modified_table():
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(ITEMS, DIM, generator=generator).double()
    table[0] = 0
    support = ragged_episodes(LENGTHS).support
    rows = TouchedRows(TableItems(table, torch.arange(ITEMS) > 0)).double()
    own = rows.per_user(support)
    for user in range(len(LENGTHS)):
        seen = {*support.history[user].tolist(), *support.target[user].tolist()}
        seen |= set(support.negatives[user].flatten().tolist())
        touched = own["touched"][user]
        assert sorted(touched[touched > 0].tolist()) == sorted(seen - {0})
        assert not own["delta"][user].any()
        delta = torch.randn(own["delta"][user].shape, generator=generator).double()
        modified = table.clone()
        for slot, item in enumerate(touched.tolist()):
            if item > 0:
                modified[item] += delta[slot]
        weights = {"touched": touched, "delta": delta}
        ids = torch.tensor([[1, 0, 5], [11, 3, 3]])
        state = torch.randn(3, DIM, generator=generator).double()
        close(functional_call(rows, weights, (ids,)), modified[ids])
        close(functional_call(_Call(rows), _named(weights), ("scores", state)), state @ modified.T)
        close(functional_call(_Call(rows), _named(weights), ("table",)), modified)


class _Call(torch.nn.Module):
    """Lets ``functional_call`` reach any method."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, method: str, *args: Tensor) -> Tensor:
        return getattr(self.inner, method)(*args)


def _named(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"inner.{name}": value for name, value in weights.items()}


def test_an_unadapted_learner_is_its_own_method():
    learner, episodes = id_learner(), ragged_episodes(LENGTHS)
    close(learner.adapt(episodes.support)(episodes.query).scores, learner(episodes.query).scores)


def test_any_encoder_serves():
    class LastItem(torch.nn.Module):
        def forward(self, x: Tensor, keep: Tensor, context: Tensor | None = None) -> Tensor:
            return x

    table = torch.randn(ITEMS, DIM, generator=torch.Generator().manual_seed(0))
    learner = ModalityLearner(TableItems(table, torch.arange(ITEMS) > 0), LastItem())
    query = ragged_episodes(LENGTHS).query
    last = query.history.gather(1, query.position)
    close(learner(query).scores, table[last] @ table.T)


def test_bad_objective_and_bad_view_are_refused():
    learner, support = id_learner(), ragged_episodes([4]).support
    with pytest.raises(ValueError, match="objective must be 'bpr', 'sampled_softmax' or 'softmax', got 'mse'"):
        learner.loss(support, "mse")
    with pytest.raises(ValueError, match="adapts must be 'encoder' or 'all', got 'items'"):
        learner.task_view("items")
    with pytest.raises(ValueError, match="history of 11 items, but max_length is 10"):
        learner.loss(ragged_episodes([13]).support)
    assert isinstance(learner.encoder, SequenceEncoder)
