"""An ensemble of any models: late fusion with weights that depend on the user's context.

It is a model itself: evaluated, saved, served, given new items and told of new clicks as its parts are, and it may be
a part of another ensemble. See :class:`~metarec.recipes.context_weights.ContextWeights` for the fused score, and
:mod:`metarec.recipes.nested_validation` for a way to fit the weights without looking at later clicks.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from metarec.data.dataset import Catalog, Dataset
from metarec.data.encodings import Encoding
from metarec.functional.scaling import FeatureScale
from metarec.learning import Learning
from metarec.model import Model, Saved, register
from metarec.nn.record import INFORMATION, longest_history, record_of
from metarec.recipes.context_weights import ContextWeights
from metarec.recipes.ensemble_scores import EnsembleScores
from metarec.recipes.ensemble_snapshot import EnsembleSnapshot, StackedLearners
from metarec.recipes.fit_report import FitReport
from metarec.scoring import UserState
from metarec.types import Examples, Method
from metarec.versions import kept
from metarec.wrapped import Wrapped

T = TypeVar("T")
ATTACHED = ("catalog", "warm", "repeat_share", "second")  # what attach() notes


@register
class Ensemble(Model, nn.Module):
    """Any models as one. Its information is the richest of theirs.

    Args:
        parts: name -> model, or any other method. Those that are modules move and are trained with this one.
        upstream: the side that the parts were fitted on; by default, what a part that is a model says of it.
        weights: of the parts, by the same names; equal ones by default.

    Attributes:
        weights: the :class:`ContextWeights`.

    Raises:
        ValueError: if there is no part, a name holds a ``/``, or the weights have other names.

    Example:
        >>> from metarec.data import EpisodeSampler, split_by_time
        >>> from metarec.datasets import PLANTED_SPLIT, planted
        >>> from metarec.recipes import EASE, Popularity
        >>> from metarec.recipes.candidates import candidate_scores
        >>> up, down = split_by_time(planted(users=60, items=40), at=PLANTED_SPLIT)
        >>> ensemble = Ensemble({"ease": EASE(up), "popularity": Popularity(up)}, up)
        >>> clicks = EpisodeSampler(up, part="serving").epoch(0)
        >>> ensemble.weights.fit(candidate_scores(ensemble.members(), torch.from_numpy(up.warm), clicks))
        >>> batch = next(EpisodeSampler(down, part="serving").epoch(0))
        >>> state = ensemble.encode(batch.support, batch.query)
        >>> len(state), ensemble.scores(state).approximate(0, 41).shape, ensemble.information
        (12, torch.Size([12, 41]), 'upstream')
    """

    _stacked: StackedLearners
    observed: Tensor
    report: FitReport | None = None  # of the fit that chose it
    first: str | None = None  # the part that alone ranks for whoever has a profile and no click

    def __init__(
        self, parts: Mapping[str, Method], upstream: Dataset | None = None, *, weights: ContextWeights | None = None
    ) -> None:
        super().__init__()
        self.register_buffer("observed", torch.zeros((), dtype=torch.int64), persistent=False)
        if not parts or not all(isinstance(name, str) and name and "/" not in name for name in parts):
            raise ValueError(f"Ensemble: expected parts by names without '/', got {list(parts)}")
        self.weights = ContextWeights(list(parts)) if weights is None else weights
        if self.weights.names != tuple(parts):
            raise ValueError(f"Ensemble: expected weights of {list(parts)}, got weights of {list(self.weights.names)}")
        self._take({name: p if isinstance(p, Model) else Wrapped(p, upstream) for name, p in parts.items()})
        if upstream is not None:
            self.attach(upstream)
            return
        for part in self._members.values():
            if part.catalog is not None and part.warm is not None:
                vars(self).update({name: own for name, own in vars(part).items() if name in ATTACHED})
                return

    def _take(self, members: Mapping[str, Model]) -> None:
        """Make these models the parts."""
        inner = [_inner(part) for part in members.values()]
        self.parts = nn.ModuleList(part for part in inner if isinstance(part, nn.Module))
        self._members: Mapping[str, Model] = dict(members)
        if "_stacked" not in vars(self) or not self._stacked.is_of(members):  # else what they computed is kept
            self._stacked = StackedLearners(members)

    def members(self) -> Mapping[str, Model]:
        """The parts, by name."""
        return self._members

    @property
    def learners(self) -> tuple[str, ...]:
        """Names of the parts, which :meth:`user_weights` is about."""
        return self.weights.names

    @property
    def information(self) -> str:
        """The richest information of the parts; ``"later"`` if the weights were fitted to clicks of unknown times."""
        parts = [record_of(_inner(part)).information for part in self._members.values()]
        return max([self.weights.information, *parts], key=INFORMATION.index)

    @property
    def fitted_until(self) -> float | None:
        """The latest time that a part, or the weights, were fitted on; None if none says."""
        said = [self.weights.fitted_until, *(record_of(_inner(p)).fitted_until for p in self._members.values())]
        return max((until for until in said if until is not None), default=None)

    @property
    def max_length(self) -> int:
        """The longest history that any part reads."""
        return max(longest_history(_inner(part)) for part in self._members.values())

    @property
    def negatives(self) -> int:  # type: ignore[override]
        """The most negatives per support example that a part adapts to."""
        return max(part.negatives for part in self._members.values())

    @property
    def fitted(self) -> int | None:  # type: ignore[override]
        """Catalogue rows that scores are measured by, the first so many; None for all."""
        return next((part.fitted for part in self._members.values() if part.fitted is not None), None)

    @property
    def scales(self) -> Mapping[str, FeatureScale]:
        """By modality, how the parts standardise the features of new items."""
        return {name: scale for part in self._members.values() for name, scale in (part.scales or {}).items()}

    @property
    def profile(self) -> Mapping[str, Encoding]:
        """By column, how profiles are encoded, as the first part says that reads any."""
        return next((part.profile for part in self._members.values() if part.profile), {})

    def item_mask(self) -> Tensor:
        """(I,) bool, the items that any part knows."""
        device = self.weights.weight.device
        return torch.stack([part.item_mask().to(device) for part in self._members.values()]).any(0)

    def snapshot(self) -> EnsembleSnapshot:
        """What it computes from its numbers, until one of them changes."""
        return kept(self, f"snapshot {id(self.warm)} {self.first}", self._new_snapshot)  # which the snapshot holds

    def _new_snapshot(self) -> EnsembleSnapshot:
        banks = self._stacked.banks(self._seen(), self.negatives)
        return EnsembleSnapshot(self._members, banks, self.weights, self._seen(), self.fitted, self.first)

    def encode(
        self, support: Examples, query: Examples, *, start: UserState | None = None, keep_weights: bool = False
    ) -> UserState:
        """Every part's state of each query, and the user's ``"context"`` (N, 3).

        Learners of one width are encoded together; their states are under all of their names.

        Raises:
            ValueError: if weights are to be kept and a learner has none of its own per user.
        """
        return self.snapshot().encode(support, query, start=start, keep_weights=keep_weights)

    def encode_empty(self) -> UserState:
        """A user without history: what the parts make of one, and the context of no clicks."""
        return self.snapshot().encode_empty()

    def scores(self, state: UserState) -> EnsembleScores:
        """The weighted sum of the parts' standardised scores.

        Raises:
            ValueError: if a part's scores are not finite.
        """
        return self.snapshot().scores(state)

    def user_weights(self, state: UserState) -> Tensor:
        """(N, S) weight of each part."""
        return self.snapshot().user_weights(state)

    def add_items(self, added: Catalog) -> Self:
        """The same ensemble with more items, taken in by every part; the fitted weights stay.

        Raises:
            TypeError: if a part takes in no items, which is named; nothing has changed.
            ValueError: as a part does.
        """
        if self.catalog is None:
            raise ValueError("add_items: the ensemble has no catalogue; give it upstream=")
        catalog = self.catalog.add_items(added)
        out = self._with(
            {name: _each(name, "add_items", part.add_items, added) for name, part in self._members.items()}
        )
        out.catalog, out.warm = catalog, np.append(self._seen(), np.zeros(len(added.items), dtype=np.bool_))
        out._stacked.keep_banks_of(self._stacked, out.warm)
        return out

    def observe(self, clicks: Dataset) -> Self:
        """Move every part on by new clicks, or none: if one refuses, all stay as they are.

        Raises:
            ValueError: as a part does, which is named.
        """
        moved = {}
        for name, part in self._members.items():
            counts = type(part).observe is not Model.observe
            moved[name] = _each(name, "observe", copy.copy(part).observe, clicks) if counts else part
        self._take(moved)
        self.observed.add_(1)
        return self

    def _go_on(self, clicks: Dataset, before: Dataset | None, how: Learning) -> Self:
        """Parts that have learned on, each in its way; the fitted weights stay."""
        learned = {
            name: _each(name, "learn", partial(part.learn, before=before, how=how), clicks)
            for name, part in self._members.items()
        }
        out = self._with(learned)
        out.observed = self.observed + 1
        if self.warm is not None and self.catalog is not None:
            out.warm = self.warm | np.any([part.warm for part in learned.values() if part.warm is not None], axis=0)
        return out

    def __copy__(self) -> Self:
        return self._with({name: copy.copy(part) for name, part in self._members.items()})

    def _with(self, members: Mapping[str, Model]) -> Self:
        """The same weights for other parts."""
        out = type(self).__new__(type(self))
        vars(out).update(vars(self))
        for name in ("_modules", "_parameters", "_buffers"):
            vars(out)[name] = dict(vars(self)[name])
        out._take(members)
        return out

    def _seen(self) -> NDArray[np.bool_]:
        if self.warm is None:
            raise ValueError("Ensemble: nothing says which items are warm; give it upstream=, or call attach(upstream)")
        return self.warm

    def state(self) -> Saved:
        """Names, the fitted weights, and the parts."""
        own = self.weights.state()
        told: dict[str, Any] = {} if self.report is None else {"report": self.report.to_dict()}
        told |= {} if self.first is None else {"first": self.first}
        return replace(own, settings={**own.settings, **told}, parts=dict(self._members))

    @classmethod
    def from_state(cls, saved: Saved, catalog: Catalog, warm: NDArray[Any]) -> Self:
        """The ensemble that :meth:`state` told of.

        Raises:
            ValueError: if names, parts, shapes or items do not belong together, or a number is not finite.
        """
        weights, parts = ContextWeights.from_state(saved), saved.parts
        if len(parts) != len(weights.names) or set(parts) != set(weights.names):
            raise ValueError(f"ensemble: expected parts {list(weights.names)}, got {list(parts)}")
        if sizes := {n: len(p.item_mask()) for n, p in parts.items() if len(p.item_mask()) != catalog.size}:
            raise ValueError(f"ensemble: expected parts of {catalog.size} catalogue rows, got {sizes}")
        out = cls({name: parts[name] for name in weights.names}, weights=weights)
        out.catalog, out.warm = catalog, warm
        out.first = saved.settings.get("first")
        if out.first is not None and not parts[out.first].profile:
            raise ValueError(f"ensemble: part {out.first!r} reads no profiles")
        if (told := saved.settings.get("report")) is not None:
            out.report = FitReport.of(told)
        return out


def _inner(part: Model) -> object:
    """What a part is about: the method inside a wrapper."""
    return part.method if isinstance(part, Wrapped) else part


def _each(name: str, what: str, change: Callable[[T], Model], given: T) -> Model:
    """A part changed; where it refuses, its name is said."""
    try:
        return change(given)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{what}: part {name!r}: {error}") from error
