"""ANIL, Meta-SGD and MetaTL, each against one user at a time, finite differences or distances written out."""

import copy

import pytest
import torch
from torch import Tensor

from helpers import id_learner, one_user, ragged_episodes
from metarec.data import EpisodeSampler, split_by_time
from metarec.datasets import PLANTED_SPLIT, planted
from metarec.evaluation import evaluate
from metarec.meta import MetaLearner
from metarec.meta.memory import bytes_per_user
from metarec.recipes.anil import HeadLearner
from metarec.recipes.metalearned import maml
from metarec.recipes.metasgd import MetaSGD
from metarec.recipes.metatl import TransitionLearner
from metarec.types import EpisodeBatch

RATE = 0.3
EPISODES = ragged_episodes([8, 6, 4, 3])
SOFTMAX = ("softmax", "softmax")


def user(episodes: EpisodeBatch, row: int) -> EpisodeBatch:
    support, query = (one_user(e, row) for e in (episodes.support, episodes.query))
    return EpisodeBatch(episodes.user[row : row + 1], support, query)


def test_anil_starts_with_the_learners_own_scores() -> None:
    learner = id_learner()
    torch.testing.assert_close(HeadLearner(learner)(EPISODES.query).scores, learner(EPISODES.query).scores)
    assert HeadLearner(learner).max_length == learner.max_length


def test_anil_is_sgd_of_the_head_of_one_user_after_the_other() -> None:
    learner = HeadLearner(id_learner())
    with torch.no_grad():
        learner.encoder.head.weight.add_(0.2)  # type: ignore[union-attr, operator]
    meta = MetaLearner(learner, lr=RATE, steps=3, objectives=SOFTMAX)
    adapted = meta.adapt(EPISODES.support)
    meta.backward(EPISODES)
    expected = {name: torch.zeros_like(p) for name, p in learner.named_parameters()}
    for row in range(4):
        episode, own = user(EPISODES, row), copy.deepcopy(learner)
        head = [p for name, p in own.named_parameters() if ".head." in name]
        for _ in range(3):
            gradients = torch.autograd.grad(own.loss(episode.support, "softmax").sum(), head)
            with torch.no_grad():
                for p, gradient in zip(head, gradients, strict=True):
                    p.sub_(RATE * gradient)
        scores = adapted(EPISODES.query).scores[row]
        torch.testing.assert_close(scores, own(episode.query).scores[0])
        own.zero_grad()
        own.loss(episode.query, "softmax").sum().backward()
        for name, p in own.named_parameters():
            expected[name] += 0 if p.grad is None else p.grad / 4
    for name, p in learner.named_parameters():
        torch.testing.assert_close(p.grad if p.grad is not None else torch.zeros_like(p), expected[name])
    assert float(expected["encoder.body.position"].abs().max()) > 0  # the body learns, though it does not adapt


def test_meta_sgd_with_equal_rates_is_maml() -> None:
    sgd = MetaSGD(id_learner(), lr=RATE, steps=3)
    plain = MetaLearner(id_learner(), lr=RATE, steps=3, objectives=SOFTMAX)
    torch.testing.assert_close(
        sgd.adapt(EPISODES.support)(EPISODES.query).scores, plain.adapt(EPISODES.support)(EPISODES.query).scores
    )
    assert sgd.backward(EPISODES) == pytest.approx(plain.backward(EPISODES))
    for mine, theirs in zip(sgd.learner.parameters(), plain.learner.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


def test_the_gradient_of_a_rate_is_inner_times_outer_gradient() -> None:
    meta = uneven(MetaSGD(id_learner(), lr=RATE, steps=3))
    meta.backward(EPISODES)
    expected = {name: torch.zeros_like(scale) for name, scale in meta.scale.items()}
    for row in range(4):
        episode, own = user(EPISODES, row), copy.deepcopy(meta.learner)
        weights = {name.replace(".", "/"): p for name, p in own.named_parameters() if name.startswith("encoder.")}
        total = {name: torch.zeros_like(p) for name, p in weights.items()}
        for _ in range(3):
            gradients = torch.autograd.grad(own.loss(episode.support, "softmax").sum(), list(weights.values()))
            for (name, p), gradient in zip(weights.items(), gradients, strict=True):
                total[name] += gradient
                p.data -= RATE * meta.scale[name].data * gradient
        outer = torch.autograd.grad(own.loss(episode.query, "softmax").sum(), list(weights.values()))
        for name, gradient in zip(weights, outer, strict=True):
            expected[name] -= RATE * total[name] * gradient / 4
    for name, scale in meta.scale.items():
        torch.testing.assert_close(scale.grad, expected[name])


@pytest.mark.parametrize(("steps", "second_order"), [(1, False), (2, True)])
def test_the_gradient_of_a_rate_is_its_finite_difference(steps: int, second_order: bool) -> None:
    meta = uneven(MetaSGD(id_learner(), lr=RATE, steps=steps, second_order=second_order))
    meta.backward(EPISODES)

    @torch.no_grad()
    def loss() -> float:
        return float(meta.adapt(EPISODES.support).loss(EPISODES.query, "softmax").mean())

    for name, at in (("encoder/norm/weight", (3,)), ("encoder/blocks/1/feedforward_in/weight", (2, 5))):
        scale, found = meta.scale[name], []
        for change in (1e-5, -2e-5):
            with torch.no_grad():
                scale[at] += change
            found.append(loss())
        assert scale.grad is not None
        assert float(scale.grad[at]) == pytest.approx((found[0] - found[1]) / 2e-5, rel=1e-4, abs=1e-9)


def test_meta_sgd_learns_its_rates_and_refuses_what_is_not_finite() -> None:
    up, _ = split_by_time(planted(users=40, items=20), at=PLANTED_SPLIT)
    meta = MetaSGD(TransitionLearner(up, dim=4), lr=0.1)
    list(maml(meta, EpisodeSampler(up, queries=0.5, negatives=0), epochs=2))
    assert float((meta.rates()["relation"] - 0.1).abs().min()) > 0
    with torch.no_grad():
        meta.learner.items.weight[1:] = torch.inf
    with pytest.raises(FloatingPointError, match=r"query .*codes .*outer"):
        meta.backward(next(EpisodeSampler(up, queries=0.5, negatives=0).epoch(0)))
    with pytest.raises(ValueError, match=r"must .*negative.* steps=-1"):
        MetaSGD(id_learner(), steps=-1)


def uneven(meta: MetaSGD) -> MetaSGD:
    """The same with a rate of its own for every weight."""
    generator = torch.Generator().manual_seed(1)
    meta.scale.double()
    with torch.no_grad():
        for scale in meta.scale.values():
            scale.mul_(0.2 + torch.rand(scale.shape, generator=generator, dtype=scale.dtype))
    return meta


def transitions() -> TransitionLearner:
    up, _ = split_by_time(planted(users=40, items=20), at=PLANTED_SPLIT)
    learner = TransitionLearner(up, dim=4).double()
    with torch.no_grad():
        for p in learner.parameters():
            p.add_(0.5 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0), dtype=p.dtype))
        learner.items.weight[0] = 0
    return learner


def distance(learner: TransitionLearner, relation: Tensor, head: int, tail: int) -> Tensor:
    return (learner.items.weight[head] + relation - learner.items.weight[tail]).square().sum()


@pytest.mark.parametrize("objective", ["margin", "softmax"])
def test_metatl_is_the_paper_written_out(objective: str) -> None:
    learner = transitions()
    meta = MetaLearner(learner, lr=RATE, steps=1, objectives=(objective, objective))
    adapted = meta.adapt(EPISODES.support)
    scores = adapted(EPISODES.query).scores
    losses, warm = [], learner.candidates.tolist()

    def loss(relation: Tensor, examples: tuple[list[int], list[int], list[list[int]]]) -> Tensor:
        each = []
        for head, tail, drawn in zip(*examples, strict=True):
            own = distance(learner, relation, head, tail)
            if objective == "margin":
                apart = torch.stack([own - distance(learner, relation, head, n) for n in drawn])
                each.append((1 + apart).relu().mean())
            else:
                others = {*warm, tail}
                each.append(own + torch.stack([-distance(learner, relation, head, n) for n in others]).logsumexp(0))
        return torch.stack(each).mean()

    for row in range(4):
        episode = user(EPISODES, row)
        clicks = episode.query.history[0].tolist()
        support = clicks[:-1], clicks[1:], episode.support.negatives[0].tolist()
        pairs = [learner.items.weight[[a, b]].flatten() for a, b in zip(*support[:2], strict=True)]
        start = torch.stack([learner.transition(pair) for pair in pairs]).mean(0)
        (gradient,) = torch.autograd.grad(loss(start, support), start, retain_graph=True)
        relation = start - RATE * gradient
        far = torch.stack([distance(learner, relation, clicks[-1], item) for item in range(1, 21)])
        torch.testing.assert_close(scores[row, 0, 1:] - scores[row, 0, 1], far[0] - far)
        asked = [clicks[-1]], episode.query.target[0].tolist(), episode.query.negatives[0].tolist()
        losses.append(loss(relation, asked))
    expected = torch.autograd.grad(torch.stack(losses).mean(), list(learner.parameters()))
    assert meta.backward(EPISODES) == pytest.approx(float(torch.stack(losses).detach().mean()))
    for p, gradient in zip(learner.parameters(), expected, strict=True):
        assert p.grad is not None
        torch.testing.assert_close(p.grad, gradient)


def test_metatl_without_transitions_expects_the_next_item_where_the_last_is() -> None:
    learner = transitions()
    support = EPISODES.support[:2]
    empty = type(support)(*support.tensors()[:4], torch.zeros_like(support.weight))
    assert not learner.task_tensors(empty)["relation"].any()
    with pytest.raises(ValueError, match="objective must be 'margin' or 'softmax', got 'bpr'"):
        learner.loss(EPISODES.query, "bpr")  # type: ignore[arg-type]


@pytest.mark.parametrize("loss", ["margin", "softmax"])
def test_metatl_learns_a_planted_world(loss: str) -> None:
    up, down = split_by_time(planted(users=300, items=40, adaptation=0.0), at=PLANTED_SPLIT)
    learner = TransitionLearner(up, dim=16)
    meta = MetaLearner(learner, lr=0.1, steps=1, objectives=(loss, loss))
    list(maml(meta, EpisodeSampler(up, queries=0.5, negatives=10, users_per_batch=32), epochs=20, lr=2e-2))
    recall = evaluate(meta, down, k=(5,)).metrics["recall@5"].mean
    assert recall > 2 * 5 / 40


def test_meta_sgd_holds_the_graphs_of_all_its_steps() -> None:
    meta = MetaSGD(id_learner(), lr=RATE, steps=3)
    support = ragged_episodes([6] * 5).support
    expected = meta.adapt(support)(support).scores
    meta.memory_budget = 2 * bytes_per_user(meta.learner.task_view("encoder"), support, 3)
    adapted = meta.adapt(support)
    assert [users.users for users in adapted.stacks] == [2, 2, 1]
    torch.testing.assert_close(adapted(support).scores, expected)
