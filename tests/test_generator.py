"""Generated vectors against the formula written as loops over items, neighbours and modalities."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from metarec.functional import nearest_items
from metarec.nn import ColdItemGenerator, IdItems, ModalityLearner, SequenceEncoder
from metarec.types import Examples, Modality

ITEMS, DIM = 16, 4
WARM = (torch.arange(ITEMS) > 0) & (torch.arange(ITEMS) < 12)  # 12..15 are cold
TEXT = torch.tensor([i not in (0, 3, 13, 15) for i in range(ITEMS)])
IMAGE = torch.tensor([i not in (0, 2, 3, 14, 15) for i in range(ITEMS)])  # 3 and 15 have nothing


def made(*, variant: str = "metarec", neighbours: int = 3, probability: float = 0.1) -> ColdItemGenerator:
    """A float64 generator over two modalities in which some items lack one or both."""
    torch.manual_seed(0)
    text = torch.randn(ITEMS, 6) * TEXT[:, None]
    image = torch.randn(ITEMS, 5) * IMAGE[:, None]
    generator = ColdItemGenerator(
        IdItems(ITEMS, DIM, known=WARM),
        [Modality("text", text, TEXT), Modality("image", image, IMAGE)],
        WARM,
        dim=DIM,
        neighbours=neighbours,
        probability=probability,
        variant=variant,
    ).double()
    with torch.no_grad():
        for p in generator.parameters():
            p.add_(0.5 * torch.randn_like(p))
        generator.items.weight[0] = 0
    return generator.eval()


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def described(item: int) -> bool:
    return bool(TEXT[item] or IMAGE[item])


def brute_neighbours(generator: ColdItemGenerator, item: int, k: int) -> list[int]:
    """The k warm, described items most like this one, itself left out, by the sum of both modalities' products."""
    likeness = {
        other: float(generator.features_0[item] @ generator.features_0[other])
        + float(generator.features_1[item] @ generator.features_1[other])
        for other in range(1, ITEMS)
        if other != item and bool(WARM[other]) and described(other)
    }
    return sorted(likeness, key=lambda other: -likeness[other])[:k]


@torch.no_grad()
def by_the_formula(generator: ColdItemGenerator, item: int, k: int) -> Tensor:
    """The generated vector of one item; the neighbours that lack a modality say nothing in it."""
    vectors = []
    for modality, present in enumerate((TEXT, IMAGE)):
        if not present[item]:
            continue
        project, attend = generator.projections[modality], generator.attentions[modality]
        features = generator.get_buffer(f"features_{modality}")
        own = project(features[item])
        near = [project(features[n]) for n in brute_neighbours(generator, item, k) if present[n]]
        logits = []
        for vector in near:
            logit = float(attend.weight[0] @ torch.cat([own, vector]) + attend.bias)
            logits.append(0.2 * logit if generator.variant == "metarec" and logit < 0 else logit)
        total = sum(math.exp(x) for x in logits)
        for logit, vector in zip(logits, near, strict=True):
            own = own + math.exp(logit) / total * vector
        vectors.append(own.clamp(min=0) if generator.variant == "paper" else own)
    return torch.stack(vectors).mean(0)


@pytest.mark.parametrize("k", [1, 3, 30])
@pytest.mark.parametrize("variant", ["metarec", "paper"])
def test_generated_vectors_follow_the_formula(variant, k):
    generator = made(variant=variant, neighbours=k)
    generated = generator.generated().detach()
    for item in range(1, ITEMS):
        if described(item):
            close(generated[item], by_the_formula(generator, item, k))
    assert not generated[[0, 3, 15]].any(), "items without features"
    assert (generated >= 0).all() == (variant == "paper")


def own_term_matters(variant: str) -> bool:
    """Whether the weights of the item's own half of the pair change what is generated."""
    generator = made(variant=variant)
    before = generator.generated().detach().clone()
    with torch.no_grad():
        for attention in generator.attentions:
            attention.weight[:, :DIM] += 1
    return not torch.allclose(generator.generated(), before)


def test_the_own_term_cancels_in_the_released_form():
    assert not own_term_matters("paper")


def test_the_own_term_matters_in_ours():
    assert own_term_matters("metarec")


@pytest.mark.parametrize("first", [0, 1, 17])
@pytest.mark.parametrize("chunk", [4096, 3])
def test_nearest_items_by_brute_force(chunk, first):
    features = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    allowed = torch.arange(30) % 3 != 0
    found = nearest_items(features, allowed, 5, chunk, first)
    assert len(found) == 30 - first
    for item in range(first, 30):
        others = [i for i in range(30) if bool(allowed[i]) and i != item]
        best = sorted(others, key=lambda i: -float(features[item] @ features[i]))[:5]
        assert found[item - first].tolist() == best


class Products(TorchDispatchMode):
    """Notes the shapes of all matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten.mm.default, torch.ops.aten.mm.out):
            self.shapes.append(tuple(out.shape))
        return out


def test_no_more_items_are_scored_at_once_than_the_chunk():
    with Products() as products:
        nearest_items(torch.randn(30, 4), torch.arange(30) < 20, 5, chunk=8, first=3)
    assert products.shapes == [(8, 32), (8, 32), (8, 32), (3, 32)], "in whole blocks"


def test_fewer_neighbours_than_asked_for():
    features = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    found = nearest_items(features, torch.tensor([False, True, True, False]), 3)
    assert found[1:].tolist() == [[2, 0, 0], [1, 0, 0], [2, 1, 0]]
    assert not nearest_items(features, torch.zeros(4, dtype=torch.bool), 2).any()
    with pytest.raises(ValueError, match=r"k .*least 1, got 0"):
        nearest_items(features, torch.ones(4, dtype=torch.bool), 0)


def test_cold_rows_are_generated_and_the_others_are_left_alone():
    generator = made()
    table, generated = generator.table(), generator.generated()
    for item in range(ITEMS):
        expected = generated[item] if item in (12, 13, 14) else generator.items.weight[item]
        close(table[item], expected)
    ids = torch.tensor([[1, 12, 0], [15, 3, 14]])
    close(generator(ids), table[ids])
    close(generator.frozen()(ids), table[ids])
    state = torch.randn(2, DIM).double()
    close(generator.scores(state), state @ table.T)


def test_an_item_that_is_neither_warm_nor_described_stays_unknown():
    assert made().known.tolist() == [0 < i < 15 for i in range(ITEMS)]


def test_neighbours_are_warm():
    generator = made(neighbours=30)
    before = generator.generated().detach()
    with torch.no_grad():
        generator.features_0[12] += 5
    changed = (generator.generated() - before).abs().amax(1) > 1e-12
    assert changed.nonzero().flatten().tolist() == [12], "a cold item must not speak for another"


@pytest.mark.parametrize("probability", [0.0, 0.15, 1.0])
def test_in_training_each_call_draws_items(probability):
    generator = made(probability=probability).train()
    draws = 1500
    ids = torch.tensor([5, 3, 12, 0]).repeat(draws, 1)
    torch.manual_seed(0)
    with torch.no_grad():
        twice = generator(ids[:50])
        vectors, generated = torch.stack([generator(row) for row in ids]), generator.generated()
    assert torch.equal(twice, twice[:1].expand_as(twice)), "an item is cold in all its places, or in none"
    taken = (vectors == generated[ids]).all(-1).double().mean(0)
    spread = math.sqrt(probability * (1 - probability) / draws)
    assert abs(float(taken[0]) - probability) <= 4 * spread, "a described warm item"
    assert (vectors[:, 0] == generator.items.weight[5]).all(-1).double().mean() == 1 - taken[0]
    assert torch.equal(vectors[:, 1], generator.items.weight[3].expand(draws, -1)), "nothing to generate from"
    assert torch.equal(vectors[:, 2], generated[12].expand(draws, -1)), "cold items always"
    assert not vectors[:, 3].any()


def test_nothing_is_drawn_outside_training():
    generator = made(probability=1.0)
    ids = torch.arange(1, 12)
    close(generator(ids), generator.items.weight[ids])


def test_in_training_the_softmax_stays_a_cross_entropy():
    generator = made(probability=0.1).train()
    with torch.no_grad():
        for projection in generator.projections:
            projection.weight.mul_(10)  # generated vectors far from the trained ones
    learner = ModalityLearner(generator, SequenceEncoder(DIM, dropout=0.0).double())
    ids = torch.arange(1, 12).repeat(20)[:, None]
    zeros, ones = torch.zeros_like(ids), torch.ones_like(ids).double()
    torch.manual_seed(0)
    losses = learner.loss(Examples(ids, zeros, ids.flip(0), zeros[..., None], ones), "softmax")
    assert float(losses.detach().min()) >= 0


def test_gradients_reach_the_projections_and_attentions():
    generator = made(probability=1.0).train()
    learner = ModalityLearner(generator, SequenceEncoder(DIM, dropout=0.0).double())
    examples = Examples(
        torch.tensor([[1, 4, 12, 7]]),
        torch.tensor([[0, 1, 2]]),
        torch.tensor([[4, 12, 7]]),
        torch.tensor([[[9], [8], [10]]]),
        torch.ones(1, 3).double(),
    )
    learner.loss(examples).sum().backward()
    for name, p in [*generator.projections.named_parameters(), *generator.attentions.named_parameters()]:
        assert p.grad is not None, name
        if name.endswith("weight"):
            assert p.grad.abs().max() > 1e-6, name


def test_generated_vectors_against_finite_differences():
    generator = made()
    weight = generator.projections[0].weight

    def total(changed: Tensor) -> Tensor:
        return torch.func.functional_call(_Table(generator), {"inner.projections.0.weight": changed}, ()).sin().sum()

    assert torch.autograd.gradcheck(total, weight.detach().clone().requires_grad_())


class _Table(torch.nn.Module):
    def __init__(self, inner: ColdItemGenerator) -> None:
        super().__init__()
        self.inner = inner

    def forward(self) -> Tensor:
        return self.inner.table()


def test_no_modality_is_refused():
    with pytest.raises(ValueError, match="at least one modality"):
        ColdItemGenerator(IdItems(3, 2), [], torch.arange(3) > 0, dim=2)
