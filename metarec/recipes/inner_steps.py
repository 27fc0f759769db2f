"""Selects the inner steps of MML's learners for new users by validation.

Where the history in the context tells everything, inner steps only add noise; where each user follows rules of their
own, nothing else helps. So a learner takes its steps where users whom nothing was trained on gain by them (paired, in
NDCG@10), and none where the gain cannot be told from chance.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from metarec.data.dataset import Dataset
from metarec.functional.histories import leaves_out_seen
from metarec.modes import device_of
from metarec.recipes.mml import MML
from metarec.recipes.nested_validation import last_clicks
from metarec.recipes.validation import ranked

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


def select_inner_steps(model: MML, users: Dataset, *, clicks: int = 5, items: Tensor | None = None) -> dict[str, int]:
    """The steps of each learner: the config's where the users gain by them, otherwise none.

    They gain if their mean NDCG@10 rises by more than two standard errors.

    Args:
        model: trained.
        users: who trained nothing, such as those after a split inside the upstream side.
        clicks: last clicks of each user that are asked for.
        items: (I,) bool, what lists are made of; all by default.

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
    device = device_of(model)
    out, batches = {}, [batch.to(device) for batch in last_clicks(users, clicks)]
    among = None if items is None else items.to(device)
    for name in model.learners:
        ways = model.meta(name), with_inner_steps(model, 0).meta(name)
        try:
            moved, still = (
                ranked(way, batches, items=among, exclude_seen=leave_out, name=name).by_user() for way in ways
            )
        except ValueError as error:
            raise ValueError(f"select_inner_steps: learner {name!r} on {users.name}: {error}") from error
        out[name] = model.config.steps(name) if _is_significant(moved - still) else 0
    model.train(training)
    return out


def _is_significant(gain: Tensor) -> bool:
    """Whether users (U,) gain on average, by more than two standard errors.

    Raises:
        ValueError: if there are fewer than two users.
    """
    if len(gain) < 2:
        raise ValueError(f"select_inner_steps: expected at least two users with four clicks or more, got {len(gain)}")
    return bool(gain.mean() > ERRORS * gain.std() / len(gain) ** 0.5)
