"""Popularity that depends on who asks: a log-linear model of clicks given the user's profile."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from metarec.data.attributes import encodings_of, encodings_settings
from metarec.data.dataset import Dataset
from metarec.data.encodings import Encoding
from metarec.data.profiles import Profiles
from metarec.functional.ranking import ndcg_at, ranks
from metarec.functional.segments import segment_sum
from metarec.model import Saved, register
from metarec.nn.item_tables import ItemTables
from metarec.nn.linear_scores import LinearScores
from metarec.recipes.counting import Counts, numbers
from metarec.recipes.popularity import SMOOTH
from metarec.recipes.validation import LENGTH
from metarec.scoring import Scores, UserState
from metarec.types import Examples

PENALTY = 10.0  # of the squared weights, beside the log-likelihood of all clicks
ITERATIONS = 60  # of L-BFGS
AT_ONCE = 1 << 24  # scores of profiles computed at once


@register
class ProfilePopularity(Counts):
    """Scores an item by the log of its clicks and by how much more users of such a profile click it.

    ``log (n_i + 0.5) + w_i . p``, p the user's profile: multinomial logistic regression over the items clicked
    upstream, fitted to every click by L-BFGS. Of a user without a profile it is :class:`Popularity`; so a profile is
    what the list of somebody without clicks is made of, and an ensemble weighs it against clicks once there are some.

    Args:
        data: the upstream side of a split, with ``profiles``.
        penalty: of the squared weights.

    Raises:
        ValueError: if there is no interaction, or no profile.

    Example:
        >>> import polars as pl
        >>> clicks = pl.DataFrame({"user": [*"abcd"] * 2, "item": [*"xxyyxxyz"], "time": range(8)})
        >>> people = pl.DataFrame({"user": [*"abcd"], "sex": [*"ffmm"]})
        >>> model = ProfilePopularity(Dataset.from_frame(clicks, users=people, profile=["sex"]), penalty=0.1)
        >>> from metarec import Recommender
        >>> [Recommender(model).adapt([], profile={"sex": sex}).recommend(k=1)[0].id for sex in "fm"]
        ['x', 'y']
    """

    def __init__(self, data: Dataset, *, penalty: float = PENALTY) -> None:
        if data.profiles is None or not len(data):
            raise ValueError(
                f"profile popularity: expected clicks of users with profiles, got {data!r}; read them with profile="
            )
        self.attach(data)
        self.profile: Mapping[str, Encoding] = data.profiles.encodings
        self.fitted_until = float(data.time.max())
        self._begin(_fitted(data, data.profiles, penalty), torch.from_numpy(data.warm))

    def _begin(self, weight: Tensor, known: Tensor) -> None:
        self.weight, self.known = weight, known
        self._tables = ItemTables.of([weight], [known], ["profile"], self.fitted)

    def item_mask(self) -> Tensor:
        """(I,) bool, the items clicked upstream."""
        return self.known

    def read(self, query: Examples) -> dict[str, Tensor]:
        """The profile of each user, (N, P), 0 where nothing is known; everybody is active."""
        asked, columns = query.target.shape, self.weight.shape[1] - 1
        device = query.target.device
        own = torch.zeros(asked[0], columns, device=device) if query.profile is None else query.profile
        if own.shape[1] != columns:
            raise ValueError(f"profile popularity: expected profiles of {columns} columns, got {own.shape[1]}")
        active = torch.ones(asked.numel(), dtype=torch.bool, device=device)
        return {"active": active, "profile": own.repeat_interleave(asked[1], 0)}

    def scores(self, state: UserState) -> Scores:
        """The log of the counts and the weights of each profile."""
        profile = state.tensors["profile"]
        own = F.pad(profile, (0, 1), value=1.0).unsqueeze(1)
        return LinearScores.raw(
            self._tables.to(profile.device), UserState({"state": own, "active": state.tensors["active"][:, None]})
        )

    def _grow(self, items: int) -> None:
        more = items - len(self.known)
        self._begin(F.pad(self.weight, (0, 0, 0, more)), F.pad(self.known, (0, more)))

    def _told(self) -> Saved:
        """The weights, and how profiles are encoded."""
        return Saved({"profile": encodings_settings(self.profile)}, {"weight": self.weight})

    def _take(self, saved: Saved) -> None:
        self.profile = encodings_of(saved.settings["profile"])
        columns = sum(encoding.dim for encoding in self.profile.values())
        weight = numbers(saved.tensors, "weight", torch.float32, len(self.warm), columns + 1)
        self._begin(torch.from_numpy(weight), torch.from_numpy(self.warm))


def _fitted(data: Dataset, profiles: Profiles, penalty: float) -> Tensor:
    """(I, P + 1) the weights of each item, the last one the log of its clicks."""
    items, warm = data.catalog.size, torch.from_numpy(data.warm)
    codes = torch.from_numpy(data.user_codes)
    kinds, kind = profiles.features[codes].unique(dim=0, return_inverse=True)  # users of one profile are one
    user = kind[torch.from_numpy(np.searchsorted(data.user_codes, data.user))]
    item = torch.from_numpy(data.item)
    pair, count = (user * items + item).unique(return_counts=True)
    total = segment_sum(torch.ones(len(item), dtype=torch.float64), item, items)
    base = (total + SMOOTH).log().float()
    clicks = segment_sum(torch.ones(len(item)), user, len(kinds))
    weight = torch.zeros(items, kinds.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=ITERATIONS, line_search_fn="strong_wolfe")
    chunk = max(1, AT_ONCE // items)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = penalty * weight.square().sum() / len(item)
        loss.backward()
        for start in range(0, len(kinds), chunk):
            part = slice(start, start + chunk)
            scores = (kinds[part] @ weight.T + base).masked_fill(~warm, -torch.inf)
            inside = (pair // items >= start) & (pair // items < start + chunk)
            clicked = scores.flatten()[pair[inside] - start * items] @ count[inside].float()
            lost = (scores.logsumexp(1) @ clicks[part] - clicked) / len(item)
            lost.backward()
            loss = loss.detach() + lost.detach()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return torch.cat([weight.detach(), base.unsqueeze(1)], 1) * warm.unsqueeze(1)


@torch.no_grad()
def first_click_gain(model: ProfilePopularity, data: Dataset, items: Tensor) -> Tensor:
    """(U,) by how much NDCG@10 of each user's first click is better with the profile than without.

    Args:
        model: fitted on other users.
        data: of users with profiles.
        items: (I,) bool, what lists are made of.

    Raises:
        ValueError: if nobody has a profile.
    """
    if data.profiles is None:
        raise ValueError("first_click_gain: expected users with profiles")
    target = torch.from_numpy(data.item[data.offsets[:-1]]).unsqueeze(1)
    own = data.profiles.features[torch.from_numpy(data.user_codes)]
    active = torch.ones(len(own), dtype=torch.bool)
    found = []
    for profile in (own, torch.zeros_like(own)):
        scores = model.scores(UserState({"active": active, "profile": profile})).approximate(0, len(items))
        found.append(ndcg_at(ranks(scores.unsqueeze(1), target, allowed=items), LENGTH).squeeze(1).double())
    return found[0] - found[1]
