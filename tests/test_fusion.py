"""Fusion against numpy and loops: who gets weight, and what the catalogue's size must not change."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from metarec.functional import fuse, standardise, standardise_features
from metarec.nn import AdaptiveFusion
from metarec.types import Scored

USERS, QUERIES, CANDIDATES, DIM, MODALITIES = 4, 2, 9, 6, 3


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def modules(modalities: int = MODALITIES) -> AdaptiveFusion:
    torch.manual_seed(0)
    fusion = AdaptiveFusion(modalities, DIM, hidden=5).double()
    with torch.no_grad():
        for p in fusion.parameters():
            p.add_(0.5 * torch.randn_like(p))
        fusion.scale.abs_()
    return fusion


def learners(candidates: int = CANDIDATES, *, seed: int = 1) -> list[Scored]:
    """Three modalities on very different scales; modality 1 knows half the candidates, 2 all but one."""
    generator = torch.Generator().manual_seed(seed)
    column = torch.arange(candidates)
    knows = [column > 0, (column > 0) & (column % 2 == 0), (column > 0) & (column != 3)]
    active = torch.ones(USERS, QUERIES, dtype=torch.bool)
    return [
        Scored(
            10.0**m * torch.randn(USERS, QUERIES, candidates, generator=generator).double() + m,
            torch.randn(USERS, QUERIES, DIM, generator=generator).double(),
            known,
            active,
        )
        for m, known in enumerate(knows)
    ]


def silence(scored: Scored, user: int) -> Scored:
    active = scored.has_known_history.clone()
    active[user] = False
    return replace(scored, has_known_history=active)


def plain(values: Tensor) -> np.ndarray:
    return values.detach().numpy()


def test_standardise_against_numpy():
    scores = learners()[2].scores
    known = torch.arange(CANDIDATES) % 3 != 0
    found = plain(standardise(scores, known))
    mask = known.numpy()
    for row, out in zip(plain(scores).reshape(-1, CANDIDATES), found.reshape(-1, CANDIDATES), strict=True):
        expected = np.where(mask, (row - row[mask].mean()) / row[mask].std(), 0)
        np.testing.assert_allclose(out, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_each_row_is_measured_by_the_candidates_that_it_knows(size):
    scores = size * torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).double() + 3 * size
    known = torch.tensor([[True, True, False, True, False], [False, True, True, True, True], [False] * 4 + [True]])
    found = standardise(scores, known)
    for row in range(2):
        own = scores[row][known[row]]
        close(found[row][known[row]], (own - own.mean()) / own.std(correction=0))
    assert not found[~known].any()
    assert not found[2].any(), "one candidate alone stands at the mean"


def test_scores_that_are_all_equal_standardise_to_zero():
    assert not standardise(torch.full((2, 5), 7.0), torch.ones(5, dtype=torch.bool)).any()
    assert not standardise(torch.randn(2, 5), torch.zeros(5, dtype=torch.bool)).any()


@pytest.mark.parametrize("size", [1e-4, 1.0])
def test_standardise_features_against_numpy(size):
    features = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)).double() * torch.tensor([1, 5, 0.1, 2])
    features = size * features
    present = torch.arange(12) % 3 != 0
    rows = features.numpy()[present.numpy()]
    expected = np.zeros((12, 4))
    expected[present.numpy()] = (rows - rows.mean(0)) / np.sqrt(np.square(rows - rows.mean(0)).sum(1).mean())
    np.testing.assert_allclose(standardise_features(features, present).numpy(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("fitted", [1, 2, 7, 12])
def test_features_are_measured_by_the_first_rows_alone(fitted):
    features = 3 + torch.randn(12, 4, generator=torch.Generator().manual_seed(0)).double()
    present = torch.arange(12) % 3 != 2
    first = features[:fitted][present[:fitted]]
    length = max(1e-6, float((first - first.mean(0)).square().sum(1).mean().sqrt()))
    found = standardise_features(features, present, fitted)
    close(found, torch.where(present[:, None], (features - first.mean(0)) / length, 0.0))


def test_features_of_one_item_alone_are_the_mean():
    features, present = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([True, False])
    assert not standardise_features(features, present).any()


def test_weights_are_the_softmax_of_the_gate_over_the_active_modalities():
    fusion, scored = modules(), learners()
    scored[1] = silence(scored[1], 0)
    found = fusion.weights(scored)
    for user in range(USERS):
        for query in range(QUERIES):
            logits = [
                float((fusion.gate(s.state[user, query]) + b).detach())
                for s, b in zip(scored, fusion.bias, strict=True)
            ]
            active = [bool(s.has_known_history[user, query]) for s in scored]
            raw = np.where(active, np.exp(logits), 0)
            np.testing.assert_allclose(plain(found[user, query]), raw / raw.sum(), rtol=1e-10)


def test_fused_scores_equal_a_loop_over_candidates():
    fusion, scored = modules(), learners()
    scored[2] = silence(scored[2], 1)
    found, weights = plain(fusion(scored)), plain(fusion.weights(scored))
    scale = plain(fusion.scale)
    ready = [scale[m] * plain(standardise(s.scores, s.item_mask)) for m, s in enumerate(scored)]
    for user in range(USERS):
        for query in range(QUERIES):
            row = {}
            for candidate in range(CANDIDATES):
                says = [m for m, s in enumerate(scored) if bool(s.item_mask[candidate]) and weights[user, query, m] > 0]
                if says:
                    shares = [weights[user, query, m] for m in says]
                    row[candidate] = np.average([ready[m][user, query, candidate] for m in says], weights=shares)
            for candidate in range(CANDIDATES):
                expected = row.get(candidate, min(row.values()))
                assert found[user, query, candidate] == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_a_missing_modality_gets_no_weight():
    fusion, scored = modules(), learners()
    scored[0], scored[2] = silence(scored[0], 2), silence(scored[2], 2)
    weights = fusion.weights(scored)
    assert weights[2].tolist() == [[0, 1, 0]] * QUERIES
    loud = [replace(s, scores=s.scores + 100 * torch.randn_like(s.scores)) for s in scored]
    loud[1] = scored[1]
    close(fusion(loud)[2], fusion(scored)[2])
    assert not torch.allclose(fusion(loud)[1], fusion(scored)[1])


def test_a_user_without_any_modality_gets_no_weight_and_finite_scores():
    fusion = modules()
    scored = [silence(s, 3) for s in learners()]
    assert not fusion.weights(scored)[3].any()
    assert not fusion(scored)[3].any()


def test_a_modality_that_does_not_know_a_candidate_has_no_say_in_it():
    fusion, scored = modules(), learners()
    unknown = ~scored[1].item_mask
    other = scored[1].scores + 50 * unknown * torch.randn(CANDIDATES)
    close(fusion([scored[0], replace(scored[1], scores=other), scored[2]]), fusion(scored))


def test_a_candidate_that_nobody_knows_ranks_last():
    found = modules()(learners())
    assert torch.equal(found[..., 0], found[..., 1:].amin(-1)), "padding"


def test_no_parameter_depends_on_the_number_of_candidates():
    fusion = modules()
    for candidates in (3, CANDIDATES, 50):
        assert fusion(learners(candidates)).shape == (USERS, QUERIES, candidates)
        assert fusion.weights(learners(candidates)).shape == (USERS, QUERIES, MODALITIES)


def test_an_added_item_that_nobody_knows_changes_no_other_score():
    fusion, scored = modules(), learners()
    longer = [
        replace(
            s,
            scores=torch.cat([s.scores, torch.full((USERS, QUERIES, 1), 99.0).double()], -1),
            item_mask=torch.cat([s.item_mask, torch.tensor([False])]),
        )
        for s in scored
    ]
    found = fusion(longer)
    close(found[..., :-1], fusion(scored))
    assert torch.equal(found[..., -1], found[..., :-1].amin(-1))


def test_an_added_item_that_all_know_keeps_the_order_of_one_modality():
    fusion, scored = modules(1), learners()[:1]
    longer = replace(
        scored[0],
        scores=torch.cat([scored[0].scores, torch.full((USERS, QUERIES, 1), 99.0).double()], -1),
        item_mask=torch.cat([scored[0].item_mask, torch.tensor([True])]),
    )
    before, after = fusion(scored)[..., 1:], fusion([longer])
    assert torch.equal(after[..., 1:-1].argsort(-1), before.argsort(-1))
    assert (after.argmax(-1) == CANDIDATES).all()


@pytest.mark.parametrize("modality", range(MODALITIES))
def test_one_modality_alone_keeps_its_ranking(modality):
    scored = learners()
    known = scored[modality].item_mask
    own = scored[modality].scores[..., known].argsort(-1)
    assert torch.equal(modules(1)([scored[modality]])[..., known].argsort(-1), own)
    for other in {0, 1, 2} - {modality}:
        for user in range(USERS):
            scored[other] = silence(scored[other], user)
    assert torch.equal(modules()(scored)[..., known].argsort(-1), own), "the others are silent"


def test_permuting_candidates_or_users_permutes_the_scores():
    fusion, scored = modules(), learners()
    scored[1] = silence(scored[1], 0)
    candidates = torch.tensor([4, 0, 8, 2, 7, 1, 3, 6, 5])
    moved = [replace(s, scores=s.scores[..., candidates], item_mask=s.item_mask[candidates]) for s in scored]
    close(fusion(moved), fusion(scored)[..., candidates])
    users = torch.tensor([2, 3, 1, 0])
    moved = [
        replace(s, scores=s.scores[users], state=s.state[users], has_known_history=s.has_known_history[users])
        for s in scored
    ]
    close(fusion(moved), fusion(scored)[users])


def test_equal_weights_are_the_mean_of_who_knows():
    scores = torch.randn(3, MODALITIES, CANDIDATES, generator=torch.Generator().manual_seed(0)).double()
    known = torch.stack([s.item_mask for s in learners()])
    found = fuse(scores, torch.ones(3, MODALITIES).double() / 3, known)
    for row in range(3):
        for candidate in range(1, CANDIDATES):
            says = [float(scores[row, m, candidate]) for m in range(MODALITIES) if known[m, candidate]]
            assert float(found[row, candidate]) == pytest.approx(np.mean(says), rel=1e-10)


def test_a_candidate_that_nobody_knows_gets_the_lowest_score_of_its_row_not_zero():
    scores = torch.tensor([[[5.0, 2.0, 9.0], [7.0, 4.0, 1.0]], [[-5.0, -2.0, 9.0], [-7.0, -4.0, 1.0]]])
    known = torch.tensor([[True, True, False], [True, True, False]])
    assert fuse(scores, torch.full((2, 2), 0.5), known).tolist() == [[6.0, 3.0, 3.0], [-6.0, -3.0, -6.0]]


def test_gradients_reach_every_parameter():
    fusion = modules()
    fusion(learners())[..., 1].sum().backward()
    for name, p in fusion.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all(), name
        assert name == "gate.3.bias" or p.grad.abs().max() > 1e-8, name  # a shift of all logits changes nothing


def test_another_number_of_modalities_is_refused():
    with pytest.raises(ValueError, match="built for 3 modalities, got 2"):
        modules()(learners()[:2])
