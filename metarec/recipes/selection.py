"""Ensemble selection: parts are added one by one, again and again, whichever makes the sum rank best.

Source: Caruana et al., Ensemble Selection from Libraries of Models, ICML 2004: selection with
replacement, on bags of the validation users, whose counts are averaged. Weights are never negative, a part that adds
nothing gets none, and nothing but ranks counts. They are what fitted weights are shrunk toward.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from metarec.recipes.candidates import CandidateScores

BAGS, ROUNDS = 10, 10
SHARE = 0.5  # of the users, in a bag


@torch.no_grad()
def selected_weights(seen: CandidateScores, *, seed: int = 0, length: int = 10) -> Tensor:
    """(S,) float32 weights of the models, of sum 1.

    Args:
        seen: of clicks that no model was fitted on.
        seed: of the bags.
        length: of the list whose NDCG is raised.

    Example:
        >>> z = torch.zeros(20, 2, 12)
        >>> z[:, 0, 5], z[:, 1] = 1.0, torch.randn(20, 12)  # the first model knows the target, the second does not
        >>> importance = torch.zeros(20, 12)
        >>> importance[:, 0] = -1e9  # padding is no candidate
        >>> seen = CandidateScores(("a", "b"), torch.arange(20), torch.full((20,), 5), z, z > 9, torch.zeros(20, 3),
        ...                        importance, importance > 0)
        >>> selected_weights(seen, length=1).tolist()
        [1.0, 0.0]
    """
    users, place, count = seen.user.unique(return_inverse=True, return_counts=True)
    rng, device = np.random.default_rng(seed), seen.z.device
    total = torch.zeros(len(seen.names), dtype=torch.float64, device=device)
    for _ in range(BAGS):
        drawn = rng.permutation(len(users))[: max(1, round(SHARE * len(users)))]
        rows = torch.isin(place, torch.from_numpy(drawn).to(device))
        total += _selected(seen.on(rows), 1 / count[place[rows]].double(), length)
    return (total / total.sum()).float()


def _selected(seen: CandidateScores, share: Tensor, length: int) -> Tensor:
    """(S,) float64, how often each model was added, of sum 1, where the sum ranked best.

    Args:
        seen: of n clicks.
        share: (n,) how much each counts.
        length: of the list.
    """
    row, target = torch.arange(len(seen.target), device=share.device), seen.target
    ahead = seen.z - seen.z[row, :, target].unsqueeze(2)
    rivals = seen.log_importance.exp().masked_fill(seen.unknown.all(1), 0)
    rivals[row, target] = 0
    lost = seen.unknown[row, :, target].all(1)

    def reached(sums: Tensor) -> float:
        above = (sums > 0).to(rivals) + 0.5 * (sums == 0).to(rivals)
        rank = 1 + (above * rivals).sum(1).double()
        ndcg = torch.where((rank <= length) & ~lost, 1 / (1 + rank).log2(), 0)
        return float((ndcg * share).sum())

    counts, sums = torch.zeros(len(seen.names), dtype=torch.float64, device=share.device), torch.zeros_like(rivals)
    best, kept = -1.0, counts
    for _ in range(ROUNDS):
        each = [reached(sums + own) for own in ahead.unbind(1)]
        added = max(range(len(each)), key=each.__getitem__)
        counts[added] += 1
        sums += ahead[:, added]
        if each[added] > best:
            best, kept = each[added], counts / counts.sum()
    return kept
