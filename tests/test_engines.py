"""Which engine runs what, and that none changes, unties, thaws or confuses anything."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from helpers import DIM, Own, id_learner, learner_of, one_user, ragged_episodes
from metarec.functional import losses
from metarec.meta import MetaLearner, compiled
from metarec.meta.calling import Substituted
from metarec.meta.compiled import CompiledUsers
from metarec.meta.inspection import beyond_vmap
from metarec.meta.low_rank import LowRankUsers
from metarec.meta.vmap import VmapUsers
from metarec.nn import IdItems, ModalityLearner, SequenceEncoder
from metarec.recipes.metasgd import MetaSGD
from optional import needs_kernel, needs_learn2learn

EPISODES = ragged_episodes([3, 6, 4])


def engine(learner: nn.Module, **given) -> type:
    meta = MetaLearner(learner, lr=0.1, steps=1, **given)
    return type(meta.adapt(EPISODES.support).stacks[0])


def by_hand(learner: ModalityLearner, user: int, steps: int) -> torch.Tensor:
    """Scores of a user after SGD in the learner itself, which is put back."""
    moved = [p for p in learner.encoder.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in moved]
    for _ in range(steps):
        loss = learner.loss(one_user(EPISODES.support, user)).sum()
        for p, slope in zip(moved, torch.autograd.grad(loss, moved), strict=True):
            p.data = p.data - 0.1 * slope
    with torch.no_grad():
        scores = learner.score(one_user(EPISODES.query, user))[0][0]
    for p, value in zip(moved, before, strict=True):
        p.data = value
    return scores


@needs_kernel
def test_each_engine_has_its_encoders(monkeypatch):
    class Declared(Own):
        broadcasts = ()

    class Inherits(Declared):
        """Says nothing for itself."""

    assert engine(id_learner()) is CompiledUsers
    assert engine(learner_of(Declared(nn.Linear(DIM, DIM)))) is LowRankUsers
    assert engine(learner_of(Inherits(nn.Linear(DIM, DIM)))) is VmapUsers
    assert engine(learner_of(Own(nn.Linear(DIM, DIM)))) is VmapUsers
    assert engine(id_learner(), second_order=True) is engine(id_learner(), adapts="all") is VmapUsers
    monkeypatch.setattr(compiled, "library", lambda: None)
    assert engine(id_learner()) is LowRankUsers


@pytest.mark.parametrize("kind", ["GRU", "LSTM", "RNN"])
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_recurrent_layers_adapt_as_one_by_one(kind, steps):
    learner = learner_of(Own(getattr(nn, kind)(DIM, DIM, batch_first=True)))
    assert beyond_vmap(learner)
    for second in (False, True):
        meta = MetaLearner(learner, lr=0.1, steps=steps, second_order=second)
        scores = meta.adapt(EPISODES.support)(EPISODES.query).scores
        for user in range(3):
            torch.testing.assert_close(scores[user].detach(), by_hand(learner, user, steps), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["GRU", "LSTM", "RNN"])
@pytest.mark.parametrize("second", [False, True])
def test_the_meta_gradient_of_a_recurrent_layer_is_that_of_finite_differences(kind, second):
    learner = learner_of(Own(getattr(nn, kind)(DIM, DIM, batch_first=True)))
    weight = learner.encoder.layer.weight_hh_l0
    meta = MetaLearner(learner, lr=0.1, steps=2 if second else 0, second_order=second)
    meta.backward(EPISODES)
    way, values = torch.randn_like(weight), []
    for shift in (1e-5, -1e-5):
        weight.data.add_(shift * way)
        values.append(float(meta.query_loss(EPISODES).mean().detach()))
        weight.data.sub_(shift * way)
    assert float((weight.grad * way).sum()) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5)


def test_a_layer_under_two_names_stays_one_and_whole():
    encoder = Own(nn.Linear(DIM, DIM))
    encoder.again = encoder.layer
    learner = learner_of(encoder)
    before = [(m, dict(m._parameters)) for m in encoder.modules()]
    scores = MetaLearner(learner, lr=0.1, steps=3).adapt(EPISODES.support)(EPISODES.query).scores
    for user in range(3):
        torch.testing.assert_close(scores[user].detach(), by_hand(learner, user, 3), rtol=1e-9, atol=1e-9)
    assert all(p is kept[n] for m, kept in before for n, p in m._parameters.items())


@pytest.mark.parametrize("copies", [True, False])
def test_an_error_in_the_middle_leaves_nothing_changed(copies):
    class Fails(Own):
        def forward(self, x, keep, context=None):
            self.layer.seen = x
            self.layer.bias = nn.Parameter(x[0, 0])
            raise ZeroDivisionError

    learner = learner_of(Fails(nn.Linear(DIM, DIM)))
    if not copies:
        learner.encoder.norm.register_forward_hook(lambda m, i, o: o)
    before = [(m, dict(vars(m)), dict(m._parameters)) for m in learner.modules()]
    with pytest.raises(ZeroDivisionError):
        MetaLearner(learner, steps=1).adapt(EPISODES.support)
    for module, attributes, parameters in before:
        assert vars(module).keys() == attributes.keys()
        assert all(vars(module)[name] is value for name, value in attributes.items())
        assert all(module._parameters[name] is p for name, p in parameters.items())


def test_buffers_that_a_pass_writes_to_stay():
    class Counts(Own):
        def forward(self, x, keep, context=None):
            self.norms(x.transpose(1, 2))
            self.count += 1
            return super().forward(x, keep)

    encoder = Counts(nn.Linear(DIM, DIM))
    encoder.norms = nn.BatchNorm1d(DIM, affine=False)
    encoder.register_buffer("count", torch.zeros(()))
    learner = learner_of(encoder).train()
    before = {name: buffer.clone() for name, buffer in learner.named_buffers()}
    MetaLearner(learner, lr=0.1, steps=2).backward(EPISODES)
    assert all(torch.equal(buffer, before[name]) for name, buffer in learner.named_buffers())
    assert encoder.norms.num_batches_tracked == 0 and encoder.layer.weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    "given",
    [{}, {"second_order": True}, {"adapts": "all"}, pytest.param({"engine": "learn2learn"}, marks=needs_learn2learn)],
)
def test_what_is_frozen_stays_in_every_engine(given):
    learner = id_learner()
    frozen = learner.encoder.blocks[0].feedforward_in.weight.requires_grad_(False)
    meta = MetaLearner(learner, lr=0.1, steps=3, **given)
    found = meta.adapt(EPISODES.support).weights()
    assert torch.equal(found["encoder.blocks.0.feedforward_in.weight"], frozen.expand(3, *frozen.shape))
    assert not torch.equal(found["encoder.position"][0], learner.encoder.position)
    again = meta.adapt(EPISODES.support, steps=0, weights=found).weights()
    assert all(torch.equal(again[name], value) for name, value in found.items() if not name.startswith("items"))
    meta.backward(EPISODES)
    assert frozen.grad is None and learner.encoder.position.grad.abs().max() > 0


def test_what_is_frozen_stays_under_meta_sgd_and_reptile():
    from metarec.recipes.metalearned import reptile
    from tiny import UP

    torch.manual_seed(0)
    learner = ModalityLearner(IdItems(UP.catalog.size, DIM), SequenceEncoder(DIM, layers=1))
    frozen = learner.encoder.position.requires_grad_(False)
    before = frozen.clone()
    meta = MetaSGD(learner, lr=0.1, steps=2)
    own = meta.adapt(ragged_episodes([4, 5]).support.to(torch.device("cpu"))).weights()["encoder.position"]
    assert torch.equal(own, before.expand_as(own))
    from metarec.data import EpisodeSampler

    for _ in reptile(MetaLearner(learner, lr=0.1, steps=1), EpisodeSampler(UP), epochs=1):
        pass
    assert torch.equal(frozen, before)


def test_nothing_left_to_adapt_is_said():
    learner = id_learner()
    learner.encoder.requires_grad_(False)
    with pytest.warns(UserWarning, match=r"every parameter.* requires_grad=False"):
        adapted = MetaLearner(learner, lr=0.1, steps=2).adapt(EPISODES.support)
    torch.testing.assert_close(adapted(EPISODES.query).scores, learner(EPISODES.query).scores)


def test_a_learner_that_reads_its_encoders_weights_is_run_as_it_is():
    class Penalised(ModalityLearner):
        def loss(self, examples, objective="bpr"):
            return super().loss(examples, objective) + self.encoder.norm.weight.square().sum()

    plain = id_learner(context=False)
    learner = Penalised(plain.items, plain.encoder).double().eval()
    assert engine(learner) is VmapUsers
    scores = MetaLearner(learner, lr=0.1, steps=2).adapt(EPISODES.support)(EPISODES.query).scores
    for user in range(3):
        torch.testing.assert_close(scores[user].detach(), by_hand(learner, user, 2), rtol=1e-9, atol=1e-9)


def test_torchscript_is_refused_by_name():
    learner = learner_of(Own(nn.Linear(DIM, DIM)))
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        learner.encoder.layer = torch.jit.script(nn.Linear(DIM, DIM).double())
    with pytest.raises(TypeError, match=r"encoder\.layer: TorchScript .*parameters"):
        MetaLearner(learner, steps=1).adapt(EPISODES.support)


@pytest.mark.parametrize("pair", [("bpr", "bce"), ("bce", "bpr"), ("bpr",), "bpr", ("bpr", "bpr", "bpr")])
@pytest.mark.parametrize("kind", [MetaLearner, MetaSGD])
def test_objectives_are_checked_when_a_learner_is_made(kind, pair):
    with pytest.raises(ValueError, match=r"each one of \['bpr', 'sampled_softmax', 'softmax'\], got"):
        kind(id_learner(), objectives=pair)


def test_a_learner_may_have_objectives_of_its_own():
    class Square(ModalityLearner):
        objectives = ("square", "bpr")

        def loss(self, examples, objective="bpr"):
            if objective == "bpr":
                return super().loss(examples)
            state = self.states(examples)
            return losses.weighted_mean((state - self.items(examples.target)).square().sum(-1), examples.weight)

    plain = id_learner()
    learner = Square(plain.items, plain.encoder).double().eval()
    assert MetaLearner(learner, objectives=("square", "bpr")).backward(EPISODES) > 0
    with pytest.raises(ValueError, match="give Square an attribute objectives"):
        MetaLearner(learner, objectives=("softmax", "bpr"))


def test_a_call_with_other_tensors_meets_all_names_of_one():
    layer = nn.Linear(2, 2, bias=False)
    both = nn.Sequential(layer, nn.Linear(2, 2, bias=False))
    both[1].weight = layer.weight
    out = Substituted(both)({"0.weight": 2 * torch.eye(2)}, "forward", torch.ones(2))
    assert out.tolist() == [4.0, 4.0] and both[1].weight is layer.weight
