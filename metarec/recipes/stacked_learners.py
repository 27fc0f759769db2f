"""Those parts of an ensemble that are encoded together and scored by one matrix product: learners of one width."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray
from torch import Tensor, nn

from metarec.meta.bank import Bank, banks_of
from metarec.model import Model, kept
from metarec.scoring import Scores, UserState
from metarec.types import Examples


class StackedLearners:
    """Banks of the learners among some models, made anew once one of their weights has changed.

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

    def banks(self) -> list[Bank]:
        """Frozen, of one width each."""
        return kept(self._module, "banks", lambda: banks_of(self.members))

    def holds(self, members: Mapping[str, Model]) -> bool:
        """Whether these are made of the same learners."""
        other = StackedLearners(members).members
        return list(other) == list(self.members) and all(other[name] is part for name, part in self.members.items())

    def encode(
        self, support: Examples, query: Examples, *, start: UserState | None, keep_weights: bool
    ) -> dict[str, UserState]:
        """The states of each bank, under the names of all of its learners.

        Raises:
            ValueError: if weights are to be kept and a learner has none of its own per user.
        """
        banks = self.banks()
        if (keep_weights or start is not None) and not banks:
            raise ValueError("keep_weights: no part of this ensemble adapts weights to users; leave keep_weights out")
        return {
            key(bank): bank.encode(
                support, query, start=None if start is None else start.part(key(bank)), keep_weights=keep_weights
            )
            for bank in banks
        }

    def encode_empty(self, warm: NDArray[Any], negatives: int) -> dict[str, UserState]:
        """The states of a user without history."""
        make = lambda: {key(bank): bank.encode_empty(warm, negatives) for bank in self.banks()}  # noqa: E731
        return kept(self._module, "empty", make)

    def names(self) -> list[str]:
        """Of the learners that are in a bank, bank by bank."""
        return [name for bank in self.banks() for name in bank.names]

    def sums(self, state: UserState, weight: Tensor, unknown: Tensor) -> list[tuple[Scores, Tensor]]:
        """Of each bank the weighted sum of standardised scores, and (I,) bool the items that one of its learners knows.

        Args:
            state: of the ensemble.
            weight: (N, M) of the learners, in the order of :meth:`names`.
            unknown: (N, M), what an item gets that a learner does not know.
        """
        out: list[tuple[Scores, Tensor]] = []
        done = 0
        for bank in self.banks():
            own = slice(done, done + len(bank.names))
            out.append((bank.scores(state.part(key(bank)), weight[:, own], unknown[:, own]), bank.known.any(1)))
            done = own.stop
        return out


def key(bank: Bank) -> str:
    """What a bank's states are under: the name of a part by itself; several names together are no part's name."""
    return "/".join(bank.names)
