"""Frozen copies of learners of one width, which adapt and encode users together: what a model serves from.

A bank does not change when the models that it was made of are trained on. Models keep one until one of their numbers
changes, see :func:`metarec.versions.kept`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from metarec.meta.compiled_user import CompiledUser, kind_of, learner_of
from metarec.meta.inspection import leads_back
from metarec.meta.library import library
from metarec.nn.frozen import check_vectors, wide
from metarec.nn.item_tables import ItemTables
from metarec.nn.kinds import reading
from metarec.nn.linear_scores import LinearScores, Spread
from metarec.nn.tabled import TabledModel, TableSnapshot, clicked, has_own, is_linear
from metarec.nn.touched import TouchedRows
from metarec.scoring import UserState
from metarec.types import Examples

FEW = 8  # users whose steps the kernel takes one by one
BUDGET = 16 << 20  # bytes of users' weights at once: their query follows while a cache still holds them


class Bank(TableSnapshot):
    """M learners, or meta-learners of learners, of one width D, frozen.

    Args:
        models: by name; each one :func:`fits`.
        fitted: rows that moments are taken over, the first so many; all by default.
        ids: of the items, for messages.
        warm: (I,) bool, items that a user without history may have clicked; those that some model knows by default.
        negatives: of support examples.

    Attributes:
        names: of the models, in the order of the M axis.
        known: (I, M) bool, which of them knows which item.
        device: where they compute.

    Raises:
        ValueError: if an item's vector is not finite.

    Example:
        >>> from metarec.meta import MetaLearner
        >>> from metarec.nn import IdItems, ModalityLearner, SequenceEncoder
        >>> plain = ModalityLearner(IdItems(size=6, dim=8), SequenceEncoder(dim=8))
        >>> bank = Bank({"plain": plain, "adapted": MetaLearner(plain, steps=2, engine="native")})
        >>> support = Examples(torch.tensor([[3, 1]]), torch.tensor([[0, 1]]), torch.tensor([[1, 2]]),
        ...                    torch.full((1, 2, 1), 4), torch.ones(1, 2))
        >>> bank.encode(support, support).tensors["state"].shape
        torch.Size([2, 2, 8])
    """

    def __init__(
        self,
        models: Mapping[str, Any],
        *,
        fitted: int | None = None,
        ids: Sequence[str] | None = None,
        warm: NDArray[Any] | None = None,
        negatives: int = 1,
    ) -> None:
        self.names = tuple(models)
        own = [frozen(model) for model in models.values()]
        learners = [learner_of(model) for model in own]
        for name, learner in zip(self.names, learners, strict=True):
            check_vectors(name, learner.items.table(), learner.items.known, ids)
        known = [learner.items.known for learner in learners]
        self.hold(own, ItemTables.of([learner.items.table() for learner in learners], known, self.names, fitted))
        self.warm, self.negatives = clicked(warm, self.known.any(1)), negatives

    def hold(self, models: Sequence[Any], tables: ItemTables) -> None:
        """Take frozen models and the vectors of their items."""
        self.models, self.tables = list(models), tables
        self.known = torch.stack([learner_of(model).items.known for model in models], 1)
        self.device = tables.rows.device
        self.moves_rows = any(map(moves_rows, self.models))
        groups: dict[Any, list[int]] = {}
        for number, model in enumerate(self.models):
            groups.setdefault(kind_of(model), []).append(number)
        self.alone = groups.pop(None, [])  # who the kernel does not compute
        self.together = [(numbers, CompiledUser([self.models[n] for n in numbers])) for numbers in groups.values()]

    @property
    def fitted(self) -> int:
        """Rows that moments are taken over."""
        return self.tables.fitted

    @torch.no_grad()
    def encode(
        self, support: Examples, query: Examples, *, start: UserState | None = None, keep_weights: bool = False
    ) -> UserState:
        """Adapt to B users and encode where each of their Q queries stands, N = B * Q rows.

        Args:
            support: what each user has clicked.
            query: what is asked for.
            start: states whose kept weights the inner steps start from; Q is then 1.
            keep_weights: keep each user's adapted weights in the state.

        Returns:
            ``state`` (N, M, D) and ``active`` (N, M); if item rows adapt, ``rows`` and ``corrections`` (N, M, U); if
            weights are kept, ``weights`` (N, M, P), 0 behind those of a smaller learner.

        Raises:
            ValueError: if weights are to be kept of a learner that has none of the user's own.
        """
        support, query = support.to(self.device), query.to(self.device)
        keep_weights = keep_weights or start is not None
        if keep_weights:
            self.start()  # refuses
        given = None if start is None else start.tensors["weights"]
        parts: list[Any] = [None] * len(self.models)
        for numbers, compiled in () if keep_weights else self.together:
            if len(support) > FEW and compiled.steps:
                continue  # the learners' own engines take the steps of many users
            state, active = compiled.adapt(support, query)
            if len(numbers) == len(parts):
                return UserState({"state": state, "active": active})
            for place, number in enumerate(numbers):
                parts[number] = {"state": state[:, place], "active": active[:, place], **self._untouched(state)}
        for number, found in enumerate(parts):
            parts[number] = found or self._adapted(number, support, query, given, keep_weights)
        return UserState({name: _beside([own[name] for own in parts]) for name in parts[0]})

    def _untouched(self, state: Tensor) -> dict[str, Tensor]:
        none = state[:, 0, :0]
        return {"rows": none.long(), "corrections": none} if self.moves_rows else {}

    def _adapted(
        self, number: int, support: Examples, query: Examples, given: Tensor | None, keep_weights: bool
    ) -> dict[str, Tensor]:
        """The tensors of one learner, (N, ...) each."""
        model, more = self.models[number], {}
        support = reading(learner_of(model), support)
        if given is not None:
            more["weights"] = split_weights(model, given[:, number])
        still = vars(type(model)).get("plain_sgd") and not model.steps and not keep_weights
        found = model.learner if still and number in self.alone else model.adapt(support, **more)
        state, active = found.encode_queries(query)
        out = {"state": state.flatten(0, 1), "active": active.flatten()}
        if self.moves_rows:
            own = moves_rows(model) and not still
            out |= _corrections(model, found, support, state) if own else self._untouched(out["state"].unsqueeze(1))
        if keep_weights:
            weights = torch.cat([w.flatten(1) for _, w in sorted(found.weights().items())], 1)
            out["weights"] = weights.repeat_interleave(query.target.shape[1], 0)
        return out

    def start(self) -> Tensor:
        """(M, P) the shared weights of the encoders, one after the other, from which a user starts.

        Raises:
            ValueError: if a learner has no encoder's weights of the user's own to keep.
        """
        for name, model in zip(self.names, self.models, strict=True):
            if model is learner_of(model):
                raise ValueError(f"keep_weights: {name!r} does not adapt, so there are no weights to keep")
            if getattr(model, "adapts", "encoder") != "encoder":
                raise ValueError(
                    f"keep_weights: this model adapts item rows too (test_adapts={model.adapts!r}), whose updates "
                    "start again; leave keep_weights out"
                )
            if not keeps_weights(model):
                raise ValueError(
                    f"keep_weights: {type(model).__name__} of {type(model.learner).__name__} keeps no weights; leave "
                    "keep_weights out"
                )
        return _beside([torch.cat([p.detach().flatten() for _, p in _named(m)])[None] for m in self.models])[0]

    def summed(self, state: UserState, weight: Tensor, unknown: Tensor, spread: Spread | None = None) -> LinearScores:
        """``sum_m w_m z_mi [m knows i] + b_m [m does not know i]``, z the standardised scores, as one matrix product.

        Args:
            state: of N users.
            weight: (N, M) the w of each user.
            unknown: (N, M) the b of each user.
            spread: what ``measured_states(bank.tables, state)`` says, if that was asked before.
        """
        return LinearScores.summed(self.tables, state, weight, unknown, spread)


def banks_of(members: Mapping[str, Any], *, warm: NDArray[Any] | None = None, negatives: int = 1) -> list[Bank]:
    """Those of some models whose scores are products of states with item vectors, together where they can be.

    Args:
        members: models by name; which are in no bank has to be asked by itself.
        warm: see :class:`Bank`.
        negatives: likewise.

    Example:
        >>> from metarec.nn import IdItems, ModalityLearner, SequenceEncoder
        >>> a, b = (ModalityLearner(IdItems(size=6, dim=8), SequenceEncoder(dim=8)) for _ in range(2))
        >>> [bank.names for bank in banks_of({"a": a, "b": b, "counts": object()})]
        [('a', 'b')]
    """
    groups: dict[Any, dict[str, Any]] = {}
    for name, model in members.items():
        if fits(model):
            learner = learner_of(model)
            first = next(learner.parameters())
            size = len(learner.items.known)
            table = size, _width(learner), first.device, first.dtype, learner.fitted or size
            groups.setdefault(table, {})[name] = model
    return [Bank(group, fitted=key[-1], warm=warm, negatives=negatives) for key, group in groups.items()]


def _width(learner: Any) -> int:
    with torch.no_grad():
        width: int = learner.items(torch.zeros(1, dtype=torch.int64, device=learner.items.known.device)).shape[-1]
    return width


def fits(model: Any) -> bool:
    """Whether a bank can hold a model: its learner says that scores are products, and what adapts leaves them so."""
    if not isinstance(model, TabledModel):
        return False
    learner: Any = learner_of(model)
    if not is_linear(learner) or has_own(model) or leads_back(learner.encoder):
        return False
    adapts = getattr(model, "adapts", "encoder")
    return adapts == "encoder" or learner.items.adapts_rows


def frozen(model: Any) -> Any:
    """A copy of a learner, or of a meta-learner, that later training does not reach."""
    learner = learner_of(model)
    own = learner.frozen(getattr(model, "adapts", "encoder"))
    if learner is model:
        return own
    out = copy.copy(model)
    out._modules = {name: wide(copy.deepcopy(part)) for name, part in model._modules.items() if name != "learner"}
    out._modules["learner"] = own
    first = next(own.parameters(), None)
    fast = library() is not None and first is not None and first.device.type == "cpu"
    if fast and getattr(out, "adapts", "") == "encoder" and out.memory_budget is None:
        out.memory_budget = BUDGET
    return out.eval()


def keeps_weights(model: Any) -> bool:
    """Whether steps of a meta-learner can start from given weights, and all that adapts is the learner's encoder."""
    view = learner_of(model).task_view("encoder")
    named = {name for name, _ in view.named_parameters()}
    return getattr(model, "plain_sgd", False) and named == {name for name, _ in _named(model)}


def moves_rows(model: Any) -> bool:
    """Whether users adapt rows of the table of items."""
    learner, adapts = learner_of(model), getattr(model, "adapts", "encoder")
    return adapts != "encoder" and isinstance(learner.task_view(adapts).items, TouchedRows)


def _named(model: Any) -> list[tuple[str, Tensor]]:
    """What adapts of a learner, by its name in the task view, in the order of the names."""
    return sorted((name, p) for name, p in model.learner.named_parameters() if name.startswith("encoder."))


def split_weights(model: Any, flat: Tensor) -> dict[str, Tensor]:
    """Weights (B, P) as tensors (B, ...) by name."""
    named = _named(model)
    sizes = [p.numel() for _, p in named]
    parts = flat[:, : sum(sizes)].split(sizes, 1)
    return {name: part.unflatten(1, p.shape) for (name, p), part in zip(named, parts, strict=True)}


def _corrections(model: Any, found: Any, support: Examples, state: Tensor) -> dict[str, Tensor]:
    """Rows (N, U) that users have changed, and what that adds to their scores, of states (B, Q, D)."""
    rows, added, start = [], [], 0
    items = TouchedRows(model.learner.items)
    for stack in found.stacks:
        part = slice(start, start + stack.users)
        touched = items.per_user(support if len(found.stacks) == 1 else support[part].trim())["touched"].clamp(min=0)
        own = state[part] @ stack.weights()["items.delta"].transpose(-2, -1)
        rows.append(touched.unsqueeze(1).expand(own.shape).flatten(0, 1))
        added.append(own.flatten(0, 1))
        start += stack.users
    most = max(t.shape[1] for t in rows)
    padded = (torch.cat([F.pad(t, (0, most - t.shape[1])) for t in parts]) for parts in (rows, added))
    return dict(zip(("rows", "corrections"), padded, strict=True))


def _beside(tensors: Sequence[Tensor]) -> Tensor:
    """(N, ...) of each of M learners as (N, M, ...), the last axis padded with 0."""
    if tensors[0].ndim < 2:
        return torch.stack(list(tensors), 1)
    most = max(t.shape[-1] for t in tensors)
    return torch.stack([F.pad(t, (0, most - t.shape[-1])) for t in tensors], 1)
