"""Selects the inner steps of MML's learners for new users by validation.

Where the history in the context tells everything, inner steps only add noise; where each user follows rules of their
own, nothing else helps. So a learner takes its steps where users whom nothing was trained on gain by them (paired, in
NDCG@10), and none where the gain cannot be told from chance.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from metarec.data.dataset import Dataset
from metarec.functional.fusion import check_scores
from metarec.functional.histories import leaves_out_seen, seen_items
from metarec.functional.ranking import ndcg_at, ranks
from metarec.recipes.mml import MML, device_of
from metarec.recipes.nested_validation import last_clicks
from metarec.types import EpisodeBatch, Method

LENGTH = 10  # of the list whose NDCG is looked at
ERRORS = 2.0  # standard errors that a gain must exceed


def with_inner_steps(model: MML, steps: int | Mapping[str, int]) -> MML:
    """The same weights with other steps for new users.

    Args:
        model: shared, not copied.
        steps: one number, or one per learner.

    Example:
        >>> from metarec.datasets import planted
        >>> from metarec.recipes import MMLConfig
        >>> model = MML.build(planted(users=60, items=40), MMLConfig(dim=8))
        >>> with_inner_steps(model, {"id": 0, "default": 2}).config.steps("id"), model.config.steps("id")
        (0, 5)
    """
    other = copy.copy(model)
    other.config = replace(model.config, test_steps=steps)
    return other


def select_inner_steps(model: MML, users: Dataset, *, clicks: int = 5) -> dict[str, int]:
    """The steps of each learner: the config's where the users gain by them, otherwise none.

    They gain if their mean NDCG@10 rises by more than two standard errors.

    Args:
        model: trained.
        users: who trained nothing, such as those after a split inside the upstream side.
        clicks: last clicks of each user that are asked for.

    Returns:
        Steps by learner, for ``MMLConfig.test_steps``.

    Raises:
        ValueError: if fewer than two users have enough clicks, or a score is not finite.

    Example:
        >>> from metarec.data import split_by_time
        >>> from metarec.datasets import PLANTED_SPLIT, planted
        >>> from metarec.recipes import MMLConfig
        >>> up, down = split_by_time(planted(users=60, items=40), at=PLANTED_SPLIT)
        >>> select_inner_steps(MML.build(up, MMLConfig(dim=8)), down)  # there is nothing to adapt in random weights
        {'id': 0, 'image': 0, 'text': 0}
    """
    training = model.training
    model.eval()
    leave_out = leaves_out_seen(users.known_repeat_share)
    out, batches = {}, [batch.to(device_of(model)) for batch in last_clicks(users, clicks)]
    for name in model.learners:
        ways = model.meta(name), with_inner_steps(model, 0).meta(name)
        try:
            found = [_gains(name, *ways, batch, exclude_seen=leave_out) for batch in batches]
        except ValueError as error:
            raise ValueError(f"select_inner_steps: learner {name!r} on {users.name}: {error}") from error
        user, gain = (torch.cat(column) for column in zip(*found, strict=True)) if found else (torch.empty(0),) * 2
        out[name] = model.config.steps(name) if _is_significant(user, gain) else 0
    model.train(training)
    return out


@torch.no_grad()
def _gains(
    name: str, adapted: Method, still: Method, batch: EpisodeBatch, *, exclude_seen: bool
) -> tuple[Tensor, Tensor]:
    """User (n,) and gain of NDCG (n,) of each query of one batch."""
    query, real = batch.query, batch.query.weight > 0
    scored = [method.adapt(batch.support)(query) for method in (adapted, still)]
    for one in scored:
        check_scores(one, name)
    seen = seen_items(query, scored[0].scores.shape[-1]) & exclude_seen
    real = real & ~seen.gather(-1, query.target.unsqueeze(-1)).squeeze(-1)  # a list without seen items has none of them
    allowed = ~seen
    allowed[..., 0] = False
    known = [s.scores.masked_fill(~s.known, torch.finfo(s.scores.dtype).min) for s in scored]
    moved, stood = (ndcg_at(ranks(scores, query.target, allowed=allowed), LENGTH) for scores in known)
    return batch.user[:, None].expand_as(real)[real], (moved - stood)[real]


def _is_significant(user: Tensor, gain: Tensor) -> bool:
    """Whether users gain on average, by more than two standard errors over users (clicks of one user are averaged).

    Raises:
        ValueError: if there are fewer than two users.
    """
    own, count = user.unique(return_counts=True)
    if len(own) < 2:
        raise ValueError(f"select_inner_steps: expected at least two users with four clicks or more, got {len(own)}")
    each = torch.zeros(len(own), dtype=torch.float64, device=gain.device)
    each = each.index_add(0, torch.searchsorted(own, user), gain.double()) / count
    return bool(each.mean() > ERRORS * each.std() / len(own) ** 0.5)
