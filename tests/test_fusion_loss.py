"""The fusion's loss with kept scores is the plain formula, computed from scores that are made anew."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metarec.nn import AdaptiveFusion, ModalityLearner, SequenceEncoder, TableItems
from metarec.recipes import fusion_loss
from metarec.recipes.fusion_loss import AdaptedUsers, FusionLoss
from metarec.types import Scored

ITEMS, DIM, USERS = 9, 6, 7


def learners(*, gaps: bool) -> list[ModalityLearner]:
    """Three; with gaps the second knows half of the items, and cold items are known to the last alone."""
    draw, place = torch.Generator().manual_seed(0), torch.arange(ITEMS)
    warm = (place > 0) & (place < 7)
    known = [warm, warm & (place % 2 == 0) if gaps else warm, place > 0]
    tables = [10.0**m * torch.randn(ITEMS, DIM, generator=draw).double() + m for m in range(3)]
    pairs = zip(tables, known, strict=True)
    return [ModalityLearner(TableItems(t, k), SequenceEncoder(DIM), candidates=warm) for t, k in pairs]


def users(*, silent: bool, cold: bool) -> AdaptedUsers:
    """Users of whom some have no history, or one that the first and the last learner do not know."""
    draw = torch.Generator().manual_seed(1)
    active = [torch.ones(USERS, dtype=torch.bool) for _ in range(3)]
    for each in active:
        each[5] = False
    if silent:
        active[0][2] = active[2][2] = False
    states = [torch.randn(USERS, DIM, generator=draw).double() for _ in range(3)]
    target = torch.randint(1, 7, (USERS,), generator=draw)
    if cold:
        target[0] = 8
    return AdaptedUsers(states, active, target)


def plain(fusion: nn.Module, own: list[ModalityLearner], seen: AdaptedUsers) -> Tensor:
    """Each user's loss by the fusion's own forward pass, over the candidates and the target."""
    each = zip(own, seen.states, seen.active, strict=True)
    scored = [Scored(m.items.scores(s), s, m.items.known, a) for m, s, a in each]
    scores, out = fusion(scored), []
    for user, target in enumerate(seen.target.tolist()):
        among = own[0].candidates.clone()
        among[target] = True
        place = among[:target].sum().unsqueeze(0)
        out.append(F.cross_entropy(scores[user, among].unsqueeze(0), place, reduction="sum"))
    return torch.stack(out)


@pytest.mark.parametrize("room", [1 << 26, 60])
@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize("cold", [False, True])
@pytest.mark.parametrize("gaps", [False, True])
def test_loss_and_gradient(gaps: bool, cold: bool, silent: bool, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusion_loss, "FLOATS", room)
    monkeypatch.setattr(fusion_loss, "ROWS", 3)
    torch.manual_seed(2)
    fusion = AdaptiveFusion(3, DIM, hidden=5).double()
    with torch.no_grad():
        for parameter in fusion.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    own, seen = learners(gaps=gaps), users(silent=silent, cold=cold)
    each = plain(fusion, own, seen)
    expected = each.detach()
    loss = FusionLoss(fusion, own, seen)
    assert (loss.kept is not None) == (room > 60 and not cold and not (gaps and silent))
    rows = torch.tensor([4, 0, 2, 5])
    assert loss(rows) == pytest.approx(float(expected[rows].sum()), rel=1e-9)
    found = [parameter.grad for parameter in fusion.parameters()]
    wanted = torch.autograd.grad(each[rows].mean(), list(fusion.parameters()))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)
    assert loss.mean() == pytest.approx(float(expected.mean()), rel=1e-9)
