"""The form of an ensemble: planted scores whose best form is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from metarec.recipes.candidates import CandidateScores
from metarec.recipes.context_weights import ContextWeights
from metarec.recipes.ensemble_form import FORMS, by_user, choose_form

ITEMS, CLICKS = 30, 5


def world(signal: Tensor, *, users: int = 120, seed: int = 0, cold: Tensor | None = None) -> CandidateScores:
    """Scores in which part s tells the target by ``signal[s]`` (S,) or, by click, (n, S); the rest is noise."""
    draw = torch.Generator().manual_seed(seed)
    n = users * CLICKS
    strength = signal.expand(n, -1)
    z = torch.randn(n, strength.shape[1], ITEMS, generator=draw)
    target = torch.randint(1, ITEMS, (n,), generator=draw)
    z[torch.arange(n), :, target] += strength
    context = torch.stack([torch.full((n,), 4.0), torch.zeros(n) if cold is None else cold, torch.zeros(n)], 1)
    importance = torch.zeros(n, ITEMS)
    importance[:, 0] = -1e9
    names = tuple(f"part {s}" for s in range(strength.shape[1]))
    user = torch.arange(users).repeat_interleave(CLICKS)
    return CandidateScores(
        names, user, target, z, torch.zeros_like(z) > 0, context, importance, importance > 0, until=7.0
    )


def test_noise_beside_one_good_part_leaves_the_part() -> None:
    choice = choose_form(world(torch.tensor([0.0, 2.0, 0.0, 0.0]), users=40))
    weights = choice.weights(torch.tensor([[4.0, 0.0, 0.0]]))[0]
    assert "part 1" in choice.weights.names
    share = weights[0, choice.weights.names.index("part 1")] / weights.sum()
    assert share.item() > 0.8


def test_parts_of_one_strength_are_weighed_alike() -> None:
    choice = choose_form(world(torch.full((4,), 1.0)))
    weights = choice.weights(torch.tensor([[4.0, 0.0, 0.0]]))[0][0]
    assert len(weights) == 4 and (weights.max() / weights.min()).item() < 1.5
    low = choice.gain()[1]
    assert low > 0


def test_a_stronger_part_counts_more() -> None:
    choice = choose_form(world(torch.tensor([2.0, 0.7, 0.7])))
    weights = choice.weights(torch.tensor([[4.0, 0.0, 0.0]]))[0][0]
    assert bool(weights[0] > 1.5 * weights[1:].max())


def test_parts_that_speak_for_different_users_get_weights_by_context() -> None:
    cold = (torch.arange(120 * CLICKS) % 2).float()
    signal = torch.stack([2.5 * cold, 2.5 * (1 - cold)], 1)
    choice = choose_form(world(signal, cold=cold))
    assert choice.form.kind == "context"
    warm, colder = choice.weights(torch.tensor([[4.0, 0.0, 0.0], [4.0, 1.0, 0.0]]))[0]
    assert warm[1] > 2 * warm[0] and colder[0] > 2 * colder[1]


def test_noise_alone_gains_nothing() -> None:
    gains = [choose_form(world(torch.zeros(6), users=40, seed=seed)) for seed in range(5)]
    assert abs(sum(choice.gain()[0] for choice in gains) / 5) < 0.02


def test_weights_are_never_negative() -> None:
    seen = world(torch.tensor([2.0, -1.0, 0.5]))
    weights = ContextWeights(seen.names)
    weights.fit(seen, penalty=1e-4)
    contexts = torch.tensor([[1.0, 0.0, 0.0], [40.0, 1.0, 5.0], [3.0, 0.5, torch.nan]])
    assert bool((weights(contexts)[0] >= 0).all())
    fused = weights.fuse(seen.z[:3], seen.unknown[:3], contexts)
    expected = torch.einsum("ns,nsc->nc", weights(contexts)[0].float(), seen.z[:3])
    torch.testing.assert_close(fused, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_held_out_users_did_not_fit_the_weights(form: object, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = world(torch.tensor([1.0, 0.5]), users=20)
    fitted: list[set[int]] = []
    fit = type(form).fit  # type: ignore[attr-defined]
    monkeypatch.setattr(
        type(form), "fit", lambda self, s, **how: fitted.append(set(s.user.tolist())) or fit(self, s, **how)
    )
    choose_form(seen, folds=4, forms=(form,))  # type: ignore[arg-type]
    every, folds = set(seen.user.tolist()), fitted[:4]
    left = [every - own for own in folds]
    assert [len(own) for own in left] == [5] * 4 and set().union(*left) == every
    assert fitted[4] == every


def test_a_part_alone_is_ranked_by_its_own_scores() -> None:
    seen = world(torch.tensor([0.3, 1.5]), users=20)
    choice = choose_form(seen)
    for place, part in enumerate(choice.parts):
        rank = 1 + (seen.z[:, place, 1:] > seen.z[torch.arange(100), place, seen.target][:, None]).sum(1)
        ndcg = torch.where(rank <= 10, 1 / (1 + rank).double().log2(), 0.0)
        torch.testing.assert_close(part.ndcg, ndcg.view(20, CLICKS).mean(1))
        torch.testing.assert_close(by_user(seen, ndcg), part.ndcg)


def test_fewer_users_than_folds_are_refused() -> None:
    with pytest.raises(ValueError, match="3"):
        choose_form(world(torch.ones(2), users=3))
