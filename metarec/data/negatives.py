"""Negative sampling by a counter-based random number generator, on any device."""

from __future__ import annotations

import copy
import importlib
import importlib.util
from dataclasses import replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from metarec.data.vocabulary import Ints
from metarec.types import Examples

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
MIXERS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))  # shifts and factors of splitmix64


class NegativeSampler:
    """Draws each example's negatives in proportion to the items' weights, none of them its target.

    A draw is a function of (seed, epoch, user, position, number) alone, in whole numbers: the same on every device, in
    every batch and for any number of processes; nothing waits for a GPU.

    Args:
        weights: (I,) sampling weights, whole numbers; at least two items have one.
        negatives: N per example.
        seed: with the epoch, the only source of randomness.
        users: by code a whole number that stands for the user; the code itself by default.

    Example:
        >>> one = torch.ones(1, 3, dtype=torch.int64)
        >>> asked = Examples(one, torch.tensor([[0, 1, 2]]), one, one.unsqueeze(-1), torch.tensor([[1.0, 1.0, 0.0]]))
        >>> draw = NegativeSampler(np.array([0, 1, 0, 1]), negatives=2, seed=0)
        >>> draw(asked, torch.tensor([7]), epoch=0).negatives.tolist()
        [[[3, 3], [3, 3], [0, 0]]]
    """

    def __init__(self, weights: Ints, negatives: int, seed: int, users: Ints | None = None) -> None:
        self.negatives, self.seed = negatives, seed
        self._pool = torch.from_numpy(np.repeat(np.arange(len(weights)), weights))  # each item as often as it weighs
        self._users = None if users is None else torch.from_numpy(users)
        self._first = torch.from_numpy(np.append(0, np.cumsum(weights)))  # where each begins in it

    def to(self, device: torch.device | str) -> Self:
        """The same draws on another device."""
        out = copy.copy(self)
        out._pool, out._first = self._pool.to(device), self._first.to(device)
        out._users = None if self._users is None else self._users.to(device)
        return out

    def __call__(self, examples: Examples, user: Tensor, epoch: int) -> Examples:
        """Examples with the negatives of one epoch, 0 where they are padding.

        Args:
            examples: of B users.
            user: (B,) their codes.
            epoch: from 0.
        """
        if not self.negatives:
            return examples
        user = user if self._users is None else self._users[user]
        salt = signed(mixed_int(mixed_int(self.seed) ^ epoch))
        if user.is_cuda and importlib.util.find_spec("triton") is not None:  # pragma: no cover
            kernel = importlib.import_module("metarec.data.negatives_gpu")
            found = kernel.drawn(examples, user, salt, self._first, self._pool, self.negatives)
            return replace(examples, negatives=found)
        stream = mixed(user ^ salt).view(-1, 1, 1)
        counter = (examples.position.unsqueeze(-1) << 32) + torch.arange(self.negatives, device=user.device)
        bits = mixed(counter.mul_(signed(GOLDEN)).add_(stream))
        first, after = (self._first[examples.target + more].unsqueeze(-1) for more in (0, 1))
        own = after - first  # points of the target's, which are left out
        point = (bits >> 1 & MASK >> 1).remainder_((len(self._pool) - own).clamp_(min=1))
        point += own * (point >= first)
        return replace(examples, negatives=self._pool[point] * (examples.weight > 0).unsqueeze(-1))


def mixed(key: Tensor) -> Tensor:
    """The finaliser of splitmix64 (Steele, Lea and Flood, OOPSLA 2014) of int64s: every bit depends on every bit.

    Example:
        >>> mixed(torch.tensor([0])).item() == signed(mixed_int(0)) == signed(0xE220A8397B1DCDAF)
        True
    """
    key = key + signed(GOLDEN)
    for shift, factor in MIXERS:
        key ^= key >> shift & MASK >> shift
        key *= signed(factor)
    return key


def mixed_int(key: int) -> int:
    """The same of a Python int, from 0 to 2^64 - 1."""
    key = key + GOLDEN & MASK
    for shift, factor in MIXERS:
        key = (key ^ key >> shift) * factor & MASK
    return key


def signed(number: int) -> int:
    """The int64 of the same bits."""
    return number - (number >> 63 << 64)
