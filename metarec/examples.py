"""Next-item examples: what a user clicked, and what came next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Examples:
    """Next-item examples of B users, all cut from one sequence per user.

    Example ``s`` of a user reads ``history[: position[s] + 1]`` and predicts ``target[s]``. A causal encoder
    therefore serves all S examples from a single pass over the history; no prefix is stored twice.

    Attributes:
        history: (B, L) int64 item codes in time order, padded on the right with 0.
        position: (B, S) int64, index of the last history item that example s may read.
        target: (B, S) int64, the item that came next (0 where the example is padding).
        negatives: (B, S, N) int64 items that are not the target.
        weight: (B, S) float, 1 for an example and 0 for padding.
        time: (B, S) when the target was clicked, in the units of the data; None where it is not known. Scorers of
            what is popular at the moment read it; learners do not.
        gap: (B, S) how many seconds before that the user clicked last, in the units of the data where nothing says how
            long a second is; None where it is not known.
        profile: (B, P) what is known of each user, 0 where nothing is; None where nothing is of anybody.
        events: (B, E) the events of all kinds, clicks among them, in time order, coded by
            :func:`~metarec.functional.kinds.coded`; None where there are clicks alone.
        read: (B, S) index of the last event that example s may read; -1 where there is none of those in ``events``.

    Raises:
        ValueError: if the shapes do not belong together.

    Example:
        >>> e = Examples(torch.tensor([[3, 1, 0]]), torch.tensor([[0]]), torch.tensor([[1]]),
        ...              torch.tensor([[[2]]]), torch.ones(1, 1))
        >>> len(e), e.trim().history.tolist()
        (1, [[3]])
    """

    history: Tensor
    position: Tensor
    target: Tensor
    negatives: Tensor
    weight: Tensor
    time: Tensor | None = None
    gap: Tensor | None = None
    profile: Tensor | None = None
    events: Tensor | None = None
    read: Tensor | None = None

    def __post_init__(self) -> None:
        users, shape = self.history.shape[:-1], self.position.shape
        ok = (
            shape[:-1] == users
            and all(tensor.shape == shape for tensor in self._of_examples().values())
            and self.target.shape == shape
            and self.weight.shape == shape
            and self.negatives.shape[:-1] == shape
            and all(tensor.shape[:-1] == users for tensor in self._of_users().values())
            and (self.events is None) == (self.read is None)
        )
        if not ok:
            given = {f.name: getattr(self, f.name) for f in fields(self)}
            got = {name: tuple(tensor.shape) for name, tensor in given.items() if tensor is not None}
            want = "expected history (B,L), position, target, weight, time, gap, read (B,S), negatives (B,S,N)"
            raise ValueError(f"Examples: {want}, profile (B,P), events (B,E), got {got}")

    def __len__(self) -> int:
        return self.history.shape[0]

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The five tensors that a learner reads, in the order of the constructor."""
        return self.history, self.position, self.target, self.negatives, self.weight

    def _of_examples(self) -> dict[str, Tensor]:
        """What is known of time and gap, and where events are read."""
        return {n: tensor for n in ("time", "gap", "read") if (tensor := getattr(self, n)) is not None}

    def _of_users(self) -> dict[str, Tensor]:
        """What is known of users besides their clicks."""
        return {n: tensor for n in ("profile", "events") if (tensor := getattr(self, n)) is not None}

    def each(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same with every tensor changed."""
        known = self._of_examples() | self._of_users()
        return type(self)(*map(change, self.tensors()), **{name: change(t) for name, t in known.items()})

    def with_events(self) -> Self:
        """The same with the events of all kinds in place of the clicks of the history, for who reads kinds.

        An example that may read none of them weighs nothing.

        Example:
            >>> from metarec.functional.kinds import coded
            >>> one = torch.ones(1, 1, dtype=torch.int64)
            >>> e = Examples(3 * one, 0 * one, 5 * one, one.unsqueeze(2), torch.ones(1, 1),
            ...              events=torch.tensor([[3, coded(5, 1)]]), read=one)
            >>> e.with_events().history.tolist() == e.events.tolist(), e.with_events().position.tolist()
            (True, [[1]])
        """
        if self.events is None or self.read is None:
            return self
        weight = self.weight * (self.read >= 0)
        return replace(
            self, history=self.events, position=self.read.clamp(min=0), weight=weight, events=None, read=None
        )

    def to(self, device: torch.device | str) -> Self:
        """The same examples on another device."""
        return self.each(lambda tensor: tensor.to(device))

    def __getitem__(self, users: slice | Tensor) -> Self:
        """The examples of some users, in the order asked for."""
        return self.each(lambda tensor: tensor[users])

    def trim(self) -> Self:
        """The same examples without the trailing columns that only pad."""
        real = (self.weight > 0).any(0)
        examples = int(real.nonzero().max()) + 1 if real.any() else 1
        return replace(
            self,
            position=self.position[:, :examples],
            target=self.target[:, :examples],
            negatives=self.negatives[:, :examples],
            weight=self.weight[:, :examples],
            **{name: tensor[:, :examples] for name, tensor in self._of_examples().items()},
        ).trim_history()

    def trim_history(self) -> Self:
        """The same examples without the trailing columns of the history that no example reads."""
        real = self.weight > 0
        length = _longest(self.position, real)
        out = replace(self, history=self.history[:, :length], position=self.position.clamp(max=length - 1))
        if self.events is None or self.read is None:
            return out
        length = _longest(self.read, real)
        return replace(out, events=self.events[:, :length], read=self.read.clamp(max=length - 1))


def _longest(position: Tensor, real: Tensor) -> int:
    """One past the last position that an example reads, at least 1."""
    read = position[real]
    return max(1, int(read.max()) + 1) if read.numel() else 1
