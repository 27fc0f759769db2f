"""Weights of an ensemble of models that move on, by prequential validation inside the upstream side.

Models that learn on are worth more, later in a stream, than when they were fitted, and counts that are live are worth
more than both; weights that are fitted to frozen models know nothing of it. Here each click is scored by the parts as
they were when its period began, and the weights are fitted to what they said then (Dawid, Statistical Theory: The
Prequential Approach, 1984).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from metarec.data.dataset import Dataset
from metarec.data.examples import filter_interactions, leave_last_out
from metarec.data.sampler import EpisodeSampler
from metarec.functional.histories import leaves_out_seen
from metarec.learning import DAY
from metarec.model import Model
from metarec.modes import device_of, evaluating
from metarec.recipes.candidates import COLUMNS, CandidateScores, candidate_scores
from metarec.recipes.ensemble import Ensemble
from metarec.recipes.ensemble_form import choose_form
from metarec.recipes.nested_validation import COLD_USERS, validation_split
from metarec.streaming.asked import Stream
from metarec.streaming.prequential import Walk
from metarec.streaming.steps import Step, learned
from metarec.types import Method

CLICKS = 3  # last clicks of a user that weights are fitted to
CANDIDATES = 512  # items that a click is compared with
USERS = 256  # scored at once


def fit_by_prequential_validation(
    make: Callable[[Dataset], Mapping[str, Method]],
    upstream: Dataset,
    *,
    step: Step | None = None,
    every: float | None = None,
    observe_every: float | None = None,
    cold_users: float = COLD_USERS,
) -> Ensemble:
    """An ensemble whose weights would have served the latest of the upstream users best while its parts moved on.

    The parts are made on the earlier part of the upstream side and go through the rest of it as a stream; the form of
    the ensemble is chosen, and its weights are fitted, on what they said there. Nothing after the split is read.

    Args:
        make: fits models by name; called with the earlier part, then with the whole. Live counts are to be made of what
            it is given alone: they are told of the rest as it comes.
        upstream: the upstream side of a split.
        step: how the models move on; they learn on by default.
        every: how long a period is; a day by default.
        observe_every: within a period, counts move on so often.
        cold_users: share of the upstream users who validate, the latest to start.

    Raises:
        ValueError: as :func:`metarec.split_by_time` does, if too few users start late.

    Example:
        >>> from metarec.datasets import PLANTED_SPLIT, planted
        >>> from metarec.data import split_by_time
        >>> from metarec.recipes import LivePopularity, Popularity
        >>> up, down = split_by_time(planted(users=100, items=40), at=PLANTED_SPLIT)
        >>> make = lambda data: {"all": Popularity(data), "live": LivePopularity(data, window=data.days(14))}
        >>> model = fit_by_prequential_validation(make, up, every=up.days(7))
        >>> model.fitted_until == float(up.time.max()), model.information
        (True, 'live')
    """
    earlier, _ = validation_split(upstream, cold_users)
    model = Ensemble(make(earlier), earlier)
    how = {"step": step, "every": every, "observe_every": observe_every}
    weights = choose_form(prequential_scores(model, upstream, start=float(earlier.time.max()), **how)).weights  # type: ignore[arg-type]
    parts = make(upstream)
    return Ensemble({name: parts[name] for name in weights.names}, upstream, weights=weights)


def prequential_scores(
    model: Ensemble,
    data: Dataset,
    *,
    start: float,
    step: Step | None = None,
    every: float | None = None,
    observe_every: float | None = None,
    most: int = CANDIDATES,
) -> CandidateScores:
    """What the parts of an ensemble say of a stream's clicks, each by the parts as they were when its period began.

    Args:
        model: fitted on the clicks until the stream begins; it stays as it is.
        data: all clicks; the last ones of the users who come after the start are asked for.
        start: when the stream begins.
        step: how the models move on; they learn on by default.
        every: how long a period is; a day by default.
        observe_every: within a period, counts move on so often.
        most: candidates of a click.

    Raises:
        ValueError: if nobody is asked about, or as :func:`~metarec.streaming.evaluate_stream` does.
    """
    stream = Stream(data, start, every or model.second * DAY)
    cold = np.repeat(data.time[data.offsets[:-1]] > start, np.diff(data.offsets))
    own = filter_interactions(data, cold)
    rests = [rest for taken in range(CLICKS) if len(rest := leave_last_out(own, taken, least=4))]
    if not rests:
        raise ValueError(f"prequential_scores: {data.name} has no user who starts after {start} and clicks 4 times")
    items = torch.from_numpy(np.bincount(data.item, minlength=data.catalog.size) > 0)
    asked = {"items": items, "exclude_seen": leaves_out_seen(data.known_repeat_share), "most": most}
    found: list[CandidateScores] = []

    def ask(now: Model, period: int, first: float, last: float) -> None:
        batches = [batch for rest in rests for batch in _between(rest, first, last)]
        with evaluating(now):
            warm = torch.from_numpy(np.asarray(now.warm)).to(device_of(now))
            found.append(candidate_scores(now.members(), warm, batches, **asked))  # type: ignore[arg-type]

    times = np.concatenate([rest.time[rest.offsets[1:] - 1] for rest in rests])
    walk = Walk(model, stream, step or learned(), ask, times, observe_every or stream.every)
    for period in range(len(walk.begin)):
        walk.go(period)
    return _joined(found)


def _between(data: Dataset, first: float, last: float) -> list[object]:
    """The users whose last click is from one time on and before another, as episodes."""
    when = data.time[data.offsets[1:] - 1]
    codes = data.user_codes[(when >= first) & (when < last)]
    if not len(codes):
        return []
    return list(EpisodeSampler(data, part="serving", only=codes, users_per_batch=USERS).epoch(0))


def _joined(found: Sequence[CandidateScores]) -> CandidateScores:
    """Clicks of several periods as one."""
    columns: dict[str, Any] = {name: torch.cat([getattr(part, name) for part in found]) for name in COLUMNS}
    return replace(found[0], **columns, until=max(part.until for part in found))
