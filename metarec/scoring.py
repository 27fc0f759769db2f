"""What passes from encoding to scoring: user states, and scores of the catalogue made a piece at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Protocol, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from metarec.functional.fusion import FLAT

AT_ONCE = 1 << 17  # scores whose moments are computed at once: what fits a cache is several times as fast


@dataclass(frozen=True, eq=False)
class UserState:
    """What a model keeps of N users after it has encoded them: named tensors, a few hundred bytes a user.

    Attributes:
        tensors: by name, (N, ...) each. ``"active"``, (N, ...) bool, says whether the model knows something of the
            history. Names of an ensemble's parts are ``"part/name"``. Padding is 0.

    Example:
        >>> state = UserState({"active": torch.ones(2) > 0, "history": torch.tensor([[3, 1], [2, 0]])})
        >>> len(state), state[1:].tensors["history"].tolist(), state.nbytes
        (2, [[2, 0]], 34)
    """

    tensors: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(self.tensors["active"])

    def __getitem__(self, users: slice | Tensor) -> Self:
        """Some of the users, in the order asked for."""
        return type(self)({name: tensor[users] for name, tensor in self.tensors.items()})

    @property
    def nbytes(self) -> int:
        """The size of all tensors in bytes."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def active(self) -> Tensor:
        """(N,) bool, whether anything is known of a user's history."""
        return self.tensors["active"].flatten(1).any(1) if self.tensors["active"].ndim > 1 else self.tensors["active"]

    def to(self, device: torch.device | str) -> Self:
        """The same on another device."""
        return type(self)({name: tensor.to(device) for name, tensor in self.tensors.items()})

    def part(self, name: str) -> UserState:
        """What one part of an ensemble keeps."""
        return UserState({own: self.tensors[whole] for own, whole in _names(tuple(self.tensors), name)})

    def named(self, own: str) -> dict[str, Tensor]:
        """What a model, or each part of an ensemble, keeps under one name; by its whole name.

        Example:
            >>> list(UserState({"active": torch.ones(1) > 0, "next/time": torch.ones(1)}).named("time"))
            ['next/time']
        """
        return {name: tensor for name, tensor in self.tensors.items() if name.rpartition("/")[2] == own}

    @classmethod
    def nest(cls, parts: Mapping[str, UserState]) -> dict[str, Tensor]:
        """The tensors of all parts under the parts' names."""
        return {f"{name}/{own}": t for name, state in parts.items() for own, t in state.tensors.items()}

    @classmethod
    def join(cls, parts: Sequence[UserState]) -> UserState:
        """Users one after the other; narrower tensors are padded with 0."""
        if len(parts) == 1:
            return parts[0]
        return cls({name: _cat([part.tensors[name] for part in parts]) for name in parts[0].tensors})


@lru_cache(maxsize=1024)
def _names(names: tuple[str, ...], part: str) -> list[tuple[str, str]]:
    """Of a part of an ensemble: the names that it gave, and the whole ones."""
    return [(name[len(part) + 1 :], name) for name in names if name.startswith(f"{part}/")]


def _cat(tensors: Sequence[Tensor]) -> Tensor:
    widest = [max(sizes) for sizes in zip(*(t.shape[1:] for t in tensors), strict=True)]
    room = [[(0, most - size) for most, size in zip(widest, t.shape[1:], strict=True)] for t in tensors]
    return torch.cat([F.pad(t, list(chain(*own[::-1]))) for t, own in zip(tensors, room, strict=True)])


class Scores(Protocol):
    """Scores of N users against the catalogue, made a piece at a time; a value that later changes leave alone."""

    def __len__(self) -> int:
        """N."""
        ...

    def __getitem__(self, users: slice) -> Scores:
        """The scores of some users."""
        ...

    def error(self) -> Tensor:
        """(N,) float64, how far ``approximate`` may be from ``exact``."""
        ...

    def approximate(self, start: int, stop: int) -> Tensor:
        """(N, stop - start) of a piece of the catalogue; a new tensor."""
        ...

    def exact(self, codes: Tensor) -> Tensor:
        """(N, K) float64 of item codes (N, K): of one user, whoever else is asked about."""
        ...

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation, (N,) float64, over the items that the model knows and training knew; 0 where flat."""
        ...


@dataclass(frozen=True, eq=False)
class DenseScores:
    """Scores that were computed before, for models that score everything at once.

    Attributes:
        given: (N, I).
        known: (I,) bool, items that the moments are taken over.

    Example:
        >>> scores = DenseScores(torch.tensor([[0.0, 1.0, 3.0]]), torch.arange(3) > 0)
        >>> [moment.tolist() for moment in scores.moments()]
        [[2.0], [1.0]]
    """

    given: Tensor
    known: Tensor

    def __len__(self) -> int:
        return len(self.given)

    def __getitem__(self, users: slice) -> Self:
        """The scores of some users."""
        return type(self)(self.given[users], self.known)

    def error(self) -> Tensor:
        """(N,) zero: nothing is computed again."""
        return self.given.new_zeros(len(self.given), dtype=torch.float64)

    def approximate(self, start: int, stop: int) -> Tensor:
        """(N, stop - start) of a piece of the catalogue."""
        return self.given[:, start:stop].clone()

    def exact(self, codes: Tensor) -> Tensor:
        """(N, K) float64 of item codes (N, K)."""
        return self.given.gather(1, codes).double()

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation over the known items."""
        return moments_of(self.given[:, : len(self.known)][:, self.known])


def moments_of(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation, (N,) float64 each, of rows (N, n); 0 where a row is flat.

    Example:
        >>> [moment.tolist() for moment in moments_of(torch.tensor([[1.0, 3.0], [2.0, 2.0]]))]
        [[2.0, 2.0], [1.0, 0.0]]
    """
    width = max(1, values.shape[1])
    parts = [_moments(part, width) for part in values.split(max(1, AT_ONCE // width))]
    return parts[0] if len(parts) == 1 else (torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts]))


def _moments(values: Tensor, width: int) -> tuple[Tensor, Tensor]:
    centred = values.double()
    mean = centred.sum(1) / width
    centred = centred - mean.unsqueeze(1)
    deviation = (centred.square().sum(1) / width).sqrt()
    if not values.shape[1]:
        return mean, deviation
    return mean, torch.where(centred.abs().amax(1) <= FLAT * mean.abs(), 0, deviation)
