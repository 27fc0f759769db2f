"""An ensemble of one moment: learners of one width are encoded together and scored by one matrix product."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from metarec.meta.bank import Bank, banks_of
from metarec.meta.longer_bank import bank_after
from metarec.model import Model
from metarec.modes import evaluating
from metarec.nn.linear_scores import Spread, measured_states
from metarec.recipes.context_weights import ContextWeights
from metarec.recipes.counting import all_read
from metarec.recipes.ensemble_scores import EnsembleScores
from metarec.recipes.measured_scores import MeasuredScores, same_masks
from metarec.recipes.user_context import user_context
from metarec.scoring import UserState
from metarec.types import Examples
from metarec.versions import hand_on, kept


class StackedLearners:
    """The learners among some models as banks, made anew once one of their weights has changed.

    Args:
        members: models by name; those that move on by clicks are left out.
    """

    def __init__(self, members: Mapping[str, Model]) -> None:
        self.members = {
            name: part
            for name, part in members.items()
            if isinstance(part, nn.Module) and type(part).observe is Model.observe
        }
        self._module = nn.ModuleList(self.members.values())

    def banks(self, warm: NDArray[np.bool_], negatives: int) -> list[Bank]:
        """As they are now; see :func:`metarec.meta.bank.banks_of`."""
        return kept(self._module, "banks", lambda: banks_of(self.members, warm=warm, negatives=negatives))

    def keep_banks_of(self, before: StackedLearners, warm: NDArray[np.bool_]) -> None:
        """Take the banks of the same learners as they were before items were added, if there are any."""

        def longer(banks: list[Bank]) -> list[Bank] | None:
            found = [bank_after(bank, {name: self.members[name] for name in bank.names}, warm) for bank in banks]
            made = [bank for bank in found if bank is not None]
            return made if len(made) == len(banks) else None

        hand_on(before._module, self._module, "banks", longer)

    def is_of(self, members: Mapping[str, Model]) -> bool:
        """Whether these are the learners among other models too."""
        other = StackedLearners(members).members
        return list(other) == list(self.members) and all(other[name] is part for name, part in self.members.items())


class EnsembleSnapshot:
    """What an ensemble computes from its numbers once, and how it encodes and scores with that.

    Args:
        members: the parts by name.
        banks: those of them that are encoded together.
        weights: of the parts.
        warm: (I,) bool, items seen upstream.
        fitted: catalogue rows that scores are measured by, the first so many; None for all.
        first: the part that alone ranks for whoever has a profile and no click; None for none.
    """

    def __init__(
        self,
        members: Mapping[str, Model],
        banks: list[Bank],
        weights: ContextWeights,
        warm: NDArray[np.bool_],
        fitted: int | None,
        first: str | None = None,
    ) -> None:
        self.weights, self.fitted = copy.deepcopy(weights).eval(), fitted
        self.device, self.first = self.weights.weight.device, first
        self.warm = torch.from_numpy(warm).to(self.device)
        self.banks = {"/".join(bank.names): bank for bank in banks}  # several names together are no part's name
        stacked = [name for bank in banks for name in bank.names]
        alone = {name: part for name, part in members.items() if name not in stacked}
        self.alone = {name: part.snapshot() for name, part in alone.items()}
        self._modules = nn.ModuleList(part for part in self.alone.values() if isinstance(part, nn.Module))
        self._modules.training = False  # else it would be switched for every request; the parts have modes of their own
        self.masks = [bank.known.any(1) for bank in banks]
        self._members, self._stacked = alone, stacked

    @cached_property
    def groups(self) -> list[tuple[tuple[str, ...], Tensor]]:
        """Those parts that know the same items; a method of one's own says so once it was asked to encode."""
        return same_masks({name: part.item_mask().to(self.device) for name, part in self._members.items()})

    @cached_property
    def order(self) -> Tensor:
        """(S,) the places of the weights: those of the groups, then those of the banks."""
        names = [*(name for names, _ in self.groups for name in names), *self._stacked]
        return torch.tensor([self.weights.names.index(name) for name in names], device=self.device)

    @torch.no_grad()
    def encode(
        self, support: Examples, query: Examples, *, start: UserState | None = None, keep_weights: bool = False
    ) -> UserState:
        """Every part's state of each query, the ``"context"`` (N, 3), and, where it counts, ``"clicked"`` (N, L).

        Raises:
            ValueError: if weights are to be kept and a learner has none of its own per user.
        """
        if (keep_weights or start is not None) and not self.banks:
            raise ValueError("keep_weights: no part of this ensemble adapts weights to users; leave keep_weights out")
        if query.history.device != self.device:
            support, query = support.to(self.device), query.to(self.device)
        states = {}
        for name, bank in self.banks.items():
            own = None if start is None else start.part(name)
            states[name] = bank.encode(support, query, start=own, keep_weights=keep_weights)
        with evaluating(self._modules):
            states |= {name: part.encode(support, query) for name, part in self.alone.items()}
        told = {"context": user_context(query, self.warm).flatten(0, 1)}
        if self.weights.repeat is not None:
            told["clicked"] = all_read(query)
        return _nested(states, told)

    def encode_empty(self) -> UserState:
        """A user without history: what the parts make of one, and the context of no clicks."""
        with evaluating(self._modules):
            states = {name: part.encode_empty().to(self.device) for name, part in (self.banks | self.alone).items()}
        told = {"context": torch.tensor([[0.0, 0.0, torch.nan]], device=self.device)}
        if self.weights.repeat is not None:
            told["clicked"] = torch.zeros(1, 1, dtype=torch.int32, device=self.device)
        return _nested(states, told)

    @torch.no_grad()
    def scores(self, state: UserState) -> EnsembleScores:
        """The weighted sum of the parts' standardised scores.

        Raises:
            ValueError: if a part's scores are not finite.
        """
        context = state.tensors["context"]
        with evaluating(self._modules):
            parts = {name: part.scores(state.part(name)) for name, part in self.alone.items()}
        measured = MeasuredScores.of(parts, self.groups), self._measured(state)
        weight, unknown = (column.index_select(1, self.order) for column in self._weights(state))
        out = self._summed(*measured, weight, unknown)
        if self.weights.repeat is None:
            return out
        apart = self.weights.of_repeats(context).index_select(1, self.order)
        return out.with_repeats(state.tensors["clicked"].long(), self._summed(*measured, apart, unknown))

    def _measured(self, state: UserState) -> list[tuple[UserState, Spread]]:
        """Of each bank the states and what its scores are measured by."""
        parts = ((bank, state.part(name)) for name, bank in self.banks.items())
        return [(own, measured_states(bank.tables, own)) for bank, own in parts]

    def _summed(
        self,
        measured: MeasuredScores,
        states: Sequence[tuple[UserState, Spread]],
        weight: Tensor,
        unknown: Tensor,
    ) -> EnsembleScores:
        """With these weights (N, S) and scores of unknown items, both in the order of ``order``."""
        done, sums = len(measured.order), []
        for bank, mask, (state, spread) in zip(self.banks.values(), self.masks, states, strict=True):
            own = slice(done, done := done + len(bank.names))
            sums.append((bank.summed(state, weight[:, own], unknown[:, own], spread), mask))
        rest = slice(len(measured.order))
        return measured.weighted(weight[:, rest], unknown[:, rest], sums=sums, fitted=self.fitted)

    @torch.no_grad()
    def user_weights(self, state: UserState) -> Tensor:
        """(N, S) weight of each part."""
        return self._weights(state)[0].float()

    def _weights(self, state: UserState) -> tuple[Tensor, Tensor]:
        """Weights of the parts and scores of unknown items, (N, S) each."""
        context = state.tensors["context"]
        weight, unknown = self.weights(context)
        if self.first is None:
            return weight, unknown
        alone = ((context[:, 0] == 0) & (state.tensors[f"{self.first}/profile"] != 0).any(1)).unsqueeze(1)
        one = torch.zeros_like(weight[:1])
        one[0, self.weights.names.index(self.first)] = 1
        return torch.where(alone, one, weight), torch.where(alone, 0, unknown)


def _nested(states: Mapping[str, UserState], told: Mapping[str, Tensor]) -> UserState:
    active = torch.stack([state.active for state in states.values()]).any(0)
    return UserState({**UserState.nest(states), **told, "active": active})
