"""Triton's kernels against the lines of torch that they replace, and CUDA graphs.

Without a GPU the kernels run in Triton's interpreter (tests/conftest.py), and what needs CUDA itself is tested up to
its door.
"""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from helpers import ITEMS, ragged_episodes
from metarec.data import EpisodeSampler, negatives_gpu
from metarec.datasets import planted
from metarec.functional import attend
from metarec.meta import MetaLearner, adapted, gpu, low_rank
from metarec.meta.compiled import CompiledUsers
from metarec.meta.graphs import padded
from metarec.nn import IdItems, ModalityLearner, SequenceEncoder
from metarec.types import EpisodeBatch, Examples

DEVICE = (
    f"cuda:{torch.cuda.device_count() - 1}" if torch.cuda.is_available() else "cpu"
)  # not the current one of several


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(DEVICE)


def same_gradients(ours: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    weight = drawn(*expected.shape)
    for mine, theirs in zip(
        torch.autograd.grad(ours, inputs, weight), torch.autograd.grad(expected, inputs, weight), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("users", "n", "width", "height", "rank"), [(3, 12, 64, 256, 36), (2, 5, 24, 40, 7), (2, 20, 64, 72, 100)]
)
@pytest.mark.parametrize("one", [0.0, 1.0])
def test_low_rank_add(users, n, width, height, rank, one):
    x, y = drawn(users, n, width), drawn(users, n, height)
    X, G = drawn(users, rank + 5, width)[:, :rank], drawn(users, rank + 5, height)[:, :rank]
    expected = torch.stack([y[u] + (x[u] @ X[u].T + one) @ G[u] for u in range(users)])
    gpu.low_rank_add(y, x, X, G, one)
    rounding = 2e-3 if DEVICE != "cpu" else 1e-5  # TF32 on a GPU
    assert float((y - expected).abs().max()) < rounding * float(expected.abs().max())


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("length", [1, 7, 20])
def test_attend(length, with_bias):
    users, heads = 3, 2
    qkv = drawn(users, length, 96).requires_grad_()
    keep = torch.arange(length, device=DEVICE) < torch.tensor([length, 1, 0], device=DEVICE)[:, None]
    bias = drawn(users, length, length).requires_grad_() if with_bias else None
    ours, expected = gpu.attend(qkv, heads, keep, bias), attend(qkv, heads, keep, bias)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    same_gradients(ours, expected, [qkv] if bias is None else [qkv, bias])


def test_attend_falls_back_where_the_kernel_ends():
    keep = torch.ones(1, 70, dtype=torch.bool, device=DEVICE)
    for qkv, at in ((drawn(1, 70, 96), None), (drawn(1, 5, 12), None), (drawn(1, 5, 96), torch.tensor([[4, 0]]))):
        at = at if at is None else at.to(DEVICE)
        some = keep[:, : qkv.shape[1]]
        assert torch.equal(gpu.attend(qkv, 2, some, at=at), attend(qkv, 2, some, at=at))


def test_dropout_of_attention_keeps_the_mean_and_its_backward_pass_sees_the_same_draw():
    users, length, dropout = 40, 16, 0.3
    qkv, keep = drawn(users, length, 96), torch.ones(users, length, dtype=torch.bool, device=DEVICE)
    values = torch.ones_like(qkv)  # equal values: each output is the sum of the kept weights
    values[..., :64] = qkv[..., :64]
    kept = gpu.attend(values, 2, keep, dropout=dropout)
    assert float(kept.mean()) == pytest.approx(1, abs=0.02)
    first = kept[:, 0, :].reshape(users, 2, 16)[..., 0]  # a single weight of 1: dropped or scaled
    assert sorted({round(value, 4) for value in first.flatten().tolist()}) == [0.0, 1.4286]  # 1 / 0.7

    def loss(x: Tensor) -> Tensor:
        torch.manual_seed(3)
        return (gpu.attend(x, 2, keep, dropout=dropout) * weight).sum()

    weight, direction, step = drawn(users, length, 32), drawn(users, length, 96), 1e-3
    x = qkv.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x), [x])
    difference = (loss(qkv + step * direction) - loss(qkv - step * direction)) / (2 * step)
    assert float((gradient * direction).sum()) == pytest.approx(float(difference), rel=2e-2)


@pytest.mark.parametrize(("n", "width"), [(12, 64), (5, 24), (1, 100), (70, 16)])
def test_scaled_norm(n, width):
    x, weight, bias = (drawn(*s).requires_grad_() for s in ((3, n, width), (3, 1, width), (3, 1, width)))
    ours = gpu.scaled_norm(x, (width,), weight, bias, 1e-12)
    expected = torch.stack(
        [torch.nn.functional.layer_norm(x[u], (width,), weight[u, 0], bias[u, 0], 1e-12) for u in range(3)]
    )
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    same_gradients(ours, expected, [x, weight, bias])


def float32(examples: Examples) -> Examples:
    return Examples(*examples.tensors()[:4], examples.weight.float())


def users() -> EpisodeBatch:
    ragged = ragged_episodes([3, 9, 4, 6])
    return EpisodeBatch(ragged.user, float32(ragged.support), float32(ragged.query)).to(DEVICE)


def learner() -> ModalityLearner:
    torch.manual_seed(0)
    made = ModalityLearner(IdItems(ITEMS, 32), SequenceEncoder(32, max_length=10, dropout=0.0))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made.to(DEVICE)


def meta_gradient(meta: MetaLearner, batch: EpisodeBatch) -> Tensor:
    meta.learner.zero_grad()
    meta.backward(batch)
    return torch.cat([p.grad.flatten() for p in meta.learner.parameters()])


def test_the_inner_loop_with_the_kernels_and_without(monkeypatch):
    meta = MetaLearner(learner(), lr=0.05, steps=3)
    monkeypatch.setattr(CompiledUsers, "fits", lambda *given: False)  # the compiled kernel, for CPUs
    with monkeypatch.context() as patch:
        for module in (adapted, low_rank):
            patch.setattr(module, "kernels", lambda like: None)
        expected = meta_gradient(meta, users())
    for module in (adapted, low_rank):
        monkeypatch.setattr(module, "kernels", lambda like: gpu)
    found = meta_gradient(meta, users())
    assert not torch.equal(found, expected), "the kernels did not run"
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-2 if DEVICE != "cpu" else 1e-5)


@pytest.mark.parametrize("longest", [None, 10, 12])
def test_padding_to_common_shapes_changes_nothing(longest):
    batch, meta = users(), MetaLearner(learner(), lr=0.05, steps=3)
    wide = padded(batch, longest)
    assert wide.support.target.shape[1] % 4 == 0 and wide.query.target.shape[1] % 4 == 0
    assert wide.query.history.shape[1] == 8
    torch.testing.assert_close(meta.query_loss(wide), meta.query_loss(batch), rtol=1e-5, atol=1e-5)


def test_histories_are_padded_up_to_the_longest_that_the_encoder_takes():
    batch = users()
    longer = EpisodeBatch(
        batch.user,
        batch.support,
        Examples(torch.ones(4, 9, dtype=torch.int64, device=DEVICE), *batch.query.tensors()[1:]),
    )
    assert padded(longer, 10).query.history.shape[1] == 10
    assert padded(longer, 50).query.history.shape[1] == 12
    assert padded(longer, None).query.history.shape[1] == 9


@pytest.mark.parametrize("objective", ["bpr", "softmax"])
def test_graphs_give_the_same_gradients(objective):
    settings = {"lr": 0.05, "steps": 3, "objectives": (objective, objective)}
    batch, reference = users(), MetaLearner(learner(), **settings)
    expected = meta_gradient(reference, batch)
    meta = MetaLearner(learner(), **settings, graphs=True)
    other = EpisodeBatch(batch.user.flip(0), batch.support[batch.user.flip(0)], batch.query[batch.user.flip(0)])
    for turn, given in enumerate((batch, batch, other, batch)):  # run, record and replay, replay with others, and again
        torch.testing.assert_close(meta_gradient(meta, given), expected, rtol=1e-4, atol=1e-5, msg=f"turn {turn}")
    if DEVICE != "cpu":
        assert [graph is not None for graph in meta.graphs.captured.values()] == [True]
        with torch.no_grad():
            for parameter in (*meta.learner.parameters(), *reference.learner.parameters()):
                parameter.mul_(1.5)  # as an optimiser does: a graph reads the weights where they are
        torch.testing.assert_close(meta_gradient(meta, batch), meta_gradient(reference, batch), rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(DEVICE == "cpu", reason="a GPU captures")
def test_after_a_capture_that_fails_training_goes_on_without_and_can_draw(caplog):
    class Waits(ModalityLearner):
        """Its loss waits for the GPU, which no capture may."""

        def loss(self, examples, objective="bpr"):
            torch.cuda.synchronize()
            return super().loss(examples, objective)

    def trained(graphs):
        torch.manual_seed(0)
        waits = Waits(IdItems(ITEMS, 32), SequenceEncoder(32, max_length=10, dropout=0.5)).to(DEVICE).train()
        meta, batch = MetaLearner(waits, lr=0.05, steps=3, graphs=graphs), users()
        meta_gradient(meta, batch)
        if graphs:
            meta_gradient(meta, batch)
            assert meta.graphs.refused
            assert "capturing" in caplog.text
        torch.cuda.manual_seed_all(1)
        return meta_gradient(meta, batch)

    torch.testing.assert_close(trained(graphs=True), trained(graphs=False), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("salt", [0, 77, -(1 << 62)])
@pytest.mark.parametrize("negatives", [1, 5, 300])
def test_the_kernel_of_negatives_draws_what_torch_draws(salt, negatives, monkeypatch):
    """The sampler's own lines, on the CPU, are held to whole numbers of Python in test_negatives.py."""
    sampler = EpisodeSampler(planted(users=60, items=40), users_per_batch=16, negatives=negatives)
    batch = next(sampler.epoch(0)).to(DEVICE)
    monkeypatch.setattr("metarec.data.negatives.mixed_int", lambda key: salt)
    for examples in (batch.support, batch.query):
        expected = sampler._draw(examples.to("cpu"), batch.user.cpu(), 0).negatives
        draw = sampler._draw.to(DEVICE)
        user = batch.user if draw._users is None else draw._users[batch.user]
        found = negatives_gpu.drawn(examples, user, salt, draw._first, draw._pool, negatives)
        assert torch.equal(found.cpu(), expected)


def test_negatives_are_the_same_on_a_gpu_and_drawn_there_without_waiting():
    sampler = EpisodeSampler(planted(users=60, items=40), users_per_batch=16, negatives=5)
    there = sampler.prefetch(1, device=DEVICE)
    made = [next(there)]
    if DEVICE != "cpu":
        with warnings.catch_warnings(action="ignore"):  # that it is a prototype
            torch.cuda.set_sync_debug_mode("error")
    try:
        made.extend(there)
    finally:
        if DEVICE != "cpu":
            torch.cuda.set_sync_debug_mode("default")
    for batch, expected in zip(made, sampler.epoch(1), strict=True):
        assert str(batch.user.device) == DEVICE
        for mine, theirs in ((batch.support, expected.support), (batch.query, expected.query)):
            assert all(map(torch.equal, mine.to("cpu").tensors(), theirs.tensors()))
