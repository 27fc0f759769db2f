"""What serving computes once per model: tables of item vectors and their moments, and learners that read from them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from metarec.data.support import sent
from metarec.meta import MetaLearner
from metarec.meta.library import library
from metarec.modes import evaluating
from metarec.nn import ModalityLearner, TableItems
from metarec.nn.touched import TouchedRows
from metarec.recipes.mml import MML
from metarec.serving.compiled import CompiledUser
from metarec.serving.given import GivenSnapshot
from metarec.serving.prepared import check_table, wide
from metarec.serving.ranking import Scores
from metarec.serving.scores import FusedScores, Tables
from metarec.serving.servable import Servable
from metarec.serving.stacked import OneUser, encoder_apart
from metarec.serving.standing import Standing
from metarec.types import Examples, Scored


class Snapshot(Protocol):
    """A model as serving sees it; it does not change when the model is trained on.

    Attributes:
        names: the learners that a user's weights are about; none where there is no fusion.
        known: (I,) bool, items that can be ranked.
        device: where it computes.
        shape: M and D of a user's states.
        stranger: where a user without clicks stands, once somebody has asked; without weights.
    """

    names: tuple[str, ...]
    shape: tuple[int, int]
    known: Tensor
    stranger: Standing | None
    device: torch.device

    def adapt(self, support: Examples, query: Examples, start: Tensor | None = None) -> Standing:
        """Adapt to B users; those that start from weights (B, M, P) of their own keep the weights that they end at."""
        ...

    def start(self) -> Tensor:
        """(M, P) the shared weights, from which a user starts."""
        ...

    def weights(self, standing: Standing) -> Tensor:
        """(B, M) how much each learner counts for each user."""
        ...

    def scores(self, standing: Standing) -> Scores:
        """What ranks B users."""
        ...

    def chances(self, standing: Standing) -> Tensor:
        """(I,) how likely each item that training knew is clicked next, on average over B users and their learners."""
        ...


BUDGET = 16 << 20  # bytes of users' weights at once: their query follows while a cache still holds them


class _Unscored(TableItems):
    """A table whose catalogue scores are not wanted: serving computes them for all learners at once."""

    def scores(self, state: Tensor, ids: Tensor | None = None) -> Tensor:
        """Nothing, (..., 0), for the whole catalogue; as ever against ids."""
        return state[..., :0] if ids is None else super().scores(state, ids)

    def frozen(self) -> TableItems:
        return self


class _Corrections(TouchedRows):
    """Touched rows that answer with what the user's changes add to the scores of the rows, (..., room)."""

    room = 0

    def scores(self, state: Tensor, ids: Tensor | None = None) -> Tensor:
        if ids is not None:
            return self.items.scores(state, ids) + self._added(state, ids)
        own = state @ self.delta.transpose(-2, -1) * (self.touched > 0).to(state.dtype)
        return F.pad(own, (0, self.room - own.shape[-1]))

    def _added(self, state: Tensor, ids: Tensor) -> Tensor:
        slots = (ids.unsqueeze(-1) == self.touched).to(self.delta.dtype)
        return state @ (slots @ self.delta).transpose(-2, -1)


class _Served(ModalityLearner):
    """A learner that reads from tables made beforehand and keeps its scores to itself."""

    def task_view(self, adapts: Any) -> ModalityLearner:
        if adapts == "encoder":
            return self
        items = _Corrections(self.items)
        items.room = self.room
        return _Served(items, self.encoder, context=self.context, candidates=self.candidates)

    broadcasts = ()
    room = 0


class FusedSnapshot:
    """An :class:`~metarec.MML` with all its tables computed.

    Args:
        model: on any device, in any mode.
    """

    stranger: Standing | None = None

    def __init__(self, model: MML) -> None:
        self.names = tuple(model.learners)
        self.device = model.fusion.bias.device
        self.adapts = model.config.test_adapts
        self.fusion = wide(copy.deepcopy(model.fusion)).eval().requires_grad_(requires_grad=False)
        self.metas: list[MetaLearner] = []
        compiled = library() is not None and self.device.type == "cpu" and self.adapts == "encoder"
        tables, known = [], []
        for name in self.names:
            learner = self._prepared(model.learner(name))
            tables.append(learner.items.table())
            check_table(name, learner.items, model.catalog)
            known.append(learner.items.known)
            config = model.config
            self.metas.append(
                MetaLearner(
                    learner,
                    lr=config.rate("test_lr", name),
                    steps=config.steps(name),
                    adapts=config.test_adapts,
                    objectives=config.objectives,
                    engine="native",
                    memory_budget=BUDGET if compiled else None,
                ).eval()
            )
        kind = next((kind for kind in (CompiledUser, OneUser) if kind.fits(self.metas)), None)
        self.one = None if kind is None else kind(self.metas)
        self.known = torch.stack(known).any(0)
        self.tables = Tables.of(tables, known, self.names, model.fitted)
        self.shape = (len(self.names), tables[0].shape[1])

    @torch.no_grad()
    def _prepared(self, learner: ModalityLearner) -> _Served:
        with evaluating(learner):
            table = learner.items.table().detach().clone()
            encoder = wide(encoder_apart(learner))
            context: Any = learner.context
            if context is not None:
                context = wide(context.frozen() if self.adapts == "encoder" else copy.deepcopy(context))
        items = wide(_Unscored(table, learner.items.known.clone()))
        return _Served(items, encoder, context=context, candidates=learner.candidates)

    def start(self) -> Tensor:
        """(M, P) the shared weights of the encoders, one after the other.

        Raises:
            ValueError: if item rows adapt too.
        """
        if self.adapts != "encoder":
            raise ValueError(
                f"keep_weights: this model adapts item rows too (test_adapts={self.adapts!r}), whose updates start "
                "again; leave keep_weights out"
            )
        return torch.stack([torch.cat([p.detach().flatten() for _, p in _named(meta)]) for meta in self.metas])

    def adapt(self, support: Examples, query: Examples, start: Tensor | None = None) -> Standing:
        """Adapt to B users."""
        support, query = sent(support, self.device), sent(query, self.device)
        if len(support) == 1 and self.one is not None and start is None:
            state, knows = self.one.adapt(support, query)
            none = state[..., :0]
            return Standing(state, knows, none.long(), none)
        room = support.history.shape[1] + support.target.shape[1] + support.negatives[0].numel()
        corrections, states, active, weights = [], [], [], []
        with torch.no_grad():
            for number, meta in enumerate(_with_room(self.metas, room)):
                own = None if start is None else _split(meta, start[:, number])
                found = meta.adapt(support, weights=own)
                if start is not None:
                    weights.append(torch.cat([w.flatten(1) for _, w in sorted(found.weights().items())], 1))
                added, state, knows = found.rank(query)
                corrections.append(added[:, 0])
                states.append(state[:, 0])
                active.append(knows[:, 0])
        added = torch.stack(corrections, 1)
        if self.adapts == "encoder":
            rows = added.long()
        else:
            touched = TouchedRows(self.metas[0].learner.items).per_user(support)["touched"]
            added = added[..., : touched.shape[1]]
            rows = touched.unsqueeze(1).expand(added.shape)
        kept = torch.stack(weights, 1) if weights else None
        return Standing(torch.stack(states, 1), torch.stack(active, 1), rows, added, kept)

    def weights(self, standing: Standing) -> Tensor:
        """(B, M) the weights of the fusion."""
        empty = standing.state.new_zeros(len(standing.state), 1, 0)
        none = self.known[:0]
        return self.fusion.weights(
            [
                Scored(empty, standing.state[:, m, None], none, standing.active[:, m, None])
                for m in range(len(self.names))
            ]
        )[:, 0]

    @torch.no_grad()
    def scores(self, standing: Standing) -> Scores:
        """The fused scores of B users."""
        return FusedScores.of(
            self.tables, standing.state, standing.rows, standing.corrections, self.weights(standing), self.fusion.scale
        )

    @torch.no_grad()
    def chances(self, standing: Standing) -> Tensor:
        """(I,) the mean over users and learners of the softmax of a learner's scores over the items it knows."""
        total, fitted = standing.state.new_zeros(len(self.known)), self.tables.fitted
        for number, meta in enumerate(self.metas):
            items = meta.learner.items
            for states in standing.state[:, number].split(128):
                scores = (states @ items.table()[:fitted].T).masked_fill(~items.known[:fitted], -torch.inf)
                total[:fitted] += scores.softmax(-1).nan_to_num().sum(0)
        return total / (len(standing.state) * len(self.metas))


def _with_room(metas: Sequence[MetaLearner], room: int) -> Iterator[MetaLearner]:
    """The same for one call, with room for so many corrections; other threads have other users."""
    for meta in metas:
        own, learner = copy.copy(meta), copy.copy(meta.learner)
        learner.room = room
        own._modules = {"learner": learner}
        yield own


def _named(meta: MetaLearner) -> list[tuple[str, Tensor]]:
    """What adapts of a learner, by its name in the task view, in the order of the names."""
    return sorted((name, p) for name, p in meta.learner.named_parameters() if name.startswith("encoder."))


def _split(meta: MetaLearner, flat: Tensor) -> dict[str, Tensor]:
    """Weights (B, P) as tensors (B, ...) by name."""
    named = _named(meta)
    parts = flat.split([p.numel() for _, p in named], 1)
    return {name: part.unflatten(1, p.shape) for (name, p), part in zip(named, parts, strict=True)}


def snapshot_of(model: Servable) -> Snapshot:
    """A model's snapshot as it is now."""
    return FusedSnapshot(model) if isinstance(model, MML) else GivenSnapshot(model, model.catalog.size)
