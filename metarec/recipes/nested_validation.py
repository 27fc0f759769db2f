"""Ensemble weights by nested temporal validation: the upstream side is split once more in time.

Everything is fitted twice. On the earlier part of the upstream side, so that the users who start in its later part are
cold users with cold items, as far from the training in time as test users are: their clicks fit the weights. Then on
the whole upstream side, with the same weights. Nothing after the split is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch

from metarec.data import Dataset, EpisodeSampler, split_by_time, split_time
from metarec.data.examples import filter_interactions, leave_last_out
from metarec.functional.histories import leaves_out_seen
from metarec.modes import device_of, evaluating
from metarec.recipes.candidates import candidate_scores
from metarec.recipes.context_weights import PENALTY, ContextWeights
from metarec.recipes.ensemble import Ensemble
from metarec.recipes.validation import METRIC, ranked
from metarec.types import EpisodeBatch, Method, Progress

CLICKS = 3  # last clicks of each validation user that are asked for
COLD_USERS = 0.2  # share of the upstream users who validate
SCORES = 1 << 24  # of all items, for the users of a batch


class NestedValidation:
    """Models fitted on the earlier part of an upstream side and on the whole of it.

    Args:
        upstream: the upstream side of a split.
        make: fits models on an upstream side, by name; called with the earlier part, then with the whole.
        cold_users: share of the upstream users who validate, the latest to start.
        clicks: last clicks of each of them that the weights are fitted to.
        device: where the ensembles go.

    Attributes:
        candidates: the :class:`CandidateScores` of the validation users.
        parts: the models that were fitted on the whole upstream side, by name.

    Raises:
        ValueError: as :func:`metarec.split_by_time` does, if too few users start late.

    Example:
        >>> from metarec.datasets import PLANTED_SPLIT, planted
        >>> from metarec.recipes import EASE, Popularity
        >>> up, down = split_by_time(planted(users=100, items=40), at=PLANTED_SPLIT)
        >>> fitted = NestedValidation(up, lambda data: {"popularity": Popularity(data), "ease": EASE(data)})
        >>> [len(fitted.ensemble(context=context).weights.weight) for context in (True, False)]
        [5, 1]
    """

    def __init__(
        self,
        upstream: Dataset,
        make: Callable[[Dataset], dict[str, Method]],
        *,
        cold_users: float = COLD_USERS,
        clicks: int = CLICKS,
        device: torch.device | str = "cpu",
    ) -> None:
        self.upstream, self.device = upstream, device
        earlier, later = validation_split(upstream, cold_users)
        leave_out = leaves_out_seen(upstream.known_repeat_share)
        warm = torch.from_numpy(earlier.warm).to(device)
        items = torch.from_numpy(upstream.warm).to(device)
        asked = last_clicks(later, clicks)
        self.candidates = candidate_scores(make(earlier), warm, asked, items=items, exclude_seen=leave_out)
        self.parts = make(upstream)

    def ensemble(self, *, context: bool = True, penalty: float = PENALTY) -> Ensemble:
        """An ensemble of the models, with weights fitted to the validation users' clicks.

        Args:
            context: whether weights depend on the user.
            penalty: of the squared weights.
        """
        weights = ContextWeights(self.candidates.names, context=context).to(self.device)
        weights.fit(self.candidates, penalty=penalty)
        return Ensemble(self.parts, self.upstream, weights=weights)


def fit_by_nested_validation(
    upstream: Dataset,
    make: Callable[[Dataset], dict[str, Method]],
    *,
    cold_users: float = COLD_USERS,
    clicks: int = CLICKS,
    context: bool = True,
    device: torch.device | str = "cpu",
) -> Ensemble:
    """An ensemble whose weights would have served the latest of the upstream users best.

    Args:
        upstream: the upstream side of a split.
        make: fits models on an upstream side, by name; called twice.
        cold_users: share of the upstream users who validate.
        clicks: last clicks of each of them that the weights are fitted to.
        context: whether weights depend on the user.
        device: where the ensemble goes.

    Raises:
        ValueError: as :func:`metarec.split_by_time` does, if too few users start late.

    Example:
        >>> from metarec.datasets import PLANTED_SPLIT, planted
        >>> from metarec.recipes import EASE, Popularity
        >>> up, down = split_by_time(planted(users=100, items=40), at=PLANTED_SPLIT)
        >>> make = lambda data: {"popularity": Popularity(data), "ease": EASE(data)}
        >>> fit_by_nested_validation(up, make).fitted_until == float(up.time.max())
        True
    """
    found = NestedValidation(upstream, make, cold_users=cold_users, clicks=clicks, device=device)
    return found.ensemble(context=context)


def validation_split(upstream: Dataset, cold_users: float = COLD_USERS, *, most: int = 2000) -> tuple[Dataset, Dataset]:
    """The earlier part of an upstream side, and its users who start later, so many of them at most.

    Raises:
        ValueError: as :func:`metarec.split_by_time` does, if too few users start late.
    """
    earlier, later = split_by_time(upstream, at=split_time(upstream, cold_users))
    if len(later.user_codes) > most:
        drawn = np.random.default_rng(0).choice(later.user_codes, most, replace=False)
        later = filter_interactions(later, np.isin(later.user, drawn))
    return earlier, later


def last_clicks(data: Dataset, clicks: int, *, users_per_batch: int | None = None) -> Iterator[EpisodeBatch]:
    """Each user's last clicks as queries, one after the other, each with all clicks before it as history.

    Only clicks with three before them are asked for. By default 256 users come at once, fewer of a large catalogue.
    """
    users_per_batch = users_per_batch or min(256, max(1, SCORES // data.catalog.size))
    for taken in range(clicks):
        rest = leave_last_out(data, taken, least=4)
        if len(rest):
            yield from EpisodeSampler(rest, part="serving", users_per_batch=users_per_batch).epoch(0)


def validated(training: Iterator[Progress], model: Method, later: Dataset) -> Iterator[Progress]:
    """The steps of a training; the last of every epoch carries how the model then serves users whom it does not know.

    Args:
        training: of the model, or of a part of it.
        model: what ranks; in evaluation mode meanwhile.
        later: the validation users; their last three clicks are asked for, among the items that somebody has clicked.

    Example:
        >>> from metarec.datasets import PLANTED_SPLIT, planted
        >>> from metarec.recipes import sasrec
        >>> up, down = split_by_time(planted(users=100, items=40), at=PLANTED_SPLIT)
        >>> earlier, later = validation_split(up)
        >>> learner = sasrec.build(earlier, dim=8)
        >>> [sorted(step.metrics) for step in validated(sasrec.train(learner, earlier, epochs=2), learner, later)]
        [['ndcg@10'], ['ndcg@10']]
    """
    leave_out, batches = leaves_out_seen(later.known_repeat_share), list(last_clicks(later, CLICKS))
    clicked = torch.from_numpy(later.warm | (np.bincount(later.item, minlength=later.catalog.size) > 0))
    clicked, batches = clicked.to(device_of(model)), [batch.to(device_of(model)) for batch in batches]
    for step in training:
        if not step.epoch_done:
            yield step
            continue
        with evaluating(model):
            found = ranked(model, batches, items=clicked, exclude_seen=leave_out).by_user()
        yield replace(step, metrics={METRIC: float(found.mean())} if len(found) else {})


def at_most(batches: list[EpisodeBatch], clicks: int) -> list[EpisodeBatch]:
    """Batches of so many clicks at most, those of users drawn at random where there are more."""
    total = sum(int((batch.query.weight > 0).sum()) for batch in batches)
    if total <= clicks:
        return batches
    rng = np.random.default_rng(0)
    users = np.unique(np.concatenate([batch.user.cpu().numpy() for batch in batches]))
    kept = torch.from_numpy(rng.permutation(users)[: max(1, int(len(users) * clicks / total))])
    out = []
    for batch in batches:
        rows = torch.isin(batch.user.cpu(), kept).nonzero().squeeze(-1).to(batch.user.device)
        if len(rows):
            out.append(EpisodeBatch(batch.user[rows], batch.support[rows], batch.query[rows]))
    return out
