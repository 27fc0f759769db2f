"""The compiled encoder against learn2learn's loop, the encoder module it stands for, and finite differences."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from helpers import id_learner, one_user, ragged_episodes
from maml_loop import KERNEL_LENGTHS as LENGTHS
from maml_loop import LR, STEPS, close, gradients, loop
from metarec.meta import MetaLearner, compiled
from metarec.meta.compiled import CompiledUsers
from metarec.meta.kernel import KernelEncoder
from metarec.meta.library import library
from metarec.meta.low_rank import LowRankUsers
from metarec.nn import IdItems, ModalityLearner, SequenceEncoder
from metarec.types import EpisodeBatch
from optional import needs_kernel, needs_learn2learn

pytestmark = needs_kernel


def spread(module: nn.Module, size: float = 0.3) -> nn.Module:
    """Weights far from their initial values, in float64."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in module.double().parameters():
            p.add_(size * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return module


def encoder(dim: int = 8, length: int = 10, *, dropout: float = 0.0, **shape: int) -> SequenceEncoder:
    torch.manual_seed(0)
    made = spread(SequenceEncoder(dim, max_length=length, dropout=dropout, **{"feedforward": 16, **shape}))
    made.context_scale = 0.3
    return made


def as_graph(base: SequenceEncoder, users: int) -> KernelEncoder:
    """The encoder of so many users who have not taken a step."""
    copied = KernelEncoder(base, users)
    copied.mode = "graph"
    return copied


def run(meta: MetaLearner, episodes: EpisodeBatch) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]:
    """Adapted weights, query losses, meta-gradients."""
    meta.learner.zero_grad()
    losses = meta.query_loss(episodes)
    losses.mean().backward()
    return meta.adapt(episodes.support).weights(), losses.detach(), gradients(meta.learner)


@needs_learn2learn
@pytest.mark.parametrize("context", [False, True])
@pytest.mark.parametrize("objective", ["bpr", "sampled_softmax", "softmax"])
def test_equals_learn2learns_loop(objective, context):
    learner, episodes = id_learner(context=context), ragged_episodes(LENGTHS, negatives=3)
    expected_weights, expected_losses, expected_gradients = loop(learner, episodes, "encoder", objective)
    meta = MetaLearner(learner, lr=LR, steps=STEPS, objectives=(objective, objective))
    assert [type(stack) for stack in meta.adapt(episodes.support).stacks] == [CompiledUsers]
    weights, losses, found = run(meta, episodes)
    close(losses, expected_losses)
    assert expected_gradients["items.weight"].abs().max() > 1e-3
    for name, expected in expected_gradients.items():
        close(found[name], expected)
    for user, own in enumerate(expected_weights):
        for name, expected in own.items():
            close(weights[f"encoder.{name}"][user], expected)


@needs_learn2learn
@pytest.mark.parametrize(
    "shape",
    [
        {"dim": 12, "heads": 3, "feedforward": 20, "layers": 1},
        {"dim": 10, "heads": 5, "feedforward": 7, "layers": 3},
        {"dim": 64, "heads": 2, "feedforward": 256, "layers": 2},
    ],
)
def test_any_shape_equals_the_loop(shape):
    base, episodes = encoder(length=12, **shape), ragged_episodes([8, 3, 12])
    learner = ModalityLearner(spread(IdItems(12, shape["dim"])), base)
    learner.items.weight.data[0] = 0
    expected_weights, expected_losses, expected_gradients = loop(learner, episodes, "encoder", "bpr")
    weights, losses, found = run(MetaLearner(learner, lr=LR, steps=STEPS), episodes)
    close(losses, expected_losses)
    for name, expected in expected_gradients.items():
        close(found[name], expected)
    for name, expected in expected_weights[2].items():
        close(weights[f"encoder.{name}"][2], expected)


def both_ways(meta: MetaLearner, episodes: EpisodeBatch) -> None:
    """`backward`, where all of a user's passes may follow each other, gives what the passes one by one give."""
    torch.manual_seed(7)
    _, losses, expected = run(meta, episodes)
    torch.manual_seed(7)
    meta.learner.zero_grad()
    close(torch.tensor(meta.backward(episodes), dtype=torch.float64), losses.mean())
    found = gradients(meta.learner)
    assert found.keys() == expected.keys() and max(float(g.abs().max()) for g in found.values()) > 1e-3
    for name, value in expected.items():
        close(found[name], value)


@pytest.mark.parametrize("outer", ["bpr", "sampled_softmax", "softmax"])
@pytest.mark.parametrize("kind", ["plain", "context", "dropout", "no steps", "no query"])
def test_query_and_steps_in_one_pass_equal_two(monkeypatch, kind, outer):
    learned, learn = [], KernelEncoder.learn
    monkeypatch.setattr(KernelEncoder, "learn", lambda *given: learned.append(1) or learn(*given))
    learner, episodes = id_learner(context=kind == "context"), ragged_episodes(LENGTHS, negatives=3)
    learner.encoder.dropout.p = learner.encoder.blocks[0].dropout.p = 0.3 if kind == "dropout" else 0.0
    learner.train()
    if kind == "no query":
        weight = episodes.query.weight.clone()
        weight[1] = 0
        episodes = replace(episodes, query=replace(episodes.query, weight=weight))
    steps = 0 if kind == "no steps" else STEPS
    both_ways(MetaLearner(learner, lr=LR, steps=steps, objectives=("bpr", outer)), episodes)
    assert len(learned) == (outer != "softmax")


def test_the_threads_are_torchs():
    assert library().encoder_threads()


@pytest.mark.parametrize("inner", ["bpr", "softmax"])  # at once, and step by step
def test_without_the_library_the_numbers_are_the_same(monkeypatch, inner):
    learner, episodes = id_learner(), ragged_episodes(LENGTHS)
    meta = MetaLearner(learner, lr=LR, steps=STEPS, objectives=(inner, "softmax"))
    found = run(meta, episodes)
    monkeypatch.setattr(compiled, "library", lambda: None)
    assert [type(stack) for stack in meta.adapt(episodes.support).stacks] == [LowRankUsers]
    plain = run(meta, episodes)
    close(found[1], plain[1])
    for part in (0, 2):
        assert found[part].keys() == plain[part].keys()
        for name, expected in plain[part].items():
            close(found[part][name], expected)


def test_another_loss_of_the_same_name_is_taken_as_it_is():
    class Doubled(ModalityLearner):
        """Twice the loss, and so twice the step."""

        def loss(self, examples, objective="bpr"):
            return 2 * super().loss(examples, objective)

    plain, support = id_learner(), ragged_episodes(LENGTHS).support
    double = Doubled(plain.items, plain.encoder, context=plain.context)
    found = MetaLearner(double, lr=LR, steps=STEPS).adapt(support).weights()
    expected = MetaLearner(plain, lr=2 * LR, steps=STEPS).adapt(support).weights()
    for name, value in expected.items():
        close(found[name], value)


@pytest.mark.parametrize("asked", [[[9, 0, 9], [4, 4, 1]], [[7], [2]], None])
@pytest.mark.parametrize("length", [1, 3, 8, 10])
def test_a_pass_equals_the_module(length, asked):
    base, generator = encoder(), torch.Generator().manual_seed(2)
    draw = lambda *size: torch.randn(size, generator=generator, dtype=torch.float64)  # noqa: E731
    at = None if asked is None else torch.tensor(asked).clamp(max=length - 1)
    keep = torch.arange(length).expand(2, -1) < torch.tensor([[length], [length // 2 + 1]])
    outcomes = []
    given = draw(2, 8, length), draw(2, 3, length)
    weight = draw(2, length if at is None else at.shape[1], 8)
    for module in (base, as_graph(base, 2)):
        x, context = (t.clone().transpose(1, 2).requires_grad_() for t in given)
        assert not x.is_contiguous() or length == 1
        state = module(x, keep, context, at)
        wanted = [x, context, *base.parameters()]
        outcomes.append([state.detach(), *torch.autograd.grad((state * weight).sum(), wanted)])
    real = keep if at is None else torch.ones(at.shape, dtype=torch.bool)
    outcomes = [[state[real], *rest] for state, *rest in outcomes]
    for found, expected in zip(*reversed(outcomes), strict=True):
        close(found, expected)


def test_a_token_that_sees_nothing_looks_at_all():
    base, keep = encoder(), torch.tensor([[False, False, True, False]])
    x = torch.randn(1, 4, 8, dtype=torch.float64)  # four: the module pads to multiples of it
    close(as_graph(base, 1)(x, keep), base(x, keep))


def test_float32_loses_no_more_than_torch():
    exact = encoder(64, 12, feedforward=256)
    x, keep = 5 * torch.randn(3, 12, 64, dtype=torch.float64), torch.ones(3, 12, dtype=torch.bool)
    for p in (exact.blocks[0].feedforward_in.weight, exact.blocks[0].query_key_value.weight):
        p.data.mul_(4)  # far into both tails of GELU, and sharp attention
    expected = exact(x, keep).detach()
    rough = encoder(64, 12, feedforward=256).float()
    rough.load_state_dict(exact.state_dict())
    ours, theirs = (float((m(x.float(), keep).detach() - expected).abs().max()) for m in (as_graph(rough, 3), rough))
    assert ours < 2 * theirs < 1e-3, theirs


@pytest.mark.parametrize("threads", [2, 3, 9])
def test_threads_change_nothing(threads):
    learner, episodes = id_learner(), ragged_episodes(LENGTHS)
    learner.encoder.dropout.p = 0.2
    learner.train()
    found = []
    for number in (1, threads):
        torch.set_num_threads(number)
        try:
            torch.manual_seed(3)
            meta = MetaLearner(learner, lr=LR, steps=STEPS)
            found.append(run(meta, episodes))
        finally:
            torch.set_num_threads(1)
    assert all(torch.equal(value, found[1][0][name]) for name, value in found[0][0].items())
    assert torch.equal(found[0][1], found[1][1])
    for name, expected in found[0][2].items():
        close(found[1][2][name], expected)


@pytest.mark.parametrize("site", ["embeddings", "blocks"])
def test_dropout_has_the_moments_of_torchs(site):
    draws, base = 8000, encoder(dropout=0.4, layers=1).train()
    if site == "embeddings":
        base.blocks[0].dropout.p = 0.0
    else:
        base.dropout.p = 0.0
    x = torch.randn(1, 5, 8, dtype=torch.float64).expand(draws, -1, -1)
    keep = torch.ones(draws, 5, dtype=torch.bool)
    torch.manual_seed(4)
    with torch.no_grad():
        ours, theirs = as_graph(base, draws)(x, keep), base(x, keep)
    for power in (1, 2):
        a, b = ours**power, theirs**power
        error = torch.sqrt((a.var(0) + b.var(0)) / draws)
        assert ((a.mean(0) - b.mean(0)) / error).abs().max() < 4.5
    assert theirs.std(0).min() > 0.05


def test_the_backward_pass_drops_what_the_forward_pass_dropped():
    base = encoder(dropout=0.4).train()
    keep = torch.ones(2, 6, dtype=torch.bool)
    x = torch.randn(2, 6, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 6, 8, dtype=torch.float64)

    def value(shift: float) -> Tensor:
        torch.manual_seed(5)
        return (as_graph(base, 2)(x + shift * weight, keep) * weight).sum()

    (slope,) = torch.autograd.grad(value(0.0), x)
    numeric = (value(1e-6) - value(-1e-6)).item() / 2e-6
    assert float((slope * weight).sum()) == pytest.approx(numeric, rel=1e-6)
    assert value(0.0) == value(0.0)
    torch.manual_seed(6)
    assert not torch.allclose((as_graph(base, 2)(x, keep) * weight).sum(), value(0.0))


def test_each_inner_step_and_user_drops_others():
    learner, episodes = id_learner(), ragged_episodes([6, 6])
    twins = episodes.support[torch.tensor([0, 0])]
    learner.encoder.dropout.p = 0.5
    learner.train()
    own = MetaLearner(learner, lr=LR, steps=1).adapt(twins).weights()["encoder.position"]
    assert not torch.allclose(own[0], own[1])


def test_a_user_without_examples_stays_where_it_was():
    learner, support = id_learner(), ragged_episodes([6, 5]).support
    support = replace(support, weight=support.weight * torch.tensor([[1.0], [0.0]]))
    weights = MetaLearner(learner, lr=LR, steps=3).adapt(support).weights()
    shared = {f"encoder.{name}": p for name, p in learner.encoder.named_parameters()}
    assert all(torch.equal(weights[name][1], p) for name, p in shared.items())
    assert not any(torch.equal(weights[name][0], p) for name, p in shared.items())


def test_unlike_lengths_share_a_chunk():
    learner, episodes = id_learner(), ragged_episodes([11, 3, 7])
    meta = MetaLearner(learner, lr=LR, steps=STEPS)
    together = meta.adapt(episodes.support)(episodes.query)
    for user in range(3):
        alone = meta.adapt(one_user(episodes.support, user))(one_user(episodes.query, user))
        close(together.scores[user], alone.scores[0])
