"""Those parts of an ensemble that are encoded together and scored by one matrix product: learners of one width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray
from torch import Tensor, nn

from metarec.meta.bank import Bank, banks_of
from metarec.model import Model
from metarec.scoring import Scores, UserState
from metarec.types import Examples
from metarec.versions import kept


class StackedLearners:
    """Banks of learners, frozen.

    Args:
        banks: of one width each.

    Attributes:
        names: of the learners, bank by bank.
    """

    def __init__(self, banks: Sequence[Bank]) -> None:
        self._banks = {"/".join(bank.names): bank for bank in banks}  # several names together are no part's name
        self.names = [name for bank in banks for name in bank.names]
        self._known = [bank.known.any(1) for bank in banks]
        self._empty: dict[str, UserState] = {}

    def encode(
        self, support: Examples, query: Examples, *, start: UserState | None, keep_weights: bool
    ) -> dict[str, UserState]:
        """The states of each bank, under the names of all of its learners.

        Raises:
            ValueError: if weights are to be kept and a learner has none of its own per user.
        """
        if (keep_weights or start is not None) and not self._banks:
            raise ValueError("keep_weights: no part of this ensemble adapts weights to users; leave keep_weights out")
        out = {}
        for name, bank in self._banks.items():
            own = None if start is None else start.part(name)
            out[name] = bank.encode(support, query, start=own, keep_weights=keep_weights)
        return out

    def encode_empty(self, warm: NDArray[Any], negatives: int) -> dict[str, UserState]:
        """The states of a user without history; made once."""
        if not self._empty:
            self._empty = {name: bank.encode_empty(warm, negatives) for name, bank in self._banks.items()}
        return dict(self._empty)

    def sums(self, state: UserState, weight: Tensor, unknown: Tensor) -> list[tuple[Scores, Tensor]]:
        """Of each bank the weighted sum of standardised scores, and (I,) bool the items that one of its learners knows.

        Args:
            state: of the ensemble.
            weight: (N, M) of the learners, in the order of ``names``.
            unknown: (N, M), what an item gets that a learner does not know.
        """
        out: list[tuple[Scores, Tensor]] = []
        done = 0
        for (name, bank), known in zip(self._banks.items(), self._known, strict=True):
            own = slice(done, done + len(bank.names))
            out.append((bank.scores(state.part(name), weight[:, own], unknown[:, own]), known))
            done = own.stop
        return out


class Stacking:
    """The learners among some models, stacked anew once one of their weights has changed.

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

    def __call__(self) -> StackedLearners:
        """As they are now."""
        return kept(self._module, "stacked", lambda: StackedLearners(banks_of(self.members)))

    def is_of(self, members: Mapping[str, Model]) -> bool:
        """Whether these are the learners among other models too."""
        other = Stacking(members).members
        return list(other) == list(self.members) and all(other[name] is part for name, part in self.members.items())
