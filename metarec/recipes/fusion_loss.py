"""The loss that trains the fusion of adapted learners; what the learners say of a user is computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from metarec import distributed
from metarec.functional import softmax
from metarec.functional.fusion import check_scores, fuse, standardise
from metarec.nn import AdaptiveFusion, ModalityLearner
from metarec.types import Scored

FLOATS = 1 << 26  # scores (users, modalities, items) at once
ROWS = 128  # users whose scores are standardised at once


@dataclass(frozen=True)
class AdaptedUsers:
    """What the fusion sees of adapted users.

    Attributes:
        states: (n, D) of each modality.
        active: (n,) of each modality, whether it knows something of the history.
        target: (n,) item codes.
    """

    states: Sequence[Tensor]
    active: Sequence[Tensor]
    target: Tensor


class FusionLoss:
    """Cross-entropy of some users' fused scores among the candidates.

    Their standardised scores are kept, if they are no more than ``FLOATS`` numbers and every candidate is known to one
    of each user's modalities; else they are computed anew every time.

    Args:
        fusion: what is trained.
        learners: frozen.
        users: adapted to the learners.
    """

    def __init__(self, fusion: AdaptiveFusion, learners: Sequence[ModalityLearner], users: AdaptedUsers) -> None:
        self.fusion, self.learners, self.users, self.target = fusion, learners, users, users.target
        self.candidates = learners[0].candidates
        self.known = torch.stack([learner.items.known for learner in learners])
        self.at_once = max(1, FLOATS // self.known.numel())
        self.kept: Tensor | None = None
        if len(self) <= self.at_once and self._plain():
            codes = learners[0].candidate_codes()
            self.place = (self.candidates.cumsum(0) - 1)[self.target]
            self.knows = self.known[:, codes]
            rows = torch.arange(len(self), device=self.target.device)
            self.kept = torch.cat([self.standardised(some)[..., codes] for some in rows.split(ROWS)])

    def __len__(self) -> int:
        return len(self.target)

    def _plain(self) -> bool:
        """Whether all targets are candidates, and each user with a history has a modality that knows each of these."""
        active = torch.stack(list(self.users.active), -1)
        patterns = active.unique(dim=0).float()
        knows = (patterns @ self.known[:, self.candidates].float() > 0).all(-1)
        return bool(self.candidates[self.target].all()) and bool((knows | ~patterns.any(-1)).all())

    @torch.no_grad()
    def standardised(self, rows: Tensor) -> Tensor:
        """Standardised scores (r, M, I) of some users.

        Raises:
            ValueError: if a learner's score is not finite.
        """
        out = []
        for number, (learner, state) in enumerate(zip(self.learners, self.users.states, strict=True)):
            scores, known = learner.items.scores(state[rows]), learner.items.known
            scored = Scored(scores, state[rows], known, self.users.active[number][rows], learner.fitted)
            check_scores(scored, f"{number} of {len(self.learners)}")
            out.append(standardise(scores, known, learner.fitted))
        return torch.stack(out, 1)

    def __call__(self, rows: Tensor) -> float:
        """The sum over some users; where gradients are enabled, that of the mean is added to ``.grad``.

        No more than ``FLOATS`` scores are held at once.
        """
        total = 0.0
        for part in rows.split(self.at_once):
            loss = self._sum(part)
            if torch.is_grad_enabled():
                (loss / len(rows)).backward()
            total += float(loss.detach())
        return total

    def _sum(self, rows: Tensor) -> Tensor:
        seen = ([each[rows] for each in tensors] for tensors in (self.users.states, self.users.active))
        weights = self.fusion.user_weights(*seen)
        if self.kept is None:
            scores = fuse(self.standardised(rows), weights, self.known, self.fusion.scale)
            return softmax(scores, self.target[rows], self.candidates).sum()
        total = weights.sum(-1, keepdim=True) if bool(self.knows.all()) else weights @ self.knows.to(weights.dtype)
        scaled = (weights * self.fusion.scale).unsqueeze(1) @ self.kept[rows]
        scores = scaled.squeeze(1) / total.clamp(min=torch.finfo(total.dtype).tiny)
        return F.cross_entropy(scores, self.place[rows], reduction="sum")

    @torch.no_grad()
    def mean(self) -> float:
        """The mean over all users, each process having computed its share."""
        rows = distributed.share(torch.arange(len(self), device=self.target.device))
        total = torch.tensor(self(rows), dtype=torch.float64)
        return float(distributed.total(total.to(rows.device))) / len(self)
